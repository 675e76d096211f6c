"""Weights & Biases and MLflow themselves where they are installed, and what is said where not."""

from __future__ import annotations

import importlib.util
import sys
import types

import pytest
from pytorch_lightning.loggers import WandbLogger

from pyg_se3.training.callbacks import GradientNorm, RunRecord, Throughput
from pyg_se3.training.loggers import finish_wandb, mlflow_logger


def installed(name):
    return importlib.util.find_spec(name) is not None


@pytest.mark.skipif(installed("mlflow"), reason="MLflow is installed")
def test_missing_mlflow_says_how_to_install_it(tmp_path):
    with pytest.raises(ModuleNotFoundError, match=r"pip install .*mlflow"):
        mlflow_logger("a", str(tmp_path / "x.db"))


@pytest.mark.skipif(installed("wandb"), reason="Weights & Biases is installed")
def test_missing_wandb_says_how_to_install_it():
    with pytest.raises(ModuleNotFoundError, match=r"pip install .*wandb"):
        WandbLogger()


@pytest.mark.skipif(not installed("mlflow"), reason="needs MLflow: pip install 'pyg-se3[loggers]'")
def test_mlflow_has_parameters_and_metrics(
    make_data, make_module, make_trainer, tmp_path, monkeypatch
):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    logger = mlflow_logger("mine", str(tmp_path / "sub" / "mlflow.db"))
    trainer = make_trainer(
        max_epochs=1,
        log_every_n_steps=1,
        logger=logger,
        callbacks=[RunRecord(), GradientNorm(), Throughput()],
    )
    trainer.fit(make_module(), datamodule=make_data())
    client = MlflowClient(f"sqlite:///{tmp_path}/sub/mlflow.db")
    run = client.get_run(logger.run_id)
    assert run.info.status == "FINISHED" and "provenance/parameters" in run.data.params
    assert {"train/grad_norm", "train/peak_memory_mb", "val/mae"} <= run.data.metrics.keys()
    assert len(client.get_metric_history(logger.run_id, "train/loss")) == 5


@pytest.mark.skipif(not installed("wandb"), reason="needs wandb: pip install 'pyg-se3[loggers]'")
def test_wandb_offline(make_data, make_module, make_trainer, tmp_path):
    logger = WandbLogger(save_dir=tmp_path, project="p", offline=True)
    trainer = make_trainer(
        max_epochs=1, log_every_n_steps=1, logger=logger, callbacks=[RunRecord(), GradientNorm()]
    )
    trainer.fit(make_module(), datamodule=make_data())
    assert logger.experiment.config["provenance"]["parameters"] > 0
    finish_wandb()
    (written,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert written.stat().st_size > 1000


def test_wandb_is_finished_only_if_it_was_used(monkeypatch):
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    finish_wandb()
    codes = []
    fake = types.SimpleNamespace(finish=lambda exit_code: codes.append(exit_code))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    finish_wandb()
    finish_wandb(failed=True)
    assert codes == [0, 1]
