"""Training for a given time, the schedule following the clock."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
import torch

from pyg_se3.training.schedules import WarmupCosine


class TimeBudget(pl.Callback):
    """Stop after a time, and let :class:`WarmupCosine` reach its end just then.

    The time counts from the start of training, validation included, and is saved: a resumed run
    has what was left. How many steps fit depends on the machine, so two such runs differ; bound
    them by ``trainer.max_steps`` instead where they must not.

    Args:
        minutes: The time.

    Raises:
        ValueError: If it is not positive.
    """

    def __init__(self, minutes: float) -> None:
        if not minutes > 0:
            raise ValueError(f"minutes must be positive, got {minutes}")
        self.minutes = minutes
        self._before, self._started = 0.0, None  # type: tuple[float, float | None]

    @property
    def elapsed(self) -> float:
        """Seconds of training, earlier stretches included."""
        now = 0.0 if self._started is None else time.monotonic() - self._started
        return self._before + now

    @property
    def seconds_left(self) -> float:
        """Seconds left, not negative."""
        return max(0.0, 60 * self.minutes - self.elapsed)

    @property
    def time_progress(self) -> float:
        """Share of the time that is used, in [0, 1]."""
        return min(1.0, self.elapsed / (60 * self.minutes))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Tell the schedules how late it is, before they are stepped."""
        every = [config.scheduler for config in trainer.lr_scheduler_configs]
        schedules = [schedule for schedule in every if isinstance(schedule, WarmupCosine)]
        if not schedules:
            return
        # The clocks of processes differ, but they must take the same step.
        progress = torch.tensor(self.time_progress, device=pl_module.device)
        agreed = float(trainer.strategy.reduce(progress, reduce_op="mean"))
        for schedule in schedules:
            schedule.time_progress = agreed

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Stop when the time is up."""
        if trainer.strategy.reduce_boolean_decision(self.time_progress >= 1, all=False):
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._before, self._started = self.elapsed, None

    def state_dict(self) -> dict[str, Any]:
        """Seconds used."""
        return {"elapsed": self.elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with what is left."""
        self._before = state_dict["elapsed"]
