"""Features into and out of the edge frame, with components grouped by ``|m|``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from pyg_se3.fiber import Fiber

Orders = list[Tensor]
"""Features in the edge frame: for m = 0 ``[E, 1, C(0)]``, for m > 0 ``[E, 2, C(m)]`` with the
components +m and -m, where ``C(m)`` are the channels of all degrees >= m, ascending."""


@cache
def channel_slices(fiber: Fiber, degrees: tuple[int, ...], order: int) -> slice:
    """Where the channels of consecutive ``degrees`` (those >= order) lie among ``C(order)``."""
    before = sum(c for d, c in fiber.items() if order <= d < degrees[0])
    width = sum(c for d, c in fiber.items() if d >= order and d in degrees)
    return slice(before, before + width)


def rotate_in(fiber: Fiber, max_order: int, features: Tensor, wigner: Sequence[Tensor]) -> Orders:
    """Components ``x' = D^T x`` with ``|m| <= max_order``.

    Args:
        fiber: of the features.
        max_order: largest ``|m|`` wanted.
        features: packed, ``[E, fiber.dim]``.
        wigner: per degree ``[E, 2l+1, 2l+1]``.
    """
    local = {}
    for degree, block in fiber.split(features).items():
        if degree == 0:
            local[0] = block
            continue
        matrix = wigner[degree]
        if degree > max_order:
            matrix = matrix[:, :, degree - max_order : degree + max_order + 1]
        local[degree] = torch.bmm(matrix.transpose(1, 2), block)
    return group_by_order(fiber, max_order, local)


def group_by_order(fiber: Fiber, max_order: int, local: dict[int, Tensor]) -> Orders:
    """From ``{l: [E, 2 min(l, max_order) + 1, C_l]}`` to :data:`Orders`."""
    orders = []
    for m in range(max_order + 1):
        pieces = []
        for degree in fiber:
            if degree < m:
                continue
            centre = min(degree, max_order)
            block = local[degree]
            if m == 0:
                pieces.append(block[:, centre : centre + 1])
            else:
                pieces.append(block[:, centre - m : centre + m + 1 : 2 * m].flip(1))
        orders.append(pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2))
    return orders


def ungroup(fiber: Fiber, max_order: int, orders: Orders) -> dict[int, Tensor]:
    """Inverse of :func:`group_by_order`."""
    pieces: dict[int, list[Tensor]] = {degree: [] for degree in fiber}
    for m, block in enumerate(orders):
        start = 0
        for degree, channels in fiber.items():
            if degree < m:
                continue
            part = block[:, :, start : start + channels]
            start += channels
            if m == 0:
                pieces[degree].append(part)
            else:
                pieces[degree].insert(0, part[:, 1:])
                pieces[degree].append(part[:, :1])
    return {d: p[0] if len(p) == 1 else torch.cat(p, dim=1) for d, p in pieces.items()}


def rotate_out(
    fiber: Fiber, max_order: int, orders: Orders, wigner: Sequence[Tensor]
) -> dict[int, Tensor]:
    """Features ``D x'`` by degree, ``{l: [E, 2l+1, C_l]}``, from the edge frame."""
    blocks = ungroup(fiber, max_order, orders)
    for degree, block in blocks.items():
        if degree:
            matrix = wigner[degree]
            if degree > max_order:
                matrix = matrix[:, :, degree - max_order : degree + max_order + 1]
            blocks[degree] = torch.bmm(matrix, block)
    return blocks
