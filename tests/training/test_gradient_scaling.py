"""``16-mixed``: gradients in float16 are scaled, a step whose gradients overflow is skipped.

Lightning offers it on GPUs only; PyTorch's autocast and scaler work on a CPU, too, so the plugin is
made by hand here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import nn

from pyg_se3.training import AtomicCheckpointIO, WarmupCosine, read_checkpoint
from pyg_se3.training.callbacks import (
    ExponentialMovingAverage,
    GradientNorm,
    LastCheckpoint,
    StopOnNonFinite,
    TrainingRandomness,
)
from pyg_se3.training.callbacks.finite import SMALLEST_SCALE, NonFiniteLossError
from pyg_se3.training.loggers import MetricsFile, read_metrics


class Steps(pl.Callback):
    """The weights after every step, and the scale for the next one."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []
        self.scales: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        parameters = nn.utils.parameters_to_vector(pl_module.parameters())
        self.weights.append(parameters.detach().clone())
        self.scales.append(trainer.precision_plugin.scaler.get_scale())


@pytest.fixture
def fit(make_data, make_module, make_trainer, tmp_path) -> Callable[..., Steps]:
    def _fit(name: str, scale: float, ckpt_path: Path | None = None, module: Any = None) -> Steps:
        steps = Steps()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
        trainer = make_trainer(
            max_epochs=3,
            gradient_clip_val=10.0,
            logger=MetricsFile(str(tmp_path / name)),
            log_every_n_steps=1,
            plugins=[AtomicCheckpointIO(), MixedPrecision("16-mixed", "cpu", scaler)],
            callbacks=[
                steps,
                StopOnNonFinite(),
                GradientNorm(),
                ExponentialMovingAverage(0.9),
                TrainingRandomness(),
                LastCheckpoint(str(tmp_path / name), every_n_steps=1),
            ],
        )
        module = module or make_module(scheduler=WarmupCosine)
        trainer.fit(module, datamodule=make_data(), ckpt_path=ckpt_path)
        return steps

    return _fit


def test_steps_that_overflow_are_skipped_and_the_scale_adapts(fit, make_module, tmp_path):
    module = make_module(scheduler=WarmupCosine)
    before = nn.utils.parameters_to_vector(module.parameters()).detach().clone()
    steps = fit("run", 2.0**20, module=module)
    assert len(steps.weights) == 15
    norms = [row["train/grad_norm"] for row in read_metrics(tmp_path / "run/metrics.csv").values()]
    scales = [2.0**20, *steps.scales]
    earlier = [before, *steps.weights[:-1]]
    taken = [not torch.equal(a, b) for a, b in zip(earlier, steps.weights, strict=True)]
    # Too large at first, then halved until steps are taken, then raised until one overflows.
    assert not taken[0] and sum(taken) >= 5
    for number, is_taken in enumerate(taken):
        assert is_taken == math.isfinite(norms[number])
        ratio = scales[number + 1] / scales[number]
        assert ratio in ((1.0, 2.0) if is_taken else (0.5,))
    assert any(b > a for a, b in zip(scales, scales[1:], strict=False))
    assert all(weights.isfinite().all() for weights in steps.weights)
    saved = read_checkpoint(tmp_path / "run" / "last.ckpt")["MixedPrecision"]
    assert saved["scale"] == steps.scales[-1] and saved["_growth_tracker"] in (0, 1, 2)


def test_resuming_restores_the_scale(fit, tmp_path, monkeypatch):
    whole = fit("whole", 2.0**16)
    assert len(set(whole.scales)) > 1

    class Killed(Exception):
        pass

    def die(self: Any, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == 8:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(GradientNorm, "on_train_batch_end", die)
        fit("killed", 2.0**16)
    stop = tmp_path / "killed" / "last.ckpt"
    assert read_checkpoint(stop)["MixedPrecision"]["scale"] == whole.scales[6]
    # Another scale to begin with: the one of the checkpoint counts.
    resumed = fit("resumed", 2.0**4, ckpt_path=stop)
    assert resumed.scales == whole.scales[7:]
    assert all(map(torch.equal, resumed.weights, whole.weights[7:]))


def test_gradients_that_no_scale_helps_end_the_run(fit, make_module, tmp_path):
    module = make_module()
    name, weight = list(module.named_parameters())[4]
    weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(NonFiniteLossError, match="gradients are not finite even if") as error:
        fit("run", 10 * SMALLEST_SCALE, module=module)
    assert f"at step 4: {name}. Lower" in str(error.value)
    assert all(p.isfinite().all() for p in module.parameters())


def test_an_activation_beyond_float16_names_its_layer(fit, make_module):
    module = make_module()
    path = "transformer.blocks.1.to_query"

    def enlarge(layer: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.half() * 1e5 if module.global_step == 2 else output

    module.net.get_submodule(path).register_forward_hook(enlarge)
    with pytest.raises(NonFiniteLossError, match=f"output is not finite is {path}"):
        fit("run", 2.0**10, module=module)
