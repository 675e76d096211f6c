from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[2]
EPOCHS = ["trainer.max_epochs=2", "trainer.log_every_n_steps=1"]


def only(pattern: str, folder: Path) -> Path:
    (path,) = folder.glob(pattern)
    return path


def test_train_then_evaluate_from_the_checkpoint_alone(command, tiny, tmp_path):
    out = command("train", "+experiment=qm9", "data.target=gap", *tiny, *EPOCHS).stdout
    run = only("runs/qm9_gap/*", tmp_path)
    for name in (
        "config.yaml", "metrics.csv", "learning_curve.png", "parity.png", "test_predictions.csv",
        "summary.md", "summary.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt",
    ):  # fmt: skip
        assert (run / name).is_file(), name
        assert name in out or name == "summary.json"
    assert "test MAE, gap" in out and str(run) in out
    assert OmegaConf.load(run / "config.yaml").data.target == "gap"
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(bool(row["val/mae"]) for row in rows) == 2
    assert sum(bool(row["train/loss"]) for row in rows) == 10
    assert all(row["lr"] for row in rows if row["train/loss"])
    assert list((run / "tensorboard").iterdir())

    checkpoint = run / "checkpoints" / "best.ckpt"
    command("evaluate", f"ckpt_path={checkpoint}", f"data.root={tiny[1].split('=')[1]}")
    again = only("runs/evaluate/*", tmp_path)
    predictions = [(folder / "test_predictions.csv").read_text() for folder in (run, again)]
    assert predictions[0] == predictions[1]
    errors = [json.loads((f / "summary.json").read_text())["targets"]["gap"] for f in (run, again)]
    assert errors[0]["mae"] == errors[1]["mae"]

    # Another kernel, and another size of batches: the same up to round-off.
    command(
        "evaluate", f"ckpt_path={checkpoint}", f"data.root={tiny[1].split('=')[1]}",
        "kernel=reference", "data.eval_batch_size=5", f"hydra.run.dir={tmp_path / 'other'}",
    )  # fmt: skip
    other = json.loads((tmp_path / "other" / "summary.json").read_text())
    assert other["targets"]["gap"]["mae"] == pytest.approx(errors[0]["mae"], rel=1e-4)


def test_resume_keeps_the_curve_and_the_best(command, tiny, tmp_path):
    command("train", *tiny, *EPOCHS, "test=false", "hydra.run.dir=first")
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    command(
        "train", *tiny, "trainer.max_epochs=3", "trainer.log_every_n_steps=1",
        f"ckpt_path={last}", "hydra.run.dir=second",
    )  # fmt: skip
    with open(tmp_path / "second" / "metrics.csv", newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert steps == list(range(15))
    assert (tmp_path / "second" / "checkpoints" / "best.ckpt").is_file()
    assert json.loads((tmp_path / "second" / "summary.json").read_text())["steps"] == 15


def test_train_py_and_the_sweep(tiny, tmp_path):
    subprocess.run(
        [
            sys.executable, str(ROOT / "train.py"), "-m", "data.target=homo,gap", *tiny,
            "trainer.max_epochs=1", "name=sweep",
        ],
        cwd=tmp_path, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    summaries = sorted(tmp_path.glob("runs/sweep/*/*/summary.json"))
    targets = [list(json.loads(s.read_text())["targets"]) for s in summaries]
    assert sorted(targets) == [["gap"], ["homo"]]


def test_tfn_radius_graph_and_several_targets(command, tiny, tmp_path):
    arguments = [a for a in tiny if not a.startswith("model.")]
    command(
        "train", *arguments, "model=tfn", "model.num_layers=1", "data.target=[homo,mu]",
        "data.graph=radius", "data.cutoff=2.0", "trainer.max_epochs=1", "hydra.run.dir=run",
    )  # fmt: skip
    record = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert record["hyper_parameters"]["model"]["config"]["fiber_edge"] == {}
    assert (tmp_path / "run" / "parity_mu.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.num_chanels=3"], "did you mean model.num_channels?"),
        (["model.num_heads=5"], "num_heads=5"),
        (["data.target=homoo"], "valid targets: mu, alpha, homo"),
        (["ckpt_path=nowhere.ckpt"], "there is no checkpoint nowhere.ckpt"),
        (["trainer.precision=7"], "7"),
        (["model.output_dim=2"], "output_dim=2"),
    ],
)
def test_mistakes_end_with_one_message(arguments, message, command, tiny):
    done = command("train", *tiny, *arguments, code=1)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_evaluate_refuses(command, tiny, tmp_path):
    (tmp_path / "no.ckpt").write_text("no")
    done = command("evaluate", "ckpt_path=no.ckpt", code=1)
    assert "no.ckpt is not a checkpoint" in done.stderr
    done = command("evaluate", code=1)
    assert "ckpt_path is mandatory" in done.stderr
    done = command("evaluate", "ckpt_pth=x", code=1)
    assert "did you mean ckpt_path?" in done.stderr


def test_evaluate_replaces_results_only_when_told(command, tiny, data_root, tmp_path):
    command("train", *tiny, "trainer.max_epochs=1", "run_dir=run")
    arguments = ["ckpt_path=run/checkpoints/best.ckpt", f"data.root={data_root}", "paths.run=run"]
    files = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    before = {path: path.read_bytes() for path in files}
    done = command("evaluate", *arguments, code=1)
    assert "run has results already (summary.md, parity.png" in done.stderr
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    command("evaluate", *arguments, "overwrite=true")
    summary = tmp_path / "run" / "summary.json"
    assert summary.read_bytes() != before[summary]


def test_a_run_that_ends_inside_an_epoch_is_validated(command, tiny, tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints"
    for steps in (3, 7):  # an epoch has 5
        command("train", *tiny, f"trainer.max_steps={steps}", "run_dir=run", "resume=true")
        with open(tmp_path / "run" / "metrics.csv", newline="") as file:
            validated = [int(row["step"]) for row in csv.DictReader(file) if row["val/mae"]]
        assert validated[-1] == steps - 1
        assert (checkpoints / "best.ckpt").is_file()
        last = torch.load(checkpoints / "last.ckpt", weights_only=True)
        assert last["global_step"] == steps
    assert validated == [2, 4, 6]
    command("train", *tiny, "trainer.max_steps=7", "run_dir=run", "resume=true")
    again = torch.load(checkpoints / "last.ckpt", weights_only=True)
    assert all(torch.equal(v, again["state_dict"][k]) for k, v in last["state_dict"].items())


def test_a_sweep_starts_no_processes(command, tiny, tmp_path):
    done = command(
        "train", "-m", *tiny, "data.target=homo,gap", "trainer=ddp", "trainer.accelerator=cpu",
        "trainer.devices=2", "run_dir=sweep", code=1,
    )  # fmt: skip
    assert "cannot start the 2 processes of each run itself" in done.stderr
    assert "torchrun" in done.stderr
    assert not list(tmp_path.glob("sweep/*/checkpoints"))


def test_help_helps(command):
    out = command("train", "--help").stdout
    for words in ("+experiment=qm9_homo_quick", "data.target=gap", "num_channels: 32"):
        assert words in out
    assert "ckpt_path=runs" in command("evaluate", "--help").stdout


def test_deterministic_is_one_word(command, tiny, tmp_path):
    weights = []
    try:
        for name in ("one", "two"):
            command(
                "train", *tiny, "deterministic=true", "trainer.max_epochs=1", "test=false",
                f"run_dir={name}",
            )  # fmt: skip
            assert torch.are_deterministic_algorithms_enabled()
            path = tmp_path / name / "checkpoints" / "last.ckpt"
            weights.append(torch.load(path, weights_only=True)["state_dict"])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
