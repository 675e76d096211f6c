"""Messages along edges of zero length: without a direction only J = 0 is left."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyg_se3.ops.edge import pack_blocks
from pyg_se3.ops.plan import PairWeights, TFNPlan
from pyg_se3.so3 import clebsch_gordan


def add_isotropic_messages(
    plan: TFNPlan,
    y: Tensor,
    x: Tensor,
    source: Tensor,
    radial: Sequence[Tensor],
    undirected: Tensor,
    weights: PairWeights,
) -> Tensor:
    """Add what edges of zero length carry between equal degrees above 0.

    Their Wigner-D matrices are zero above degree 0, so ``y`` has their degree 0 already.

    Args:
        plan: the convolution.
        y: packed messages ``[E, fiber_out.dim]``.
        x: packed node features ``[N, fiber_in.dim]``.
        source: source node of every edge ``[E]``.
        radial: radial activations ``[E, H]`` per group.
        undirected: indices of the edges of zero length.
        weights: ``{(l, k): [2 min(l, k) + 1, H, C_l, C_k]}``.
    """
    features = plan.fiber_in.split(x[source[undirected]])
    extra = {
        degree: y.new_zeros(undirected.numel(), 2 * degree + 1, channels)
        for degree, channels in plan.fiber_out.items()
    }
    for group, activations in zip(plan.groups, radial, strict=True):
        for degree in group.degrees_out:
            if degree == 0 or degree not in group.degrees_in:
                continue
            factor = clebsch_gordan(0, degree, degree)[0, 0, 0].item() / math.sqrt(4 * math.pi)
            profile = torch.einsum(
                "eh,hio->eio", activations[undirected], weights[degree, degree][0]
            )
            extra[degree] = extra[degree] + factor * torch.bmm(features[degree], profile)
    return y.index_add(0, undirected, pack_blocks(extra))
