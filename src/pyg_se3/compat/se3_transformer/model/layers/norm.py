"""Norm nonlinearity with NVIDIA's names."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyg_se3.compat.se3_transformer.model.context import pack_features, unpack_features
from pyg_se3.compat.se3_transformer.model.fiber import as_fiber
from pyg_se3.nn.norm import SMALLEST_NORM


class NormSE3(nn.Module):
    """Normalise the norms of all channels and keep directions.

    Args:
        fiber: fiber of the features.
        nonlinearity: applied to the normalised norms; ReLU if left out.
        reproduce_v12_bug: for unequal channels compute ``new_norm / x * norm``, as version 1.2 of
            NVIDIA's code does. It is not equivariant; only weights trained that way need it.
    """

    NORM_CLAMP = SMALLEST_NORM

    def __init__(
        self,
        fiber: Any,
        nonlinearity: nn.Module | None = None,
        *,
        reproduce_v12_bug: bool = False,
    ) -> None:
        super().__init__()
        self.fiber = as_fiber(fiber)
        self.nonlinearity = nn.ReLU() if nonlinearity is None else nonlinearity
        self.native_fiber = self.fiber.native
        self.group_norm: nn.GroupNorm | None = None
        self.layer_norms: nn.ModuleDict | None = None
        if self.native_fiber.is_uniform:
            channels = self.native_fiber.channels
            self.group_norm = nn.GroupNorm(len(channels), sum(channels))
        else:
            self.layer_norms = nn.ModuleDict(
                {str(degree): nn.LayerNorm(channels) for degree, channels in self.fiber}
            )
        self.reproduce_v12_bug = reproduce_v12_bug and self.layer_norms is not None
        if self.reproduce_v12_bug:
            warnings.warn(
                f"reproduce_v12_bug=True: norms over {self.fiber} divide by the features, as "
                "version 1.2 of NVIDIA's code does; the model is not equivariant",
                UserWarning,
                stacklevel=2,
            )

    def forward(
        self, features: Mapping[str, Tensor], *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Normalise features ``{'l': [N, C_l, 2l+1]}``; further arguments play no part."""
        packed = pack_features(self.native_fiber, features, "features")
        return unpack_features(self.native_fiber, self.packed(packed))

    def packed(self, x: Tensor) -> Tensor:
        """Normalise packed features ``[N, fiber.dim]``."""
        blocks = self.native_fiber.split(x)
        norms = torch.cat([self._norm(block) for block in blocks.values()], dim=1)
        widths = self.native_fiber.channels
        new_norms = self.nonlinearity(self._normalise(norms))
        scaled = []
        if self.reproduce_v12_bug:
            pairs = zip(norms.split(widths, 1), new_norms.split(widths, 1), strict=True)
            for block, (norm, new_norm) in zip(blocks.values(), pairs, strict=True):
                scaled.append((new_norm[:, None] / block * norm[:, None]).flatten(1))
        else:
            factors = (new_norms / norms).split(widths, 1)
            for block, factor in zip(blocks.values(), factors, strict=True):
                scaled.append((block * factor[:, None]).flatten(1))
        return scaled[0] if len(scaled) == 1 else torch.cat(scaled, dim=1)

    def _norm(self, block: Tensor) -> Tensor:
        if block.shape[1] == 1:
            return block[:, 0].abs().clamp(min=self.NORM_CLAMP)
        return block.square().sum(1).clamp(min=self.NORM_CLAMP**2).sqrt()

    def _normalise(self, norms: Tensor) -> Tensor:
        if self.group_norm is not None:
            return self.group_norm(norms)
        assert self.layer_norms is not None
        parts = norms.split(self.native_fiber.channels, dim=1)
        return torch.cat(
            [
                self.layer_norms[str(degree)](part)
                for degree, part in zip(self.native_fiber, parts, strict=True)
            ],
            dim=1,
        )
