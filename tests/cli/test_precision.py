"""The precision that is asked for is used, or refused."""

from __future__ import annotations

import json

import pytest
import torch

SHORT = ["trainer.max_epochs=1", "hydra.run.dir=run", "trainer.log_every_n_steps=1"]


@pytest.fixture(autouse=True)
def precision():
    earlier = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(earlier)


@pytest.mark.parametrize("name", ["bf16-mixed", "64"])
def test_precisions_of_a_cpu(name, command, tiny, tmp_path):
    command("train", *tiny, *SHORT, f"trainer.precision={name}")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["precision"].startswith(name) and 0 < summary["targets"]["homo"]["mae"] < 3
    (entry,) = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert entry["precision"] == summary["precision"]
    # Weights are stored in full.
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    kinds = {value.dtype for key, value in checkpoint["state_dict"].items() if "net." in key}
    assert kinds == {torch.float64 if name == "64" else torch.float32}


def test_float16_is_refused_on_a_cpu(command, tiny):
    done = command("train", *tiny, "trainer.precision=16-mixed", code=1)
    assert "16-mixed needs a GPU" in done.stderr and "bf16-mixed" in done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_float16_on_a_gpu_scales_its_gradients(command, tiny, tmp_path):
    command("train", *tiny, *SHORT, "trainer=gpu", "trainer.precision=16-mixed")
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["MixedPrecision"]["scale"] > 1


def test_matmul_precision(command, tiny, tmp_path):
    torch.set_float32_matmul_precision("high")
    a = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    has_effect = float((a @ a - a.double() @ a.double()).abs().max()) > 1e-3
    torch.set_float32_matmul_precision("highest")
    done = command("train", *tiny, *SHORT, "test=false", "matmul_precision=high")
    assert torch.get_float32_matmul_precision() == "high"
    assert ("matmul_precision=high has no effect" in done.stdout) != has_effect
    (entry,) = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert entry["matmul_precision"] == "high"
    done = command("train", *tiny, "matmul_precision=medium", code=1)
    assert "expects one of 'highest', 'high'" in done.stderr
