from __future__ import annotations

import math

import pytest
import torch

from pyg_se3.training import WarmupCosine


def make(**kwargs) -> tuple[torch.optim.Optimizer, WarmupCosine]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    return optimizer, WarmupCosine(optimizer, **kwargs)


def rates(optimizer: torch.optim.Optimizer, scheduler: WarmupCosine, steps: int) -> list[float]:
    out = []
    for _ in range(steps):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return out


def test_values():
    found = rates(*make(total_steps=20, warmup=0.25, final=0.1), steps=24)
    assert 0 < found[0] < 1e-3
    assert found[1:6] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    cosine = [0.05 + 0.45 * (1 + math.cos(math.pi * k / 15)) / 2 for k in range(16)]
    assert found[5:21] == pytest.approx(cosine)
    assert found[20:] == pytest.approx([0.05] * 4)


def test_follows_the_clock_where_that_is_further():
    optimizer, scheduler = make(total_steps=100)
    scheduler.time_progress = 0.5
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.25)
    scheduler.time_progress = 2.0
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0)


def test_state_leaves_settings_to_the_configuration():
    optimizer, scheduler = make(total_steps=10, warmup=0.1)
    rates(optimizer, scheduler, 4)
    _, longer = make(total_steps=1000)
    longer.load_state_dict(scheduler.state_dict())
    assert longer.total_steps == 1000 and longer.last_epoch == 4


@pytest.mark.parametrize(
    "wrong", [{"warmup": 1.0}, {"warmup": -0.1}, {"final": 1.5}, {"total_steps": 0}]
)
def test_refuses(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make(**wrong)
