"""Exponential moving average of the weights."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import FSDPStrategy
from torch import Tensor

RAW = "raw_parameters"
"""Checkpoint entry with the weights that are being trained; ``state_dict`` has the averages."""


class ExponentialMovingAverage(pl.Callback):
    """Validate, test and save with averaged weights; train on with the others.

    After step n (from 1): ``average += (1 - d) (weights - average)`` with
    ``d = min(decay, (1 + n) / (10 + n))``, so that early averages follow quickly.

    Checkpoints hold the averages as ``state_dict``, so that whoever loads one gets them, and the
    weights in training beside them, for exact resuming. When training ends the model has the
    averages.

    Args:
        decay: Weight of the past, in (0, 1).

    Raises:
        ValueError: If ``decay`` is out of range.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay must lie between 0 and 1, got {decay}")
        self.decay = decay
        self.steps = 0
        self.average: dict[str, Tensor] = {}
        self._swapped = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start from the current weights, unless a checkpoint brought averages.

        Raises:
            ValueError: If the weights are divided among processes.
        """
        if isinstance(trainer.strategy, FSDPStrategy):
            raise ValueError(
                "averaged weights need all weights in every process, which trainer=fsdp divides: "
                "use trainer=ddp, or leave callbacks=ema out"
            )
        current = dict(pl_module.named_parameters())
        known = self.average or current
        self.average = {
            name: known[name].detach().to(weight.device, copy=True)
            for name, weight in current.items()
        }

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Update the averages after every optimizer step."""
        if trainer.global_step == self.steps:
            return
        self.steps = trainer.global_step
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        averages, weights = self._pairs(pl_module)
        torch._foreach_lerp_(averages, weights, 1 - decay)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the averages into the model."""
        if trainer.state.fn == "fit":
            self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the weights in training back."""
        if trainer.state.fn == "fit":
            self._swap(pl_module)

    @torch.no_grad()
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the averages in the model."""
        averages, weights = self._pairs(pl_module)
        torch._foreach_copy_(weights, averages)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Put the weights in training back if validation was interrupted."""
        if self._swapped:
            self._swap(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Number of steps averaged over."""
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of steps."""
        self.steps = state_dict["steps"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the averages as the model's weights, and the weights in training beside them."""
        if not self.average:
            return
        weights = checkpoint["state_dict"]
        first, second = (RAW, "state_dict") if not self._swapped else ("state_dict", RAW)
        raw = {name: weights[name] for name in self.average}
        average = {name: value.clone() for name, value in self.average.items()}
        checkpoint["state_dict"] = dict(weights)
        checkpoint[RAW] = {}
        checkpoint[first].update(raw)
        checkpoint[second].update(average)

    @torch.no_grad()
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Resume with the averages and with the weights in training; test with the averages.

        Raises:
            ValueError: If training resumes from a checkpoint without averages.
        """
        if trainer.state.fn != "fit":
            return
        if RAW not in checkpoint:
            raise ValueError(
                "the checkpoint was made without averaging of weights, so the run cannot be "
                "resumed with it; switch it off (~callbacks.ema)"
            )
        self.average = {name: checkpoint["state_dict"][name] for name in checkpoint[RAW]}
        for name, weight in pl_module.named_parameters():
            weight.copy_(checkpoint[RAW][name])

    def _pairs(self, pl_module: pl.LightningModule) -> tuple[list[Tensor], list[Tensor]]:
        weights = dict(pl_module.named_parameters())
        return list(self.average.values()), [weights[name] for name in self.average]

    @torch.no_grad()
    def _swap(self, pl_module: pl.LightningModule) -> None:
        if not self.average:
            return
        for average, weight in zip(*self._pairs(pl_module), strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
        self._swapped = not self._swapped
