"""Molecules per second, time left, and peak memory."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
import torch

from pyg_se3.training.callbacks.time_budget import TimeBudget
from pyg_se3.training.loggers import is_logged
from pyg_se3.training.machine import peak_memory


class Throughput(pl.Callback):
    """Measure training: ``train/molecules_per_second`` and ``train/peak_memory_mb``.

    Only time inside the training loop counts, not validation or checkpoints. The memory is the
    largest so far: of the GPU where there is one, else of the process.

    Attributes:
        molecules: Molecules trained on by all processes, since this process started.
        seconds: Time spent on them.
    """

    def __init__(self) -> None:
        self.molecules, self.seconds = 0, 0.0
        self._started: float | None = None
        self._first_step: int | None = None
        self._fit_started = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting."""
        self._fit_started = time.monotonic()
        self._first_step = trainer.global_step
        self._started = None
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count a batch, from the end of the one before; the first of a stretch is left out."""
        now = time.monotonic()
        if self._started is not None:
            self.seconds += now - self._started
            self.molecules += batch.num_graphs * trainer.world_size
        self._started = now
        if is_logged(trainer, trainer.global_step) and self.seconds > 0:
            peak = peak_memory(pl_module.device)
            values = {
                "train/molecules_per_second": self.rate,
                "train/peak_memory_mb": peak.get("gpu", peak["host"]),
            }
            pl_module.log_dict(values, on_step=True, on_epoch=False)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._started = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._started = None

    @property
    def rate(self) -> float:
        """Molecules per second; 0 before anything was measured."""
        return self.molecules / self.seconds if self.seconds > 0 else 0.0

    def seconds_left(self, trainer: pl.Trainer) -> float | None:
        """Estimate of the time until training ends; None where the end is unknown."""
        estimates = []
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, TimeBudget):
                estimates.append(callback.seconds_left)
        total = trainer.estimated_stepping_batches if trainer.training else float("inf")
        done = trainer.global_step - (self._first_step or 0)
        if total != float("inf") and done > 0:
            elapsed = time.monotonic() - self._fit_started
            estimates.append(elapsed / done * (total - trainer.global_step))
        return min(estimates) if estimates else None
