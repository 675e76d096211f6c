"""Stop as soon as the loss is not a number, and say where that came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

SMALLEST_SCALE = 1e-4
"""Of gradients under ``16-mixed``: thirty halvings of the scale that it begins with."""


class NonFiniteLossError(RuntimeError):
    """The training loss, or its gradient, became NaN or infinite."""


class StopOnNonFinite(pl.Callback):
    """End the run when the training loss is NaN or infinite, with a message that names the layer.

    The batch at hand is run again to find the first layer whose output is not finite. All processes
    end together, whichever has the batch.

    Under ``16-mixed`` gradients that overflow are no reason to end: their step is skipped and their
    scale halved. Where that does not help, the scale falls below :data:`SMALLEST_SCALE`.

    Args:
        every_n_steps: How often to look. None: before every step on a CPU, before every tenth on a
            GPU, where every look waits for the device. Weights that a step between two looks spoilt
            are noticed, but the layer is not known any more.

    Raises:
        ValueError: If ``every_n_steps`` is not positive.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._unchecked: Tensor | None = None
        self._steps = 0
        self._batch: Any = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch, in case it is the one."""
        self._batch = batch

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Look at the loss, before it can reach the weights."""
        loss = loss.detach()
        # A sum keeps what was not finite, so no step between two looks is missed.
        self._unchecked = loss if self._unchecked is None else self._unchecked + loss
        self._steps += 1
        if self._steps % self._interval(pl_module) == 0:
            self._check(trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Look at the scale of the gradients, if any: no step must be skipped for ever."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is None or self._steps % self._interval(pl_module) != 0:
            return
        scale = scaler.get_scale()
        if scale >= SMALLEST_SCALE:
            return
        gradients = {n: p.grad for n, p in pl_module.named_parameters() if p.grad is not None}
        what = f"gradients are not finite even if scaled by {scale:.1g}"
        _end_together(trainer, what, _not_finite(gradients))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Never save weights that are not finite, or followed from a loss that was not."""
        self._check(trainer, pl_module)
        _end_together(trainer, "a checkpoint cannot be saved", _spoilt_weights(pl_module))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the batch go."""
        self._batch = None

    def _interval(self, pl_module: pl.LightningModule) -> int:
        if self.every_n_steps is not None:
            return self.every_n_steps
        return 1 if pl_module.device.type == "cpu" else 10

    def _check(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loss, self._unchecked = self._unchecked, None
        if loss is None:
            return
        total: Any = trainer.strategy.reduce(loss, reduce_op="sum")
        if bool(torch.isfinite(total)):
            return
        found = _of_all(trainer, _spoilt_input(pl_module, self._batch))
        if found is None:
            found = _of_all(trainer, _spoilt_output(trainer, pl_module, self._batch))
        found = found or "run again, the batch gives finite values everywhere"
        raise _error(f"the training loss is {float(total)}", found, trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Add the cause where a kernel's linear algebra failed: numbers that are not finite."""
        if not isinstance(exception, torch.linalg.LinAlgError) or self._batch is None:
            return
        found = _spoilt_input(pl_module, self._batch)
        # With FSDP a model runs in all processes or in none, and this one is alone.
        if found is None and not isinstance(trainer.strategy, FSDPStrategy):
            found = _spoilt_output(trainer, pl_module, self._batch)
        if found is not None:
            exception.__cause__ = _error("numbers are not finite", found, trainer)


def _error(what: str, found: str, trainer: pl.Trainer) -> NonFiniteLossError:
    return NonFiniteLossError(
        f"{what} at step {trainer.global_step}: {found}. Lower the learning rate "
        "(optimizer.lr=...), clip gradients (trainer.gradient_clip_val=10), use "
        "trainer.precision=32, or look for molecules with wrong positions or targets. The "
        "checkpoints are from before and intact: go on from them with resume=true"
    )


def _end_together(trainer: pl.Trainer, what: str, found: str | None) -> None:
    # Where weights are divided among processes, one of them may have what is not finite.
    if trainer.strategy.reduce_boolean_decision(found is not None, all=False):
        raise _error(what, found or "it is in another process", trainer)


def _of_all(trainer: pl.Trainer, cause: str | None) -> str | None:
    """The first cause that a process found."""
    causes = [cause] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(causes, cause)
    return next((c for c in causes if c is not None), None)


def _spoilt_input(pl_module: pl.LightningModule, batch: Any) -> str | None:
    """What is not finite in the batch or the weights, if anything is."""
    for name, value in batch.to_dict().items():
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            return f"batch.{name} is not finite in {_molecules(batch, name, value)}"
    return _spoilt_weights(pl_module)


def _spoilt_output(trainer: pl.Trainer, pl_module: Any, batch: Any) -> str | None:
    """Which layer's output is not finite, if any is: runs the batch again."""

    def run() -> None:
        if isinstance(trainer.strategy, FSDPStrategy):  # gathers the weights of all processes
            trainer.strategy.predict_step(batch, 0)
            return
        with trainer.precision_plugin.train_step_context():
            pl_module(batch)

    name = first_non_finite(pl_module.net, run)
    return None if name is None else f"the first layer whose output is not finite is {name}"


def _spoilt_weights(pl_module: pl.LightningModule) -> str | None:
    found = _not_finite(dict(pl_module.named_parameters()))
    if found is None:
        return None
    return (
        f"a step made weights not finite ({found}): its gradients were, or "
        "callbacks.finite.every_n_steps=1 is needed to see the layer"
    )


def _not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that is not finite, and how many more are not."""
    names = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if not names:
        return None
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _molecules(batch: Any, name: str, value: Tensor) -> str:
    rows = (~value.isfinite()).flatten(1).any(1).nonzero().flatten()
    if value.size(0) == batch.num_nodes:
        rows = batch.batch[rows].unique()
    elif value.size(0) != batch.num_graphs:
        return f"{rows.numel()} rows"
    if "idx" in batch:
        rows = batch.idx[rows]
    return f"molecules {', '.join(map(str, rows[:5].tolist()))}" + (
        ", ..." if len(rows) > 5 else ""
    )


def first_non_finite(net: nn.Module, run: Callable[[], Any]) -> str | None:
    """Name of the first submodule, in order of execution, whose output is not finite.

    Args:
        net: The model.
        run: Calls it.

    Returns:
        The name, None if all outputs are finite.
    """
    found: list[str] = []

    def hook(name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and any(not t.isfinite().all() for t in _tensors(output)):
                path = name.replace("_fsdp_wrapped_module.", "")
                found.append(f"{path} ({type(module).__name__})" if path else "the last")

        return look

    handles = [m.register_forward_hook(hook(name)) for name, m in net.named_modules()]
    try:
        run()
    except torch.linalg.LinAlgError:
        # A kernel could not go on with what the layers before it gave.
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
