"""Runs that cannot go on end with one message that says what to do, and leave no half files."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from multiprocessing import resource_sharer
from pathlib import Path

import pandas as pd
import pytest

from pyg_se3.cli.errors import explain
from pyg_se3.training import read_checkpoint
from pyg_se3.training.callbacks import LastCheckpoint

MINI = Path(__file__).parents[1] / "fixtures" / "qm9_mini.csv"
EVERY = ["callbacks.last.every_n_steps=1", "callbacks.last.min_seconds=0"]
TENSORBOARD_OFF = "~logger.tensorboard"


def test_a_target_that_does_not_vary(command, tiny, tmp_path):
    raw = tmp_path / "constant.csv"
    pd.read_csv(MINI).assign(HOMO_au=-0.25).to_csv(raw, index=False)
    arguments = [a for a in tiny if "data.r" not in a]
    done = command("train", *arguments, f"data.raw_path={raw}", "data.root=qm9", code=1)
    assert "target 'homo' does not vary" in done.stderr and "another target" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("split", "name"), [("[40,12,0]", "test"), ("[0.9,0.0,0.1]", "val"), ("[0,20,20]", "train")]
)
def test_an_empty_set(split, name, command, tiny):
    done = command("train", *tiny, f"data.split={split}", code=1)
    assert f"the {name} set is empty" in done.stderr and "split=[0.8, 0.1, 0.1]" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_learning_rate_that_is_far_too_large(command, tiny, tmp_path):
    done = command("train", *tiny, *EVERY, "optimizer.lr=1e30", "run_dir=run", code=1)
    assert "not finite" in done.stderr and "Lower the learning rate" in done.stderr
    assert done.stderr.count("error:") == 1 and "Traceback" not in done.stderr


def test_a_process_that_loads_data_dies(command, tiny, monkeypatch):
    def kill_a_worker(self, trainer, *args) -> None:
        if trainer.global_step == 2:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    monkeypatch.setattr(LastCheckpoint, "on_train_batch_end", kill_a_worker)
    done = command(
        "train", *tiny, "data.num_workers=2", "data.batch_size=1", "trainer.max_epochs=3", code=1
    )
    assert "a process that loads data died" in done.stderr and "data.num_workers" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_process_that_dies_while_it_hands_over_a_batch(tmp_path):
    with pytest.raises(OSError) as error:
        resource_sharer._resource_sharer.get_connection((str(tmp_path / "gone"), 1))
    assert "a process that loads data died" in explain(error.value)
    with pytest.raises(OSError) as error:
        (tmp_path / "gone").read_text()
    assert "loads data" not in explain(error.value)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a small file system is not permitted: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def half_files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if ".part-" in p.name or p.name == "next.ckpt"]


def test_a_disk_that_becomes_full_and_then_has_room(command, tiny, disk, monkeypatch):
    run = disk / "run"
    arguments = ["train", *tiny, *EVERY, "test=false", TENSORBOARD_OFF, f"run_dir={run}"]
    after_batch = LastCheckpoint.on_train_batch_end

    def fill(self, trainer, *args) -> None:
        if trainer.global_step == 3:
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            (disk / "other").write_bytes(b"x" * (free - 20_000))
        after_batch(self, trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "on_train_batch_end", fill)
        done = command(*arguments, "trainer.max_epochs=1", code=1)
    assert "could not be written" in done.stderr and "resume=true" in done.stderr
    assert "Traceback" not in done.stderr
    assert not half_files(disk)
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 2

    (disk / "other").unlink()
    command(*arguments, "trainer.max_epochs=1", "resume=true")
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 5


def test_a_folder_that_cannot_be_written(command, tiny, disk):
    (disk / "run").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for folder in (disk / "run", disk / "new"):
        done = command("train", *tiny, TENSORBOARD_OFF, f"run_dir={folder}", code=1)
        assert "is read-only" in done.stderr and "paths.runs=" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_file_that_may_not_grow(command, tiny, tmp_path, in_a_child):
    """A limit on the size of files, as a quota would be, stops the first checkpoint."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    command("train", *tiny, "test=false", "trainer.max_epochs=1")  # processes the data
    run = tmp_path / "run"
    arguments = ["train", *tiny, *EVERY, "test=false", TENSORBOARD_OFF, f"run_dir={run}"]
    status = in_a_child(arguments, limit, errors=str(tmp_path / "errors"))
    assert os.WEXITSTATUS(status) == 1
    errors = (tmp_path / "errors").read_text()
    assert "could not be written" in errors and "make room" in errors
    assert "Traceback" not in errors
    assert not half_files(run) and not list((run / "checkpoints").glob("*"))
