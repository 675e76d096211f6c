"""The tensor-field convolution as a layer of its own."""

import copy
import math
from typing import get_args

import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.nn import MessagePassing

from pyg_se3 import Fiber, KernelOptions, TFNConv
from pyg_se3.ops import RadialSharing
from pyg_se3.so3 import EdgeGeometry
from pyg_se3.testing import assert_equivariant, random_graph

FIBER_IN, FIBER_OUT, FIBER_EDGE = {0: 3, 1: 2, 2: 1}, {0: 2, 1: 3, 3: 1}, {0: 2, 1: 1}


def call(layer):
    return lambda g: layer(g.x, g.edge_index, g.pos, g.edge_attr)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("sharing", get_args(RadialSharing))
@pytest.mark.parametrize("fiber_edge", [None, FIBER_EDGE], ids=["plain", "edge features"])
def test_is_equivariant(dtype, sharing, fiber_edge, generator):
    conv = TFNConv(
        FIBER_IN, FIBER_OUT, fiber_edge=fiber_edge, sharing=sharing, self_interaction=True
    ).to(dtype)
    graph = random_graph(8, 30, FIBER_IN, fiber_edge=fiber_edge, dtype=dtype, generator=generator)
    assert_equivariant(
        call(conv), graph, FIBER_IN, FIBER_OUT, fiber_edge=fiber_edge, generator=generator
    )


def test_the_check_of_equivariance_can_fail(generator):
    graph = random_graph(4, 8, {1: 1}, generator=generator)
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(lambda g: g.x.abs(), graph, {1: 1}, {1: 1}, generator=generator)
    with pytest.raises(AssertionError, match="not finite"):
        assert_equivariant(lambda g: g.x / 0, graph, {1: 1}, {1: 1}, generator=generator)


def test_is_a_message_passing_layer():
    assert isinstance(TFNConv({0: 1}, {0: 1}), MessagePassing)


def test_by_hand():
    """Constant radial profile, degree 0 to degree 1: neighbours' charges along unit vectors."""
    conv = TFNConv({0: 1}, {1: 1}, hidden=1, radial_layer_norm=False).double()
    with torch.no_grad():
        for parameter in conv.radial.parameters():
            parameter.zero_()
        conv.radial[0][-2].bias.fill_(1.0)  # g = 1 on every edge
        conv.weight.by_pair()[0, 1].fill_(2.0)
    pos = torch.tensor([[0.0, 0, 0], [3, 0, 0], [0, 0, -2]], dtype=torch.float64)
    x = torch.tensor([[1.0], [10.0], [100.0]], dtype=torch.float64)
    edge_index = torch.tensor([[1, 2, 0], [0, 0, 1]])
    # r points from source to target; Y_1 Q = r/|r| / sqrt(4 pi)
    unit = 2 / math.sqrt(4 * math.pi)
    expected = unit * torch.tensor([[-10.0, 0, 100], [1, 0, 0], [0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(conv(x, edge_index, pos), expected, rtol=0, atol=1e-12)


def test_self_interaction_comes_once_per_incoming_edge(generator):
    graph = random_graph(5, 9, {0: 2, 1: 2}, generator=generator)
    conv = TFNConv({0: 2, 1: 2}, {0: 1, 1: 3, 2: 1}, self_interaction=True).double()
    plain = copy.deepcopy(conv)
    plain.self_interaction = None
    added = call(conv)(graph) - call(plain)(graph)
    degree = torch.bincount(graph.edge_index[1], minlength=5).double()[:, None]
    own = conv.self_interaction(graph.x) * degree
    torch.testing.assert_close(added[:, : own.shape[1]], own, rtol=0, atol=1e-12)
    assert not added[:, own.shape[1] :].any()  # degree 2 has no input to interact with


def test_mean_aggregation_divides_by_the_incoming_edges(generator):
    graph = random_graph(5, 9, {0: 2, 1: 1}, generator=generator)
    total = TFNConv({0: 2, 1: 1}, {0: 1, 1: 3}, self_interaction=True).double()
    mean = TFNConv({0: 2, 1: 1}, {0: 1, 1: 3}, self_interaction=True, aggr="mean").double()
    mean.load_state_dict(total.state_dict())
    degree = torch.bincount(graph.edge_index[1], minlength=5).double().clamp(min=1)[:, None]
    torch.testing.assert_close(call(mean)(graph), call(total)(graph) / degree, rtol=0, atol=1e-12)


def test_edge_features_of_higher_degree_are_convolved(generator):
    """With the source's features at zero, what arrives is made of the edge's vector alone."""
    conv = TFNConv({0: 1, 1: 1}, {1: 2}, fiber_edge={1: 2}).double()
    graph = random_graph(4, 6, {0: 1, 1: 1}, fiber_edge={1: 2}, generator=generator)
    graph.x.zero_()
    once = call(conv)(graph)
    graph.edge_attr *= 2
    torch.testing.assert_close(call(conv)(graph), 2 * once, rtol=1e-10, atol=0)
    assert once.abs().sum() > 0


def test_edge_features_of_a_degree_that_nodes_lack_are_ignored(generator):
    conv = TFNConv({0: 1}, {0: 2}, fiber_edge={0: 1, 2: 1}).double()
    graph = random_graph(4, 6, {0: 1}, fiber_edge={0: 1, 2: 1}, generator=generator)
    before = call(conv)(graph)
    graph.edge_attr[:, 1:] += 1
    assert torch.equal(call(conv)(graph), before)
    graph.edge_attr[:, :1] += 1
    assert not torch.equal(call(conv)(graph), before)


def test_takes_an_edge_index_object_and_a_geometry(generator):
    conv = TFNConv(FIBER_IN, FIBER_OUT).double()
    graph = random_graph(6, 12, FIBER_IN, generator=generator)
    expected = conv(graph.x, graph.edge_index, graph.pos)
    index = EdgeIndex(graph.edge_index, sparse_size=(6, 6))
    torch.testing.assert_close(conv(graph.x, index, graph.pos), expected, rtol=0, atol=1e-14)
    source, target = graph.edge_index
    geometry = EdgeGeometry.from_vectors(graph.pos[target] - graph.pos[source], 4)
    got = conv(graph.x, graph.edge_index, geometry=geometry)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)


def test_no_edges_and_isolated_nodes():
    conv = TFNConv(FIBER_IN, FIBER_OUT, self_interaction=True)
    x, pos = torch.randn(3, Fiber(FIBER_IN).dim), torch.randn(3, 3)
    assert not conv(x, torch.zeros(2, 0, dtype=torch.long), pos).any()
    out = conv(x, torch.tensor([[0], [1]]), pos)
    assert out[1].any() and not out[[0, 2]].any()
    empty = conv(x[:0], torch.zeros(2, 0, dtype=torch.long), pos[:0])
    assert empty.shape == (0, Fiber(FIBER_OUT).dim)


def test_reset_parameters_draws_anew():
    conv = TFNConv(FIBER_IN, FIBER_OUT, self_interaction=True)
    before = {name: p.clone() for name, p in conv.named_parameters()}
    conv.reset_parameters()
    for name, parameter in conv.named_parameters():
        constant = ".1." in name or ".4." in name  # affines of the layer norms
        assert torch.equal(parameter, before[name]) == constant, name
    fresh = TFNConv(FIBER_IN, FIBER_OUT, self_interaction=True)
    for layer in (conv, fresh):
        torch.manual_seed(5)
        layer.reset_parameters()
    for one, other in zip(conv.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(one, other)


def test_repr_says_what_it_is():
    text = repr(TFNConv({0: 3}, {0: 2, 1: 4}, fiber_edge={0: 5}, sharing="output"))
    assert text == (
        "TFNConv(Fiber({0: 3}) -> Fiber({0: 2, 1: 4}), edge=Fiber({0: 5}), groups=2, hidden=32, "
        "self_interaction=False)"
    )


def test_parameters_do_not_depend_on_the_kernel(kernel):
    expected = TFNConv(FIBER_IN, FIBER_OUT, kernel=KernelOptions(kernel="reference")).state_dict()
    got = TFNConv(FIBER_IN, FIBER_OUT, kernel=KernelOptions(kernel=kernel)).state_dict()
    assert {n: p.shape for n, p in got.items()} == {n: p.shape for n, p in expected.items()}


INDEX = torch.tensor([[0, 1], [1, 2]])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"x": torch.zeros(3, 7)}, r"node features have shape \[3, 7\], expected \[N, 6\]"),
        ({"edge_index": INDEX.T.repeat(2, 1)}, r"edge_index has shape \[4, 2\]"),
        ({"edge_index": INDEX.float()}, "type torch.float32, expected"),
        ({"edge_index": INDEX + 1}, "values from 1 to 3, expected 0 to 2 for 3 nodes"),
        ({"edge_index": INDEX - 1}, "values from -1 to 1"),
        ({"pos": None}, "give either pos or geometry, got neither"),
        (
            {"geometry": EdgeGeometry.from_vectors(torch.ones(2, 3), 1)},
            "give either pos or geometry, got both",
        ),
        ({"pos": torch.zeros(3, 2)}, r"pos has shape \[3, 2\], expected \[N, 3\]"),
        ({"pos": torch.tensor([[0.0, 0, 0], [1, math.nan, 0], [0, 1, 0]])}, "node 1 is at"),
        ({"edge_attr": None}, r"edge_attr is missing, expected \[E, 2\]"),
        ({"edge_attr": torch.zeros(2, 3)}, r"shape \[2, 3\], expected \[2, 2\]"),
        ({"edge_attr": torch.zeros(3, 2)}, r"shape \[3, 2\], expected \[2, 2\]"),
    ],
)
def test_bad_input_is_named(arguments, message):
    conv = TFNConv({0: 3, 1: 1}, {0: 1, 1: 1}, fiber_edge={0: 2})
    good = {
        "x": torch.zeros(3, 6),
        "edge_index": INDEX,
        "pos": torch.eye(3),
        "edge_attr": torch.zeros(2, 2),
    }
    conv(**good)
    with pytest.raises(ValueError, match=message):
        conv(**{**good, **arguments})


def test_edge_features_that_the_layer_was_not_told_of_are_refused():
    conv = TFNConv({0: 1}, {0: 1})
    with pytest.raises(ValueError, match="state them as fiber_edge"):
        conv(torch.zeros(3, 1), INDEX, torch.eye(3), torch.zeros(2, 4))


def test_weights_packed_under_autocast_are_not_kept_for_full_precision(generator):
    conv = TFNConv(FIBER_IN, FIBER_OUT).eval()
    graph = random_graph(6, 12, FIBER_IN, dtype=torch.float32, generator=generator)
    with torch.no_grad():
        expected = call(copy.deepcopy(conv))(graph)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            call(conv)(graph)
        assert torch.equal(call(conv)(graph), expected)


def test_weights_changed_in_place_are_noticed(generator):
    """Packed weights are kept between calls without gradient: not longer than they are right."""
    conv = TFNConv(FIBER_IN, FIBER_OUT).double().eval()
    graph = random_graph(6, 12, FIBER_IN, generator=generator)
    with torch.no_grad():
        before = call(conv)(graph)
        for weight in conv.weight.weights.values():
            weight.mul_(2)
        torch.testing.assert_close(call(conv)(graph), 2 * before, rtol=1e-12, atol=0)
        conv.load_state_dict(TFNConv(FIBER_IN, FIBER_OUT).double().state_dict())
        expected = call(copy.deepcopy(conv))(graph)
        assert torch.equal(call(conv)(graph), expected)
        conv.float().double()
        copied = TFNConv(FIBER_IN, FIBER_OUT).double()
        copied.load_state_dict(conv.state_dict())
        assert torch.equal(call(conv)(graph), call(copied)(graph))


@pytest.mark.parametrize("sharing", ["full", "pairwise"])
@pytest.mark.parametrize("wanted", ["parameters", "parameters and positions"])
def test_compressed_training_has_the_gradients_of_the_reference(sharing, wanted, generator):
    """In float32, with so many edges that compression takes place, to about its tolerance."""
    conv = TFNConv({0: 4, 1: 4}, {0: 4, 1: 4}, fiber_edge={0: 1}, sharing=sharing)
    graph = random_graph(
        60, 1500, {0: 4, 1: 4}, fiber_edge={0: 1}, dtype=torch.float32, generator=generator
    )
    graph.edge_attr = (graph.edge_attr > 0).float()
    length = (graph.pos[graph.edge_index[1]] - graph.pos[graph.edge_index[0]]).norm(dim=1)
    order = (length + 100 * graph.edge_attr[:, 0]).argsort()
    graph.edge_index, graph.edge_attr = graph.edge_index[:, order], graph.edge_attr[order]

    def gradients(kernel, dtype):
        layer = copy.deepcopy(conv).to(dtype)
        layer.kernel_options = kernel
        pos = graph.pos.to(dtype).requires_grad_(wanted != "parameters")
        out = layer(graph.x.to(dtype), graph.edge_index, pos, graph.edge_attr.to(dtype))
        inputs = [*layer.parameters()] + ([pos] if pos.requires_grad else [])
        return torch.autograd.grad(out.square().mean(), inputs)

    exact = gradients(KernelOptions(kernel="reference"), torch.float64)
    got = gradients(KernelOptions(kernel="edge", compress=True), torch.float32)
    for one, other in zip(got, exact, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm()
