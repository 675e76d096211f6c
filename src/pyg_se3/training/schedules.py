"""Learning-rate schedules that end when the run ends."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class WarmupCosine(LRScheduler):
    """Linear warm-up, then a half cosine down to a fraction of the learning rate.

    With p in [0, 1] the share of the run that is done, w ``warmup`` and f ``final``:
    ``lr / lr_0 = p / w`` for p < w, else ``f + (1 - f) (1 + cos(π (p - w) / (1 - w))) / 2``.

    p is steps / ``total_steps``, or the share of a time budget where one is set (see
    :class:`pyg_se3.training.callbacks.TimeBudget`), whichever is larger.

    Args:
        optimizer: Its learning rates are those at the peak.
        total_steps: Optimizer steps of the whole run; if None, the Lightning module fills it in.
        warmup: Share of the run that warms up, in [0, 1).
        final: Share of the learning rate left at the end, in [0, 1].

    Raises:
        ValueError: If a share is out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int | None = None,
        warmup: float = 0.0,
        final: float = 0.0,
    ) -> None:
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup is a share of the run in [0, 1), got {warmup}")
        if not 0 <= final <= 1:
            raise ValueError(f"final is a share of the learning rate in [0, 1], got {final}")
        if total_steps is not None and total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {total_steps}")
        self.total_steps, self.warmup, self.final = total_steps, warmup, final
        self.time_progress = 0.0
        super().__init__(optimizer)

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        steps = 0.0 if self.total_steps is None else self.last_epoch / self.total_steps
        return min(1.0, max(steps, self.time_progress))

    def factor(self, progress: float) -> float:
        """Learning rate relative to its peak after the share ``progress`` of the run."""
        if progress < self.warmup:
            # Never exactly zero: the first step should do something.
            return max(progress, 1e-3 * self.warmup) / self.warmup
        angle = math.pi * (progress - self.warmup) / (1 - self.warmup)
        return self.final + (1 - self.final) * (1 + math.cos(angle)) / 2

    def get_lr(self) -> list[float | Tensor]:
        """Current learning rate of every parameter group."""
        factor = self.factor(self.progress)
        return [float(base) * factor for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """State without the settings, which are the configuration's."""
        settings = ("total_steps", "warmup", "final")
        return {k: v for k, v in super().state_dict().items() if k not in settings}
