"""Tensor-field convolution."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing

from pyg_se3.fiber import Fiber
from pyg_se3.nn.edges import (
    edge_geometry,
    edges_for,
    plain_edge_index,
    radial_inputs,
    source_features,
)
from pyg_se3.nn.linear import EquivariantLinear
from pyg_se3.nn.radial import RadialProfile, RadialWeights
from pyg_se3.nn.radial_expansion import edge_activations
from pyg_se3.ops import ConvInputs, KernelOptions, RadialSharing, TFNPlan, tfn_conv
from pyg_se3.ops.segment import segment_sum
from pyg_se3.so3 import EdgeGeometry


class TFNConv(MessagePassing):
    r"""Tensor-field convolution (Thomas et al. 2018), summed over the neighbours.

    .. math::
        y_i^k = \sum_{j \to i} \Big( \sum_l W^{lk}(r_{ji})\, x_j^l \;[+\; W_{self}\, x_i^k] \Big)

    with kernels :math:`W^{lk}(r) = \sum_J R^{lk}_J(|r|, e)\, \sum_m Y_{Jm}(\hat r)\, Q^J_{lk,m}`
    whose radial profiles R are MLPs of the distance and the edge features.

    Args:
        fiber_in: fiber of the nodes.
        fiber_out: fiber of the output.
        fiber_edge: fiber of the edge features: degree 0 enters the radial MLP, higher degrees are
            convolved along with the source nodes' channels of that degree.
        sharing: which degree pairs share a radial MLP: ``full``, ``output``, ``input`` or
            ``pairwise``.
        hidden: width H of the radial MLP.
        radial_layer_norm: normalise the hidden layers of the radial MLP.
        self_interaction: add a linear map of the receiving node to every message, as NVIDIA does
            (hence times its number of incoming edges).
        aggr: ``sum``, ``mean`` over the incoming edges.
        kernel: how to compute; not part of the architecture.
    """

    def __init__(
        self,
        fiber_in: Mapping[int, int],
        fiber_out: Mapping[int, int],
        *,
        fiber_edge: Mapping[int, int] | None = None,
        sharing: RadialSharing = "full",
        hidden: int = 32,
        radial_layer_norm: bool = True,
        self_interaction: bool = False,
        aggr: str = "sum",
        kernel: KernelOptions | None = None,
    ) -> None:
        super().__init__(aggr=aggr)
        self.fiber_in, self.fiber_out = Fiber(fiber_in), Fiber(fiber_out)
        self.fiber_edge = Fiber(fiber_edge or {})
        self.kernel_options = kernel or KernelOptions()
        higher = Fiber({d: c for d, c in self.fiber_edge.items() if d > 0})
        self.plan = TFNPlan.create(
            self.fiber_in + higher.restricted_to(self.fiber_in), self.fiber_out, sharing, hidden
        )
        self.radial = torch.nn.ModuleList(
            RadialProfile(self.fiber_edge.get(0, 0) + 1, hidden, radial_layer_norm)
            for _ in self.plan.groups
        )
        self.weight = RadialWeights(self.plan)
        self.self_interaction: EquivariantLinear | None = None
        if self_interaction:
            shared = self.fiber_out.restricted_to(self.fiber_in)
            self.self_interaction = EquivariantLinear(self.fiber_in, shared)

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        for profile in self.radial:
            profile.reset_parameters()  # type: ignore[operator]
        self.weight.reset_parameters()
        if self.self_interaction is not None:
            self.self_interaction.reset_parameters()

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        pos: Tensor | None = None,
        edge_attr: Tensor | None = None,
        *,
        geometry: EdgeGeometry | None = None,
    ) -> Tensor:
        """Convolve.

        Args:
            x: packed node features ``[N, fiber_in.dim]``.
            edge_index: source and target of every edge ``[2, E]``.
            pos: positions ``[N, 3]``; or else give ``geometry``.
            edge_attr: packed edge features ``[E, fiber_edge.dim]``.
            geometry: of the edges, if computed already.

        Returns:
            packed ``[N, fiber_out.dim]``; zero for nodes without incoming edges.
        """
        self.fiber_in.check(x, "node features")
        edge_index = plain_edge_index(edge_index, x.shape[0])
        geometry = edge_geometry(self.plan.max_degree, edge_index, pos, geometry)
        edge_index, edge_attr, geometry = edges_for(
            self.plan, self.kernel_options, x, edge_index, edge_attr, geometry
        )
        size = (x.shape[0], x.shape[0])  # or nodes after the last receiver would be left out
        out = self.propagate(edge_index, size=size, x=x, edge_attr=edge_attr, geometry=geometry)
        if self.self_interaction is None:
            return out
        own = self.self_interaction(x)
        if self.aggr == "sum":
            ones = own.new_ones(edge_index.shape[1], 1)
            own = own * segment_sum(ones, edge_index[1], x.shape[0])
        elif self.aggr == "mean":
            ones = own.new_ones(edge_index.shape[1], 1)
            own = own * segment_sum(ones, edge_index[1], x.shape[0]).clamp(max=1)
        return add_degrees(self.fiber_out, out, self.self_interaction.fiber_out, own)

    def message(
        self,
        x: Tensor,
        edge_index_j: Tensor,
        edge_attr: Tensor | None,
        geometry: EdgeGeometry,
    ) -> Tensor:
        """Messages of every edge, packed ``[E, fiber_out.dim]``; the kernel gathers ``x``."""
        inputs = self.kernel_inputs(x, edge_index_j, edge_attr, geometry)
        return tfn_conv(inputs, self.kernel_options)

    def kernel_inputs(
        self, x: Tensor, source: Tensor, edge_attr: Tensor | None, geometry: EdgeGeometry
    ) -> ConvInputs:
        """What the kernels are given.

        Args:
            x: packed node features ``[N, fiber_in.dim]``.
            source: source node of every edge ``[E]``.
            edge_attr: packed edge features ``[E, fiber_edge.dim]``.
            geometry: of the edges.
        """
        invariants = radial_inputs(self.fiber_edge, edge_attr, geometry)
        features, rows = source_features(self.fiber_in, self.fiber_edge, x, source, edge_attr)
        activations, tangents, expansion = edge_activations(
            self.radial, self.plan, self.kernel_options, features, invariants, edge_attr, geometry
        )
        return ConvInputs(
            self.plan,
            features,
            rows,
            activations,
            geometry,
            self.weight.by_pair(),
            self.weight.packed,
            tangents,
            expansion,
        )

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.fiber_in} -> {self.fiber_out}, "
            f"edge={self.fiber_edge}, groups={len(self.plan.groups)}, hidden={self.plan.hidden}, "
            f"self_interaction={self.self_interaction is not None})"
        )


def add_degrees(fiber: Fiber, x: Tensor, part: Fiber, y: Tensor) -> Tensor:
    """``x + y`` for packed features where ``y`` has only some degrees of ``x``."""
    if part == fiber:
        return x + y
    blocks = dict(zip(fiber, x.split(fiber.sizes, 1), strict=True))
    for degree, block in zip(part, y.split(part.sizes, 1), strict=True):
        blocks[degree] = blocks[degree] + block
    return torch.cat(list(blocks.values()), dim=1)
