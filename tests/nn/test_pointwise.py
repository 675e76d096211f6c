"""Layers that act on each node, and pooling."""

import pytest
import torch

from pyg_se3 import Fiber
from pyg_se3.nn import EquivariantLinear, EquivariantNorm, EquivariantPooling, RadialProfile
from pyg_se3.nn.linear import packed_linear
from pyg_se3.testing import assert_equivariant, random_graph

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
UNIFORM, UNEQUAL = {0: 4, 1: 4, 2: 4}, {0: 3, 1: 5, 3: 2}


@DTYPES
def test_linear_is_equivariant(dtype, generator):
    layer = EquivariantLinear(UNEQUAL, {0: 4, 3: 2}).to(dtype)
    graph = random_graph(6, 0, UNEQUAL, dtype=dtype, generator=generator)
    assert_equivariant(lambda g: layer(g.x), graph, UNEQUAL, {0: 4, 3: 2}, generator=generator)


def test_linear_multiplies_channels_by_degree(generator):
    layer = EquivariantLinear(UNEQUAL, {0: 4, 3: 2}).double()
    x = torch.randn(5, Fiber(UNEQUAL).dim, dtype=torch.float64, generator=generator)
    out = Fiber({0: 4, 3: 2}).unpack(layer(x))
    by_degree = Fiber(UNEQUAL).unpack(x)
    for degree in (0, 3):
        expected = layer.weights[str(degree)] @ by_degree[degree]
        torch.testing.assert_close(out[degree], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("fiber_out", [{0: 3, 1: 3, 2: 3}, {0: 3, 2: 1}], ids=["uniform", "any"])
def test_linear_of_parts_and_its_derivatives(fiber_out, generator):
    """Features in two tensors count as one with their channels behind one another."""
    first, second = Fiber({0: 2, 1: 2, 2: 2}), Fiber({0: 1, 1: 1, 2: 1})
    layer = EquivariantLinear(first + second, fiber_out).double()
    x, y = (
        torch.randn(4, f.dim, dtype=torch.double, generator=generator, requires_grad=True)
        for f in (first, second)
    )

    def function(x, y, *weights):
        return packed_linear([(first, x), (second, y)], layer.fiber_out, weights)

    weights = list(layer.weights.values())
    blocks = {d: torch.cat([first.unpack(x)[d], second.unpack(y)[d]], 1) for d in first}
    got = layer.fiber_out.unpack(function(x, y, *weights))
    for (degree, block), weight in zip(got.items(), weights, strict=True):
        assert (block - weight @ blocks[degree]).abs().max() < 1e-12
    assert torch.autograd.gradcheck(function, (x, y, *weights))
    assert torch.autograd.gradgradcheck(function, (x, y, *weights))
    # the gradient of a sum is expanded and has no memory of its own
    function(x, y, *weights).sum().backward()


def test_linear_cannot_make_degrees():
    with pytest.raises(ValueError, match=r"cannot make degrees \[2\]"):
        EquivariantLinear({0: 1}, {0: 1, 2: 1})


@DTYPES
@pytest.mark.parametrize("fiber", [UNIFORM, UNEQUAL, {1: 3}], ids=str)
def test_norm_is_equivariant(dtype, fiber, generator):
    layer = EquivariantNorm(fiber).to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(0.5, 1.5)
    graph = random_graph(6, 0, fiber, dtype=dtype, generator=generator)
    assert_equivariant(lambda g: layer(g.x), graph, fiber, fiber, generator=generator)


def test_norm_by_hand():
    """Lengths (5, 1) have mean 3 and deviation 2: normalised 1 and -1, and the ReLU takes -1."""
    layer = EquivariantNorm({1: 2}).double()
    x = Fiber({1: 2}).pack({1: torch.tensor([[[3.0, 0, 4], [0, 1, 0]]], dtype=torch.float64)})
    out = Fiber({1: 2}).unpack(layer(x))[1]
    expected = torch.tensor([[[0.6, 0, 0.8], [0, 0, 0]]], dtype=torch.float64)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fiber", [UNIFORM, UNEQUAL], ids=["group norm", "layer norms"])
def test_norm_of_each_degree_by_itself(fiber, generator):
    """Making one degree longer does not change the others."""
    layer, fiber = EquivariantNorm(fiber).double(), Fiber(fiber)
    x = torch.randn(4, fiber.dim, dtype=torch.float64, generator=generator)
    features = {d: f.clone() for d, f in fiber.unpack(x).items()}
    features[1][:, 0] *= 3
    before, after = fiber.unpack(layer(x)), fiber.unpack(layer(fiber.pack(features)))
    for degree in fiber:
        assert torch.equal(before[degree], after[degree]) == (degree != 1)


def test_norm_keeps_signs_of_degree_zero(generator):
    layer = EquivariantNorm({0: 6}).double()
    x = torch.randn(20, 6, dtype=torch.float64, generator=generator)
    out = layer(x)
    assert ((out == 0) | (out.sign() == x.sign())).all()
    assert (out < 0).any() and (out > 0).any()


@DTYPES
@pytest.mark.parametrize("fiber", [UNIFORM, UNEQUAL], ids=str)
def test_norm_of_zeros_is_finite(dtype, fiber):
    layer = EquivariantNorm(fiber).to(dtype)
    x = torch.zeros(3, Fiber(fiber).dim, dtype=dtype, requires_grad=True)
    out = layer(x)
    assert not out.any()
    out.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fiber", [UNIFORM, UNEQUAL], ids=str)
def test_norm_of_16_bit_features_is_computed_in_float32(dtype, fiber, generator):
    layer = EquivariantNorm(fiber)
    x = 1e-5 * torch.randn(5, Fiber(fiber).dim, generator=generator)
    x[0], x[1] = 0, 1e7 * x[1]
    with torch.autocast("cpu", dtype):
        out = layer(x.to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out, layer(x.to(dtype).float()).to(dtype))


def test_norm_is_differentiable_twice(generator):
    layer = EquivariantNorm({0: 2, 1: 2}).double()
    x = torch.randn(2, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradgradcheck(layer, x)


@pytest.mark.parametrize("fiber", [UNIFORM, UNEQUAL], ids=str)
def test_norm_reset_and_repr(fiber):
    layer = EquivariantNorm(fiber)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(3)
    layer.reset_parameters()
    for name, parameter in layer.named_parameters():
        assert (parameter == (1 if name.endswith("weight") else 0)).all()
    assert "Norm" in repr(layer)


def test_linear_reset_and_repr():
    layer = EquivariantLinear({0: 400}, {0: 400})
    before = layer.weights["0"].clone()
    layer.reset_parameters()
    assert not torch.equal(layer.weights["0"], before)
    assert float(layer.weights["0"].detach().std()) == pytest.approx(1 / 20, rel=0.05)
    assert repr(layer).startswith("EquivariantLinear(\n  Fiber({0: 400}) -> Fiber({0: 400})")


BATCH = torch.tensor([0, 2, 0, 2, 2])


@pytest.mark.parametrize("mode, first", [("max", 3.0), ("mean", 2.0), ("sum", 4.0)])
def test_pooling_by_hand(mode, first):
    x = torch.tensor([[1.0], [-2.0], [3.0], [-4.0], [-6.0]])
    out = EquivariantPooling({0: 1}, mode)(x, BATCH, 4)
    third = {"max": -2.0, "mean": -4.0, "sum": -12.0}[mode]
    assert out.flatten().tolist() == [first, 0.0, third, 0.0]
    assert mode in repr(EquivariantPooling({0: 1}, mode))


@DTYPES
@pytest.mark.parametrize("mode", ["mean", "sum"])
def test_pooling_is_equivariant(dtype, mode, generator):
    layer = EquivariantPooling(UNEQUAL, mode)
    graph = random_graph(5, 0, UNEQUAL, dtype=dtype, generator=generator)
    assert_equivariant(lambda g: layer(g.x, BATCH, 3), graph, UNEQUAL, UNEQUAL, generator=generator)


def test_maximum_of_vectors_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="equivariant for degree 0 only.*use pooling='mean'"):
        EquivariantPooling({0: 1, 1: 1}, "max")


def test_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="unknown pooling 'median'"):
        EquivariantPooling({0: 1}, "median")


@pytest.mark.parametrize("layer_norm", [True, False])
def test_radial_profile(layer_norm):
    profile = RadialProfile(3, 8, layer_norm).double()
    x = torch.randn(10, 3, dtype=torch.float64)
    out = profile(x)
    assert out.shape == (10, 8)
    assert (out >= 0).all() and (out == 0).any()  # a ReLU is last: kernels rely on it
    assert sum(isinstance(m, torch.nn.LayerNorm) for m in profile) == 2 * layer_norm
