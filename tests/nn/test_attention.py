"""The attention block as a layer of its own."""

from typing import get_args

import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.nn import MessagePassing

from pyg_se3 import Fiber, SE3Attention
from pyg_se3.ops import RadialSharing
from pyg_se3.so3 import EdgeGeometry
from pyg_se3.testing import assert_equivariant, random_graph

FIBER_IN, FIBER_OUT, FIBER_EDGE = {0: 3, 1: 2}, {0: 4, 1: 8, 2: 4}, {0: 2, 1: 1}


def call(layer):
    return lambda g: layer(g.x, g.edge_index, g.pos, g.edge_attr)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("sharing", get_args(RadialSharing))
@pytest.mark.parametrize("fiber_edge", [None, FIBER_EDGE], ids=["plain", "edge features"])
def test_is_equivariant(dtype, sharing, fiber_edge, generator):
    layer = SE3Attention(
        FIBER_IN, FIBER_OUT, fiber_edge=fiber_edge, sharing=sharing, num_heads=2
    ).to(dtype)
    graph = random_graph(8, 30, FIBER_IN, fiber_edge=fiber_edge, dtype=dtype, generator=generator)
    assert_equivariant(
        call(layer), graph, FIBER_IN, FIBER_OUT, fiber_edge=fiber_edge, generator=generator
    )


def test_is_a_message_passing_layer():
    assert isinstance(SE3Attention({0: 1}, {0: 2}, num_heads=1), MessagePassing)


def test_isolated_nodes_keep_the_skip_only(generator):
    layer = SE3Attention(FIBER_IN, FIBER_OUT, num_heads=2).double()
    graph = random_graph(4, 0, FIBER_IN, generator=generator)
    out = Fiber(FIBER_OUT).unpack(call(layer)(graph))
    x = Fiber(FIBER_IN).unpack(graph.x)
    for degree in (0, 1):
        weight = layer.project.weights[str(degree)][:, FIBER_OUT[degree] // 2 :]
        torch.testing.assert_close(out[degree], weight @ x[degree], rtol=0, atol=1e-12)
    assert not out[2].any()  # the input has no degree 2 to keep


def test_weights_of_attention_sum_to_one(generator):
    """Equal messages from all neighbours: attention does not change them, whatever the number."""
    layer = SE3Attention({0: 2}, {0: 4}, num_heads=2).double()
    x = torch.randn(1, 2, dtype=torch.float64, generator=generator).expand(5, 2).contiguous()
    angles = torch.arange(4.0, dtype=torch.float64)
    ring = torch.stack([angles.cos(), angles.sin(), 0 * angles], 1)
    pos = torch.cat([torch.zeros(1, 3, dtype=torch.float64), ring])
    all_four = torch.tensor([[1, 2, 3, 4], [0, 0, 0, 0]])
    one = layer(x, all_four[:, :1], pos)[0]
    torch.testing.assert_close(layer(x, all_four, pos)[0], one, rtol=0, atol=1e-12)


def test_takes_an_edge_index_object_and_a_geometry(generator):
    layer = SE3Attention(FIBER_IN, FIBER_OUT, num_heads=2).double()
    graph = random_graph(6, 12, FIBER_IN, generator=generator)
    expected = layer(graph.x, graph.edge_index, graph.pos)
    index = EdgeIndex(graph.edge_index, sparse_size=(6, 6))
    torch.testing.assert_close(layer(graph.x, index, graph.pos), expected, rtol=0, atol=1e-14)
    source, target = graph.edge_index
    geometry = EdgeGeometry.from_vectors(graph.pos[target] - graph.pos[source], 2)
    got = layer(graph.x, graph.edge_index, geometry=geometry)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)


def test_reset_parameters_draws_anew():
    layer = SE3Attention(FIBER_IN, FIBER_OUT, num_heads=2, radial_layer_norm=False)
    before = [p.clone() for p in layer.parameters()]
    layer.reset_parameters()
    assert not any(torch.equal(p, b) for p, b in zip(layer.parameters(), before, strict=True))


def test_repr_says_what_it_is():
    text = repr(SE3Attention({0: 3}, {0: 4, 1: 4}, num_heads=2, sharing="pairwise"))
    assert text == (
        "SE3Attention(Fiber({0: 3}) -> Fiber({0: 4, 1: 4}), heads=2, "
        "value=Fiber({0: 2, 1: 2}), key=Fiber({0: 2}), groups=2)"
    )


@pytest.mark.parametrize(
    "fiber_out, options, message",
    [
        ({0: 6}, {"num_heads": 2, "channels_div": 4}, "6 channels of degree 0 cannot be divided"),
        ({0: 8, 1: 6}, {"num_heads": 4}, "6 channels of degree 1 .* num_heads=4"),
        ({0: 8}, {"num_heads": 0}, "must be at least 1, got 0, 2"),
        ({2: 8}, {"num_heads": 2}, "a degree common to input and output"),
    ],
)
def test_bad_architectures_are_named(fiber_out, options, message):
    with pytest.raises(ValueError, match=message):
        SE3Attention({0: 3, 1: 1}, fiber_out, **options)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"x": torch.zeros(3, 7)}, r"shape \[3, 7\], expected \[N, 6\]"),
        ({"edge_index": torch.tensor([[0], [3]])}, "values from 0 to 3, expected 0 to 2"),
        ({"pos": None}, "got neither"),
        ({"pos": torch.full((3, 3), torch.inf)}, "pos is not finite: node 0"),
        ({"edge_attr": torch.zeros(1, 2)}, "fiber_edge"),
    ],
)
def test_bad_input_is_named(arguments, message):
    layer = SE3Attention({0: 3, 1: 1}, {0: 4}, num_heads=2)
    good = {"x": torch.zeros(3, 6), "edge_index": torch.tensor([[0], [1]]), "pos": torch.eye(3)}
    layer(**good)
    with pytest.raises(ValueError, match=message):
        layer(**{**good, **arguments})
