r"""Edge form: the convolution as one matrix product per ``|m|``, in the frame of each edge.

With :math:`x' = D^T x` the messages are, per ``|m|``,

.. math::
    y'_{+m} = A_m x'_{+m} + B_m x'_{-m}, \qquad y'_{-m} = A_m x'_{-m} - B_m x'_{+m},
    \qquad y = D\,y',

where :math:`A_m = \sum_h g_h W^A_{mh}` depends on the edge. The sum over h is made part of the
product, :math:`A_m x' = W^A_m (g \otimes x')`, so that nothing of the size
:math:`C_{in} C_{out}` exists per edge.

Here it stands in differentiable operations, for derivatives of any order;
:mod:`pyg_se3.ops.chunked_edge` does the same chunk by chunk in little memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyg_se3.ops.frame_rotation import Orders, channel_slices, rotate_in, rotate_out
from pyg_se3.ops.plan import RadialGroup, TFNPlan

Product = Callable[[Tensor, Tensor, Tensor, torch.dtype], Tensor]
"""Coupled products ``[e, c, C]`` of one ``|m|`` from activations ``[e, r]``, components
``[e, c, K]`` and packed weights ``[r * K, c * C]``; multiplied in the given type."""


def _outer(activations: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """``g x x'`` as rows ``[e * c, r * K]`` from ``[e, r]`` and ``[e, c, K]``."""
    edges, components, channels = x.shape
    product = activations.to(dtype)[:, None, :, None] * x.to(dtype)[:, :, None, :]
    return product.view(edges * components, activations.shape[1] * channels)


def couple_rows(product: Tensor, edges: int, components: int, dtype: torch.dtype) -> Tensor:
    """Messages ``[e, c, C]`` from products with ``[A | B]``, rows +m and -m."""
    product = product.to(dtype)
    if components == 1:
        return product[:, None]
    product = product.view(edges, 2, 2, product.shape[1] // 2)
    return torch.stack(
        [product[:, 0, 0] + product[:, 1, 1], product[:, 1, 0] - product[:, 0, 1]], 1
    )


def formed_product(activations: Tensor, x: Tensor, matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """:data:`Product` that forms the outer products in memory."""
    rows = _outer(activations, x, dtype) @ matrix.to(dtype)
    return couple_rows(rows, x.shape[0], x.shape[1], x.dtype)


def _slices(plan: TFNPlan, group: RadialGroup, order: int) -> tuple[slice, slice]:
    return (
        channel_slices(plan.fiber_in, group.degrees_in, order),
        channel_slices(plan.fiber_out, group.degrees_out, order),
    )


def frame_messages(
    plan: TFNPlan,
    orders: Orders,
    activations: Sequence[Tensor],
    packed: Sequence[Sequence[Tensor]],
    dtype: torch.dtype,
    product: Product = formed_product,
) -> Orders:
    """Messages in the edge frame. Made of differentiable operations.

    Args:
        plan: the convolution.
        orders: features in the edge frame, by ``|m|``.
        activations: per group ``[e, r]``.
        packed: per group and ``|m|`` the weights ``[r * C_in(m), C_out(m) or 2 C_out(m)]``.
        dtype: type of the matrix products.
        product: how to compute them.
    """
    messages: Orders = []
    for m, x in enumerate(orders):
        width = sum(c for d, c in plan.fiber_out.items() if d >= m)
        total: Tensor | None = None
        for group, acts, matrices in zip(plan.groups, activations, packed, strict=True):
            if m > group.max_order:
                continue
            inside, outside = _slices(plan, group, m)
            part = product(acts, x[:, :, inside], matrices[m], dtype)
            if len(plan.groups) == 1:
                total = part
            else:
                padding = (outside.start, width - outside.stop)
                part = torch.nn.functional.pad(part, padding)
                total = part if total is None else total + part
        assert total is not None
        messages.append(total)
    return messages


def edge_form(
    plan: TFNPlan,
    x: Tensor,
    radial: Sequence[Tensor],
    wigner: Sequence[Tensor],
    packed: Sequence[Sequence[Tensor]],
    dtype: torch.dtype,
    product: Product = formed_product,
) -> Tensor:
    """The whole edge form in differentiable operations, to any order; stores what it needs.

    Args:
        plan: the convolution.
        x: packed features of the source of every edge, ``[E, fiber_in.dim]``.
        radial: per group ``[E, H]``.
        wigner: per degree ``[E, 2l+1, 2l+1]``.
        packed: weights of the plan.
        dtype: type of the matrix products.
        product: how to compute them.

    Returns:
        packed messages ``[E, fiber_out.dim]``.
    """
    orders = rotate_in(plan.fiber_in, plan.max_order, x, wigner)
    messages = frame_messages(plan, orders, radial, packed, dtype, product)
    return pack_blocks(rotate_out(plan.fiber_out, plan.max_order, messages, wigner))


def edge_form_by_blocks(
    plan: TFNPlan,
    x: Tensor,
    source: Tensor,
    radial: Sequence[Tensor],
    wigner: Sequence[Tensor],
    packed: Sequence[Sequence[Tensor]],
    dtype: torch.dtype,
    size: int,
    prune: bool,
) -> Tensor:
    """:func:`edge_form` of blocks of edges, small enough for the cache.

    Args:
        plan: the convolution.
        x: packed node features ``[N, fiber_in.dim]``.
        source: source node of every edge ``[E]``.
        radial: per group ``[E, H]``.
        wigner: per degree ``[E, 2l+1, 2l+1]``.
        packed: weights of the plan.
        dtype: type of the matrix products.
        size: edges per block.
        prune: leave out activations that are zero throughout a block; exact behind a ReLU.

    Returns:
        packed messages ``[E, fiber_out.dim]``.
    """
    parts = []
    for start in range(0, max(1, source.numel()), size):
        block = slice(start, start + size)
        activations, matrices = [g[block] for g in radial], list(packed)
        if prune:
            for index, values in enumerate(activations):
                active = (values != 0).any(0).nonzero().squeeze(-1)
                activations[index] = values[:, active]
                matrices[index] = [
                    matrix.view(plan.hidden, -1)[active].view(-1, matrix.shape[1])
                    for matrix in packed[index]
                ]
        frames = [matrix[block] for matrix in wigner]
        parts.append(edge_form(plan, x[source[block]], activations, frames, matrices, dtype))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def pack_blocks(blocks: dict[int, Tensor]) -> Tensor:
    """Packed features of blocks by ascending degree."""
    flat = [block.flatten(1) for block in blocks.values()]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)
