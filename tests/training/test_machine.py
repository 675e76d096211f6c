from __future__ import annotations

import pytest
import torch

from pyg_se3.training.machine import peak_memory, set_matmul_precision


@pytest.fixture(autouse=True)
def precision():
    earlier = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(earlier)


@pytest.mark.parametrize("value", ["highest", "high"])
def test_matmul_precision_is_set_and_its_effect_known(value):
    effect = set_matmul_precision(value, torch.device("cpu"))
    assert torch.get_float32_matmul_precision() == value
    torch.set_float32_matmul_precision("high")
    a, b = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(1))
    off = float((a @ b - (a.double() @ b.double())).abs().max())
    assert effect == (off > 1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tf32_and_memory_on_a_gpu():
    device = torch.device("cuda")
    major, _ = torch.cuda.get_device_capability(device)
    assert set_matmul_precision("high", device) == (major >= 8)
    block = torch.zeros(1 << 20, device=device)
    assert peak_memory(device)["gpu"] >= block.nbytes / 1e6


def test_matmul_precision_knows_two_values():
    with pytest.raises(ValueError, match="'highest' or 'high', got 'medium'"):
        set_matmul_precision("medium", torch.device("cpu"))


def test_memory_of_a_gpu_is_told_only_where_one_is_used():
    assert peak_memory().keys() == peak_memory(torch.device("cpu")).keys() == {"host"}
