"""Find a learning rate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateFinder
from pytorch_lightning.utilities.exceptions import _TunerExitException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from pyg_se3.training import report
from pyg_se3.training.callbacks.ema import ExponentialMovingAverage
from pyg_se3.training.files import write_text


class LearningRateSearch(LearningRateFinder):
    """Lightning's learning-rate range test, which ends the run and reports what it found.

    The learning rate rises from step to step; the suggestion is where the smoothed loss falls
    fastest as a function of its logarithm (Lightning's own is of the rate itself, which nearly
    always favours the smallest). ``lr_finder.json`` and ``lr_finder.png`` have the curve. Nothing
    is trained: a run whose learning rate is not in its configuration could not be repeated.

    Args:
        dirpath: Folder of the files; the trainer's root folder if None.
        min_lr: First learning rate.
        max_lr: Last learning rate.
        num_training_steps: Steps between them.
        early_stop_threshold: Stop when the loss is so many times the smallest; None for never.

    Raises:
        ValueError: If the learning rates are not ``0 < min_lr < max_lr``.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        min_lr: float = 1e-6,
        max_lr: float = 0.1,
        num_training_steps: int = 200,
        early_stop_threshold: float | None = 4.0,
    ) -> None:
        if not 0 < min_lr < max_lr:
            raise ValueError(f"expected 0 < min_lr < max_lr, got {min_lr} and {max_lr}")
        super().__init__(
            min_lr,
            max_lr,
            num_training_steps,
            early_stop_threshold=early_stop_threshold,
            update_attr=False,
        )
        self.dirpath = dirpath

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse averaging, which the test would disturb.

        Raises:
            ValueError: If there is averaging of weights.
        """
        if any(isinstance(c, ExponentialMovingAverage) for c in trainer.callbacks):  # type: ignore[attr-defined]
            raise ValueError(
                "the learning-rate finder trains nothing that could be averaged: use it without ema"
            )

    def lr_find(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find, report and end the run.

        Raises:
            ValueError: If the run is too short to tell.
        """
        super().lr_find(trainer, pl_module)
        assert self.optimal_lr is not None
        results = self.optimal_lr.results
        self._write(trainer, results, steepest(results["lr"], results["loss"]))
        # What Lightning's own Tuner raises to end the run after its search.
        raise _TunerExitException()

    @rank_zero_only
    def _write(
        self, trainer: pl.Trainer, results: dict[str, list[float]], suggestion: float
    ) -> None:
        folder = Path(self.dirpath or trainer.default_root_dir)
        content = {"suggestion": suggestion, "lr": results["lr"], "loss": results["loss"]}
        write_text(folder / "lr_finder.json", json.dumps(content) + "\n")
        report.plot_lr_search(folder / "lr_finder.png", results["lr"], results["loss"], suggestion)
        print(f"\nSuggested learning rate: optimizer.lr={suggestion:.2g}", flush=True)


def steepest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The learning rate at which the loss falls fastest per factor of the rate.

    It is the middle of that fifth of the steps over which a straight line through the loss against
    the logarithm of the rate is steepest. The first fifth, in which the smoothed loss is an average
    over few batches, is left out.

    Args:
        rates: Learning rate of every step.
        losses: Smoothed loss of every step.

    Raises:
        ValueError: If there are too few steps, or the loss falls nowhere.
    """
    width = len(losses) // 5
    x, y = torch.tensor([rates[width:], losses[width:]], dtype=torch.float64)
    x, y = x[y.isfinite()].log(), y[y.isfinite()]
    if width < 5 or y.numel() < width:
        raise ValueError(
            f"{len(losses)} steps are too few to find a learning rate: raise "
            "callbacks.lr_finder.num_training_steps and trainer.max_epochs"
        )
    x, y = x.unfold(0, width, 1), y.unfold(0, width, 1)
    middle = x.mean(1)
    offset = x - middle[:, None]
    slopes = (offset * y).sum(1) / offset.square().sum(1)
    if not bool(slopes.min() < 0):
        raise ValueError("the loss fell at no learning rate: lower callbacks.lr_finder.min_lr")
    return float(middle[slopes.argmin()].exp())
