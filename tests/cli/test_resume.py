"""``resume=true``: in the same folder, after being killed at any moment, to the same weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from pyg_se3.training import checkpoint as checkpoint_module
from pyg_se3.training import files, read_checkpoint
from pyg_se3.training.callbacks import LastCheckpoint, TrainingRandomness
from pyg_se3.training.callbacks import last as last_module
from pyg_se3.training.loggers import read_metrics

RUN = [
    "callbacks=ema", "trainer.max_epochs=3", "trainer.log_every_n_steps=1", "test=false",
    "callbacks.last.every_n_steps=1", "callbacks.last.min_seconds=0",
]  # fmt: skip


@pytest.fixture(scope="session")
def whole(
    tiny: list[str], in_a_child: Callable[..., int], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    in_a_child(["train", *tiny, *RUN, f"run_dir={folder}"], lambda: None)
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == 15
    return folder


def die(*args: Any, **kwargs: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def always(*args: Any) -> bool:
    return True


def at_call(number: int, function: Callable, then: Callable, when: Callable = always) -> Callable:
    """``function``, and ``then`` instead at the given call, of those that match."""
    count = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += when(*args)
        return (then if count == number and when(*args) else function)(*args, **kwargs)

    return wrapped


def in_mid_epoch() -> None:
    LastCheckpoint.on_train_batch_end = at_call(8, LastCheckpoint.on_train_batch_end, die)


def while_writing() -> None:
    save = torch.save

    def half(content: Any, path: Path) -> None:
        save(content, path)
        os.truncate(path, path.stat().st_size // 2)
        die()

    torch.save = at_call(9, save, half)


def before_the_rename() -> None:
    def is_checkpoint(source: Path, target: Path) -> bool:
        return target.name == "next.ckpt"

    files.os = type("os", (), dict(vars(os)))
    files.os.replace = at_call(7, os.replace, die, is_checkpoint)


def between_the_renames() -> None:
    last_module.os = type("os", (), dict(vars(os)))
    # One for the first checkpoint, two for the others.
    last_module.os.replace = at_call(11, os.replace, die)


def after_the_renames() -> None:
    """The checkpoint is there; Lightning has not logged its step yet."""

    def replace_and_die(*args: Any) -> None:
        os.replace(*args)
        die()

    last_module.os = type("os", (), dict(vars(os)))
    last_module.os.replace = at_call(11, os.replace, replace_and_die, is_next)


def is_next(source: Path, target: Path) -> bool:
    return Path(source).name == "next.ckpt"


def after_validation() -> None:
    """The new best checkpoint is there, the last one is from before validation."""

    def is_best(self: Any, checkpoint: Any, path: Path, *args: Any) -> bool:
        return Path(path).name == "best.ckpt"

    cls = checkpoint_module.AtomicCheckpointIO
    save = cls.save_checkpoint

    def save_and_die(*args: Any, **kwargs: Any) -> None:
        save(*args, **kwargs)
        die()

    cls.save_checkpoint = at_call(2, save, save_and_die, is_best)


@pytest.mark.parametrize(
    "moment",
    [
        in_mid_epoch,
        while_writing,
        before_the_rename,
        between_the_renames,
        after_the_renames,
        after_validation,
    ],  # fmt: skip
    ids=lambda f: f.__name__,
)
def test_killed_at_any_moment(moment, command, in_a_child, tiny, tmp_path, whole, assert_same_run):
    run = tmp_path / "run"
    status = in_a_child(["train", *tiny, *RUN, f"run_dir={run}"], moment)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    leftovers = list(run.rglob(".*.part-*"))
    assert bool(leftovers) == (moment in (while_writing, before_the_rename))
    out = command("train", *tiny, *RUN, f"run_dir={run}", "resume=true").stdout
    used = "previous.ckpt" if moment is between_the_renames else "last.ckpt"
    assert "Resuming at step" in out and f"checkpoints/{used}" in out
    assert_same_run(whole, run)
    assert not list(run.rglob(".*.part-*"))


def test_killed_from_outside_and_resumed_by_a_new_process(
    in_a_child, tiny, tmp_path, whole, assert_same_run
):
    run = tmp_path / "run"
    last = run / "checkpoints" / "last.ckpt"

    def wait_and_die() -> None:
        while not last.exists():
            time.sleep(0.001)
        die()

    def prepare() -> None:
        threading.Thread(target=wait_and_die, daemon=True).start()

    arguments = ["train", *tiny, *RUN, f"run_dir={run}"]
    assert os.WIFSIGNALED(in_a_child(arguments, prepare))
    start = [sys.executable, "-m", "pyg_se3.cli", *arguments, "resume=true"]
    # Sums of the same number of threads as here.
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(start, env=alone, capture_output=True, text=True, timeout=300)
    assert "Resuming at step" in done.stdout, done.stderr
    assert_same_run(whole, run)


def test_a_damaged_checkpoint_is_detected_and_the_previous_one_used(
    command, in_a_child, tiny, tmp_path, whole, assert_same_run
):
    run = tmp_path / "run"
    in_a_child(["train", *tiny, *RUN, f"run_dir={run}"], in_mid_epoch)
    last, previous = (run / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt"))
    steps = [read_checkpoint(path)["global_step"] for path in (previous, last)]
    assert steps[0] < steps[1]
    with zipfile.ZipFile(last) as archive:
        tensors = [entry for entry in archive.infolist() if "/data/" in entry.filename]
    largest = max(tensors, key=lambda entry: entry.file_size)
    content = bytearray(last.read_bytes())
    content[largest.header_offset + largest.file_size // 2] ^= 1
    last.write_bytes(content)
    assert torch.load(last, weights_only=True)  # torch does not notice
    out = command("train", *tiny, *RUN, f"run_dir={run}", "resume=true").stdout
    assert "last.ckpt is not a checkpoint" in out and "damaged" in out
    assert f"Resuming at step {steps[0]} from {previous}" in out
    assert_same_run(whole, run)
    assert not list(run.rglob(".*.part-*"))

    for path in (last, previous):
        path.write_bytes(path.read_bytes()[:1000])
    done = command("train", *tiny, *RUN, f"run_dir={run}", "resume=true", code=1)
    assert "There is no other to resume from" in done.stderr
    assert last.stat().st_size == 1000


def test_begins_where_there_is_nothing_and_stays_at_the_end(command, tiny, tmp_path):
    arguments = ["train", *tiny, "trainer.max_epochs=1", "run_dir=run"]
    out = command(*arguments, "resume=true").stdout
    assert "Nothing to resume" in out
    run = tmp_path / "run"
    weights = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    predictions, summary = ((run / n).read_text() for n in ("test_predictions.csv", "summary.json"))
    # A finished run is tested again, no more.
    out = command(*arguments, "resume=true").stdout
    assert "Resuming at step 5" in out and "test MAE" in out
    again = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    assert (run / "test_predictions.csv").read_text() == predictions
    again, summary = json.loads((run / "summary.json").read_text()), json.loads(summary)
    for key in ("targets", "steps", "epochs"):
        assert again[key] == summary[key]


def test_tracebacks_of_earlier_starts_are_kept_under_numbers(command, tiny, tmp_path, monkeypatch):
    arguments = [
        "train", *tiny, "trainer.max_epochs=2", "callbacks.last.every_n_steps=1",
        "callbacks.last.min_seconds=0", "test=false", "run_dir=run",
    ]  # fmt: skip
    run = tmp_path / "run"

    def logs() -> dict[str, bool]:
        return {p.name: "step 3" in p.read_text() for p in run.glob("error*.log")}

    def fail_at(step: int) -> Callable:
        def fail(self: Any, trainer: Any, *args: Any) -> None:
            if trainer.global_step == step:
                raise OSError(f"step {step}")

        return fail

    for step in (3, 5):
        with monkeypatch.context() as patch:
            patch.setattr(TrainingRandomness, "on_train_batch_start", fail_at(step))
            command(*arguments, "resume=true", code=1)
        (run / "error-process1.log").write_text("of another process")
    assert logs() == {
        "error.log": False, "error.1.log": True,
        "error-process1.log": False, "error-process1.1.log": False,
    }  # fmt: skip
    done = command(*arguments, "resume=true")
    assert "had an error before: error.log is now error.2.log" in done.stdout
    assert sorted(logs()) == [
        "error-process1.1.log", "error-process1.2.log", "error.1.log", "error.2.log",
    ]  # fmt: skip
    assert logs()["error.1.log"] and not logs()["error.2.log"]
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 10


def test_a_folder_with_a_run_is_not_entered_by_accident(command, tiny, tmp_path):
    arguments = ["train", *tiny, "trainer.max_epochs=1", "test=false", "run_dir=run"]
    command(*arguments)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()}
    done = command(*arguments, code=1)
    assert "has a run already" in done.stderr and "resume=true" in done.stderr
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()} == before

    for wrong, message in (
        (["resume=true"], "needs the folder of the run: run_dir="),
        (["trainer=ddp", "trainer.num_nodes=2"], "give run_dir="),
        (["resume=true", "run_dir=run", "ckpt_path=a.ckpt"], "not both"),
    ):
        assert message in command("train", *tiny, *wrong, code=1).stderr


def test_changed_settings_are_told_and_the_earlier_ones_kept(command, tiny, tmp_path):
    arguments = ["train", *tiny, "test=false", "hydra.run.dir=run"]
    command(*arguments, "trainer.max_epochs=1")
    out = command(*arguments, "trainer.max_epochs=2", "resume=true").stdout
    assert "trainer.max_epochs: 1 → 2" in out
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").trainer.max_epochs == 2
    assert OmegaConf.load(tmp_path / "run" / "config.1.yaml").trainer.max_epochs == 1
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [step for step, row in rows.items() if "val/mae" in row] == [4, 9]


def test_another_model_is_refused_before_anything_is_written(command, tiny, tmp_path):
    arguments = ["train", *tiny, "test=false", "run_dir=run", "trainer.max_epochs=1"]
    command(*arguments)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    done = command(*arguments, "resume=true", "model.num_channels=8", code=1)
    assert "model.config.num_channels is 4 in the checkpoint, 8 here" in done.stderr
    after = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert after.pop(tmp_path / "run" / "error.log") and after == before
