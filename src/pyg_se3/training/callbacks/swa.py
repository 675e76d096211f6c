"""Stochastic weight averaging."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import StochasticWeightAveraging
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from pyg_se3.training.callbacks.ema import ExponentialMovingAverage


class WeightAveraging(StochasticWeightAveraging):
    """Lightning's stochastic weight averaging, whose result is also saved, as ``swa.ckpt``.

    From a share of the epochs on, the learning rate goes to a constant, and the weights at the
    start of every epoch are averaged with equal weight (Izmailov et al., UAI 2018). Validation, and
    so the best checkpoint, are of the weights in training; when training ends the model has the
    averages, also if it ends early.

    Args:
        dirpath: Folder of the checkpoint; ``checkpoints`` in the trainer's root folder if None.
        swa_lrs: The constant learning rate.
        swa_epoch_start: First epoch (from 1), or share of the epochs, to average.
        annealing_epochs: Epochs in which the learning rate reaches the constant.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        swa_lrs: float = 1e-3,
        swa_epoch_start: int | float = 0.75,
        annealing_epochs: int = 5,
    ) -> None:
        super().__init__(swa_lrs, swa_epoch_start, annealing_epochs)
        self.dirpath = dirpath

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that it can work.

        Raises:
            ValueError: If weights are averaged in another way, too, or the number of epochs, which
                this counts in, is not known.
        """
        if any(isinstance(c, ExponentialMovingAverage) for c in trainer.callbacks):  # type: ignore[attr-defined]
            raise ValueError("weights are averaged by ema or by swa, not both: leave one out")
        if stage == "fit" and trainer.max_epochs in (None, -1):
            raise ValueError("stochastic weight averaging counts epochs: set trainer.max_epochs")
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take up the schedule of a resumed run at once.

        Lightning would wait for the next epoch, and miss the step at the end of this one.
        """
        if self._scheduler_state is not None:
            self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Average, and record the learning rate of the new schedule under the name of the old."""
        super().on_train_epoch_start(trainer, pl_module)
        if self._initialized:
            trainer.lr_scheduler_configs[0].name = "lr"

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the averages in the model, and save them."""
        super().on_train_end(trainer, pl_module)
        if self.n_averaged is None or self.n_averaged == 0:
            rank_zero_warn("training ended before stochastic weight averaging began")
            return
        assert self._average_model is not None
        # Lightning does this only after the last of trainer.max_epochs.
        self.transfer_weights(self._average_model, pl_module)
        folder = Path(self.dirpath or Path(trainer.default_root_dir) / "checkpoints")
        trainer.save_checkpoint(folder / "swa.ckpt", weights_only=False)
