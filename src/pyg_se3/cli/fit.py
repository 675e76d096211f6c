"""``pyg-se3 fit``: Lightning's own command line on the same classes."""

from __future__ import annotations

import importlib.util
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import TensorBoardLogger

from pyg_se3.cli.errors import explain
from pyg_se3.cli.precision import settle_precision
from pyg_se3.cli.run import continue_metrics, quieten_lightning
from pyg_se3.data import MoleculeDataModule
from pyg_se3.training import AtomicCheckpointIO, SE3Module, callbacks
from pyg_se3.training.checkpoint import LAST
from pyg_se3.training.loggers import MetricsFile


class SE3CLI(LightningCLI):
    """LightningCLI with this package's defaults.

    Results go to ``--trainer.default_root_dir``, a new folder under ``runs/fit`` if not given.
    Callbacks that are given come in addition to the usual ones.
    """

    def __init__(self) -> None:
        super().__init__(
            SE3Module,
            MoleculeDataModule,
            # QM9 if not given; --data=MoleculesDataModule for one's own.
            subclass_mode_data=True,
            seed_everything_default=0,
            # The module makes them: --model.optimizer, --model.scheduler.
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"devices": 1, "max_epochs": 100, "use_distributed_sampler": False},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Make a model for QM9 with bonds the default."""
        parser.set_defaults(
            {
                "data": {"class_path": "pyg_se3.data.QM9DataModule"},
                "model.net": {
                    "class_path": "pyg_se3.models.SE3TransformerPooled",
                    "init_args": {"fiber_in": {0: 6}, "fiber_edge": {0: 4}},
                },
            }
        )

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Add the run's folder, loggers, callbacks and atomic checkpoints."""
        settings = self._get(self.config_init, "trainer")
        if settings.get("default_root_dir") is None:
            now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
            kwargs["default_root_dir"] = str(Path("runs") / "fit" / now)
        root = str(kwargs.get("default_root_dir") or settings["default_root_dir"])
        if settings.get("logger") is None:
            kwargs["logger"] = [
                MetricsFile(root),
                TensorBoardLogger(root, name="tensorboard", version=""),
            ]
        kwargs["plugins"] = [*(settings.get("plugins") or []), AtomicCheckpointIO()]
        kwargs["callbacks"] = [
            callbacks.TrainingRandomness(),
            callbacks.StopOnNonFinite(),
            callbacks.GradientNorm(),
            callbacks.Throughput(),
            callbacks.ProgressBar(),
            callbacks.RunRecord(root),
            callbacks.RunReport(root),
            LearningRateMonitor("step"),
            callbacks.BestCheckpoint(f"{root}/checkpoints"),
            callbacks.LastCheckpoint(f"{root}/checkpoints"),
            *(settings.get("callbacks") or []),
        ]
        trainer = super().instantiate_trainer(**kwargs)
        settle_precision(settings.get("precision"), trainer)
        return trainer

    def before_fit(self) -> None:
        """Continue the metrics of a resumed run; leave another run's folder alone.

        Raises:
            ValueError: If the folder has a run that this one does not continue.
        """
        resumed = self._get(self.config, "ckpt_path")
        last = Path(self.trainer.default_root_dir) / "checkpoints" / LAST
        if resumed is not None:
            continue_metrics(self.trainer, resumed)
        elif last.exists():
            raise ValueError(
                f"{last.parent.parent} has a run already: continue it with --ckpt_path={last}, or "
                "choose another folder with --trainer.default_root_dir"
            )

    def after_fit(self) -> None:
        """Say where everything is."""
        if not self.trainer.is_global_zero:
            return
        folder = Path(self.trainer.default_root_dir)
        print(
            f"\nResults in {folder}\nTest with: "
            f"pyg-se3 evaluate ckpt_path={folder / 'checkpoints' / 'best.ckpt'}"
        )


def main(args: list[str] | None = None) -> None:
    """Run LightningCLI's subcommand ``fit``.

    Args:
        args: Arguments after ``fit``; those of the process if None.
    """
    # LightningCLI reads the arguments of the process, its subcommand included, and so do the
    # processes that Lightning starts for data parallel training.
    sys.argv = ["pyg-se3", "fit", *(sys.argv[1:] if args is None else args)]
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("pyg_se3.cli.__main__")
    quieten_lightning()
    try:
        SE3CLI()
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        sys.exit(f"error: {message}")
