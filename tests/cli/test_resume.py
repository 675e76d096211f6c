"""``resume=true``: in the same folder, after being killed at any moment, to the same weights."""

from __future__ import annotations

import json
import os
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from pyg_se3.training import checkpoint as checkpoint_module
from pyg_se3.training import files, read_checkpoint
from pyg_se3.training.callbacks import LastCheckpoint
from pyg_se3.training.callbacks import last as last_module
from pyg_se3.training.loggers import read_metrics

RUN = [
    "callbacks=ema", "trainer.max_epochs=3", "trainer.log_every_n_steps=1", "test=false",
    "callbacks.last.every_n_steps=1", "callbacks.last.min_seconds=0",
]  # fmt: skip
MACHINE = {"train/molecules_per_second", "train/peak_memory_mb"}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def curve(run: Path) -> dict[int, dict[str, float]]:
    rows = read_metrics(run / "metrics.csv")
    return {s: {k: v for k, v in r.items() if k not in MACHINE} for s, r in rows.items()}


def assert_same_run(first: Path, second: Path) -> None:
    a, b = (read_checkpoint(f / "checkpoints" / "last.ckpt") for f in (first, second))
    assert a["global_step"] == b["global_step"] == 15 and a["epoch"] == b["epoch"]
    for key in ("state_dict", "raw_parameters", "optimizer_states", "lr_schedulers"):
        assert same(a[key], b[key]), key
    for key in ("TrainingRandomness", "ExponentialMovingAverage"):
        assert same(a["callbacks"][key], b["callbacks"][key]), key
    a, b = (read_checkpoint(f / "checkpoints" / "best.ckpt") for f in (first, second))
    assert a["global_step"] == b["global_step"]
    assert same(a["state_dict"], b["state_dict"])
    assert curve(first) == curve(second)
    assert not list(second.rglob(".*.part-*"))


@pytest.fixture(scope="session")
def whole(
    tiny: list[str], in_a_child: Callable[..., int], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    in_a_child(["train", *tiny, *RUN, f"run_dir={folder}"], lambda: None)
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
    [in_mid_epoch, while_writing, before_the_rename, between_the_renames, after_validation],
    ids=lambda f: f.__name__,
)
def test_killed_at_any_moment(moment, command, in_a_child, tiny, tmp_path, whole):
    run = tmp_path / "run"
    status = in_a_child(["train", *tiny, *RUN, f"run_dir={run}"], moment)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    leftovers = list(run.rglob(".*.part-*"))
    assert bool(leftovers) == (moment in (while_writing, before_the_rename))
    out = command("train", *tiny, *RUN, f"run_dir={run}", "resume=true").stdout
    used = "previous.ckpt" if moment is between_the_renames else "last.ckpt"
    assert "Resuming at step" in out and f"checkpoints/{used}" in out
    assert_same_run(whole, run)


def test_a_damaged_checkpoint_is_detected_and_the_previous_one_used(
    command, in_a_child, tiny, tmp_path, whole
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
    assert same(weights, read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"])
    assert (run / "test_predictions.csv").read_text() == predictions
    again, summary = json.loads((run / "summary.json").read_text()), json.loads(summary)
    for key in ("targets", "steps", "epochs"):
        assert again[key] == summary[key]


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
    assert [s for s, row in curve(tmp_path / "run").items() if "val/mae" in row] == [4, 9]
