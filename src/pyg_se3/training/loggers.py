"""Metrics as one CSV file with one row per step, and what all loggers need."""

from __future__ import annotations

import csv
import math
import os
import sys
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger, MLFlowLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from pyg_se3.training.files import atomic_path


class MetricsFile(Logger):
    """Write metrics to ``metrics.csv``, a row per step, a column per metric.

    The file is always whole. A run that goes on in the same folder keeps the rows before the step
    it resumes from.

    Args:
        save_dir: Folder of the file.
        seconds_between_writes: How often to write at most, apart from checkpoints and the end.
    """

    def __init__(self, save_dir: str, seconds_between_writes: float = 10.0) -> None:
        super().__init__()
        self._save_dir = save_dir
        self.seconds_between_writes = seconds_between_writes
        self.path = Path(save_dir) / "metrics.csv"
        self.rows: dict[int, dict[str, float]] = {}
        self._last_write = -math.inf

    @property
    def name(self) -> str:
        """Empty: the file lies directly in its folder."""
        return ""

    @property
    def version(self) -> str:
        """Empty, like the name."""
        return ""

    @property
    def save_dir(self) -> str:
        """Folder of the file."""
        return self._save_dir

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any) -> None:
        """Do nothing: the run's folder has its configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add metrics to the row of ``step``."""
        row = self.rows.setdefault(len(self.rows) if step is None else int(step), {})
        row.update({name: float(value) for name, value in metrics.items()})
        if time.monotonic() - self._last_write > self.seconds_between_writes:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write the file."""
        if self.rows:
            write_metrics(self.path, self.rows)
        self._last_write = time.monotonic()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the file."""
        self.save()

    @rank_zero_only
    def continue_from(self, path: str | os.PathLike[str], step: int) -> None:
        """Take over the rows before ``step`` from an earlier file, if there is one."""
        if Path(path).is_file():
            self.rows = {s: row for s, row in read_metrics(path).items() if s < step} | self.rows


def write_metrics(path: str | os.PathLike[str], rows: Mapping[int, Mapping[str, float]]) -> None:
    """Write rows by step as CSV, atomically; what a row lacks stays empty."""
    names = sorted({name for row in rows.values() for name in row} - {"epoch"})
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["step", "epoch", *names])
        writer.writeheader()
        for step in sorted(rows):
            writer.writerow({"step": step, **{k: f"{v:.8g}" for k, v in rows[step].items()}})


def read_metrics(path: str | os.PathLike[str]) -> dict[int, dict[str, float]]:
    """Rows by step of a file that :func:`write_metrics` wrote."""
    with open(path, newline="", encoding="utf-8") as file:
        return {
            int(row.pop("step")): {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        }


def is_logged(trainer: pl.Trainer, step: int) -> bool:
    """Whether Lightning writes the metrics of an optimizer step, counted from 1."""
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and step % every == 0


def mlflow_logger(
    experiment_name: str,
    database: str,
    tracking_uri: str | None = None,
    run_name: str | None = None,
) -> MLFlowLogger:
    """Lightning's logger for MLflow, with a local database where there is no server.

    Args:
        experiment_name: Name of the experiment.
        database: SQLite file of local runs.
        tracking_uri: Server or database instead; that of MLflow's own ``MLFLOW_TRACKING_URI`` if
            None.
        run_name: Name of the run; MLflow invents one if None.

    Raises:
        ModuleNotFoundError: If MLflow is not installed; says how to install it.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri is not None:
        return MLFlowLogger(experiment_name, run_name, uri)
    path = Path(database).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    artifacts = str(path.parent / "mlartifacts")
    return MLFlowLogger(experiment_name, run_name, f"sqlite:///{path}", artifact_location=artifacts)


def finish_wandb(failed: bool = False) -> None:
    """End the run of Weights & Biases, if there is one, so that the next of a sweep is its own."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish(exit_code=int(failed))
