"""The checkpoint to resume from."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from pyg_se3.training.checkpoint import LAST, PREVIOUS
from pyg_se3.training.loggers import MetricsFile, is_logged


class LastCheckpoint(Checkpoint):
    """Keep ``last.ckpt`` up to date: every so many steps, after every epoch, and at the end.

    Inside an epoch it is written at the first step that is due and not followed by validation.
    Resuming from it gives the same weights as never having stopped. At the end of an epoch it is
    written after validation. The one before it stays as ``previous.ckpt``; both are whole at any
    moment, and at least one of them is there.

    Args:
        dirpath: Folder; ``checkpoints`` in the trainer's root folder if None.
        every_n_steps: Optimizer steps between two checkpoints inside an epoch; None for none.
        min_seconds: Least time between two checkpoints inside an epoch, so that a fast run does
            not spend itself on writing.

    Raises:
        ValueError: If a number is out of range; when training starts, if not all processes resume
            from the same checkpoint.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        every_n_steps: int | None = 200,
        min_seconds: float = 0.0,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        if min_seconds < 0:
            raise ValueError(f"min_seconds must not be negative, got {min_seconds}")
        self.dirpath, self.every_n_steps, self.min_seconds = dirpath, every_n_steps, min_seconds
        self.path: Path | None = None
        self._last_step, self._last_time, self._due = -1, 0.0, False
        self._keep = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Decide on the path."""
        folder = Path(self.dirpath or Path(trainer.default_root_dir) / "checkpoints")
        self.path = folder / LAST
        self._last_time = time.monotonic()
        # A damaged file, from which the run is not resumed, must not take the previous one's place.
        resumed = trainer.ckpt_path
        self._keep = resumed is not None and Path(resumed).resolve() == self.path.resolve()
        if stage == "fit" and trainer.world_size > 1:
            _check_shared(resumed)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save inside an epoch; its end waits for validation."""
        step = trainer.global_step
        if self.every_n_steps is None or step == self._last_step or trainer.is_last_batch:
            return
        if step % self.every_n_steps == 0 and not self._due:
            late = time.monotonic() - self._last_time >= self.min_seconds
            # Saving is the work of all processes, whose clocks differ.
            self._due = trainer.strategy.reduce_boolean_decision(late, all=False)
        # A run resumed from between a step and its validation would skip that validation.
        interval = trainer.val_check_batch
        validation_follows = interval is not None and (batch_idx + 1) % interval == 0
        if self._due and not validation_follows:
            self._log_step(trainer)
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after every epoch."""
        # Under max_steps Lightning resumes from the end of an epoch as if one more had passed;
        # the step after it is as good.
        ended = trainer.should_stop or trainer.global_step >= trainer.max_steps
        if trainer.max_steps == -1 or ended:
            self._save(trainer)
        else:
            self._due = True

    def _log_step(self, trainer: pl.Trainer) -> None:
        # Lightning logs a step after its callbacks. A run that is killed in between is resumed
        # after the step, whose metrics would be missing.
        step = trainer.global_step
        if not is_logged(trainer, step):
            return
        metrics = {n: v for n, v in trainer.logged_metrics.items() if n.startswith("train/")}
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.log_metrics(metrics | {"epoch": trainer.current_epoch}, step - 1)  # type: ignore[arg-type]

    def _save(self, trainer: pl.Trainer) -> None:
        assert self.path is not None
        for logger in trainer.loggers:
            logger.save()
        following = self.path.with_name("next.ckpt")
        trainer.save_checkpoint(following, weights_only=False)
        self._rotate(following)
        self._last_step, self._last_time, self._due = trainer.global_step, time.monotonic(), False

    @rank_zero_only
    def _rotate(self, following: Path) -> None:
        assert self.path is not None
        if self._keep and self.path.exists():
            os.replace(self.path, self.path.with_name(PREVIOUS))
        os.replace(following, self.path)
        self._keep = True


def _check_shared(resumed: str | os.PathLike[str] | None) -> None:
    """All processes must resume from one file; on another node it may not be there, or be older."""
    mine = None if resumed is None else (Path(resumed).name, Path(resumed).stat().st_size)
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, mine)
    if any(other != found[0] for other in found):
        raise ValueError(
            "the processes do not find the same checkpoint to resume from: by process, (name, "
            f"bytes) is {found}. The run's folder must lie on a file system that all nodes share"
        )
