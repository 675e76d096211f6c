"""What train, evaluate and predict share: building from a configuration, and telling people."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import hydra
import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from pyg_se3.cli.config import ConfigError, check_overrides, config_dir
from pyg_se3.cli.errors import explain
from pyg_se3.cli.folder import processes_from_outside
from pyg_se3.cli.precision import apply_precision
from pyg_se3.training.callbacks.finite import NonFiniteLossError
from pyg_se3.training.checkpoint import AtomicCheckpointIO, read_checkpoint
from pyg_se3.training.files import set_aside, write_text
from pyg_se3.training.loggers import MetricsFile, finish_wandb

T = TypeVar("T")


def launch(name: str, task: Callable[[DictConfig], Any]) -> None:
    """Run a task with the configuration that the command line describes.

    Args:
        name: ``train``, ``evaluate`` or ``predict``.
        task: What to do with it.
    """
    try:
        check_overrides(name, sys.argv[1:])
    except ConfigError as error:
        sys.exit(f"error: {error}")
    quieten_lightning()

    @hydra.main(config_path=str(config_dir()), config_name=name, version_base="1.3")
    def run(config: DictConfig) -> Any:
        return guarded(task, config)

    run()


def quieten_lightning() -> None:
    """Leave out Lightning's advertisements and other packages' deprecations on the terminal."""
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*deprecated.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # A step that 16-mixed skips is no mistake in the order of the calls.
    warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
    # It is used nevertheless, see settle_precision.
    warnings.filterwarnings("ignore", message=".*AMP with fp16 is not supported on CPU")
    # A resumed run finds its checkpoints there; another run is refused.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* is not empty")


def build_trainer(config: DictConfig) -> pl.Trainer:
    """The trainer of a configuration, its callbacks and loggers included.

    Raises:
        ConfigError: If it would start processes in a sweep, or the precision is too low.
    """
    callbacks = [instantiate(c) for c in config.get("callbacks", {}).values() if c is not None]
    loggers = [instantiate(c) for c in config.get("logger", {}).values() if c is not None]
    trainer = instantiate(
        config.trainer,
        callbacks=callbacks,
        logger=loggers,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=config.paths.run,
        _convert_="all",
    )
    _check_sweep(trainer)
    apply_precision(config, trainer)
    return trainer


def _check_sweep(trainer: pl.Trainer) -> None:
    # Lightning starts the other processes with the same command line: each would begin the sweep.
    starts_others = trainer.world_size > 1 and processes_from_outside() == 1
    if starts_others and HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise ConfigError(
            f"a sweep (-m) cannot start the {trainer.world_size} processes of each run itself: "
            "start the sweep with torchrun and run_dir=..., or every run on its own"
        )


def continue_metrics(trainer: pl.Trainer, checkpoint: str | os.PathLike[str]) -> None:
    """Take over the metrics of a run up to the checkpoint that it continues from."""
    earlier = Path(checkpoint).resolve().parent.parent / "metrics.csv"
    step = read_checkpoint(checkpoint)["global_step"]
    for logger in trainer.loggers:
        if isinstance(logger, MetricsFile):
            logger.continue_from(earlier, step)


@rank_zero_only
def save_config(config: DictConfig) -> None:
    """Write the resolved configuration into the run's folder.

    Where a resumed run has other settings, the earlier file is kept under another name.
    """
    path = Path(config.paths.run) / "config.yaml"
    text = OmegaConf.to_yaml(config, resolve=True, sort_keys=False)
    if path.exists():
        changes = _changes(OmegaConf.load(path), OmegaConf.create(text))
        if not changes:
            return
        kept = set_aside(path)
        print(f"Settings changed ({'; '.join(changes)}); the earlier ones are in {kept.name}")
    write_text(path, text)


def _changes(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Keys whose values differ, apart from how the run was started."""
    changes = []
    for key in dict.fromkeys([*old, *new]):
        first, second, name = old.get(key), new.get(key), f"{prefix}{key}"
        if name in ("resume", "ckpt_path"):
            continue
        if isinstance(first, DictConfig) and isinstance(second, DictConfig):
            changes += _changes(first, second, f"{name}.")
        elif first != second:
            changes.append(f"{name}: {first} → {second}")
    return changes


def guarded(task: Callable[[DictConfig], T], config: DictConfig) -> T:
    """Run a task; end with one message, not a traceback, where the user can help.

    The traceback goes to ``error.log`` in the run's folder (``error-process1.log`` of process 1).
    An earlier one is kept as ``error.1.log``.
    """
    try:
        result = task(config)
    except Exception as error:
        finish_wandb(failed=True)
        message = explain(error)
        if message is None:
            raise
        rank = getattr(rank_zero_only, "rank", None) or 0
        where = ""
        if not isinstance(error, ConfigError):
            where = _keep_traceback(Path(config.paths.run), rank)
        # All processes end of this together, for the same reason.
        if rank == 0 or not isinstance(error, NonFiniteLossError):
            who = f" in process {rank}" if rank else ""
            print(f"\nerror{who}: {message}{where}", file=sys.stderr, flush=True)
        sys.exit(1)
    finish_wandb()
    return result


def _keep_traceback(folder: Path, rank: int) -> str:
    path = folder / (f"error-process{rank}.log" if rank else "error.log")
    if not folder.is_dir():
        return ""
    try:
        if path.exists():
            set_aside(path)
        write_text(path, traceback.format_exc())
    except OSError:
        # The message says why: no room, or not allowed.
        return ""
    return f"\n(traceback: {path})"


@rank_zero_only
def tell_results(folder: Path, table: str | None, files: dict[str, str]) -> None:
    """Print the summary and where everything is.

    Args:
        folder: The run's folder.
        table: Summary, if there was a test.
        files: What is what: description by file name (or pattern); what is not there is left out.
    """
    if table is not None:
        print(f"\n{table}")
    print(f"\nResults in {folder}")
    present = {
        str(path.relative_to(folder)): text
        for pattern, text in files.items()
        for path in sorted(folder.glob(pattern))
    }
    width = max(map(len, present), default=0)
    for name, text in present.items():
        print(f"  {name:<{width}}  {text}")
