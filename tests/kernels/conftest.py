"""Convolution problems on small graphs, and their derivatives by any kernel."""

from dataclasses import dataclass, replace

import pytest
import torch

from pyg_se3 import Fiber, KernelOptions
from pyg_se3.ops import (
    AttentionInputs,
    AttentionShape,
    ConvInputs,
    TFNPlan,
    tfn_attention,
    tfn_conv,
)
from pyg_se3.so3 import EdgeGeometry

HIDDEN = 5


def _complete(nodes, first=0):
    pairs = [(i, j) for i in range(nodes) for j in range(nodes) if i != j]
    return [(first + i, first + j) for i, j in pairs]


GRAPHS = {
    # name: (number of nodes, edges (source, target))
    "empty": (3, []),
    "single edge": (2, [(1, 0)]),
    "star in": (6, [(i, 0) for i in range(1, 6)]),
    "star out": (6, [(0, i) for i in range(1, 6)]),
    "complete": (4, _complete(4)),
    "disconnected": (8, _complete(3) + _complete(3, first=4)),
    "duplicates": (3, [(0, 1), (0, 1), (2, 1), (0, 1), (1, 2)]),
    "self-loops": (4, [(0, 0), (1, 0), (1, 1), (2, 1), (0, 3)]),
    "only self-loops": (2, [(0, 0), (1, 1)]),
    "chain": (5, [(i, i + 1) for i in range(4)] + [(i + 1, i) for i in range(4)]),
}

AXES = [[0, 1, 0], [0, -1, 0], [1, 0, 0], [-1, 0, 0], [0, 0, 1], [0, 0, -1]]


@dataclass
class Problem:
    """A convolution and all it depends on; ``leaves`` are what it is differentiated by."""

    plan: TFNPlan
    num_nodes: int
    source: torch.Tensor
    target: torch.Tensor
    leaves: dict
    shape: AttentionShape | None = None

    def to(self, dtype):
        """The same numbers in another precision."""
        return replace(self, leaves={n: t.detach().to(dtype) for n, t in self.leaves.items()})

    def output(self, options, leaves=None):
        """Messages, or attention if there is a shape."""
        leaves = leaves or self.leaves
        activation = torch.relu if self.plan.rectified else torch.tanh
        radial = [activation(leaves[f"radial {i}"]) for i in range(len(self.plan.groups))]
        weights = {pair: leaves[f"weight {pair}"] for pair in self.plan.pairs}
        geometry = EdgeGeometry.from_vectors(leaves["vectors"], self.plan.max_degree)
        inputs = ConvInputs(self.plan, leaves["x"], self.source, radial, geometry, weights)
        if self.shape is None:
            return tfn_conv(inputs, options)
        attention = AttentionInputs(self.shape, leaves["query"], self.target)
        return tfn_attention(inputs, attention, options)

    def derivatives(self, options, order=1):
        """Output, gradients of a projection of it and, for order 2, derivatives of these.

        Order 1 goes the way of training; order 2 differentiates with ``create_graph=True``.
        """
        leaves = {n: t.detach().clone().requires_grad_() for n, t in self.leaves.items()}
        y = self.output(options, leaves)
        found = {"output": y.detach()}
        generator = torch.Generator().manual_seed(3)

        def probe(tensor):
            random = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            return random.to(tensor.dtype)

        # the square makes the second derivative by the gradient of the output matter
        loss = (y * probe(y)).sum() + y.square().sum() / 2
        names = list(leaves)
        first = torch.autograd.grad(
            loss, list(leaves.values()), create_graph=order > 1, materialize_grads=True
        )
        found |= {f"d {n}": g.detach() for n, g in zip(names, first, strict=True)}
        if order > 1:
            total = sum((g * probe(g)).sum() for g in first)
            second = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
            found |= {f"d2 {n}": g for n, g in zip(names, second, strict=True)}
        return found


def _make(
    fiber_in,
    fiber_out,
    graph="complete",
    *,
    sharing="full",
    rectified=True,
    hidden=HIDDEN,
    seed=0,
    heads=None,
    value=None,
    nodes=None,
    edges=None,
):
    """A problem on a named graph, or on a random one of so many nodes and edges."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    fiber_in, fiber_out = Fiber(fiber_in), Fiber(fiber_out)
    plan = TFNPlan.create(fiber_in, fiber_out, sharing, hidden, rectified)
    if edges is None:
        nodes, pairs = GRAPHS[graph]
        index = torch.tensor(pairs, dtype=torch.long).view(-1, 2).T.contiguous()
        vectors = normal(len(pairs), 3)
        for number in range(1, len(pairs), 2):  # every second edge lies on an axis
            axis = torch.tensor(AXES[number // 2 % 6], dtype=torch.float64)
            vectors[number] = axis * (0.5 + number / 7)
        vectors[index[0] == index[1]] = 0
    else:
        index = torch.randint(nodes, (2, edges), generator=generator)
        vectors = normal(edges, 3)
    count = index.shape[1]
    leaves = {"x": normal(nodes, fiber_in.dim), "vectors": vectors}
    for number in range(len(plan.groups)):
        leaves[f"radial {number}"] = normal(count, hidden)
        if rectified and count:
            leaves[f"radial {number}"][:, 0] = -1  # a unit that is silent everywhere
    for pair in plan.pairs:
        leaves[f"weight {pair}"] = normal(*plan.weight_shape(pair)) / hidden**0.5
    shape = None
    if heads is not None:
        value = Fiber(value)
        key = Fiber({d: c - value[d] for d, c in fiber_out.items()})
        shape = AttentionShape(value, key, heads)
        leaves["query"] = normal(nodes, key.dim)
    return Problem(plan, nodes, index[0], index[1], leaves, shape)


@pytest.fixture(scope="session")
def make_problem():
    return _make


@pytest.fixture(scope="session")
def reference():
    return KernelOptions(kernel="reference")


@pytest.fixture(scope="session")
def assert_agree():
    def check(got, expected, tolerance=1e-10):
        assert got.keys() == expected.keys()
        for name, wanted in expected.items():
            assert wanted.isfinite().all(), f"the reference's {name} is not finite"
            assert got[name].shape == wanted.shape, name
            if wanted.numel():
                error = (got[name] - wanted).abs().max() / wanted.abs().max().clamp(min=1)
                assert error <= tolerance, f"{name}: relative error {error:.1e}"

    return check
