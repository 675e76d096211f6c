"""Attention with NVIDIA's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pyg_se3.compat.se3_transformer.graph import as_graph
from pyg_se3.compat.se3_transformer.model.basis import Basis
from pyg_se3.compat.se3_transformer.model.context import (
    EdgeContext,
    layer_context,
    pack_features,
    unpack_features,
)
from pyg_se3.compat.se3_transformer.model.fiber import Fiber, as_fiber
from pyg_se3.compat.se3_transformer.model.layers.convolution import ConvSE3, ConvSE3FuseLevel
from pyg_se3.compat.se3_transformer.model.layers.linear import LinearSE3
from pyg_se3.compat.signs import Convention
from pyg_se3.nn.linear import concatenate
from pyg_se3.ops import AttentionInputs, AttentionShape, RadialSharing, tfn_attention


class AttentionSE3(nn.Module):
    """Multi-head attention of given keys, values and queries; no parameters.

    Args:
        num_heads: number of heads.
        key_fiber: fiber of keys and queries.
        value_fiber: fiber of values.
    """

    def __init__(self, num_heads: int, key_fiber: Any, value_fiber: Any) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.key_fiber, self.value_fiber = as_fiber(key_fiber), as_fiber(value_fiber)
        self.shape = AttentionShape(self.value_fiber.native, self.key_fiber.native, num_heads)

    def forward(
        self,
        value: Mapping[str, Tensor],
        key: Mapping[str, Tensor],
        query: Mapping[str, Tensor],
        graph: Any,
    ) -> dict[str, Tensor]:
        """Attend.

        Args:
            value: of edges, ``{'l': [E, C, 2l+1]}``.
            key: of edges.
            query: of nodes, ``{'l': [N, C, 2l+1]}``.
            graph: of the edges.

        Returns:
            ``{'l': [N, C, 2l+1]}``.
        """
        values, keys = self.shape.value, self.shape.key
        messages = concatenate(
            values, keys, pack_features(values, value, "values"), pack_features(keys, key, "keys")
        )
        queries = pack_features(keys, query, "queries")
        target = as_graph(graph).edges()[1]
        attended = self.shape.attend(messages, values + keys, queries, target)
        return unpack_features(values, attended)


class AttentionBlockSE3(nn.Module):
    """Attention with skip connection and projection; keys and values are one convolution.

    Args:
        fiber_in: fiber of the input.
        fiber_out: fiber of the output.
        fiber_edge: fiber of the edge features, without the distance.
        num_heads: number of heads.
        channels_div: values and keys have ``C // channels_div`` channels; one number, or by degree.
        use_layer_norm: layer norm in the radial MLPs.
        max_degree: of all features of the model.
        fuse_level: as in :class:`ConvSE3`.
        low_memory: accepted as NVIDIA's.
        mid_dim: width of the radial MLPs.
        layout: as in :class:`ConvSE3`.
        cg_convention: as in :class:`ConvSE3`.
    """

    def __init__(
        self,
        fiber_in: Any,
        fiber_out: Any,
        fiber_edge: Any = None,
        num_heads: int = 4,
        channels_div: int | Mapping[int, int] = 2,
        use_layer_norm: bool = False,
        max_degree: int = 4,
        fuse_level: ConvSE3FuseLevel = ConvSE3FuseLevel.FULL,
        low_memory: bool = False,
        mid_dim: int = 32,
        *,
        layout: RadialSharing | None = None,
        cg_convention: Convention | None = None,
    ) -> None:
        super().__init__()
        self.fiber_in, self.fiber_out = as_fiber(fiber_in), as_fiber(fiber_out)

        def divide(degree: int, channels: int) -> int:
            if isinstance(channels_div, Mapping):
                return channels // channels_div.get(degree, 1)
            return channels // channels_div

        value = Fiber([(degree, divide(degree, c)) for degree, c in self.fiber_out])
        key = Fiber([pair for pair in value if pair.degree in self.fiber_in])
        for degree, channels in value:
            if channels == 0 or channels % num_heads:
                raise ValueError(
                    f"values of degree {degree} have {channels} channels (of "
                    f"{self.fiber_out[degree]}), which num_heads={num_heads} does not divide"
                )
        if not key:
            raise ValueError(
                "attention needs a degree common to input and output: "
                f"{self.fiber_in} -> {self.fiber_out}"
            )
        self.to_key_value = ConvSE3(
            self.fiber_in,
            value + key,
            fiber_edge,
            pool=False,
            use_layer_norm=use_layer_norm,
            max_degree=max_degree,
            fuse_level=fuse_level,
            allow_fused_output=True,
            low_memory=low_memory,
            mid_dim=mid_dim,
            layout=layout,
            cg_convention=cg_convention,
        )
        self.to_query = LinearSE3(self.fiber_in, key)
        self.attention = AttentionSE3(num_heads, key, value)
        self.project = LinearSE3(value + self.fiber_in, self.fiber_out)

    def packed(self, x: Tensor, context: EdgeContext) -> Tensor:
        """Packed node features ``[N, fiber_in.dim]`` to ``[N, fiber_out.dim]``."""
        conv, shape = self.to_key_value, self.attention.shape
        attention = AttentionInputs(shape, self.to_query.packed(x), context.target)
        attended = tfn_attention(conv.kernel_inputs(x, context), attention, conv.kernel_options)
        return self.project.forward_parts([(shape.value, attended), (conv.native_in, x)])

    def forward(
        self,
        node_features: Mapping[str, Tensor],
        edge_features: Mapping[str, Tensor],
        graph: Any,
        basis: Basis | None = None,
    ) -> dict[str, Tensor]:
        """As :meth:`ConvSE3.forward`, for nodes ``{'l': [N, C_l, 2l+1]}``."""
        conv = self.to_key_value
        context = layer_context(graph, edge_features, basis, conv.plan.max_degree)
        x = pack_features(conv.native_in, node_features, "node features")
        return unpack_features(self.fiber_out.native, self.packed(x, context))
