"""Radial weights in the edge frame: from coefficients by J to one matrix per ``|m|``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pyg_se3.autocast import no_autocast
from pyg_se3.fiber import Fiber
from pyg_se3.ops.plan import Pair, PairWeights, RadialGroup, TFNPlan, num_frequencies
from pyg_se3.so3 import clebsch_gordan
from pyg_se3.so3.constants import traceable_constant


@traceable_constant(lambda *pair: (num_frequencies(pair), num_frequencies(pair)))
def _frame_coefficients(
    degree_in: int, degree_out: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Invertible map from coefficients by J to ``(A_0, A_1, B_1, A_2, B_2, ...)``.

    Along the polar axis ``Y_Jm`` is ``sqrt((2J+1)/4pi)`` for m = 0 and 0 otherwise, so the basis of
    a pair couples input component m to output component m by ``A_|m|`` and -m to m by ``B_|m|``.
    """
    pair = degree_in, degree_out
    size = num_frequencies(pair)
    table = torch.zeros(size, size, dtype=torch.float64)
    for column in range(size):
        j = abs(degree_in - degree_out) + column
        coupling = clebsch_gordan(j, degree_in, degree_out)[:, :, j] * math.sqrt(
            (2 * j + 1) / (4 * math.pi)
        )
        table[0, column] = coupling[degree_out, degree_in]
        for m in range(1, min(pair) + 1):
            table[2 * m - 1, column] = coupling[degree_out + m, degree_in + m]
            table[2 * m, column] = coupling[degree_out + m, degree_in - m]
    return table.to(device=device, dtype=dtype)


@dataclass(frozen=True)
class _Place:
    """Where the coupling of a degree pair by ``A_m``, or by ``A_m`` and ``B_m``, lies.

    Attributes:
        parts: rows of the pair's weight after mixing.
        order: ``|m|``, which matrix.
        rows: the input degree's channels among its rows.
        columns: the output degree's channels among its columns.
    """

    parts: slice
    order: int
    rows: slice
    columns: slice


@cache
def _places(plan: TFNPlan, group: RadialGroup) -> dict[Pair, tuple[_Place, ...]]:
    def within(fiber: Fiber, degrees: tuple[int, ...], degree: int, order: int) -> slice:
        start = sum(fiber[d] for d in degrees if order <= d < degree)
        return slice(start, start + fiber[degree])

    return {
        (degree_in, degree_out): tuple(
            _Place(
                slice(0, 1) if m == 0 else slice(2 * m - 1, 2 * m + 1),
                m,
                within(plan.fiber_in, group.degrees_in, degree_in, m),
                within(plan.fiber_out, group.degrees_out, degree_out, m),
            )
            for m in range(min(degree_in, degree_out) + 1)
        )
        for degree_in, degree_out in group.pairs
    }


@cache
def _matrix_shapes(plan: TFNPlan, group: RadialGroup) -> tuple[tuple[int, int, int, int], ...]:
    """For every ``|m|`` of a group ``(H, C_in(m), 1 or 2 parts, C_out(m))``."""
    return tuple(
        (
            plan.hidden,
            sum(plan.fiber_in[d] for d in group.degrees_in if d >= m),
            2 if m else 1,
            sum(plan.fiber_out[d] for d in group.degrees_out if d >= m),
        )
        for m in range(group.max_order + 1)
    )


class _Pack(torch.autograd.Function):
    """A group's weights by degree pair to one matrix per ``|m|``, in one pass over them.

    Takes a plan, a group and its weights.
    """

    # Named arguments before `*weights` would mislead torch.compile without gradients: it leaves out
    # the context where the number of arguments happens to be that of the parameters.
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        """Mix what each pair has by J, and put it in its places."""
        plan, group, *weights = arguments
        ctx.plan, ctx.group = plan, group
        packed = [weights[0].new_empty(shape) for shape in _matrix_shapes(plan, group)]
        # Autocast would round weights that may be kept for later calls.
        with no_autocast(weights[0].device.type):
            for (pair, places), weight in zip(_places(plan, group).items(), weights, strict=True):
                table = _frame_coefficients(*pair, weight.dtype, weight.device)
                mixed = (table @ weight.flatten(1)).view(weight.shape)
                for place in places:
                    target = packed[place.order][:, place.rows, :, place.columns]
                    target.copy_(mixed[place.parts].permute(1, 2, 0, 3))
        return tuple(matrix.flatten(2).flatten(0, 1) for matrix in packed)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The transpose."""
        return None, None, *_Unpack.apply(ctx.plan, ctx.group, *gradients)


class _Unpack(torch.autograd.Function):
    """Transpose of :class:`_Pack`, of its outputs."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:  # as in _Pack
        """Take each pair's part out of its places, and mix."""
        plan, group, *packed = arguments
        ctx.plan, ctx.group = plan, group
        shapes = _matrix_shapes(plan, group)
        matrices = [matrix.view(shape) for matrix, shape in zip(packed, shapes, strict=True)]
        weights = []
        with no_autocast(packed[0].device.type):
            for pair, places in _places(plan, group).items():
                mixed = packed[0].new_empty(plan.weight_shape(pair))
                table = _frame_coefficients(*pair, mixed.dtype, mixed.device)
                for place in places:
                    part = matrices[place.order][:, place.rows, :, place.columns]
                    mixed[place.parts].copy_(part.permute(2, 0, 1, 3))
                weights.append((table.T @ mixed.flatten(1)).view(mixed.shape))
        return tuple(weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The transpose of the transpose."""
        return None, None, *_Pack.apply(ctx.plan, ctx.group, *gradients)


PackedWeights = tuple[tuple[Tensor, ...], ...]
"""Per group of a plan, per ``|m|``: matrices as :func:`pack_plan` makes them."""


def pack_plan(plan: TFNPlan, weights: PairWeights) -> PackedWeights:
    r"""Weights as one matrix per group and ``|m|``, differentiable, in the weights' precision.

    Row ``(h, l, i)`` takes activation h of channel i of input degree l; the columns hold
    :math:`A_m` and, for m > 0, then :math:`B_m`, each over ``(k, o)``. Only degrees of at least
    ``|m|`` appear.

    Args:
        plan: the convolution.
        weights: ``{(l, k): [2 min(l, k) + 1, H, C_l, C_k]}``.

    Returns:
        per group for m = 0, 1, ..: ``[H * C_in(m), C_out(m)]``, for m > 0
        ``[H * C_in(m), 2 * C_out(m)]``, with ``C(m)`` the channels of the group's degrees >= m.
    """
    return tuple(
        _Pack.apply(plan, group, *(weights[pair] for pair in group.pairs)) for group in plan.groups
    )
