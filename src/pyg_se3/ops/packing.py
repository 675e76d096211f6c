"""Radial weights in the edge frame: from coefficients by J to one matrix per ``|m|``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyg_se3.ops.plan import PairWeights, RadialGroup, TFNPlan, num_frequencies
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


def pack_weights(group: RadialGroup, weights: PairWeights) -> list[Tensor]:
    r"""Weights of a group as one matrix per ``|m|``, differentiable.

    Row ``(h, l, i)`` takes activation h of channel i of input degree l; the columns hold
    :math:`A_m` and, for m > 0, then :math:`B_m`, each over ``(k, o)``. Only degrees of at least
    ``|m|`` appear.

    Args:
        group: the degree pairs.
        weights: ``{(l, k): [2 min(l, k) + 1, H, C_l, C_k]}`` with at least the group's pairs.

    Returns:
        for m = 0, 1, ..: ``[H * C_in(m), C_out(m)]``, for m > 0 ``[H * C_in(m), 2 * C_out(m)]``,
        with ``C(m)`` the channels of all degrees >= m.
    """
    mixed = {}
    for pair in group.pairs:
        weight = weights[pair]
        table = _frame_coefficients(*pair, weight.dtype, weight.device)
        mixed[pair] = (table @ weight.flatten(1)).view(weight.shape)
    packed = []
    for m in range(group.max_order + 1):
        parts = slice(0, 1) if m == 0 else slice(2 * m - 1, 2 * m + 1)
        rows = []
        for degree_in in group.degrees_in:
            if degree_in < m:
                continue
            blocks = [
                mixed[degree_in, degree_out][parts].permute(1, 2, 0, 3)
                for degree_out in group.degrees_out
                if degree_out >= m
            ]
            rows.append(blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=-1))
        stacked = rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
        packed.append(stacked.flatten(2).flatten(0, 1).contiguous())
    return packed


PackedWeights = tuple[tuple[Tensor, ...], ...]
"""Per group of a plan, per ``|m|``: the matrices of :func:`pack_weights`."""


def pack_plan(plan: TFNPlan, weights: PairWeights) -> PackedWeights:
    """:func:`pack_weights` for every group of a plan, in the precision of the weights."""
    device = next(iter(weights.values())).device.type
    # Under autocast the small product here would round weights that may be kept for later calls.
    with torch.autocast(device, enabled=False):
        return tuple(tuple(pack_weights(group, weights)) for group in plan.groups)
