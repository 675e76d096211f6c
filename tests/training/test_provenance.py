from __future__ import annotations

import json
import subprocess

import torch

from pyg_se3.training.callbacks import RunRecord
from pyg_se3.training.provenance import git_state, provenance


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_git_state(tmp_path):
    assert git_state(tmp_path / "nowhere") is None
    git(tmp_path, "init")
    assert git_state(tmp_path) is None  # no commit yet
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "x")
    clean = git_state(tmp_path)
    assert len(clean["revision"]) == 40 and clean["dirty"] is False
    (tmp_path / "new").write_text("not tracked")
    assert git_state(tmp_path) == clean
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == clean | {"dirty": True}


def test_versions():
    record = provenance()
    assert record["packages"]["torch"] == torch.__version__
    assert {"pyg-se3", "torch_geometric", "e3nn"} <= record["packages"].keys()
    json.dumps(record)


class Listener:
    """Stands in for any of Lightning's loggers."""

    def __init__(self) -> None:
        self.parameters = []

    def log_hyperparams(self, parameters):
        self.parameters.append(parameters)


def test_run_is_recorded_in_its_folder_and_with_every_logger(
    make_data, make_module, make_trainer, tmp_path
):
    (tmp_path / "config.yaml").write_text("optimizer:\n  lr: 0.005\n")
    module = make_module()
    trainer = make_trainer(max_epochs=1, callbacks=[RunRecord()])
    trainer.fit(module, datamodule=make_data())
    (first,) = json.loads((tmp_path / "provenance.json").read_text())
    assert first["parameters"] == sum(p.numel() for p in module.parameters())
    assert first["precision"] == "32-true" and first["starts_at_step"] == 0
    listener = Listener()
    trainer.loggers = [listener]
    RunRecord(str(tmp_path)).on_fit_start(trainer, module)
    entries = json.loads((tmp_path / "provenance.json").read_text())
    assert entries[0] == first and entries[1]["starts_at_step"] == 5
    assert listener.parameters == [{"optimizer": {"lr": 0.005}, "provenance": entries[1]}]
