"""Linear map of the channels of each degree, with NVIDIA's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyg_se3.compat.se3_transformer.model.context import pack_features, unpack_features
from pyg_se3.compat.se3_transformer.model.fiber import as_fiber
from pyg_se3.nn import EquivariantLinear


class LinearSE3(EquivariantLinear):
    """Mix channels within each degree; parameters ``weights.{l}`` ``[C_out, C_in]``.

    Args:
        fiber_in: fiber of the input.
        fiber_out: fiber of the output; its degrees must be in ``fiber_in``.
    """

    def __init__(self, fiber_in: Any, fiber_out: Any) -> None:
        super().__init__(as_fiber(fiber_in).native, as_fiber(fiber_out).native)

    def forward(  # type: ignore[override]
        self, features: Mapping[str, Tensor], *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Map features by degree ``{'l': [N, C_l, 2l+1]}``; further arguments play no part."""
        packed = pack_features(self.fiber_in, features, "features")
        return unpack_features(self.fiber_out, self.packed(packed))

    def packed(self, x: Tensor) -> Tensor:
        """Map packed features ``[N, fiber_in.dim]`` to ``[N, fiber_out.dim]``."""
        return super().forward(x)
