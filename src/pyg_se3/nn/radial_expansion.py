r"""Derivatives of radial MLPs along the distance, pushed forward layer by layer.

With subscripts for derivatives, a layer norm :math:`u = c / s` of :math:`c = v - \bar v` and
:math:`s^2 = \overline{c^2} + \epsilon` has, along any two directions a and b,

.. math::
    s_a = \overline{u c_a}, \quad u_a = (c_a - u s_a) / s, \quad
    s_{ab} = \overline{u_b c_a} + \overline{u c_{ab}}, \quad
    u_{ab} = (c_{ab} - u_b s_a - u_a s_b - u s_{ab}) / s .
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pyg_se3.nn.radial import (
    RadialProfile,
    mix_columns,
    radial_activations,
    sketch_directions,
)
from pyg_se3.ops import KernelOptions, RadialExpansion, TFNPlan, expands_radial, uses_tangents
from pyg_se3.so3 import EdgeGeometry


def edge_activations(
    profiles: Iterable[nn.Module],
    plan: TFNPlan,
    options: KernelOptions,
    x: Tensor,
    invariants: Tensor,
    edge_attr: Tensor | None,
    geometry: EdgeGeometry,
) -> tuple[Sequence[Tensor], Sequence[Tensor], RadialExpansion | None]:
    """Radial activations with all that the kernel can make use of.

    Args:
        profiles: the radial MLPs of a convolution.
        plan: the convolution.
        options: of the kernel.
        x: node features.
        invariants: of the edges, ``[E, C]``, the distance last.
        edge_attr: packed edge features, if any.
        geometry: of the edges.

    Returns:
        activations per group ``[E, H]``; their tangents, or none; and the activations expanded in
        the edge lengths, if these need a gradient and the edge features do not.
    """
    learned = edge_attr is not None and edge_attr.requires_grad
    if expands_radial(geometry, options) and not learned:
        sketch = uses_tangents(plan, x, geometry, replace(options, kernel="edge"))
        expansion = radial_expansion(profiles, invariants, geometry.distance, sketch)
        return expansion.values, (), expansion
    sketch, store = uses_tangents(plan, x, geometry, options), options.memory == "fast"
    activations, tangents = radial_activations(profiles, invariants, sketch, store)
    return activations, tangents, None


def radial_expansion(
    profiles: Iterable[nn.Module], invariants: Tensor, distance: Tensor, sketch: bool
) -> RadialExpansion:
    """Activations of every profile, expanded about the present lengths.

    Args:
        profiles: the radial MLPs of a convolution.
        invariants: of the edges, ``[E, C]``, the distance last; nothing else needs a gradient.
        distance: of the edges, ``[E]``.
        sketch: whether a kernel may use tangents.
    """
    values, slopes, curvatures = [], [], []
    value_tangents, slope_tangents = [], []
    invariants = invariants.detach()
    for profile in profiles:
        assert isinstance(profile, RadialProfile)
        value, slope, curvature = _derivatives(profile, invariants)
        values.append(value)
        slopes.append(slope)
        curvatures.append(curvature)
        if sketch and value.requires_grad:
            first, second = _tangents(profile, invariants)
            value_tangents.append(first)
            slope_tangents.append(second)
    return RadialExpansion(
        distance - distance.detach(), values, slopes, curvatures, value_tangents, slope_tangents
    )


def _along_distance(invariants: Tensor) -> Tensor:
    """Derivative of the invariants: 1 for the distance, 0 for the others."""
    change = torch.zeros_like(invariants)
    change[:, -1] = 1
    return change


def _derivatives(profile: RadialProfile, invariants: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Activations, and their first and second derivatives along the distance."""
    v, a = invariants, _along_distance(invariants)
    aa = torch.zeros_like(invariants)
    for layer in profile:
        if isinstance(layer, nn.Linear):
            v, a, aa = layer(v), a @ layer.weight.T, aa @ layer.weight.detach().T
        elif isinstance(layer, nn.LayerNorm):
            norm = _Normalised(v, layer.eps)
            u_a, s_a = norm.first(a)
            with torch.no_grad():
                aa = norm.second(aa, a, u_a, s_a, u_a, s_a) * layer.weight
            v, a = layer(v), u_a * layer.weight
        else:
            positive = _positive(layer, v)
            v, a, aa = layer(v), a * positive, aa * positive
    return v, a, aa


@torch.no_grad()
def _tangents(profile: RadialProfile, invariants: Tensor) -> tuple[Tensor, Tensor]:
    """As :meth:`RadialProfile.tangents`: of the activations, and of their slopes."""
    v, a = invariants, _along_distance(invariants)
    b = ab = invariants.new_zeros(1, *invariants.shape)
    for position, layer in enumerate(profile):
        if isinstance(layer, nn.Linear):
            weight, bias = sketch_directions(layer, position)
            turned = weight.transpose(1, 2)
            b = b @ layer.weight.T + v @ turned + bias[:, None]
            ab = ab @ layer.weight.T + a @ turned
            v, a = layer(v), a @ layer.weight.T
        elif isinstance(layer, nn.LayerNorm):
            weight, bias = sketch_directions(layer, position)
            norm = _Normalised(v, layer.eps)
            u_a, s_a = norm.first(a)
            u_b, s_b = norm.first(b)
            u_ab = norm.second(ab, a, u_a, s_a, u_b, s_b)
            b = u_b * layer.weight + norm.unit * weight[:, None] + bias[:, None]
            ab = u_ab * layer.weight + u_a * weight[:, None]
            v, a = layer(v), u_a * layer.weight
        else:
            positive = _positive(layer, v)
            v, a, b, ab = layer(v), a * positive, b * positive, ab * positive
    return mix_columns(b), mix_columns(ab)


def _positive(layer: nn.Module, value: Tensor) -> Tensor:
    """Slope of a ReLU."""
    if not isinstance(layer, nn.ReLU):
        raise TypeError(f"no derivative is known for {type(layer).__name__}")
    return (value > 0).to(value.dtype)


class _Normalised:
    """A layer norm without its weight and bias, and its derivatives; see the module.

    Args:
        value: what is normalised, ``[E, C]``.
        eps: added to the variance.
    """

    def __init__(self, value: Tensor, eps: float) -> None:
        centred = _centre(value)
        self.deviation = (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        self.unit = centred / self.deviation

    def first(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of unit and deviation from that of the value."""
        centred = _centre(a)
        s_a = (self.unit * centred).mean(-1, keepdim=True)
        return (centred - self.unit * s_a) / self.deviation, s_a

    def second(
        self, ab: Tensor, a: Tensor, u_a: Tensor, s_a: Tensor, u_b: Tensor, s_b: Tensor
    ) -> Tensor:
        """Second derivative of the unit."""
        centred = _centre(ab)
        s_ab = (u_b * _centre(a) + self.unit * centred).mean(-1, keepdim=True)
        return (centred - u_b * s_a - u_a * s_b - self.unit * s_ab) / self.deviation


def _centre(value: Tensor) -> Tensor:
    return value - value.mean(-1, keepdim=True)
