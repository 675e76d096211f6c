from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pyg_se3.training import read_checkpoint
from pyg_se3.training.loggers import read_metrics

ROOT = Path(__file__).parents[2]
MINI = ROOT / "tests" / "fixtures" / "qm9_mini.csv"


@pytest.fixture(scope="session")
def tiny(data_root: Path) -> list[str]:
    """Overrides that make a run of seconds on the fixture, its sets not divisible by two."""
    return [
        f"data.raw_path={MINI}", f"data.root={data_root}", "data.split=[41,13,9]",
        "data.limit_val=null", "model.num_layers=2", "model.num_degrees=2",
        "model.num_channels=4", "model.num_heads=2", "trainer.accelerator=cpu",
        "trainer.log_every_n_steps=1", "callbacks.last.every_n_steps=1",
        "callbacks.last.min_seconds=0", "callbacks.progress.refresh_rate=0",
    ]  # fmt: skip


@pytest.fixture
def assert_same_training() -> Callable[..., None]:
    """Compare the last checkpoints, the metrics and the test results of two runs of 12 steps."""

    def _assert(run: Path, single: Path, *parts: str, rtol: float, atol: float) -> None:
        a, b = (read_checkpoint(f / "checkpoints" / "last.ckpt") for f in (run, single))
        assert a["global_step"] == b["global_step"] == 12
        for key in ("state_dict", *parts):
            assert a[key].keys() == b[key].keys()
            for name, value in b[key].items():
                torch.testing.assert_close(a[key][name], value, rtol=rtol, atol=atol)
        relative = max(rtol, atol)
        curves = [read_metrics(f / "metrics.csv") for f in (run, single)]
        assert curves[0].keys() == curves[1].keys()
        for step, row in curves[1].items():
            for name in row.keys() - {"train/molecules_per_second", "train/peak_memory_mb"}:
                value = pytest.approx(row[name], rel=relative, abs=atol)
                assert curves[0][step][name] == value, name
        summaries = [json.loads((f / "summary.json").read_text()) for f in (run, single)]
        for name in ("test_molecules", "parameters"):
            assert summaries[0][name] == summaries[1][name]
        errors = [s["targets"]["homo"]["mae"] for s in summaries]
        assert errors[0] == pytest.approx(errors[1], rel=relative)

    return _assert


@pytest.fixture
def kill() -> Callable[[subprocess.Popen], None]:
    """Kill a process and those that it started."""

    def _kill(process: subprocess.Popen) -> None:
        for pid in reversed([process.pid, *descendants(process.pid)]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    return _kill


@pytest.fixture
def start(
    tmp_path: Path, kill: Callable[[subprocess.Popen], None]
) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start python with arguments in an empty folder; its output goes to a pipe."""
    started: list[subprocess.Popen] = []

    def _start(*arguments: str, before: tuple[str, ...] = (), **environment: str):
        process = subprocess.Popen(
            [*before, sys.executable, *arguments],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield _start
    for process in started:
        kill(process)
        assert process.stdout is not None
        process.stdout.close()


def descendants(pid: int) -> list[int]:
    """Processes that a process started, and those that they did."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # It has ended, or the system has no /proc.
        return []
    return [found for child in map(int, children) for found in (child, *descendants(child))]
