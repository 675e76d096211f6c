"""Graphs that are hardly graphs: everything stays finite, values and gradients."""

import pytest
import torch
from torch_geometric.data import Batch

from pyg_se3 import KernelOptions

GRAPHS = {
    # name: (positions, edges)
    "one atom": ([[1.0, 2, 3]], []),
    "one atom with a self-loop": ([[1.0, 2, 3]], [(0, 0)]),
    "atoms without edges": ([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]], []),
    "an isolated atom": ([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]], [(0, 1), (1, 0)]),
    "an isolated atom first": ([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]], [(2, 1), (1, 2)]),
    "two atoms in one place": ([[0.5, 0, 0], [0.5, 0, 0], [0, 1, 0]], [(0, 1), (1, 0), (2, 0)]),
    "all in one place": ([[0.5, 0, 0]] * 3, [(0, 1), (1, 2), (2, 0)]),
    "an axis": ([[0.0, 0, 0], [0, 1, 0], [0, 2, 0]], [(0, 1), (1, 0), (1, 2), (2, 1)]),
    "the same edge thrice": ([[0.0, 0, 0], [1, 1, 0]], [(0, 1)] * 3),
    "very near": ([[0.0, 0, 0], [1e-6, 0, 0]], [(0, 1), (1, 0)]),
    "very far": ([[0.0, 0, 0], [0, 1e4, 0]], [(0, 1), (1, 0)]),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("options", [{}, {"memory": "low"}], ids=["default", "low"])
def test_outputs_and_gradients_are_finite(
    make_model, name, dtype, options, make_graph, flat, kernel
):
    model = make_model(kernel=KernelOptions(kernel=kernel, **options)).to(dtype)
    graph = make_graph(*GRAPHS[name], dtype=dtype)
    for tensor in (graph.x, graph.pos, graph.edge_attr):
        tensor.requires_grad_()
    output = flat(model(graph))
    assert output.isfinite().all()
    inputs = [graph.x, graph.pos, graph.edge_attr, *model.parameters()]
    total = output.square().sum()
    gradients = torch.autograd.grad(total, inputs, retain_graph=True, materialize_grads=True)
    assert all(g.isfinite().all() for g in gradients)
    if name in ("one atom", "atoms without edges"):
        assert not gradients[1].any()


@pytest.mark.parametrize("name", GRAPHS)
def test_forces_can_be_differentiated_again(make_model, name, make_graph, flat, kernel):
    model = make_model(kernel=KernelOptions(kernel=kernel)).double()
    graph = make_graph(*GRAPHS[name])
    graph.pos.requires_grad_()
    total = flat(model(graph)).square().sum()
    (forces,) = torch.autograd.grad(total, graph.pos, create_graph=True, materialize_grads=True)
    inputs = [graph.pos, *model.parameters()]
    loss = forces.square().sum() + 0 * total  # without edges nothing depends on positions
    second = torch.autograd.grad(loss, inputs, materialize_grads=True)
    assert all(g.isfinite().all() for g in second)


def test_degenerate_graphs_in_a_batch(make_model, make_graph, flat):
    model = make_model().double()
    graphs = [make_graph(*graph) for graph in GRAPHS.values()]
    batch = Batch.from_data_list(graphs)
    output = flat(model(batch))
    rows = batch.num_graphs if output.shape[1] == 1 else batch.num_nodes
    assert output.shape[0] == rows
    assert output.isfinite().all()


def test_no_atoms_at_all(make_model, make_graph, flat):
    """An empty shard: no rows, or a graph of nothing."""
    model = make_model().double()
    output = flat(model(make_graph([], [])))
    assert output.shape[0] in (0, 1)
    assert output.isfinite().all()


@pytest.mark.parametrize("name", GRAPHS)
def test_autocast(make_model, name, make_graph, flat, kernel):
    """bfloat16 products give the output to their precision, training and not."""
    model = make_model(kernel=KernelOptions(kernel=kernel)).float()
    graph = make_graph(*GRAPHS[name], dtype=torch.float32)
    expected = flat(model(graph)).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = flat(model(graph))
    output.float().square().sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)
    scale = expected.abs().max().clamp(min=1)
    assert (output.detach() - expected).abs().max() <= 0.1 * scale
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        again = flat(model(graph))
    torch.testing.assert_close(again.float(), output.detach().float(), rtol=0, atol=0.1)
