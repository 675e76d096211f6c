r"""Weights form: the matrices :math:`\sum_h g_h W_h` of every edge, then their products with x'.

The edge form's sums in the other order, as NVIDIA has it, in differentiable operations. It takes
fewer multiply-adds, but ``num_weights`` numbers of memory per edge. For a few edges that is about
what the weights themselves take, and no other form is faster.

Both directions of a bond have one length and the same features, hence the same matrices. Where
such edges follow one another, these are made once (:data:`PAIRED`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyg_se3.ops.attention_shape import AttentionShape
from pyg_se3.ops.chunked_edge import EdgeSettings
from pyg_se3.ops.compression import pruned_basis
from pyg_se3.ops.edge import Product, couple_rows, edge_form
from pyg_se3.ops.packing import PackedWeights
from pyg_se3.ops.plan import TFNPlan
from pyg_se3.so3 import EdgeGeometry

PAIRED = "edges 2i and 2i + 1 have the same features and length"
"""Key in :attr:`pyg_se3.so3.EdgeGeometry.shared`: whether this is so, and needs no gradient."""


def weights_conv(
    plan: TFNPlan,
    settings: EdgeSettings,
    x: Tensor,
    source: Tensor,
    radial: Sequence[Tensor],
    geometry: EdgeGeometry,
    packed: PackedWeights,
    tangents: Sequence[Tensor] = (),
) -> Tensor:
    """Packed messages ``[E, fiber_out.dim]``, differentiable to any order.

    Args:
        plan: the convolution.
        settings: how to compute; all edges are one chunk.
        x: packed node features ``[N, fiber_in.dim]``.
        source: source node of every edge ``[E]``.
        radial: per group activations ``[E, H]``.
        geometry: of the edges.
        packed: weights of the plan.
        tangents: not used, as nothing is compressed.
    """
    with torch.autocast(x.device.type, enabled=False):
        paired = bool(geometry.shared.get(PAIRED)) and all(map(_alike, radial))
        wigner = geometry.wigner[: plan.max_degree + 1]
        product = _product(2 if paired else 1, settings.compress)
        dtype = settings.product_dtype
        return edge_form(plan, x.index_select(0, source), radial, wigner, packed, dtype, product)


def weights_attention(
    plan: TFNPlan,
    settings: EdgeSettings,
    shape: AttentionShape,
    x: Tensor,
    query: Tensor,
    source: Tensor,
    target: Tensor,
    radial: Sequence[Tensor],
    geometry: EdgeGeometry,
    packed: PackedWeights,
    tangents: Sequence[Tensor] = (),
) -> Tensor:
    """Packed attention ``[N, value.dim]`` over :func:`weights_conv`, whose arguments it has.

    Args:
        plan: the convolution; its output fiber is ``shape.value + shape.key``.
        settings: how to compute.
        shape: of the attention.
        x: packed node features ``[N, fiber_in.dim]``.
        query: packed queries ``[M, shape.key.dim]``.
        source: source node of every edge ``[E]``.
        target: receiving node of every edge ``[E]``.
        radial: per group activations ``[E, H]``.
        geometry: of the edges.
        packed: weights of the plan.
        tangents: not used.
    """
    messages = weights_conv(plan, settings, x, source, radial, geometry, packed, tangents)
    with torch.autocast(x.device.type, enabled=False):
        return shape.attend(messages, plan.fiber_out, query, target)


def _alike(activations: Tensor) -> bool:
    """Whether rows 2i and 2i + 1 are the same but for rounding, which depends on the row."""
    first, second = activations.detach()[0::2], activations.detach()[1::2]
    rounding = 4 * torch.finfo(activations.dtype).eps
    return bool((first - second).norm() <= rounding * first.norm())


def _product(alike: int, prune: bool) -> Product:
    """The product of :func:`frame_messages` where so many consecutive edges share matrices."""

    def multiply(activations: Tensor, x: Tensor, matrix: Tensor, dtype: torch.dtype) -> Tensor:
        edges, components, channels = x.shape
        values, rows = activations[::alike], matrix.view(activations.shape[1], -1)
        if prune:
            basis = pruned_basis(values)
            assert basis.active is not None
            values, rows = basis.values, rows.index_select(0, basis.active)
        shape = edges // alike, channels, matrix.shape[1]
        weights = (values.to(dtype) @ rows.to(dtype)).view(shape)
        features = x.to(dtype).reshape(edges // alike, alike * components, channels)
        product = torch.bmm(features, weights).view(edges * components, matrix.shape[1])
        return couple_rows(product, edges, components, x.dtype)

    return multiply
