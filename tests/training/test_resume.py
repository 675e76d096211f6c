"""A run that was stopped anywhere and resumed equals one that never stopped, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from pyg_se3.training import WarmupCosine, read_checkpoint
from pyg_se3.training.callbacks import (
    BestCheckpoint,
    ExponentialMovingAverage,
    LastCheckpoint,
    TrainingRandomness,
)
from pyg_se3.training.loggers import MetricsFile, read_metrics

MINI = Path(__file__).parents[1] / "fixtures" / "qm9_mini.csv"
STEPS_PER_EPOCH, EPOCHS = 5, 3


class WithDropout(nn.Module):
    """A model that draws random numbers while it trains."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.config = net, net.config

    def forward(self, batch: Any) -> torch.Tensor:
        return nn.functional.dropout(self.net(batch), 0.2, self.training)


class KeepEvery(LastCheckpoint):
    """Keeps a copy of every checkpoint, by the number of steps taken and where it was made."""

    def __init__(self, folder: Path, **kwargs: Any) -> None:
        super().__init__(str(folder), **kwargs)

    def _save(self, trainer: pl.Trainer) -> None:
        super()._save(trainer)
        assert self.path is not None
        end = trainer.fit_loop.epoch_loop._num_ready_batches_reached()
        name = f"{trainer.global_step:02}{'-epoch-end' if end else ''}.ckpt"
        shutil.copy(self.path, self.path.with_name(name))


@pytest.fixture
def run(make_data, make_module, make_net, make_trainer, tmp_path):
    def _run(name: str, ckpt_path: Path | None = None, **kwargs: Any) -> Path:
        folder = tmp_path / name
        pl.seed_everything(3, workers=True, verbose=False)
        module = make_module(
            WithDropout(make_net()),
            scheduler=lambda optimizer: WarmupCosine(optimizer, warmup=0.2, final=0.1),
        )
        torch.manual_seed(7 if ckpt_path is None else 8)  # what a new process starts with
        logger = MetricsFile(str(folder))
        if ckpt_path is not None:
            step = read_checkpoint(ckpt_path)["global_step"]
            logger.continue_from(ckpt_path.parent.parent / "metrics.csv", step)
        workers = kwargs.pop("num_workers", 0)
        settings: dict[str, Any] = {"max_epochs": EPOCHS, "log_every_n_steps": 1} | kwargs
        trainer = make_trainer(
            logger=logger,
            callbacks=[
                KeepEvery(folder / "checkpoints", every_n_steps=1),
                BestCheckpoint(str(folder / "checkpoints")),
                ExponentialMovingAverage(0.9),
                TrainingRandomness(),
            ],
            **settings,
        )
        data = make_data(num_workers=workers)
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
        return folder

    return _run


def test_resumed_equals_uninterrupted_wherever_it_stopped(run, assert_same_run):
    whole = run("whole")
    stops = sorted((whole / "checkpoints").glob("[0-9]*.ckpt"))
    # Inside and at the end of every epoch.
    assert len(stops) == EPOCHS * STEPS_PER_EPOCH
    assert sum("epoch-end" in stop.name for stop in stops) == EPOCHS
    for stop in (stops[0], stops[3], stops[4], stops[5], stops[9], stops[12], stops[13]):
        resumed = run(f"resumed-{stop.stem}", stop)
        assert_same_run(whole, resumed)


def test_two_runs_are_the_same_and_another_seed_is_not(run, tmp_path, assert_same_run):
    assert_same_run(run("first"), run("second"))
    losses = read_metrics(tmp_path / "first" / "metrics.csv")
    assert len({row["train/loss"] for row in losses.values()}) == len(losses)


def test_resume_with_a_limit_on_steps_and_validation_inside_the_epoch(run, assert_same_run):
    limits = {"max_epochs": -1, "max_steps": 13, "val_check_interval": 2}
    whole = run("whole", **limits)
    for name in ("01.ckpt", "03.ckpt", "06.ckpt", "08.ckpt"):
        resumed = run(f"resumed-{name}", whole / "checkpoints" / name, **limits)
        assert_same_run(whole, resumed)


def test_resume_with_workers(run, assert_same_run):
    whole = run("whole", num_workers=1, max_epochs=2)
    resumed = run("resumed", whole / "checkpoints" / "03.ckpt", num_workers=1, max_epochs=2)
    assert_same_run(whole, resumed)
