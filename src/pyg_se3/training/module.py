"""The Lightning module: one step for training, validation and test."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch_geometric.data import Batch
from torchmetrics import MeanAbsoluteError

from pyg_se3.ops import KernelOptions
from pyg_se3.training.callbacks.time_budget import TimeBudget
from pyg_se3.training.checkpoint import (
    FORMAT,
    check_same_architecture,
    load_model,
    model_record,
)
from pyg_se3.training.schedules import WarmupCosine

# Settings of a data module that concern the machine, not the run.
_MACHINE = {
    "root", "progress", "num_workers", "pin_memory", "mmap", "precompute_geometry",
    "geometry_dtype", "geometry_max_degree",
}  # fmt: skip


class SE3Module(pl.LightningModule):
    """Regression of molecular properties with an L1 loss on standardised targets.

    With μ, σ the mean and standard deviation of a target over the training set:
    ``loss = mean |net(batch) - (y - μ) / σ|``. Errors are logged as ``val/mae`` and ``test/mae`` in
    the target's unit; for several targets as ``val/mae/<name>`` each, and ``val/mae`` is then
    their mean in standard deviations.

    Args:
        net: Maps a PyG ``Batch`` to ``[B, T]`` (or by degree, ``{0: [B, T, 1]}``).
        optimizer: Makes the optimizer from the parameters.
        scheduler: Makes the learning-rate schedule from the optimizer; stepped after every
            optimizer step.
        kernel: How the convolutions are computed; never part of a checkpoint.
        targets: Names of the T targets. Taken from the data module if None, as are:
        units: Their units.
        target_mean: Their means [T].
        target_std: Their standard deviations [T].
    """

    target_mean: Tensor
    target_std: Tensor

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        kernel: KernelOptions | None = None,
        targets: Sequence[str] | None = None,
        units: Sequence[str] | None = None,
        target_mean: Sequence[float] | None = None,
        target_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.optimizer, self.scheduler = optimizer, scheduler
        if kernel is not None:
            if not hasattr(net, "set_kernel"):
                raise TypeError(f"kernel options need a pyg-se3 model, got {type(net).__name__}")
            net.set_kernel(kernel)  # type: ignore[operator]
        self.targets: list[str] = []
        self.units: list[str] = []
        self.data_record: dict[str, Any] | None = None
        self.register_buffer("target_mean", torch.zeros(0))
        self.register_buffer("target_std", torch.ones(0))
        if targets is not None:
            if units is None or target_mean is None or target_std is None:
                raise ValueError("targets need units, target_mean and target_std, too")
            self.set_targets(targets, units, target_mean, target_std)

    def set_targets(
        self,
        names: Sequence[str],
        units: Sequence[str],
        mean: Sequence[float] | Tensor,
        std: Sequence[float] | Tensor,
    ) -> None:
        """Name the outputs and set how they are standardised.

        Args:
            names: Names of the targets.
            units: Their units.
            mean: Means [T].
            std: Standard deviations [T], positive.

        Raises:
            ValueError: If the lengths differ, the model has another number of outputs, or a
                standard deviation is not positive.
        """
        mean, std = torch.as_tensor(mean).float(), torch.as_tensor(std).float()
        if not len(names) == len(units) == mean.numel() == std.numel() or not names:
            raise ValueError(
                f"expected as many names, units, means and deviations, got {list(names)}, "
                f"{list(units)}, {mean.tolist()}, {std.tolist()}"
            )
        if not bool((std > 0).all()):
            raise ValueError(f"standard deviations must be positive, got {std.tolist()}")
        outputs = getattr(self.net, "config", {}).get("output_dim")
        if outputs is not None and outputs != len(names):
            raise ValueError(
                f"the model has output_dim={outputs}, the data {len(names)} targets "
                f"({', '.join(names)}); they must agree"
            )
        self.targets, self.units = list(names), list(units)
        self.target_mean, self.target_std = mean, std
        self.val_mae = MeanAbsoluteError(num_outputs=len(names))
        self.test_mae = MeanAbsoluteError(num_outputs=len(names))

    @property
    def unit(self) -> str:
        """Unit of ``val/mae`` and ``test/mae``."""
        return self.units[0] if len(self.units) == 1 else "standard deviations"

    def setup(self, stage: str) -> None:
        """Take targets and statistics from the data module, unless they are known."""
        data = getattr(self.trainer, "datamodule", None)
        if data is not None:
            self.use_data(data)
        elif not self.targets:
            raise ValueError(
                "the targets are unknown: train with a data module that has target_names, "
                "target_units, target_mean and target_std, or give them to SE3Module"
            )

    def use_data(self, data: Any) -> None:
        """Take targets and statistics from a data module, unless they are known, and record it.

        Args:
            data: The data module, set up.
        """
        if not self.targets:
            self.set_targets(
                data.target_names, data.target_units, data.target_mean, data.target_std
            )
        if self.data_record is None:
            # LightningCLI adds entries of its own to the hyperparameters.
            known = inspect.signature(type(data)).parameters.keys() - _MACHINE
            self.data_record = {
                "class": type(data).__name__,
                "config": {k: v for k, v in data.hparams.items() if k in known},
                "description": data.describe() if hasattr(data, "describe") else None,
            }

    def forward(self, batch: Batch) -> Tensor:
        """Predictions in the targets' units [B, T]."""
        return self._standardised(batch) * self.target_std + self.target_mean

    def _standardised(self, batch: Batch) -> Tensor:
        if self.target_mean.dtype == torch.float64:
            # precision=64; Lightning does not know how to convert PyG's batches.
            batch = copy.copy(batch).apply(lambda t: t.double() if t.is_floating_point() else t)
        out = self.net(batch)
        if isinstance(out, dict):
            out = out[0].squeeze(-1)
        # Losses and statistics stay in float32, whatever the model computes in.
        return out.float() if out.dtype in (torch.float16, torch.bfloat16) else out

    def _step(self, batch: Batch, stage: str) -> dict[str, Tensor]:
        out = self._standardised(batch)
        target = batch.y
        if target.shape != out.shape:
            raise ValueError(
                f"the model gives {list(out.shape)} [molecules, targets], but batch.y is "
                f"{list(target.shape)}"
            )
        loss = self._loss(out, (target - self.target_mean) / self.target_std, batch, stage)
        prediction = out.detach() * self.target_std + self.target_mean
        if stage == "train":
            self.log("train/loss", loss, prog_bar=True, batch_size=batch.num_graphs, sync_dist=True)
        else:
            getattr(self, f"{stage}_mae").update(prediction, target.to(prediction.dtype))
        return {"loss": loss, "prediction": prediction, "target": target}

    def _loss(self, out: Tensor, target: Tensor, batch: Batch, stage: str) -> Tensor:
        """Mean over molecules and targets; its mean over processes is that of all their molecules.

        Processes may have unequally many molecules, and some twice (see ``MoleculeLoader``); those
        count once.
        """
        if stage != "train" or self.trainer.world_size == 1:
            return nn.functional.l1_loss(out, target)
        counted = out.size(0) - getattr(batch, "num_repeated", 0)
        count: Any = torch.tensor(float(counted), device=out.device)
        count = self.trainer.strategy.reduce(count, reduce_op="mean")
        total = nn.functional.l1_loss(out[:counted], target[:counted], reduction="sum")
        return total / (count * target.size(1))

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """See :meth:`_step`."""
        return self._step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """See :meth:`_step`."""
        return self._step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """See :meth:`_step`."""
        return self._step(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Predictions in the targets' units [B, T]."""
        return self(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the validation errors."""
        self._log_errors("val")

    def on_test_epoch_end(self) -> None:
        """Log the test errors."""
        self._log_errors("test")

    def _log_errors(self, stage: str) -> None:
        metric: MeanAbsoluteError = getattr(self, f"{stage}_mae")
        errors = metric.compute().reshape(-1)
        metric.reset()
        # The mean loss, too, comes from sums over all processes: Lightning's own mean is wrong
        # where they have unequally many molecules.
        loss = (errors / self.target_std).mean()
        self.log(f"{stage}/loss", loss, sync_dist=True)
        if len(self.targets) == 1:
            self.log(f"{stage}/mae", errors[0], prog_bar=True, sync_dist=True)
            return
        for name, error in zip(self.targets, errors, strict=True):
            self.log(f"{stage}/mae/{name}", error, sync_dist=True)
        self.log(f"{stage}/mae", loss, prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Optimizer and, if any, the schedule, stepped after every optimizer step."""
        optimizer = self.optimizer(self.parameters())
        if self.scheduler is None:
            return optimizer
        scheduler = self.scheduler(optimizer)
        interval = {"scheduler": scheduler, "interval": "step", "name": "lr"}
        if "metrics" in inspect.signature(scheduler.step).parameters:
            interval |= {"interval": "epoch", "monitor": "val/mae"}
        return {"optimizer": optimizer, "lr_scheduler": interval}

    def on_train_start(self) -> None:
        """Tell the schedule how long the run is.

        Raises:
            ValueError: If that is not known.
        """
        # Not in configure_optimizers: there it would make Lightning set up its loaders before it
        # restores where in the epoch a resumed run was.
        for config in self.trainer.lr_scheduler_configs:
            scheduler = config.scheduler
            if not isinstance(scheduler, WarmupCosine) or scheduler.total_steps is not None:
                continue
            steps = self.trainer.estimated_stepping_batches
            if steps != float("inf"):
                scheduler.total_steps = int(steps)
            elif not any(isinstance(c, TimeBudget) for c in self.trainer.callbacks):  # type: ignore[attr-defined]
                raise ValueError(
                    "the schedule cannot know when the run ends: set trainer.max_epochs or "
                    "trainer.max_steps, or a time budget (callbacks.time_budget.minutes)"
                )

    def describe(self) -> dict[str, Any]:
        """What a checkpoint says about itself: plain values, enough to rebuild and test it."""
        return {
            "format": FORMAT,
            "model": model_record(self.net),
            "targets": list(self.targets),
            "units": list(self.units),
            "data": self.data_record,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record architecture, targets and data; nothing about how it was computed."""
        for key in ("datamodule_hyper_parameters", "datamodule_hparams_name", "hparams_name"):
            checkpoint.pop(key, None)
        checkpoint["hyper_parameters"] = self.describe()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of another architecture, or of other targets.

        Raises:
            ValueError: Naming what differs.
        """
        check_same_architecture(checkpoint, self.describe())


def load_module(
    path: str | os.PathLike[str], kernel: KernelOptions | None = None
) -> tuple[SE3Module, dict[str, Any]]:
    """The trained model of a checkpoint as a module, whose predictions have the targets' units.

    Args:
        path: The checkpoint.
        kernel: How the model computes.

    Returns:
        The module and the whole checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: See :func:`pyg_se3.training.load_model`.
    """
    net, checkpoint = load_model(path, kernel)
    record, weights = checkpoint["hyper_parameters"], checkpoint["state_dict"]
    module = SE3Module(
        net,
        targets=record["targets"],
        units=record["units"],
        target_mean=weights["target_mean"],
        target_std=weights["target_std"],
    )
    return module, checkpoint
