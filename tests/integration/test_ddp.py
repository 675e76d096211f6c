"""Two processes with gloo against one with the same global batch, started in every way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pyg_se3.cli import main
from pyg_se3.training import read_checkpoint
from pyg_se3.training.loggers import read_metrics

ROOT = Path(__file__).parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
DDP = ["trainer=ddp", "trainer.devices=2", "data.batch_size=4", "data.eval_batch_size=3"]
# In double precision, as Adam makes much of round-off where a gradient is nearly zero.
RUN = ["trainer.max_epochs=2", "trainer.precision=64", "callbacks=ema"]


def output(process: subprocess.Popen, code: int = 0, timeout: float = 300) -> str:
    out = process.communicate(timeout=timeout)[0]
    assert process.returncode == code, out
    return out


@pytest.fixture(scope="session")
def single(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process with batches as large as those of two together."""
    folder = tmp_path_factory.mktemp("single") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(sys.argv))
        arguments = ["data.batch_size=8", "data.eval_batch_size=6", f"run_dir={folder}"]
        main(["train", *tiny, *RUN, "trainer=cpu", *arguments])
    return folder


def under_slurm(rank: int) -> dict[str, str]:
    """What srun tells a process on the only node of a job of two."""
    job = {"JOB_ID": "4711", "JOB_NAME": "train", "NTASKS": "2"}
    job |= {"NTASKS_PER_NODE": "2", "NODELIST": "localhost"}
    task = {"PROCID": str(rank), "LOCALID": str(rank), "NODEID": "0"}
    return {f"SLURM_{name}": value for name, value in (job | task).items()}


@pytest.mark.parametrize("started", ["plainly", "torchrun", "slurm"])
def test_two_processes_train_and_test_as_one(
    started, start, tiny, single, assert_same_training, tmp_path
):
    command = [str(ROOT / "train.py"), *tiny, *RUN, *DDP, "run_dir=run"]
    if started == "slurm":
        processes = [start(*command, **under_slurm(rank)) for rank in (0, 1)]
    else:
        processes = [start(*(TORCHRUN if started == "torchrun" else []), *command)]
    for process in processes:
        output(process)
    run = tmp_path / "run"
    assert_same_training(run, single, "raw_parameters", rtol=0, atol=1e-6)
    # 9 molecules in batches of 3: two for one process, then one and a bit for the other.
    summaries = [json.loads((f / "summary.json").read_text()) for f in (run, single)]
    assert [s["test_molecules"] for s in summaries] == [9, 9]
    assert summaries[0]["targets"]["homo"] == pytest.approx(summaries[1]["targets"]["homo"])
    tables = [(f / "test_predictions.csv").read_text().splitlines() for f in (run, single)]
    assert [line.split(",")[0] for line in tables[0]] == [line.split(",")[0] for line in tables[1]]
    random = read_checkpoint(run / "checkpoints" / "last.ckpt")["callbacks"]["TrainingRandomness"]
    assert len(random["processes"]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_lightning_cli(start, tiny, data_root, tmp_path):
    """A few steps; the losses are those of ``train``."""
    shared = {
        "model": {
            "net": {
                "class_path": "pyg_se3.models.SE3TransformerPooled",
                "init_args": {
                    "fiber_in": {0: 6}, "fiber_edge": {0: 4}, "num_layers": 1, "num_heads": 2,
                    "num_degrees": 2, "num_channels": 4,
                },
            }
        },
        "data": {
            "raw_path": tiny[0].split("=")[1], "root": str(data_root), "split": [41, 13, 9],
        },
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "precision": 64, "log_every_n_steps": 1},
    }  # fmt: skip
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(shared))
    fit = ["-m", "pyg_se3.cli", "fit", "--config=fit.yaml"]
    one = start(*fit, "--data.batch_size=8", "--trainer.default_root_dir=one")
    output(one)
    two = start(
        *fit, "--data.batch_size=4", "--trainer.default_root_dir=two", "--trainer.strategy=ddp",
        "--trainer.devices=2",
    )  # fmt: skip
    output(two)
    losses = []
    for name in ("one", "two"):
        rows = read_metrics(tmp_path / name / "metrics.csv")
        losses.append([row["train/loss"] for row in rows.values() if "train/loss" in row])
    assert len(losses[0]) == 6 and losses[1] == pytest.approx(losses[0], abs=1e-6)


def children_of(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the other process in /proc")
@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGKILL, id="dies"),
        # Waits for the timeout.
        pytest.param(signal.SIGSTOP, id="hangs", marks=pytest.mark.slow),
    ],
)
def test_a_process_that_dies_or_hangs_ends_the_others_with_a_message(number, start, tiny, tmp_path):
    endless = ["trainer.max_epochs=100000", "trainer.strategy.timeout.minutes=1"]
    process = start(str(ROOT / "train.py"), *tiny, *DDP, *endless, "run_dir=run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    while not last.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    (other,) = children_of(process.pid)
    os.kill(other, number)
    try:
        process.wait(timeout=200)
    finally:
        if number == signal.SIGSTOP:  # It keeps the pipe open.
            os.kill(other, signal.SIGKILL)
    out = output(process, code=1)
    assert "another process of this run died or no longer answers" in out
    assert "resume=true" in out and "Traceback" not in out
    assert read_checkpoint(last)["global_step"] > 0
