"""From the nodes of a graph to the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from torch import Tensor, nn

from pyg_se3.fiber import Fiber
from pyg_se3.ops.segment import segment_max, segment_sum

Pooling = Literal["max", "mean", "sum"]


class EquivariantPooling(nn.Module):
    """Maximum, mean or sum over the nodes of each graph.

    Args:
        fiber: fiber of the features.
        mode: ``max``, ``mean`` or ``sum``. A maximum of vector components depends on the choice of
            axes, so ``max`` is for degree 0 only.

    Raises:
        ValueError: unknown mode, or ``max`` with degrees above 0.
    """

    def __init__(self, fiber: Mapping[int, int], mode: Pooling) -> None:
        super().__init__()
        self.fiber = Fiber(fiber)
        if mode not in get_args(Pooling):
            raise ValueError(f"unknown pooling {mode!r}, expected one of {get_args(Pooling)}")
        if mode == "max" and self.fiber.max_degree > 0:
            raise ValueError(
                f"max pooling is equivariant for degree 0 only, got {self.fiber}; "
                "use pooling='mean' or 'sum'"
            )
        self.mode = mode

    def forward(self, x: Tensor, batch: Tensor, num_graphs: int) -> Tensor:
        """Pool packed features ``[N, fiber.dim]`` to ``[B, fiber.dim]``; ``batch`` is ``[N]``."""
        if self.mode == "max":
            return segment_max(x, batch, num_graphs)
        total = segment_sum(x, batch, num_graphs)
        if self.mode == "sum":
            return total
        counts = segment_sum(x.new_ones(x.shape[0]), batch, num_graphs)
        return total / counts.clamp(min=1)[:, None]

    def extra_repr(self) -> str:
        """Fiber and mode."""
        return f"{self.fiber}, mode={self.mode!r}"
