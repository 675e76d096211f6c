"""Every kernel computes what the reference does: outputs, gradients and second derivatives."""

import itertools
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyg_se3 import KernelOptions
from pyg_se3.ops import RadialSharing
from pyg_se3.ops.options import Kernel

FIBERS = [
    ({0: 2, 1: 3}, {0: 3, 1: 1}),
    ({0: 1}, {0: 2, 1: 1, 2: 2, 3: 1}),
    ({0: 2, 1: 1, 2: 3, 3: 2}, {0: 4}),
    ({1: 2, 3: 1}, {0: 1, 2: 2}),
    ({0: 2}, {0: 3}),
    ({2: 2}, {2: 3}),
    ({1: 1}, {3: 2}),
    ({0: 1, 1: 2, 2: 1, 3: 1}, {0: 2, 1: 1, 2: 1, 3: 2}),
]
GRAPHS = [
    "empty",
    "single edge",
    "star in",
    "star out",
    "complete",
    "disconnected",
    "duplicates",
    "self-loops",
    "only self-loops",
    "chain",
]


def ids(value):
    return "".join(f"{d}x{c}" for d, c in value.items()) if isinstance(value, dict) else None


@pytest.mark.parametrize("sharing", get_args(RadialSharing))
@pytest.mark.parametrize("fiber_in, fiber_out", FIBERS, ids=ids)
@pytest.mark.parametrize("order", [1, 2])
def test_degrees_and_sharing(
    kernel, fiber_in, fiber_out, sharing, order, make_problem, reference, assert_agree
):
    problem = make_problem(fiber_in, fiber_out, sharing=sharing)
    options = KernelOptions(kernel=kernel, chunk_size=5)
    assert_agree(problem.derivatives(options, order), problem.derivatives(reference, order))


@pytest.mark.parametrize(
    "fiber_in, fiber_out",
    [
        ({0: 1, 8: 1}, {5: 2, 8: 1}),
        ({8: 1}, {0: 1}),
        ({d: 1 for d in range(7)}, {0: 1, 6: 1}),
        ({4: 1}, {d: 1 for d in range(9)}),
    ],
    ids=ids,
)
@pytest.mark.parametrize("order", [1, 2])
def test_high_degrees(kernel, fiber_in, fiber_out, order, make_problem, reference, assert_agree):
    problem = make_problem(fiber_in, fiber_out, "duplicates", hidden=2)
    options = KernelOptions(kernel=kernel, chunk_size=3)
    assert_agree(problem.derivatives(options, order), problem.derivatives(reference, order))


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("compress", [True, False], ids=["compress", "full"])
def test_graph_shapes(kernel, graph, order, compress, make_problem, reference, assert_agree):
    problem = make_problem({0: 2, 1: 1, 2: 2}, {0: 1, 1: 2, 2: 1}, graph, sharing="output")
    options = KernelOptions(kernel=kernel, compress=compress)
    assert_agree(problem.derivatives(options, order), problem.derivatives(reference, order))


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 7, 11, 12, 13, 1000])
def test_chunks_that_do_not_divide(kernel, chunk_size, make_problem, reference, assert_agree):
    problem = make_problem({0: 2, 1: 2}, {0: 1, 1: 3})  # 12 edges
    options = KernelOptions(kernel=kernel, chunk_size=chunk_size)
    assert_agree(problem.derivatives(options), problem.derivatives(reference))


@pytest.mark.parametrize("compress", [None, False], ids=["by itself", "full"])
def test_activations_that_come_from_no_relu(
    kernel, compress, make_problem, reference, assert_agree
):
    problem = make_problem({0: 2, 1: 2}, {0: 1, 1: 3}, rectified=False)
    problem.leaves["radial 0"][:, 1] = 0  # tanh is 0 here and its gradient is not
    options = KernelOptions(kernel=kernel, compress=compress)
    assert_agree(problem.derivatives(options, 2), problem.derivatives(reference, 2))


def test_all_units_silent(kernel, make_problem, reference, assert_agree):
    problem = make_problem({0: 2, 1: 2}, {0: 1, 1: 3})
    problem.leaves["radial 0"].fill_(-1)
    options = KernelOptions(kernel=kernel, compress=True)
    assert_agree(problem.derivatives(options), problem.derivatives(reference))


def test_more_edges_than_a_chunk_and_a_block(kernel, make_problem, reference, assert_agree):
    problem = make_problem({0: 2, 1: 1}, {0: 1, 1: 2}, nodes=150, edges=2500)
    options = KernelOptions(kernel=kernel)
    assert_agree(problem.derivatives(options), problem.derivatives(reference))


@pytest.mark.parametrize("wanted", ["x", "vectors", "radial 0", "weight (1, 1)"])
def test_a_gradient_for_one_input_alone(kernel, wanted, make_problem, reference):
    problem = make_problem({0: 2, 1: 2}, {0: 1, 1: 3})
    gradients = []
    for options in (KernelOptions(kernel=kernel), reference):
        leaves = {n: t.clone().requires_grad_(n == wanted) for n, t in problem.leaves.items()}
        problem.output(options, leaves).square().sum().backward()
        assert [n for n, t in leaves.items() if t.grad is not None] == [wanted]
        gradients.append(leaves[wanted].grad)
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-10 * gradients[1].abs().max()


def test_inputs_and_incoming_gradient_are_left_alone(kernel, make_problem):
    problem = make_problem({0: 2, 1: 2}, {0: 1, 1: 3})
    leaves = {n: t.clone().requires_grad_() for n, t in problem.leaves.items()}
    y = problem.output(KernelOptions(kernel=kernel), leaves)
    dy = y.detach().clone().fill_(0.5)
    y.backward(dy)
    assert (dy == 0.5).all()
    for name, leaf in leaves.items():
        assert (leaf == problem.leaves[name]).all(), name


def test_backward_twice_through_one_graph(kernel, make_problem):
    problem = make_problem({0: 2, 1: 2}, {0: 1, 1: 3})
    leaves = {n: t.clone().requires_grad_() for n, t in problem.leaves.items()}
    loss = problem.output(KernelOptions(kernel=kernel), leaves).square().sum()
    loss.backward(retain_graph=True)
    once = {n: t.grad.clone() for n, t in leaves.items()}
    loss.backward()
    for name, leaf in leaves.items():
        assert (leaf.grad - 2 * once[name]).abs().max() <= 1e-12 * once[name].abs().max(), name


fibers = st.dictionaries(st.integers(0, 4), st.integers(1, 3), min_size=1, max_size=3)


@given(data=st.data())
def test_any_combination(kernel, data, make_problem, reference, assert_agree):
    draw = data.draw
    rectified = draw(st.booleans(), "rectified")
    problem = make_problem(
        draw(fibers, "fiber_in"),
        draw(fibers, "fiber_out"),
        draw(st.sampled_from(GRAPHS), "graph"),
        sharing=draw(st.sampled_from(get_args(RadialSharing)), "sharing"),
        rectified=rectified,
        hidden=draw(st.integers(1, 6), "hidden"),
        seed=draw(st.integers(0, 99), "seed"),
    )
    options = KernelOptions(
        kernel=kernel,
        chunk_size=draw(st.none() | st.integers(1, 14), "chunk_size"),
        compress=draw(st.sampled_from([None, False, True] if rectified else [None, False])),
    )
    order = draw(st.sampled_from([1, 2]), "order")
    assert_agree(problem.derivatives(options, order), problem.derivatives(reference, order))


def test_no_kernel_is_another_one_in_disguise(make_problem):
    """Different algorithms round differently in float32: equal bits would be a silent fallback."""
    problem = make_problem({0: 8, 1: 8}, {0: 8, 1: 8}, nodes=40, edges=600).to(torch.float32)
    outputs = {
        kernel: problem.output(KernelOptions(kernel=kernel, compress=False))
        for kernel in get_args(Kernel)
        if kernel not in ("auto", "triton")
    }
    for one, other in itertools.combinations(outputs, 2):
        assert not torch.equal(outputs[one], outputs[other]), f"{one} computes as {other} does"
