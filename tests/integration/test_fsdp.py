"""Parameters divided between two processes, on CPUs: all but the device is as on GPUs."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyg_se3.cli import main

ROOT = Path(__file__).parents[2]
SUPPORT = Path(__file__).parent / "support"
FSDP = [
    "trainer=fsdp",
    "trainer.accelerator=cpu",
    "trainer.devices=2",
    "trainer.strategy._target_=cpu_fsdp.CPUStrategy",
    "trainer.strategy.timeout.minutes=1",
    "data.batch_size=4",
    "data.eval_batch_size=4",
    # Adam makes much of round-off where a gradient is nearly zero.
    "+optimizer.eps=1e-3",
]


@pytest.fixture
def begin(start, tiny):
    def _begin(*arguments: str) -> subprocess.Popen:
        command = [str(ROOT / "train.py"), *tiny, *FSDP, "run_dir=run", *arguments]
        return start(*command, PYTHONPATH=str(SUPPORT))

    return _begin


@pytest.fixture
def run(begin):
    def _run(*arguments: str, code: int = 0) -> str:
        process = begin(*arguments)
        out = process.communicate(timeout=300)[0]
        assert process.returncode == code, out
        return out

    return _run


@pytest.fixture(scope="module")
def single(tiny, tmp_path_factory):
    """One process with batches as large as those of two together."""
    folder = tmp_path_factory.mktemp("single") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(sys.argv))
        arguments = ["trainer=cpu", "data.batch_size=8", "+optimizer.eps=1e-3", f"run_dir={folder}"]
        main(["train", *tiny, *arguments, "trainer.max_epochs=2"])
    return folder


CLOSE = {"rtol": 1e-3, "atol": 1e-4}
"""In single precision, which is the only one that Lightning has for FSDP besides mixed ones."""


def test_two_processes_train_and_test_as_one(run, single, assert_same_training, tmp_path):
    run("trainer.max_epochs=2")
    assert_same_training(tmp_path / "run", single, **CLOSE)


def test_killed_run_resumes_exactly(begin, kill, run, single, assert_same_training, tmp_path):
    process = begin("trainer.max_epochs=2")
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoints" / "previous.ckpt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    kill(process)
    run("trainer.max_epochs=2", "resume=true")
    assert_same_training(tmp_path / "run", single, **CLOSE)


def test_unequally_many_batches_are_refused(run):
    out = run("trainer.max_epochs=1", "data.eval_batch_size=3", code=1)
    assert "eval_batch_size=3 cannot give them for 13 molecules" in out


def test_a_loss_that_is_not_finite_names_the_layer(run):
    out = run("trainer.max_epochs=2", "optimizer.lr=1e30", code=1)
    assert "the training loss is nan" in out
    assert "output is not finite is transformer.blocks.0.to_key_value." in out


def test_also_if_only_one_process_has_it(run):
    spoil = "trainer.strategy.spoils=transformer.blocks.1.to_query"
    out = run("trainer.max_epochs=1", f"+{spoil}", code=1)
    assert "output is not finite is transformer.blocks.1.to_query (" in out
