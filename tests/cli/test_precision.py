"""The precision that is asked for is used."""

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


DEVICES = [
    "cpu",
    pytest.param(
        "gpu",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        ],
    ),
]


@pytest.mark.parametrize("device", DEVICES)
def test_float16_scales_its_gradients(device, command, tiny, tmp_path):
    """On a CPU, too, where Lightning by itself would take bfloat16 instead."""
    arguments = [*tiny, *SHORT, f"trainer={device}", "trainer.precision=16-mixed"]
    done = command("train", *arguments)
    assert "bf16" not in done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["precision"] == "16-mixed" and 0 < summary["targets"]["homo"]["mae"] < 3
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)["MixedPrecision"]
    assert saved["scale"] > 1
    # The scale goes on from where it was.
    command("train", *arguments, "trainer.max_epochs=2", "resume=true")
    later = torch.load(path, weights_only=True)["MixedPrecision"]
    assert later["scale"] > 1 and later["_growth_tracker"] != saved["_growth_tracker"]


def test_weights_in_16_bits_are_refused(command, tiny):
    done = command("train", *tiny, "trainer=cpu", "trainer.precision=bf16-true", code=1)
    assert "expected 32, bf16-mixed, 16-mixed or 64" in done.stderr


def test_evaluating_in_float16(command, tiny, tmp_path):
    command("train", *tiny, *SHORT, "trainer=cpu")
    exact = json.loads((tmp_path / "run" / "summary.json").read_text())["targets"]["homo"]["mae"]
    arguments = ["ckpt_path=run/checkpoints/best.ckpt", "hydra.run.dir=test", "trainer=cpu"]
    command("evaluate", *arguments, "trainer.precision=16-mixed")
    found = json.loads((tmp_path / "test" / "summary.json").read_text())
    assert found["precision"] == "16-mixed"
    error = found["targets"]["homo"]["mae"]
    assert error != exact and abs(error - exact) < 0.02 * exact


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
