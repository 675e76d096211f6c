"""What is decided by the device, decided as for a GPU: whole models still compute the same."""

import pytest
import torch

from pyg_se3 import KernelOptions, SE3TransformerPooled
from pyg_se3.nn import edges
from pyg_se3.ops import dispatch, frame_products

NODES, EDGES = 60, 700


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """No look at values, so edges stay in their order; no compression; padding; other products."""
    monkeypatch.setattr(edges, "_may_look", lambda tensor: False)
    monkeypatch.setattr(dispatch, "_column_multiple", lambda *_: 8)
    monkeypatch.setattr(frame_products, "FEW", 0)
    monkeypatch.setattr(dispatch, "_compresses", lambda *_: False)
    monkeypatch.setattr(dispatch, "choose_kernel", lambda *_: "edge")


def derivatives(model, inputs, forces):
    model.zero_grad()
    pos = inputs["pos"].detach().requires_grad_(forces)
    y = model(**{**inputs, "pos": pos})
    loss = y.square().sum()
    if forces:
        (slope,) = torch.autograd.grad(loss, pos, create_graph=True)
        loss = loss + slope.square().sum()
    loss.backward()
    return {"output": y.detach(), **{n: p.grad.clone() for n, p in model.named_parameters()}}


@pytest.mark.parametrize("forces", [False, True], ids=["energies", "forces"])
@pytest.mark.parametrize("memory", ["default", "low", "fast"])
def test_models_compute_the_same(memory, forces, as_on_a_gpu):
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(NODES, (EDGES,), generator=generator)
    target = (source + torch.randint(1, NODES, (EDGES,), generator=generator)) % NODES
    inputs = {
        "x": torch.randn(NODES, 3, generator=generator, dtype=torch.float64),
        "pos": torch.randn(NODES, 3, generator=generator, dtype=torch.float64),
        "edge_index": torch.stack([source, target]),
        "edge_attr": torch.randn(EDGES, 2, generator=generator, dtype=torch.float64),
        "batch": torch.arange(NODES) // 20,
        "num_graphs": 3,
    }
    torch.manual_seed(0)
    model = SE3TransformerPooled(
        {0: 3}, 3, 6, output_dim=2, num_layers=2, fiber_edge={0: 2}, num_heads=1
    ).double()
    model.set_kernel(KernelOptions(memory=memory))
    found = derivatives(model, inputs, forces)
    model.set_kernel(KernelOptions(kernel="reference"))
    for name, expected in derivatives(model, inputs, forces).items():
        torch.testing.assert_close(found[name], expected, atol=1e-9, rtol=1e-8, msg=name)
