"""Stop as soon as the loss is not a number."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor


class NonFiniteLossError(RuntimeError):
    """The training loss became NaN or infinite."""


class StopOnNonFinite(pl.Callback):
    """End the run with a message when the training loss is NaN or infinite.

    Args:
        every_n_steps: How often to look; on a GPU every look waits for the device.

    Raises:
        ValueError: If ``every_n_steps`` is not positive.
    """

    def __init__(self, every_n_steps: int = 1) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._unchecked: Tensor | None = None

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Look at the loss."""
        loss = outputs["loss"].detach()
        # A sum keeps what was not finite, so no step between two looks is missed.
        self._unchecked = loss if self._unchecked is None else self._unchecked + loss
        if (batch_idx + 1) % self.every_n_steps == 0:
            self._check(trainer)

    def on_save_checkpoint(self, trainer: pl.Trainer, *args: Any) -> None:
        """Never save weights that followed from a loss that was not finite."""
        self._check(trainer)

    def _check(self, trainer: pl.Trainer) -> None:
        loss, self._unchecked = self._unchecked, None
        if loss is None or bool(torch.isfinite(loss)):
            return
        raise NonFiniteLossError(
            f"the training loss is {float(loss)} at step {trainer.global_step}. Lower the learning "
            "rate (optimizer.lr=...), clip gradients (trainer.gradient_clip_val=10), use "
            "trainer.precision=32, or look for molecules with wrong positions or targets. The last "
            "checkpoint, from before, is intact: it can be resumed with ckpt_path=..."
        )
