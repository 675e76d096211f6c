"""Devices other than the CPU need not be waited for: a step runs where tensors have no values."""

from contextlib import nullcontext

import pytest
import torch
from torch_geometric.data import Data

from pyg_se3 import KernelOptions, SE3TransformerPooled
from pyg_se3.data import MoleculeLoader
from pyg_se3.so3 import EdgeGeometry

NODES, EDGES = 20, 50


@pytest.fixture
def model(monkeypatch):
    # Autocast, which kernels switch off, does not know the device.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    net = SE3TransformerPooled({0: 6}, 3, 8, num_layers=2, fiber_edge={0: 4}, num_heads=2)
    return net.to("meta")


def molecule(*, coinciding=False):
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(NODES, (EDGES,), generator=generator)
    target = (source + 1) % NODES
    pos = torch.randn(NODES, 3, generator=generator)
    if coinciding:
        pos[target[3]] = pos[source[3]]
    return Data(
        x=torch.randn(NODES, 6), pos=pos, edge_index=torch.stack([source, target]),
        edge_attr=torch.randn(EDGES, 4),
    )  # fmt: skip


def differentiate(model, y):
    y.sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


@pytest.mark.parametrize("forces", [False, True], ids=["energies", "forces"])
@pytest.mark.parametrize("memory", ["default", "low", "fast"])
def test_a_step_needs_no_values_on_the_host(model, memory, forces):
    model.set_kernel(KernelOptions(memory=memory))
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
    assert y.shape == (4, 1)
    loss = y.sum()
    if forces:
        (slope,) = torch.autograd.grad(loss, pos, create_graph=True)
        loss = loss + slope.square().sum()
    differentiate(model, loss)


@pytest.mark.parametrize("forces", [False, True], ids=["energies", "forces"])
def test_nor_does_a_batch_of_the_loader(model, forces):
    (batch,) = MoleculeLoader([molecule(), molecule()], 2)
    assert batch.zero_length_edges is False
    batch = batch.to("meta")
    batch.pos.requires_grad_(forces)
    y = model(batch)
    assert y.shape == (2, 1)
    loss = y.sum()
    if forces:
        (slope,) = torch.autograd.grad(loss, batch.pos, create_graph=True)
        loss = loss + slope.square().sum()
    differentiate(model, loss)


def test_edges_of_zero_length_are_looked_for_unless_excluded(model):
    with pytest.raises(RuntimeError, match="meta"):
        EdgeGeometry.from_vectors(torch.empty(EDGES, 3, device="meta"), 2)
    (batch,) = MoleculeLoader([molecule(), molecule(coinciding=True)], 2)
    assert batch.zero_length_edges is True
    with pytest.raises(RuntimeError, match="meta"):
        model(batch.to("meta"))
    (batch,) = MoleculeLoader([molecule()], 1)
    del batch.zero_length_edges
    with pytest.raises(RuntimeError, match="meta"):
        model(batch.to("meta"))
