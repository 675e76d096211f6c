"""A run that was stopped anywhere and resumed equals one that never stopped, bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
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


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def curve(run: Path) -> dict[int, dict[str, float]]:
    """The metrics without those that tell about the machine."""
    rows = read_metrics(run / "metrics.csv")
    machine = {"train/molecules_per_second", "train/peak_memory_mb"}
    return {s: {k: v for k, v in r.items() if k not in machine} for s, r in rows.items()}


def assert_same_run(first: Path, second: Path) -> None:
    a, b = (read_checkpoint(f / "checkpoints" / "last.ckpt") for f in (first, second))
    assert a["global_step"] == b["global_step"] and a["epoch"] == b["epoch"]
    for key in ("state_dict", "raw_parameters", "optimizer_states", "lr_schedulers"):
        assert same(a[key], b[key]), key
    for key in ("TrainingRandomness", "ExponentialMovingAverage"):
        assert same(a["callbacks"][key], b["callbacks"][key]), key
    a, b = (read_checkpoint(f / "checkpoints" / "best.ckpt") for f in (first, second))
    assert a["global_step"] == b["global_step"]
    assert same(a["state_dict"], b["state_dict"])
    assert curve(first) == curve(second)


def test_resumed_equals_uninterrupted_wherever_it_stopped(run):
    whole = run("whole")
    stops = sorted((whole / "checkpoints").glob("[0-9]*.ckpt"))
    # Inside and at the end of every epoch.
    assert len(stops) == EPOCHS * STEPS_PER_EPOCH
    assert sum("epoch-end" in stop.name for stop in stops) == EPOCHS
    for stop in (stops[0], stops[3], stops[4], stops[5], stops[9], stops[12], stops[13]):
        resumed = run(f"resumed-{stop.stem}", stop)
        assert_same_run(whole, resumed)


def test_two_runs_are_the_same_and_another_seed_is_not(run, tmp_path):
    assert_same_run(run("first"), run("second"))
    losses = read_metrics(tmp_path / "first" / "metrics.csv")
    assert len({row["train/loss"] for row in losses.values()}) == len(losses)


def test_resume_with_a_limit_on_steps_and_validation_inside_the_epoch(run):
    limits = {"max_epochs": -1, "max_steps": 13, "val_check_interval": 2}
    whole = run("whole", **limits)
    for name in ("01.ckpt", "03.ckpt", "06.ckpt", "08.ckpt"):
        resumed = run(f"resumed-{name}", whole / "checkpoints" / name, **limits)
        assert_same_run(whole, resumed)


def test_resume_with_workers(run):
    whole = run("whole", num_workers=1, max_epochs=2)
    resumed = run("resumed", whole / "checkpoints" / "03.ckpt", num_workers=1, max_epochs=2)
    assert_same_run(whole, resumed)


def test_killed_process_resumes_exactly(tmp_path, data_root):
    def command(name: str, *more: str) -> list[str]:
        return [
            sys.executable, "-m", "pyg_se3.cli", "train",
            "model=se3_transformer_small", "callbacks=ema", "trainer=cpu",
            "trainer.max_epochs=12", "trainer.log_every_n_steps=1",
            f"data.raw_path={MINI}", "data.split=[40,12,12]", f"data.root={data_root}",
            "data.batch_size=8", "data.limit_val=null", "model.num_layers=2", "model.num_degrees=2",
            "model.num_channels=4", "model.num_heads=2",
            "callbacks.last.every_n_steps=1", "callbacks.last.min_seconds=0", "test=false",
            f"run_dir={tmp_path / name}", *more,
        ]  # fmt: skip

    subprocess.run(command("whole"), check=True, capture_output=True, timeout=300)
    killed = subprocess.Popen(
        command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        assert killed.poll() is None
        time.sleep(0.01)
    time.sleep(0.5)
    assert killed.poll() is None, "the run ended before it could be killed"
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert 0 < read_checkpoint(last)["global_step"] < 60
    subprocess.run(command("killed", "resume=true"), check=True, capture_output=True, timeout=300)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
