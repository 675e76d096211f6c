"""What train and evaluate share: building from a configuration, and telling people."""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from pyg_se3.training.callbacks.finite import NonFiniteLossError
from pyg_se3.training.checkpoint import AtomicCheckpointIO
from pyg_se3.training.files import write_text

T = TypeVar("T")

# What a user can cause and repair; anything else is a bug and deserves its traceback.
USER_ERRORS = (
    ValueError,
    TypeError,
    OSError,
    ModuleNotFoundError,
    NonFiniteLossError,
    InstantiationException,
)


def quieten_lightning() -> None:
    """Leave out Lightning's advertisements and other packages' deprecations on the terminal."""
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*deprecated.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")


def build_trainer(config: DictConfig) -> pl.Trainer:
    """The trainer of a configuration, its callbacks and loggers included."""
    callbacks = [instantiate(c) for c in config.get("callbacks", {}).values() if c is not None]
    loggers = [instantiate(c) for c in config.get("logger", {}).values() if c is not None]
    return instantiate(
        config.trainer,
        callbacks=callbacks,
        logger=loggers,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=config.paths.run,
        _convert_="all",
    )


@rank_zero_only
def save_config(config: DictConfig) -> None:
    """Write the resolved configuration into the run's folder."""
    text = OmegaConf.to_yaml(config, resolve=True, sort_keys=False)
    write_text(Path(config.paths.run) / "config.yaml", text)


def guarded(task: Callable[[DictConfig], T], config: DictConfig) -> T:
    """Run a task; end with one message, not a traceback, where the user can help.

    The traceback goes to ``error.log`` in the run's folder.
    """
    try:
        return task(config)
    except USER_ERRORS as error:
        path = Path(config.paths.run) / "error.log"
        where = ""
        if path.parent.is_dir():
            try:
                write_text(path, traceback.format_exc())
                where = f"\n(traceback: {path})"
            except OSError:
                where = "\n" + traceback.format_exc()
        # Hydra wraps what a constructor says.
        wrapped = isinstance(error, InstantiationException) and error.__cause__ is not None
        message = error.__cause__ if wrapped else error
        print(f"\nerror: {message}{where}", file=sys.stderr, flush=True)
        sys.exit(1)


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
