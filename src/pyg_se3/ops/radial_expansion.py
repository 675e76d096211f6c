"""Radial activations as functions of the edge lengths: what force training differentiates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RadialExpansion:
    r"""Activations :math:`g(r) = g_0 + \delta g_1 + \delta^2 g_2 / 2` about the present lengths.

    All tensors but ``change`` depend on the parameters of the radial MLPs only: a gradient by
    positions then needs one number per edge, not one per edge and activation.

    Attributes:
        change: :math:`\delta = r - r_0` ``[E]``: zero, with the gradient of the lengths.
        values: :math:`g_0`, ``[E, H]`` per group of a plan.
        slopes: :math:`g_1 = dg/dr`, ``[E, H]`` per group.
        curvatures: :math:`g_2 = d^2g/dr^2`, ``[E, H]`` per group, constants.
        value_tangents: ``[E, s]`` per group, columns that span the derivatives of ``values`` with
            respect to the parameters; empty if no parameter needs a gradient.
        slope_tangents: the same of ``slopes``.
    """

    change: Tensor
    values: Sequence[Tensor]
    slopes: Sequence[Tensor]
    curvatures: Sequence[Tensor]
    value_tangents: Sequence[Tensor] = ()
    slope_tangents: Sequence[Tensor] = ()

    def to(self, dtype: torch.dtype) -> RadialExpansion:
        """In another precision."""

        def convert(parts: Sequence[Tensor]) -> list[Tensor]:
            return [part.to(dtype) for part in parts]

        return RadialExpansion(
            self.change.to(dtype),
            convert(self.values),
            convert(self.slopes),
            convert(self.curvatures),
            convert(self.value_tangents),
            convert(self.slope_tangents),
        )
