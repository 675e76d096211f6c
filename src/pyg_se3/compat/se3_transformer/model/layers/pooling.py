"""Pooling over the nodes of each graph, with NVIDIA's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from pyg_se3.compat.se3_transformer.graph import Graph, as_graph
from pyg_se3.nn import EquivariantPooling

MODES: dict[str, Literal["max", "mean", "sum"]] = {"avg": "mean", "max": "max", "sum": "sum"}
"""NVIDIA's names of poolings and ours; ``sum`` is not NVIDIA's."""


class GPooling(nn.Module):
    """Average or maximum over the nodes of each graph.

    Args:
        feat_type: degree to pool.
        pool: ``max`` (degree 0 only), ``avg`` or ``sum``.

    Raises:
        ValueError: unknown pooling, or ``max`` of a degree above 0.
    """

    def __init__(self, feat_type: int = 0, pool: str = "max") -> None:
        super().__init__()
        if pool not in MODES:
            raise ValueError(f"unknown pooling {pool!r}, expected one of {sorted(MODES)}")
        if pool == "max" and feat_type > 0:
            raise ValueError(
                f"max pooling is equivariant for degree 0 only, got feat_type={feat_type}"
            )
        self.feat_type, self.pool = feat_type, pool

    def forward(self, features: Mapping[str, Tensor], graph: Any, **kwargs: Any) -> Tensor:
        """Pool ``{'l': [N, C, 2l+1]}`` to ``[B, C]`` for degree 0, else ``[B, C, 2l+1]``."""
        feature = features[str(self.feat_type)]
        pooled = self.pooled(feature.flatten(1), as_graph(graph)).view(-1, *feature.shape[1:])
        return pooled.squeeze(-1) if self.feat_type == 0 else pooled

    def pooled(self, x: Tensor, graph: Graph) -> Tensor:
        """Pool ``[N, C]`` to ``[B, C]``."""
        batch = graph.batch
        if batch is None:
            batch = graph.edge_index.new_zeros(graph.num_nodes())
        pooling = EquivariantPooling({0: x.shape[1]}, MODES[self.pool])
        return pooling(x, batch, graph.batch_size)
