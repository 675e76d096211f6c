"""The problem description: pairs, groups, weight shapes, and options."""

from typing import get_args

import pytest
import torch

from pyg_se3 import Fiber, KernelOptions
from pyg_se3.ops import (
    AttentionInputs,
    AttentionShape,
    ConvInputs,
    RadialSharing,
    TFNPlan,
    tfn_attention,
    tfn_conv,
)
from pyg_se3.ops.options import Kernel
from pyg_se3.so3 import EdgeGeometry


@pytest.mark.parametrize("sharing", get_args(RadialSharing))
def test_groups_cover_every_pair_once(sharing):
    plan = TFNPlan.create(Fiber({0: 2, 1: 3}), Fiber({0: 1, 2: 4}), sharing)
    assert sorted(plan.pairs) == [(0, 0), (0, 2), (1, 0), (1, 2)]
    assert len(plan.groups) == {"full": 1, "output": 2, "input": 2, "pairwise": 4}[sharing]
    for pair in plan.pairs:
        frequencies = 2 * min(pair) + 1
        shape = (frequencies, 32, {0: 2, 1: 3}[pair[0]], {0: 1, 2: 4}[pair[1]])
        assert plan.weight_shape(pair) == shape
    assert plan.num_weights == 2 * 1 + 2 * 4 + 3 * 1 + 3 * 3 * 4
    assert plan.max_degree == 2 and plan.max_order == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((Fiber({}), Fiber({0: 1})), "degrees on both sides"),
        ((Fiber({0: 1}), Fiber({})), "degrees on both sides"),
        ((Fiber({0: 1}), Fiber({0: 1}), "some"), "unknown radial sharing 'some'"),
        ((Fiber({0: 1}), Fiber({0: 1}), "full", 0), "width must be at least 1, got 0"),
    ],
)
def test_bad_plans(arguments, message):
    with pytest.raises(ValueError, match=message):
        TFNPlan.create(*arguments)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kernel": "fastest"}, "unknown kernel 'fastest'"),
        ({"memory": "none"}, "unknown memory mode 'none'"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"tolerance": 0.0}, "tolerance must lie between 0 and 1"),
        ({"tolerance": 2.0}, "tolerance must lie between 0 and 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        KernelOptions(**options)


def _arguments():
    plan = TFNPlan.create(Fiber({0: 2, 1: 1}), Fiber({0: 1, 1: 1}), hidden=3)
    return {
        "plan": plan,
        "x": torch.zeros(4, 5),
        "source": torch.tensor([0, 1]),
        "radial": [torch.zeros(2, 3)],
        "geometry": EdgeGeometry.from_vectors(torch.ones(2, 3), 1),
        "weights": {pair: torch.zeros(plan.weight_shape(pair)) for pair in plan.pairs},
    }


@pytest.mark.parametrize("kernel", get_args(Kernel))
@pytest.mark.parametrize(
    "name, value, message",
    [
        ("x", torch.zeros(4, 6), r"node features have shape \[4, 6\], expected \[N, 5\]"),
        ("source", torch.tensor([0]), "geometry is of 2 edges, edge_index of 1"),
        ("radial", [], "got 0 tensors of radial activations for 1 groups"),
        ("radial", [torch.zeros(2, 4)], r"shape \[2, 4\], expected \[2, 3\]"),
        (
            "geometry",
            EdgeGeometry.from_vectors(torch.ones(2, 3), 0),
            "geometry has degrees up to 0, .* needs 1",
        ),
    ],
)
def test_every_kernel_refuses_what_does_not_fit(kernel, name, value, message):
    if kernel == "triton":
        pytest.skip("needs its own inputs: a CUDA device")
    arguments = {**_arguments(), name: value}
    with pytest.raises(ValueError, match=message):
        tfn_conv(ConvInputs(**arguments), KernelOptions(kernel=kernel))


def test_attention_validates_too():
    arguments = {**_arguments(), "x": torch.zeros(4, 6)}
    shape = AttentionShape(Fiber({0: 1, 1: 1}), Fiber({}), 1)
    with pytest.raises(ValueError, match="node features have shape"):
        attention = AttentionInputs(shape, torch.zeros(4, 0), torch.tensor([0, 1]))
        tfn_attention(ConvInputs(**arguments), attention)


def test_a_message_by_hand(kernel):
    """Degree 0 to degrees 0 and 1 along x: Y_0 and Y_1 of the direction times the weights."""
    plan = TFNPlan.create(Fiber({0: 1}), Fiber({0: 1, 1: 1}), hidden=1)
    geometry = EdgeGeometry.from_vectors(torch.tensor([[2.0, 0, 0]], dtype=torch.float64), 1)
    weights = {(0, 0): torch.full((1, 1, 1, 1), 3.0), (0, 1): torch.full((1, 1, 1, 1), 5.0)}
    inputs = ConvInputs(
        plan,
        torch.tensor([[0.0], [7.0]], dtype=torch.float64),
        torch.tensor([1]),
        [torch.ones(1, 1, dtype=torch.float64)],
        geometry,
        {pair: weight.double() for pair, weight in weights.items()},
    )
    got = tfn_conv(inputs, KernelOptions(kernel=kernel))
    # Q^0_00 = 1 with Y_0 = 1/sqrt(4 pi); Q^1_01 = identity/sqrt(3) with Y_1 = sqrt(3/4pi) r/|r|
    scalar, vector = 21 * 0.28209479177387814, 35 * 0.28209479177387814
    expected = torch.tensor([[scalar, vector, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
