"""Progress bar with molecules per second and the time left for the whole run."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar

from pyg_se3.training.callbacks.throughput import Throughput
from pyg_se3.training.machine import duration


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, plus ``mol/s`` and ``left`` from :class:`Throughput`.

    Args:
        refresh_rate: Batches between two updates.
    """

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__(refresh_rate=refresh_rate)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Metrics beside the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Throughput) and trainer.training:
                metrics["mol/s"] = f"{callback.rate:.0f}"
                left = callback.seconds_left(trainer)
                if left is not None:
                    metrics["left"] = duration(left)
        return metrics
