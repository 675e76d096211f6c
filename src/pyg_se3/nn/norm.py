"""Normalisation and nonlinearity that act on lengths and leave directions alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pyg_se3.fiber import Fiber

SMALLEST_NORM = 2**-24
"""Features shorter than this are treated as if they had this length."""


class EquivariantNorm(nn.Module):
    r"""Normalise norms: :math:`x^l \to x^l\, \mathrm{ReLU}(\mathrm{LN}(|x|))^l / |x^l|`.

    Fuchs et al. 2020, section 4.3 and appendix. Each degree is normalised over its channels: one
    group norm if every degree has the same number of channels, else one layer norm per degree.
    Degree 0 keeps its sign.

    Args:
        fiber: fiber of the features.
    """

    def __init__(self, fiber: Mapping[int, int]) -> None:
        super().__init__()
        self.fiber = Fiber(fiber)
        self.group_norm: nn.GroupNorm | None = None
        self.layer_norms: nn.ModuleDict | None = None
        if self.fiber.is_uniform:
            self.group_norm = nn.GroupNorm(len(self.fiber), sum(self.fiber.channels))
        else:
            self.layer_norms = nn.ModuleDict(
                {str(degree): nn.LayerNorm(c) for degree, c in self.fiber.items()}
            )

    def reset_parameters(self) -> None:
        """Unit scale and no shift."""
        if self.group_norm is not None:
            self.group_norm.reset_parameters()
        if self.layer_norms is not None:
            for norm in self.layer_norms.values():
                norm.reset_parameters()  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        """Packed features ``[N, fiber.dim]`` to the same shape."""
        # The square of a small norm is zero in 16 bits.
        wide = x.float() if x.dtype.itemsize < 4 else x
        blocks = self.fiber.split(wide)
        norms = torch.cat(
            [
                (
                    block.square().sum(1).clamp(min=SMALLEST_NORM**2).sqrt()
                    if degree
                    else block[:, 0].abs().clamp(min=SMALLEST_NORM)
                )
                for degree, block in blocks.items()
            ],
            dim=1,
        )
        factors = (torch.relu(self._normalise(norms)) / norms).split(self.fiber.channels, dim=1)
        scaled = [
            (block * factor[:, None]).flatten(1)
            for block, factor in zip(blocks.values(), factors, strict=True)
        ]
        return (scaled[0] if len(scaled) == 1 else torch.cat(scaled, dim=1)).to(x.dtype)

    def _normalise(self, norms: Tensor) -> Tensor:
        if self.group_norm is not None:
            return self.group_norm(norms)
        assert self.layer_norms is not None
        parts = norms.split(self.fiber.channels, dim=1)
        return torch.cat(
            [norm(part) for norm, part in zip(self.layer_norms.values(), parts, strict=True)], dim=1
        )
