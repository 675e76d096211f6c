"""Devices other than the CPU need not be waited for: a step runs where tensors have no values."""

from contextlib import nullcontext

import pytest
import torch

from pyg_se3 import KernelOptions, SE3TransformerPooled
from pyg_se3.so3 import EdgeGeometry

NODES, EDGES = 20, 50


@pytest.mark.parametrize("forces", [False, True], ids=["energies", "forces"])
@pytest.mark.parametrize("memory", ["default", "low", "fast"])
def test_a_step_needs_no_values_on_the_host(memory, forces, monkeypatch):
    # Autocast, which kernels switch off, does not know the device.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    options = KernelOptions(memory=memory)
    model = SE3TransformerPooled(
        {0: 6}, 3, 8, num_layers=2, fiber_edge={0: 4}, num_heads=2, kernel=options
    )
    model = model.to("meta")
    pos = torch.empty(NODES, 3, device="meta", requires_grad=forces)
    edge_index = torch.empty(2, EDGES, dtype=torch.long, device="meta")
    vectors = pos[edge_index[1]] - pos[edge_index[0]]
    y = model(
        torch.empty(NODES, 6, device="meta"),
        edge_index=edge_index,
        edge_attr=torch.empty(EDGES, 4, device="meta"),
        batch=torch.empty(NODES, dtype=torch.long, device="meta"),
        num_graphs=4,
        geometry=EdgeGeometry.from_vectors(vectors, model.max_degree, may_vanish=False),
    )
    loss = y.sum()
    if forces:
        (slope,) = torch.autograd.grad(loss, pos, create_graph=True)
        loss = loss + slope.square().sum()
    loss.backward()
    assert y.shape == (4, 1)
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


def test_edges_of_zero_length_are_looked_for_unless_excluded():
    with pytest.raises(RuntimeError, match="meta"):
        EdgeGeometry.from_vectors(torch.empty(EDGES, 3, device="meta"), 2)
