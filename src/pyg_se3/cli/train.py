"""``pyg-se3 train`` and ``train.py``: one run from a Hydra configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.strategies import FSDPStrategy
from torch import nn

from pyg_se3.cli.config import FROM_DATA, ConfigError, TrainConfig, validate
from pyg_se3.cli.folder import check_folder, checkpoint_of
from pyg_se3.cli.run import (
    build_trainer,
    continue_metrics,
    launch,
    save_config,
    tell_results,
)
from pyg_se3.data import MoleculeDataModule
from pyg_se3.training import SE3Module
from pyg_se3.training.callbacks import BestCheckpoint, LastCheckpoint, RunReport
from pyg_se3.training.checkpoint import check_same_architecture, read_checkpoint

C = TypeVar("C", bound=pl.Callback)

FILES = {
    "summary.md": "this table (summary.json: the same for programs)",
    "checkpoints/best.ckpt": "best weights on the validation set",
    "checkpoints/last.ckpt": "to resume from: run_dir=... resume=true",
    "checkpoints/swa.ckpt": "averaged weights",
    "metrics.csv": "losses, errors, learning rate, gradient norm, speed, memory by step",
    "learning_curve.png": "the same as a picture",
    "parity*.png": "predicted against true values of the test set",
    "test_predictions.csv": "every prediction of the test set",
    "lr_finder.png": "loss against learning rate (lr_finder.json: the same for programs)",
    "config.yaml": "the whole configuration",
    "provenance.json": "code, versions and machine of the run",
    "tensorboard": "for `tensorboard --logdir`",
}


def main() -> None:
    """Read the command line and train."""
    launch("train", train)


def train(config: DictConfig) -> float | None:
    """Train, test and report.

    Args:
        config: Composed from ``conf/train.yaml``; see :class:`TrainConfig`.

    Returns:
        The best validation error, for sweeps; None where there was no validation.

    Raises:
        ConfigError: If the configuration has unknown keys or values of a wrong type, or the folder
            has a run already.
        ValueError: If its parts do not fit together.
    """
    validate(config, TrainConfig)
    check_folder(config)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    resumed = checkpoint_of(config)
    data: MoleculeDataModule = instantiate(config.data, _convert_="all")
    # Once for its errors, before the data is made: that may take a minute.
    build_net(config, {0: 6}, {}, data.num_targets)
    data.prepare_data()
    data.setup("fit")
    module = build_module(config, data)
    if resumed is not None:
        # Lightning asks, too, but then the folder has the configuration of a run that cannot be.
        module.use_data(data)
        check_same_architecture(read_checkpoint(resumed), module.describe())
    trainer = build_trainer(config)
    best, last = _callback(trainer, BestCheckpoint), _callback(trainer, LastCheckpoint)
    sharded = isinstance(trainer.strategy, FSDPStrategy)
    if config.test and sharded and last is None:
        raise ConfigError(
            "with FSDP, testing needs a checkpoint: keep callbacks.last, or test=false"
        )
    save_config(config)
    if resumed is not None:
        continue_metrics(trainer, resumed)
    _tell_start(config, data, module.net)
    trainer.fit(module, datamodule=data, ckpt_path=resumed)
    if trainer.interrupted:
        raise KeyboardInterrupt
    score = None
    if best is not None and best.best_model_score is not None:
        score = float(best.best_model_score)
    if config.test:
        path: str | Path | None = None
        if config.test_weights == "best" and best is not None and best.best_model_path:
            path = best.best_model_path
        # After training the module holds the last weights, averaged where averaging is on.
        if sharded:
            # Or a share of them, which Lightning would divide once more.
            assert last is not None
            module, path = build_module(config, data), path or last.path
        trainer.test(module, datamodule=data, ckpt_path=path, verbose=False)
    report = _callback(trainer, RunReport)
    tell_results(Path(config.paths.run), report.table if report else None, FILES)
    return score


def build_module(config: DictConfig, data: MoleculeDataModule) -> SE3Module:
    """What a configuration trains, for data that is there.

    Args:
        config: See :func:`train`.
        data: Set up.
    """
    return SE3Module(
        build_net(config, data.fiber_in, data.fiber_edge, data.num_targets),
        optimizer=instantiate(config.optimizer),
        scheduler=instantiate(config.scheduler),
        kernel=instantiate(config.kernel),
    )


def build_net(
    config: DictConfig, fiber_in: dict[int, int], fiber_edge: dict[int, int], num_targets: int
) -> nn.Module:
    """The model of a configuration; what it leaves null is taken from the data.

    Args:
        config: See :func:`train`.
        fiber_in: Degrees and channels of the data's node features.
        fiber_edge: The same of its edge features.
        num_targets: Number of targets.
    """
    known = dict(zip(FROM_DATA, (fiber_in, fiber_edge, {0: num_targets}, num_targets), strict=True))
    given = {k: v for k, v in known.items() if k in config.model and config.model[k] is None}
    # A new seed for every call, so that building twice draws the same weights.
    pl.seed_everything(config.seed, workers=True, verbose=False)
    return instantiate(config.model, **given, _convert_="all")


def _callback(trainer: pl.Trainer, kind: type[C]) -> C | None:
    return next((c for c in trainer.callbacks if isinstance(c, kind)), None)  # type: ignore[attr-defined]


@pl.utilities.rank_zero_only
def _tell_start(config: DictConfig, data: MoleculeDataModule, net: nn.Module) -> None:
    targets = ", ".join(
        f"{name} ({unit})" for name, unit in zip(data.target_names, data.target_units, strict=True)
    )
    parameters = sum(p.numel() for p in net.parameters())
    print(
        f"{config.name}: {targets}; {data.num_train:,} training, {data.num_val:,} validation and "
        f"{data.num_test:,} test molecules; {type(net).__name__}, {parameters:,} parameters\n"
        f"Results go to {config.paths.run}",
        flush=True,
    )


if __name__ == "__main__":
    main()
