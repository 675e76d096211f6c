"""Messages along edges of zero length: without a direction only J = 0 is left."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyg_se3.ops.edge import pack_blocks
from pyg_se3.ops.inputs import ConvInputs
from pyg_se3.so3 import clebsch_gordan


def add_isotropic_messages(inputs: ConvInputs, y: Tensor) -> Tensor:
    """Add what edges of zero length carry between equal degrees above 0, if there are any.

    Their Wigner-D matrices are zero above degree 0, so ``y`` has their degree 0 already.

    Args:
        inputs: of the convolution.
        y: packed messages ``[E, fiber_out.dim]``.
    """
    plan, undirected = inputs.plan, inputs.geometry.undirected
    if undirected is None:
        return y
    features = plan.fiber_in.split(inputs.x[inputs.source[undirected]])
    extra = {
        degree: y.new_zeros(undirected.numel(), 2 * degree + 1, channels)
        for degree, channels in plan.fiber_out.items()
    }
    for group, activations in zip(plan.groups, inputs.radial, strict=True):
        for degree in group.degrees_out:
            if degree == 0 or degree not in group.degrees_in:
                continue
            factor = clebsch_gordan(0, degree, degree)[0, 0, 0].item() / math.sqrt(4 * math.pi)
            profile = torch.einsum(
                "eh,hio->eio", activations[undirected], inputs.weights[degree, degree][0]
            )
            extra[degree] = extra[degree] + factor * torch.bmm(features[degree], profile)
    return y.index_add(0, undirected, pack_blocks(extra))
