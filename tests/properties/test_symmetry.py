"""Rotations, translations, permutations and mirrors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Data

from pyg_se3 import KernelOptions
from pyg_se3.testing import assert_equivariant

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def to(graph, dtype):
    return Data(**{k: v.to(dtype) if v.is_floating_point() else v for k, v in graph})


@DTYPES
@pytest.mark.parametrize("name", ["chiral", "chain"])
def test_rotations_and_translations(make_model, output_fiber, name, dtype, generator, request):
    model = make_model().to(dtype)
    graph = to(request.getfixturevalue(name), dtype)
    for _ in range(3):
        assert_equivariant(model, graph, {0: 3}, output_fiber, generator=generator)


def test_rotations_under_autocast(make_model, output_fiber, chain, generator):
    """Products are done in bfloat16, but geometry is not: the symmetry is lost to rounding only."""
    model, graph = make_model().float(), to(chain, torch.float32)

    def cast(graph):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(graph)
        return (
            output.float() if torch.is_tensor(output) else {d: f.float() for d, f in output.items()}
        )

    assert_equivariant(cast, graph, {0: 3}, output_fiber, tolerance=0.1, generator=generator)


@given(data=st.data())
def test_rotations_of_any_graph(make_model, output_fiber, data, make_graph):
    """Self-loops, coincident atoms, duplicate edges and isolated atoms included."""
    nodes = data.draw(st.integers(1, 6), "nodes")
    node = st.integers(0, nodes - 1)
    edges = data.draw(st.lists(st.tuples(node, node), max_size=12), "edges")
    coordinate = st.integers(-2, 2).map(float)
    pos = data.draw(st.lists(st.tuples(*[coordinate] * 3), min_size=nodes, max_size=nodes), "pos")
    torch.manual_seed(data.draw(st.integers(0, 9), "seed"))
    model, graph = make_model().double(), make_graph(pos, edges)
    generator = torch.Generator().manual_seed(4)
    assert_equivariant(model, graph, {0: 3}, output_fiber, generator=generator)


def test_permuting_nodes_permutes_the_output(make_model, chain, flat, generator):
    model = make_model().double()
    order = torch.randperm(chain.num_nodes, generator=generator)
    place = order.argsort()
    moved = Data(
        x=chain.x[order],
        pos=chain.pos[order],
        edge_index=place[chain.edge_index],
        edge_attr=chain.edge_attr,
    )
    expected, got = flat(model(chain)), flat(model(moved))
    if got.shape[0] > 1:
        expected = expected[order]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def test_permuting_edges_changes_nothing(make_model, chiral, flat, generator, kernel):
    model = make_model(kernel=KernelOptions(kernel=kernel)).double()
    order = torch.randperm(chiral.num_edges, generator=generator)
    moved = chiral.clone()
    moved.edge_index, moved.edge_attr = chiral.edge_index[:, order], chiral.edge_attr[order]
    torch.testing.assert_close(flat(model(moved)), flat(model(chiral)), rtol=0, atol=1e-10)


def invariants(model, graph):
    output = model(graph)
    return output if torch.is_tensor(output) else output[0].squeeze(-1)


def test_a_mirrored_molecule_differs(make_model, chiral):
    """Equivariant to rotations, not to reflections: enantiomers are told apart."""
    model = make_model().double()
    mirrored = chiral.clone()
    mirrored.pos = chiral.pos * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    difference = (invariants(model, mirrored) - invariants(model, chiral)).abs().max()
    assert difference > 1e-5


def test_a_mirrored_flat_molecule_does_not(make_model, chiral):
    """In a plane, the mirror image is a rotation of the molecule."""
    model, planar = make_model().double(), chiral.clone()
    planar.pos = chiral.pos * torch.tensor([1.0, 1.2, 0.0], dtype=torch.float64)
    mirrored = planar.clone()
    mirrored.pos = planar.pos * torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(
        invariants(model, mirrored), invariants(model, planar), rtol=0, atol=1e-10
    )
