from __future__ import annotations

import csv
import json

import pytest
import torch

from pyg_se3.training.callbacks import RunReport, Throughput
from pyg_se3.training.loggers import MetricsFile, read_metrics, write_metrics
from pyg_se3.training.machine import duration, peak_memory
from pyg_se3.training.report import with_unit, write_predictions

PNG = b"\x89PNG\r\n\x1a\n"


def test_metrics_file_has_one_row_per_step_and_grows_columns(tmp_path):
    logger = MetricsFile(str(tmp_path), seconds_between_writes=0)
    logger.log_metrics({"train/loss": torch.tensor(0.5), "epoch": 0}, step=9)
    logger.log_metrics({"lr": 1e-3}, step=9)
    logger.log_metrics({"val/mae": 0.25, "epoch": 0}, step=10)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines == ["step,epoch,lr,train/loss,val/mae", "9,0,0.001,0.5,", "10,0,,,0.25"]
    assert read_metrics(tmp_path / "metrics.csv")[10] == {"val/mae": 0.25, "epoch": 0}


def test_metrics_file_continues_an_earlier_one(tmp_path):
    write_metrics(tmp_path / "old.csv", {step: {"a": float(step)} for step in range(6)})
    logger = MetricsFile(str(tmp_path))
    logger.continue_from(tmp_path / "old.csv", step=3)
    logger.continue_from(tmp_path / "not-there.csv", step=3)
    logger.log_metrics({"a": 30.0}, step=3)
    logger.finalize("success")
    found = {step: row["a"] for step, row in read_metrics(logger.path).items()}
    assert found == {0: 0, 1: 1, 2: 2, 3: 30}


def test_predictions(tmp_path):
    target, prediction = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.5, 1.0]])
    write_predictions(tmp_path / "p.csv", torch.tensor([7]), target, prediction, ["a", "b"])
    header, row = (tmp_path / "p.csv").read_text().splitlines()
    assert header == "idx,target_a,prediction_a,error_a,target_b,prediction_b,error_b"
    assert row == "7,1,1.5,0.5,2,1,-1"
    one = torch.tensor([[1.0]])
    write_predictions(tmp_path / "q.csv", torch.tensor([7]), one, one, molecules=["CO, solid"])
    with open(tmp_path / "q.csv", newline="") as file:
        assert list(csv.DictReader(file))[0]["name"] == "CO, solid"


@pytest.mark.parametrize("target", ["homo", ["homo", "mu"]])
def test_run_leaves_its_results(target, make_data, make_net, make_module, make_trainer, tmp_path):
    data = make_data(target=target)
    report = RunReport()
    trainer = make_trainer(
        max_epochs=2,
        log_every_n_steps=1,
        logger=MetricsFile(str(tmp_path)),
        callbacks=[report, Throughput()],
    )
    module = make_module(make_net(output_dim=data.num_targets))
    trainer.fit(module, datamodule=data)
    (result,) = trainer.test(module, datamodule=data, verbose=False)
    summary = json.loads((tmp_path / "summary.json").read_text())
    homo = summary["targets"]["homo"]
    with open(tmp_path / "test_predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["idx"]) for row in rows] == sorted(data.test_set.store.idx[data.split.test])
    smiles = {int(i): data.dataset.smiles(n) for n, i in enumerate(data.dataset.table.idx)}
    assert [row["name"] for row in rows] == [smiles[int(row["idx"])] for row in rows]
    suffix = "" if data.num_targets == 1 else "_homo"
    errors = [abs(float(row[f"error{suffix}"])) for row in rows]
    assert homo["mae"] == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    name = "test/mae" if data.num_targets == 1 else "test/mae/homo"
    assert homo["mae"] == pytest.approx(result[name], rel=1e-5)
    y = data.test_set.y[:, 2]
    assert homo["mean_mae"] == pytest.approx(float((y - data.target_mean[0]).abs().mean()))
    assert summary["steps"] == 10 and summary["epochs"] == 2 and summary["test_molecules"] == 12
    assert summary["train_seconds"] > 0 and summary["peak_memory_mb"]["host"] > 100
    assert "test MAE, homo" in (tmp_path / "summary.md").read_text()
    parity = ["parity.png"] if data.num_targets == 1 else ["parity_homo.png", "parity_mu.png"]
    for picture in ["learning_curve.png", *parity]:
        assert (tmp_path / picture).read_bytes().startswith(PNG)


def test_words():
    assert with_unit(0.1034, "eV") == "103.4 meV"
    assert with_unit(3.5, "eV") == "3.5 eV"
    assert with_unit(0.05, "D") == "0.05 D"
    assert (duration(59.6), duration(3723)) == ("1:00", "1:02:03")
    assert peak_memory()["host"] > 50
