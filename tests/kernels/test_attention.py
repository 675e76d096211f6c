"""Attention fused with its convolution computes what the reference does in two steps."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyg_se3 import KernelOptions

# input fiber, values, keys, heads: keys are of the degrees that input and values share
SHAPES = {
    "all degrees": ({0: 2, 1: 2}, {0: 2, 1: 2}, {0: 2, 1: 2}, 2),
    "one head": ({0: 2, 1: 1, 2: 1}, {0: 1, 1: 3, 2: 1}, {0: 1, 1: 3, 2: 1}, 1),
    "keys lack degrees": ({0: 3}, {0: 4, 1: 4, 2: 4}, {0: 4}, 4),
    "keys lack degree 0": ({1: 2}, {0: 2, 1: 2}, {1: 2}, 2),
    "unequal channels": ({0: 1, 2: 2}, {0: 6, 1: 2, 2: 4}, {0: 6, 2: 4}, 2),
    "degree 0 only": ({0: 3}, {0: 4}, {0: 4}, 2),
}
GRAPHS = ["empty", "single edge", "star in", "star out", "complete", "disconnected"]
GRAPHS += ["duplicates", "self-loops", "only self-loops"]


@pytest.fixture(scope="session")
def make_attention(make_problem):
    def make(fiber_in, value, key, heads, *arguments, **options):
        both = {d: c + key.get(d, 0) for d, c in value.items()}
        return make_problem(fiber_in, both, *arguments, heads=heads, value=value, **options)

    return make


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("sharing", ["full", "pairwise"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes(kernel, shape, sharing, order, make_attention, reference, assert_agree):
    problem = make_attention(*shape, sharing=sharing)
    options = KernelOptions(kernel=kernel, chunk_size=5)
    assert_agree(problem.derivatives(options, order), problem.derivatives(reference, order))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs(kernel, graph, order, make_attention, reference, assert_agree):
    problem = make_attention(*SHAPES["all degrees"], graph)
    options = KernelOptions(kernel=kernel)
    assert_agree(problem.derivatives(options, order), problem.derivatives(reference, order))


def test_more_edges_than_a_chunk(kernel, make_attention, reference, assert_agree):
    problem = make_attention(*SHAPES["all degrees"], nodes=100, edges=2500)
    options = KernelOptions(kernel=kernel)
    assert_agree(problem.derivatives(options), problem.derivatives(reference))


def test_receivers_without_edges_get_zero(kernel, make_attention):
    problem = make_attention(*SHAPES["all degrees"], "star in")  # only node 0 receives
    output = problem.output(KernelOptions(kernel=kernel))
    assert output[0].abs().sum() > 0
    assert not output[1:].any()


def test_one_neighbour_has_all_the_weight(kernel, make_attention):
    """Then the attention is the value itself, whatever the query."""
    problem = make_attention(*SHAPES["all degrees"], "single edge")
    output = problem.output(KernelOptions(kernel=kernel))
    problem.leaves["query"] = 100 * problem.leaves["query"]
    assert torch.equal(problem.output(KernelOptions(kernel=kernel)), output)


def test_large_logits_stay_finite(kernel, make_attention, reference, assert_agree):
    problem = make_attention(*SHAPES["all degrees"])
    problem.leaves["query"] = 1e4 * problem.leaves["query"]
    got = problem.derivatives(KernelOptions(kernel=kernel))
    assert_agree(got, problem.derivatives(reference))


@given(data=st.data())
def test_any_combination(kernel, data, make_attention, reference, assert_agree):
    draw = data.draw
    heads = draw(st.integers(1, 3), "heads")
    channels = st.integers(1, 2)
    fiber_in = draw(
        st.dictionaries(st.integers(0, 3), channels, min_size=1, max_size=3), "fiber_in"
    )
    common = draw(st.sampled_from(sorted(fiber_in)), "common degree")
    value = draw(st.dictionaries(st.integers(0, 3), channels, max_size=2), "value")
    value = {d: c * heads for d, c in {common: 1, **value}.items()}
    key = {d: c for d, c in value.items() if d in fiber_in}
    problem = make_attention(
        fiber_in,
        value,
        key,
        heads,
        draw(st.sampled_from(GRAPHS), "graph"),
        sharing=draw(st.sampled_from(["full", "output", "input", "pairwise"]), "sharing"),
        seed=draw(st.integers(0, 99), "seed"),
    )
    options = KernelOptions(
        kernel=kernel,
        chunk_size=draw(st.none() | st.integers(1, 14), "chunk_size"),
        compress=draw(st.sampled_from([None, False, True]), "compress"),
    )
    order = draw(st.sampled_from([1, 2]), "order")
    assert_agree(problem.derivatives(options, order), problem.derivatives(reference, order))
