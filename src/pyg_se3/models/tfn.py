"""Tensor Field Network: convolutions without attention."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch_geometric.data import Data

from pyg_se3.fiber import Fiber
from pyg_se3.models.base import EquivariantModel
from pyg_se3.models.inputs import Features, read_graph
from pyg_se3.nn import EquivariantNorm, EquivariantPooling, TFNConv
from pyg_se3.nn.pooling import Pooling
from pyg_se3.nn.recompute import recomputed, recomputed_rows
from pyg_se3.ops import KernelOptions, RadialSharing
from pyg_se3.so3 import EdgeGeometry


class TFN(EquivariantModel):
    """Tensor Field Network (Thomas et al. 2018): convolutions with self-interaction, and norms.

    Args:
        fiber_in: fiber of the node features.
        fiber_hidden: fiber between the layers.
        fiber_out: fiber of the output.
        fiber_edge: fiber of the edge features.
        num_layers: number of convolutions before the last.
        norm: put an equivariant norm after every convolution but the last.
        radial_layer_norm: layer norm in the radial MLPs.
        radial_sharing: which degree pairs of a convolution share a radial MLP.
        radial_hidden: width of the radial MLPs.
        pooling: ``max``, ``mean`` or ``sum`` over the nodes of each graph; ``None`` keeps nodes.
        detach_geometry: let no gradient pass to positions through directions.
        kernel: how to compute; not part of the architecture.
    """

    def __init__(
        self,
        fiber_in: Mapping[int, int],
        fiber_hidden: Mapping[int, int],
        fiber_out: Mapping[int, int],
        *,
        fiber_edge: Mapping[int, int] | None = None,
        num_layers: int = 3,
        norm: bool = True,
        radial_layer_norm: bool = True,
        radial_sharing: RadialSharing = "full",
        radial_hidden: int = 32,
        pooling: Pooling | None = None,
        detach_geometry: bool = False,
        kernel: KernelOptions | None = None,
    ) -> None:
        super().__init__(kernel)
        self.fiber_in, self.fiber_hidden = Fiber(fiber_in), Fiber(fiber_hidden)
        self.fiber_out, self.fiber_edge = Fiber(fiber_out), Fiber(fiber_edge or {})
        self.config = {
            "fiber_in": self.fiber_in.to_dict(),
            "fiber_hidden": self.fiber_hidden.to_dict(),
            "fiber_out": self.fiber_out.to_dict(),
            "fiber_edge": self.fiber_edge.to_dict(),
            "num_layers": num_layers,
            "norm": norm,
            "radial_layer_norm": radial_layer_norm,
            "radial_sharing": radial_sharing,
            "radial_hidden": radial_hidden,
            "pooling": pooling,
            "detach_geometry": detach_geometry,
        }
        self.detach_geometry = detach_geometry
        fibers = [self.fiber_in, *[self.fiber_hidden] * num_layers, self.fiber_out]
        self.convs = nn.ModuleList(
            TFNConv(
                before,
                after,
                fiber_edge=self.fiber_edge,
                sharing=radial_sharing,
                hidden=radial_hidden,
                radial_layer_norm=radial_layer_norm,
                self_interaction=True,
                aggr="mean",
                kernel=kernel,
            )
            for before, after in zip(fibers, fibers[1:], strict=False)
        )
        self.norms = nn.ModuleList(
            EquivariantNorm(self.fiber_hidden) if norm else nn.Identity() for _ in range(num_layers)
        )
        self.pooling = None if pooling is None else EquivariantPooling(self.fiber_out, pooling)

    @property
    def max_degree(self) -> int:
        """Largest degree of any feature; the geometry must reach it."""
        return max(f.max_degree for f in (self.fiber_in, self.fiber_hidden, self.fiber_out))

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        for module in (*self.convs, *self.norms):
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()

    def forward(
        self,
        x: Features | Data,
        pos: Tensor | None = None,
        edge_index: Tensor | None = None,
        edge_attr: Features | None = None,
        batch: Tensor | None = None,
        *,
        num_graphs: int | None = None,
        geometry: EdgeGeometry | None = None,
    ) -> dict[int, Tensor]:
        """Features by degree of nodes, or of graphs if pooled; arguments as for SE3Transformer."""
        graph = read_graph(
            self.fiber_in,
            self.fiber_edge,
            self.max_degree,
            x,
            pos,
            edge_index,
            edge_attr,
            batch,
            num_graphs,
            geometry,
        ).sorted_edges()
        geometry = graph.geometry
        if self.detach_geometry:
            geometry = geometry.detach_directions()
        features = graph.x.to(geometry.distance.dtype)
        norms = [*self.norms, nn.Identity()]
        memory = self.kernel_options.memory
        # Training on forces goes backward twice, and would compute the norms again each time.
        store = memory != "default" or geometry.distance.requires_grad
        for conv, norm in zip(self.convs, norms, strict=True):

            def layer(x: Tensor, conv: nn.Module = conv, norm: nn.Module = norm) -> Tensor:
                edges, attr = graph.edge_index, graph.edge_attr
                x = conv(x, edges, edge_attr=attr, geometry=geometry)
                return recomputed_rows(norm, x, store=store)

            features = recomputed(layer, features, store=memory != "low")
        if self.pooling is not None:
            features = self.pooling(features, graph.batch, graph.num_graphs)
        return self.fiber_out.unpack(features)
