"""Molecules per second, time left, and peak memory."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
import torch

from pyg_se3.training.callbacks.time_budget import TimeBudget


class Throughput(pl.Callback):
    """Measure training speed; log it as ``train/molecules_per_second``.

    Only time inside the training loop counts, not validation or checkpoints.

    Attributes:
        molecules: Molecules trained on by all processes, since this process started.
        seconds: Time spent on them.
    """

    def __init__(self, log_every_n_steps: int = 50) -> None:
        if log_every_n_steps < 1:
            raise ValueError(f"log_every_n_steps must be at least 1, got {log_every_n_steps}")
        self.log_every_n_steps = log_every_n_steps
        self.molecules, self.seconds = 0, 0.0
        self._started: float | None = None
        self._first_step: int | None = None
        self._fit_started = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting."""
        self._fit_started = time.monotonic()
        self._first_step = trainer.global_step
        self._started = None
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

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
        if (batch_idx + 1) % self.log_every_n_steps == 0 and self.seconds > 0:
            pl_module.log("train/molecules_per_second", self.rate, batch_size=batch.num_graphs)

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
