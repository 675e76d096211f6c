"""Two runs give the same weights with algorithms that PyTorch calls deterministic."""

from __future__ import annotations

import pytest
import torch

from pyg_se3.ops import KernelOptions


@pytest.fixture(autouse=True)
def _restored():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("kernel", ["auto", "edge", "source", "reference"])
def test_two_runs_have_identical_weights(kernel, make_data, make_module, make_trainer):
    weights = []
    for _ in range(2):
        module = make_module(kernel=KernelOptions(kernel=kernel))
        trainer = make_trainer(max_epochs=1, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        trainer.fit(module, datamodule=make_data())
        weights.append(torch.nn.utils.parameters_to_vector(module.parameters()))
    assert torch.equal(*weights)
