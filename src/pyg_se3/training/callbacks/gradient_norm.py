"""The size of the gradient."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import FSDPStrategy
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from pyg_se3.training.loggers import is_logged


class GradientNorm(pl.Callback):
    """Log the Euclidean norm of all gradients as ``train/grad_norm``.

    It is that before clipping, and under ``16-mixed`` of the unscaled gradients. Computed only for
    the steps that are logged.
    """

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Measure and log."""
        if not is_logged(trainer, trainer.global_step + 1):
            return
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        norm = get_total_norm(gradients)
        if isinstance(trainer.strategy, FSDPStrategy):
            # Every process has a share of each gradient.
            norm = trainer.strategy.reduce(norm.square(), reduce_op="sum").sqrt()
        pl_module.log("train/grad_norm", norm, on_step=True, on_epoch=False)
