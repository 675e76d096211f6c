"""The source-node form: its schedule, and the same results as the reference on ragged graphs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyg_se3 import Fiber
from pyg_se3.ops import AttentionInputs, AttentionShape, ConvInputs, TFNPlan
from pyg_se3.ops.chunked_edge import EdgeSettings
from pyg_se3.ops.cost import edge_cost, source_cost, work
from pyg_se3.ops.reference import tfn_conv_reference
from pyg_se3.ops.source_autograd import source_attention, source_conv
from pyg_se3.ops.source_schedule import MAX_ROW, SLACK, source_schedule
from pyg_se3.so3 import EdgeGeometry

HIDDEN = 4
fibers = st.dictionaries(st.integers(0, 3), st.integers(1, 3), min_size=1, max_size=3)
out_degrees = st.lists(st.integers(0, 9), min_size=1, max_size=8)


def settings_of(compress, chunk, block, dtype=torch.float64):
    return EdgeSettings(block, chunk, compress, 1e-6, dtype, dtype)


def sources(degrees, seed):
    """Every node as often as its out-degree says, in random order."""
    source = torch.arange(len(degrees)).repeat_interleave(torch.tensor(degrees))
    return source[torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))]


class Problem:
    def __init__(self, fiber_in, fiber_out, sharing, source, num_nodes, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.plan = TFNPlan.create(Fiber(fiber_in), Fiber(fiber_out), sharing, HIDDEN)
        self.source, self.normal = source, normal
        groups = range(len(self.plan.groups))
        self.leaves = {"x": normal(num_nodes, self.plan.fiber_in.dim)}
        self.leaves["vectors"] = normal(len(source), 3)
        self.leaves |= {f"radial {i}": normal(len(source), HIDDEN) for i in groups}
        self.leaves |= {pair: normal(*self.plan.weight_shape(pair)) for pair in self.plan.pairs}
        for leaf in self.leaves.values():
            leaf.requires_grad_()

    def inputs(self):
        radial = [self.leaves[f"radial {i}"].relu() for i in range(len(self.plan.groups))]
        geometry = EdgeGeometry.from_vectors(self.leaves["vectors"], self.plan.max_degree)
        weights = {pair: self.leaves[pair] for pair in self.plan.pairs}
        return ConvInputs(self.plan, self.leaves["x"], self.source, radial, geometry, weights)

    def reference(self):
        return tfn_conv_reference(self.inputs())

    def source_form(self, settings):
        return source_conv(self.inputs(), settings)

    def derivatives(self, y, second):
        leaves = list(self.leaves.values())
        generator = torch.Generator().manual_seed(1)
        probe = torch.randn(y.shape, generator=generator, dtype=y.dtype)
        found = [y.detach()]
        loss = (y * probe).sum() + y.square().sum() / 2
        found += torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True)
        if second:
            first = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
            total = sum((g * (g.detach() + 1)).sum() for g in first)
            found += torch.autograd.grad(total, leaves, materialize_grads=True)
        return found


def assert_agree(got, expected, tolerance=1e-10):
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        if other.numel():
            assert (one - other).abs().max() <= tolerance * other.abs().max().clamp(min=1)


@given(
    fiber_in=fibers,
    fiber_out=fibers,
    sharing=st.sampled_from(["full", "output", "input", "pairwise"]),
    degrees=out_degrees,
    compress=st.booleans(),
    chunk=st.integers(1, 20),
    second=st.booleans(),
    seed=st.integers(0, 100),
)
def test_ragged_graphs(fiber_in, fiber_out, sharing, degrees, compress, chunk, second, seed):
    source = sources(degrees, seed)
    problem = Problem(fiber_in, fiber_out, sharing, source, len(degrees), seed)
    settings = settings_of(compress, chunk, block=12)
    expected = problem.derivatives(problem.reference(), second)
    assert_agree(problem.derivatives(problem.source_form(settings), second), expected)


@pytest.mark.parametrize("compress", [False, True])
def test_sorted_edges_and_equal_degrees_need_no_padding(compress):
    source = torch.arange(5).repeat_interleave(6)
    schedule = source_schedule(source, 5, 18)
    assert [chunk.padding for chunk in schedule.chunks] == [None, None]
    assert schedule.num_slots == 30
    problem = Problem({0: 2, 1: 1}, {0: 1, 1: 2}, "full", source, 5)
    got = problem.derivatives(problem.source_form(settings_of(compress, 18, 100)), True)
    assert_agree(got, problem.derivatives(problem.reference(), True))


@given(degrees=out_degrees, compress=st.booleans(), chunk=st.integers(1, 20))
def test_attention(degrees, compress, chunk):
    source = sources(degrees, 0)
    nodes = len(degrees)
    problem = Problem({0: 2, 1: 2}, {0: 4, 1: 3, 2: 2}, "full", source, nodes)
    shape = AttentionShape(Fiber({0: 2, 1: 2, 2: 2}), Fiber({0: 2, 1: 1}), 1)
    target = torch.randint(nodes, source.shape, generator=torch.Generator().manual_seed(2))
    problem.leaves["query"] = problem.normal(nodes, shape.key.dim).requires_grad_()
    leaves, fiber = problem.leaves, problem.plan.fiber_out
    expected = shape.attend(problem.reference(), fiber, leaves["query"], target)
    attention = AttentionInputs(shape, leaves["query"], target)
    got = source_attention(problem.inputs(), attention, settings_of(compress, chunk, 12))
    assert_agree(problem.derivatives(got, True), problem.derivatives(expected, True))


@given(
    degrees=st.lists(st.integers(0, 60), max_size=40), chunk=st.integers(1, 200), seed=st.integers()
)
def test_schedule_holds_every_edge_once(degrees, chunk, seed):
    source = sources(degrees, seed % 2**31) if degrees else torch.empty(0, dtype=torch.long)
    schedule = source_schedule(source, len(degrees), chunk)
    seen = []
    for part in schedule.chunks:
        assert part.num_slots <= max(chunk, part.length)
        rows = part.nodes.repeat_interleave(part.length)
        assert (source[part.edges] == rows).all()
        real = part.without_padding(torch.ones(part.num_slots)).bool()
        seen += part.edges[real].tolist()
        assert int((~real).sum()) <= (1 - SLACK) * part.num_slots
    assert sorted(seen) == list(range(len(source)))


def test_a_hub_is_split_into_rows():
    source = torch.cat([torch.zeros(3 * MAX_ROW, dtype=torch.long), torch.arange(5)])
    schedule = source_schedule(source, 5, 4 * MAX_ROW)
    assert max(part.length for part in schedule.chunks) == MAX_ROW
    assert sorted(int(n) for p in schedule.chunks for n in p.nodes) == [0, 0, 0, 0, 1, 2, 3, 4]


def test_costs_count_the_work():
    uniform = {1: (8, 14, 20), 3: (72, 216, 368)}
    for degree, counts in uniform.items():
        fiber = Fiber.create(degree + 1, 16)
        found = work(TFNPlan.create(fiber, fiber))
        assert (found.edge / 256, found.node / 256, found.slot / 16) == counts


def test_many_neighbours_favour_the_source_form():
    fiber = Fiber.create(2, 32)
    plan = TFNPlan.create(fiber, fiber)
    assert source_cost(plan, 300, 300 * 64) < edge_cost(plan, 300 * 64)
    fiber = Fiber.create(4, 32)
    plan = TFNPlan.create(fiber, fiber)
    assert source_cost(plan, 1800, 3700) > edge_cost(plan, 3700)
