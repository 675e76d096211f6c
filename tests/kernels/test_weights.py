"""The weights form: edges in pairs share their matrices, and that changes no number."""

import pytest
import torch

from pyg_se3 import KernelOptions, SE3Transformer
from pyg_se3.models.inputs import read_graph
from pyg_se3.nn.edges import similar_edges
from pyg_se3.ops.weights_form import PAIRED
from pyg_se3.so3 import EdgeGeometry

NODES, BONDS = 6, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 1)]


def molecule(requires_grad=False):
    generator = torch.Generator().manual_seed(0)
    pos = torch.randn(NODES, 3, generator=generator, dtype=torch.float64)
    x = torch.randn(NODES, 2, generator=generator, dtype=torch.float64)
    one_way = torch.tensor(BONDS).T
    edge_index = torch.cat([one_way, one_way.flip(0)], dim=1)
    kinds = torch.tensor([0, 1, 1, 0, 1, 0]).repeat(2)
    edge_attr = torch.nn.functional.one_hot(kinds).double()
    return x, pos.requires_grad_(requires_grad), edge_index, edge_attr


def model():
    torch.manual_seed(1)
    return SE3Transformer(
        {0: 2}, {0: 4, 1: 4}, {0: 3, 1: 2}, fiber_edge={0: 2}, num_layers=2, num_heads=2
    ).double()


def paired(x, pos, edge_index, edge_attr):
    vectors = pos[edge_index[1]] - pos[edge_index[0]]
    geometry = EdgeGeometry.from_vectors(vectors, 1)
    return similar_edges(edge_index, edge_attr, geometry)[2].shared[PAIRED]


def test_both_directions_of_bonds_are_pairs():
    x, pos, edge_index, edge_attr = molecule()
    assert paired(x, pos, edge_index, edge_attr)
    assert not paired(x, pos, edge_index[:, :-1], edge_attr[:-1])
    assert not paired(x, pos, edge_index[:, :-2], edge_attr[:-2])
    other = edge_attr.clone()
    other[0] = 1 - other[0]
    assert not paired(x, pos, edge_index, other)


def test_lengths_and_features_that_need_a_gradient_are_not_paired():
    assert not paired(*molecule(requires_grad=True))
    x, pos, edge_index, edge_attr = molecule()
    assert not paired(x, pos, edge_index, edge_attr.requires_grad_())


@pytest.mark.parametrize("positions", [False, True], ids=["paired", "forces"])
def test_models_have_the_gradients_of_the_reference(positions):
    found = {}
    for kernel in ("weights", "reference"):
        net, graph = model(), molecule(positions)
        net.set_kernel(KernelOptions(kernel=kernel))
        outputs = net(*graph)
        leaves = list(net.parameters()) + ([graph[1]] if positions else [])
        loss = sum(value.square().sum() for value in outputs.values())
        found[kernel] = [*outputs.values(), *torch.autograd.grad(loss, leaves, allow_unused=True)]
    for got, expected in zip(found["weights"], found["reference"], strict=True):
        if expected is not None:
            assert (got - expected).abs().max() <= 1e-10 * expected.abs().max().clamp(min=1)


def test_models_hand_pairs_to_the_kernel():
    net, (x, pos, edge_index, edge_attr) = model(), molecule()
    arguments = (net.fiber_in, net.fiber_edge, net.max_degree, x, pos, edge_index, edge_attr)
    graph = read_graph(*arguments, None, None, None).sorted_edges()
    assert graph.geometry.shared[PAIRED]


def test_geometry_without_gradients_of_directions_keeps_what_is_known_of_it():
    x, pos, edge_index, edge_attr = molecule()
    geometry = EdgeGeometry.from_vectors(pos[edge_index[1]] - pos[edge_index[0]], 1)
    geometry = similar_edges(edge_index, edge_attr, geometry)[2]
    assert geometry.detach_directions().shared[PAIRED]
