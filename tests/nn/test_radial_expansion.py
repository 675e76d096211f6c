"""Derivatives of radial MLPs along the distance."""

import pytest
import torch
from torch.func import functional_call, jvp

from pyg_se3 import Fiber, KernelOptions
from pyg_se3.nn.radial import RadialProfile
from pyg_se3.nn.radial_expansion import edge_activations, radial_expansion
from pyg_se3.ops import TFNPlan
from pyg_se3.so3 import EdgeGeometry


def _invariants(edges=40, low=1.0, high=2.0):
    kinds = torch.ones(edges, 2, dtype=torch.float64) * torch.tensor([0.3, -1.2])
    distance = torch.linspace(low, high, edges, dtype=torch.float64)
    return torch.cat([kinds, distance[:, None]], dim=1), distance


@pytest.mark.parametrize("layer_norm", [True, False])
def test_derivatives_along_the_distance(layer_norm):
    torch.manual_seed(0)
    profile = RadialProfile(3, 8, layer_norm).double()
    invariants, distance = _invariants()
    distance.requires_grad_()
    expansion = radial_expansion([profile], invariants, distance, sketch=False)
    assert torch.equal(expansion.change, torch.zeros(40)) and expansion.change.requires_grad
    value = profile(torch.cat([invariants[:, :2], distance[:, None]], dim=1))
    torch.testing.assert_close(expansion.values[0], value)
    for unit in range(8):
        (slope,) = torch.autograd.grad(value[:, unit].sum(), distance, create_graph=True)
        torch.testing.assert_close(expansion.slopes[0][:, unit], slope)
        curvature = torch.zeros(40, dtype=torch.float64)
        if slope.requires_grad:
            (curvature,) = torch.autograd.grad(slope.sum(), distance, retain_graph=True)
        torch.testing.assert_close(expansion.curvatures[0][:, unit], curvature)
    assert not expansion.value_tangents and not expansion.slope_tangents


@pytest.mark.parametrize("layer_norm", [True, False])
def test_tangents_span_the_derivatives_of_values_and_slopes(layer_norm):
    """Over a short range of lengths any derivative lies in the span of the sketch."""
    torch.manual_seed(0)
    profile = RadialProfile(3, 8, layer_norm).double()
    invariants, distance = _invariants(40, 1.0, 1.01)
    expansion = radial_expansion([profile], invariants, distance, sketch=True)
    parameters = {name: p.detach() for name, p in profile.named_parameters()}
    direction = {name: torch.randn_like(p) for name, p in parameters.items()}
    step = torch.zeros_like(invariants)
    step[:, -1] = 1
    h = 1e-5

    def values_and_slopes(scale):
        moved = {name: p + scale * direction[name] for name, p in parameters.items()}
        return jvp(lambda v: functional_call(profile, moved, (v,)), (invariants,), (step,))

    changes = [
        (after - before) / (2 * h)
        for after, before in zip(values_and_slopes(h), values_and_slopes(-h), strict=True)
    ]
    sketches = expansion.value_tangents[0], expansion.slope_tangents[0]
    for change, sketch in zip(changes, sketches, strict=True):
        rest = change - sketch @ torch.linalg.lstsq(sketch, change, driver="gelsd").solution
        assert rest.norm() <= 1e-5 * change.norm()


def test_expanded_only_where_the_lengths_need_a_gradient():
    torch.manual_seed(0)
    profile = RadialProfile(2, 8)
    plan, x = TFNPlan.create(Fiber({0: 1}), Fiber({0: 1}), hidden=8), torch.ones(4, 1)
    attr = torch.randn(4, 1)

    def expansion(vectors, attr, kernel="edge"):
        geometry = EdgeGeometry.from_vectors(vectors, 0)
        invariants = torch.cat([attr, geometry.distance[:, None]], dim=1)
        options = KernelOptions(kernel=kernel)
        return edge_activations([profile], plan, options, x, invariants, attr, geometry)[2]

    vectors = torch.randn(4, 3)
    moving = vectors.clone().requires_grad_()
    assert expansion(moving, attr) is not None
    assert expansion(vectors, attr) is None
    assert expansion(moving, attr.clone().requires_grad_()) is None
    assert expansion(moving, attr, "source") is None
    with torch.no_grad():
        assert expansion(moving, attr) is None
