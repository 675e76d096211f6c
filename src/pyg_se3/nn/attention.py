"""Equivariant attention block."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch_geometric.nn import MessagePassing

from pyg_se3.fiber import Fiber
from pyg_se3.nn.conv import TFNConv
from pyg_se3.nn.edges import (
    edge_geometry,
    edges_for,
    plain_edge_index,
)
from pyg_se3.nn.linear import EquivariantLinear
from pyg_se3.ops import AttentionInputs, AttentionShape, KernelOptions, RadialSharing, tfn_attention
from pyg_se3.so3 import EdgeGeometry


class SE3Attention(MessagePassing):
    r"""Multi-head attention of an SE(3)-Transformer (Fuchs et al. 2020, eq. 10-12), and a skip.

    Keys and values of an edge come from one tensor-field convolution of the source's features,
    queries from a linear map of the receiver's:

    .. math::
        o_i = \sum_{j \to i}
            \mathrm{softmax}_j\!\left(\frac{q_i \cdot k_{ij}}{\sqrt{d}}\right) v_{ij},
        \qquad y_i = W\,[\,o_i, x_i\,]

    Values have ``C // channels_div`` channels of every output degree, keys and queries those of
    the degrees that the input has. Head h is block h of the channels of every degree.

    Args:
        fiber_in: fiber of the nodes.
        fiber_out: fiber of the output.
        fiber_edge: fiber of the edge features, as in :class:`TFNConv`.
        num_heads: number of heads.
        channels_div: by how much values and keys have fewer channels than the output.
        sharing: which degree pairs share a radial MLP, as in :class:`TFNConv`.
        hidden: width of the radial MLP.
        radial_layer_norm: normalise the hidden layers of the radial MLP.
        kernel: how to compute; not part of the architecture.

    Raises:
        ValueError: channels that the division or the heads do not divide, or no common degree.
    """

    def __init__(
        self,
        fiber_in: Mapping[int, int],
        fiber_out: Mapping[int, int],
        *,
        fiber_edge: Mapping[int, int] | None = None,
        num_heads: int = 8,
        channels_div: int = 2,
        sharing: RadialSharing = "full",
        hidden: int = 32,
        radial_layer_norm: bool = True,
        kernel: KernelOptions | None = None,
    ) -> None:
        super().__init__(aggr="sum")
        self.fiber_in, self.fiber_out = Fiber(fiber_in), Fiber(fiber_out)
        if num_heads < 1 or channels_div < 1:
            raise ValueError(
                f"num_heads and channels_div must be at least 1, got {num_heads}, {channels_div}"
            )
        for degree, channels in self.fiber_out.items():
            if channels % channels_div or (channels // channels_div) % num_heads:
                raise ValueError(
                    f"{channels} channels of degree {degree} cannot be divided by "
                    f"channels_div={channels_div} and then among num_heads={num_heads}"
                )
        value = Fiber({d: c // channels_div for d, c in self.fiber_out.items()})
        key = value.restricted_to(self.fiber_in)
        if not key:
            raise ValueError(
                f"attention needs a degree common to input and output: "
                f"{self.fiber_in} -> {self.fiber_out}"
            )
        self.attention = AttentionShape(value, key, num_heads)
        self.to_query = EquivariantLinear(self.fiber_in, key)
        self.to_key_value = TFNConv(
            self.fiber_in,
            value + key,
            fiber_edge=fiber_edge,
            sharing=sharing,
            hidden=hidden,
            radial_layer_norm=radial_layer_norm,
            kernel=kernel,
        )
        self.project = EquivariantLinear(
            value + self.fiber_in.restricted_to(self.fiber_out), self.fiber_out
        )

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        self.to_query.reset_parameters()
        self.to_key_value.reset_parameters()
        self.project.reset_parameters()

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        pos: Tensor | None = None,
        edge_attr: Tensor | None = None,
        *,
        geometry: EdgeGeometry | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            x: packed node features ``[N, fiber_in.dim]``.
            edge_index: source and target of every edge ``[2, E]``.
            pos: positions ``[N, 3]``; or else give ``geometry``.
            edge_attr: packed edge features ``[E, fiber_edge.dim]``.
            geometry: of the edges, if computed already.

        Returns:
            packed ``[N, fiber_out.dim]``.
        """
        self.fiber_in.check(x, "node features")
        edge_index = plain_edge_index(edge_index, x.shape[0])
        geometry = edge_geometry(self.to_key_value.plan.max_degree, edge_index, pos, geometry)
        conv = self.to_key_value
        edge_index, edge_attr, geometry = edges_for(
            conv.plan, conv.kernel_options, x, edge_index, edge_attr, geometry
        )
        attended = self.message_and_aggregate(edge_index, x, edge_attr, geometry)
        parts = [(self.attention.value, attended), (self.fiber_in, x)]
        return self.project.forward_parts(parts)

    def message_and_aggregate(
        self, edge_index: Tensor, x: Tensor, edge_attr: Tensor | None, geometry: EdgeGeometry
    ) -> Tensor:
        """Attention ``[N, value.dim]`` without keys and values of all edges at once."""
        conv = self.to_key_value
        source, target = edge_index
        inputs = conv.kernel_inputs(x, source, edge_attr, geometry)
        attention = AttentionInputs(self.attention, self.to_query(x), target)
        return tfn_attention(inputs, attention, conv.kernel_options)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.fiber_in} -> {self.fiber_out}, "
            f"heads={self.attention.heads}, value={self.attention.value}, "
            f"key={self.attention.key}, groups={len(self.to_key_value.plan.groups)})"
        )
