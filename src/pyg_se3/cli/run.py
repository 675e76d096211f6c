"""What train and evaluate share: building from a configuration, and telling people."""

from __future__ import annotations

import itertools
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from pyg_se3.cli.config import ConfigError
from pyg_se3.cli.errors import explain
from pyg_se3.cli.folder import processes_from_outside
from pyg_se3.cli.precision import apply_precision
from pyg_se3.training.callbacks.finite import NonFiniteLossError
from pyg_se3.training.checkpoint import AtomicCheckpointIO, read_checkpoint
from pyg_se3.training.files import write_text
from pyg_se3.training.loggers import MetricsFile, finish_wandb

T = TypeVar("T")


def quieten_lightning() -> None:
    """Leave out Lightning's advertisements and other packages' deprecations on the terminal."""
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*deprecated.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # A resumed run finds its checkpoints there; another run is refused.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* is not empty")


def build_trainer(config: DictConfig) -> pl.Trainer:
    """The trainer of a configuration, its callbacks and loggers included.

    Raises:
        ConfigError: If it would start processes in a sweep, or the precision does not fit.
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
        numbers = (n for n in itertools.count(1) if not path.with_name(f"config.{n}.yaml").exists())
        kept = path.with_name(f"config.{next(numbers)}.yaml")
        path.rename(kept)
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

    The traceback goes to ``error.log`` in the run's folder (``error.1.log`` of process 1).
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
    path = folder / (f"error.{rank}.log" if rank else "error.log")
    if not folder.is_dir():
        return ""
    try:
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
        files: What is what: description by file name, files that are not there left out.
    """
    if table is not None:
        print(f"\n{table}")
    print(f"\nResults in {folder}")
    present: dict[str, Any] = {n: text for n, text in files.items() if (folder / n).exists()}
    width = max(map(len, present), default=0)
    for name, text in present.items():
        print(f"  {name:<{width}}  {text}")
