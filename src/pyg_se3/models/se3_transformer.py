"""The SE(3)-Transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch_geometric.data import Data

from pyg_se3.fiber import Fiber
from pyg_se3.models.base import EquivariantModel
from pyg_se3.models.inputs import Features, Graph, read_graph
from pyg_se3.nn import EquivariantNorm, EquivariantPooling, SE3Attention, TFNConv
from pyg_se3.nn.pooling import Pooling
from pyg_se3.nn.recompute import recomputed, recomputed_rows
from pyg_se3.ops import KernelOptions, RadialSharing
from pyg_se3.so3 import EdgeGeometry


class SE3Transformer(EquivariantModel):
    """SE(3)-Transformer (Fuchs et al. 2020): attention blocks, norms, and a last convolution.

    Args:
        fiber_in: fiber of the node features, for example ``{0: 6}``.
        fiber_hidden: fiber between the layers.
        fiber_out: fiber of the output.
        fiber_edge: fiber of the edge features (without the distance, which is always used).
        num_layers: number of attention blocks.
        num_heads: number of heads.
        channels_div: keys and values have ``channels // channels_div`` channels.
        norm: put an equivariant norm after every block.
        radial_layer_norm: layer norm in the radial MLPs.
        radial_sharing: which degree pairs of a convolution share a radial MLP (``full``,
            ``output``, ``input``, ``pairwise``); one for all, or one per block and one for the
            last convolution.
        radial_hidden: width of the radial MLPs.
        self_interaction: of the last convolution.
        pooling: ``max``, ``mean`` or ``sum`` over the nodes of each graph; ``None`` keeps nodes.
        return_degree: give only this degree instead of all by degree.
        detach_geometry: let no gradient pass to positions through directions, as NVIDIA does;
            the distance stays differentiable.
        kernel: how to compute; not part of the architecture.

    Raises:
        ValueError: arguments that do not fit together.
    """

    def __init__(
        self,
        fiber_in: Mapping[int, int],
        fiber_hidden: Mapping[int, int],
        fiber_out: Mapping[int, int],
        *,
        fiber_edge: Mapping[int, int] | None = None,
        num_layers: int = 7,
        num_heads: int = 8,
        channels_div: int = 2,
        norm: bool = True,
        radial_layer_norm: bool = True,
        radial_sharing: RadialSharing | Sequence[RadialSharing] = "full",
        radial_hidden: int = 32,
        self_interaction: bool = True,
        pooling: Pooling | None = None,
        return_degree: int | None = None,
        detach_geometry: bool = False,
        kernel: KernelOptions | None = None,
    ) -> None:
        super().__init__(kernel)
        self.fiber_in, self.fiber_hidden = Fiber(fiber_in), Fiber(fiber_hidden)
        self.fiber_out, self.fiber_edge = Fiber(fiber_out), Fiber(fiber_edge or {})
        if return_degree is not None and return_degree not in self.fiber_out:
            raise ValueError(f"return_degree={return_degree} is not in fiber_out={self.fiber_out}")
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        sharing = _per_layer(radial_sharing, num_layers + 1)
        self.config = {
            "fiber_in": self.fiber_in.to_dict(),
            "fiber_hidden": self.fiber_hidden.to_dict(),
            "fiber_out": self.fiber_out.to_dict(),
            "fiber_edge": self.fiber_edge.to_dict(),
            "num_layers": num_layers,
            "num_heads": num_heads,
            "channels_div": channels_div,
            "norm": norm,
            "radial_layer_norm": radial_layer_norm,
            "radial_sharing": sharing,
            "radial_hidden": radial_hidden,
            "self_interaction": self_interaction,
            "pooling": pooling,
            "return_degree": return_degree,
            "detach_geometry": detach_geometry,
        }
        self.return_degree, self.detach_geometry = return_degree, detach_geometry
        self.blocks = nn.ModuleList()
        self.norms = nn.ModuleList()
        fiber = self.fiber_in
        for layer in range(num_layers):
            self.blocks.append(
                SE3Attention(
                    fiber,
                    self.fiber_hidden,
                    fiber_edge=self.fiber_edge,
                    num_heads=num_heads,
                    channels_div=channels_div,
                    sharing=sharing[layer],
                    hidden=radial_hidden,
                    radial_layer_norm=radial_layer_norm,
                    kernel=kernel,
                )
            )
            self.norms.append(EquivariantNorm(self.fiber_hidden) if norm else nn.Identity())
            fiber = self.fiber_hidden
        self.last = TFNConv(
            fiber,
            self.fiber_out,
            fiber_edge=self.fiber_edge,
            sharing=sharing[-1],
            hidden=radial_hidden,
            radial_layer_norm=radial_layer_norm,
            self_interaction=self_interaction,
            kernel=kernel,
        )
        self.pooling: EquivariantPooling | None = None
        if pooling is not None:
            pooled = self.fiber_out
            if return_degree is not None:
                pooled = Fiber({return_degree: pooled[return_degree]})
            self.pooling = EquivariantPooling(pooled, pooling)

    @property
    def max_degree(self) -> int:
        """Largest degree of any feature; the geometry must reach it."""
        return max(f.max_degree for f in (self.fiber_in, self.fiber_hidden, self.fiber_out))

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        for module in (*self.blocks, *self.norms, self.last):
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
    ) -> dict[int, Tensor] | Tensor:
        """Features of nodes, or of graphs if pooled.

        Args:
            x: packed node features ``[N, fiber_in.dim]`` (``[N, C]`` if of degree 0 alone), or by
                degree ``{l: [N, C_l, 2l+1]}``; or a PyG ``Data`` or ``Batch`` that holds
                everything.
            pos: positions ``[N, 3]``; gradients flow to them. Or else give ``geometry``.
            edge_index: source and target of every edge ``[2, E]``.
            edge_attr: edge features ``[E, fiber_edge.dim]`` or by degree ``{l: [E, C_l, 2l+1]}``.
            batch: graph of every node ``[N]``; one graph if left out.
            num_graphs: number of graphs B, counted from ``batch`` if left out.
            geometry: of the edges, up to :attr:`max_degree`, if computed already.

        Returns:
            ``{l: [N or B, C_l, 2l+1]}``, or one of them if ``return_degree`` is set.
        """
        graph = self.read(x, pos, edge_index, edge_attr, batch, num_graphs, geometry)
        features = self.embed(graph)
        fiber = self.fiber_out
        if self.return_degree is not None:
            fiber = Fiber({self.return_degree: fiber[self.return_degree]})
            index = self.fiber_out.degrees.index(self.return_degree)
            features = features.split(self.fiber_out.sizes, dim=1)[index]
        if self.pooling is not None:
            features = self.pooling(features, graph.batch, graph.num_graphs)
        by_degree = fiber.unpack(features)
        return by_degree if self.return_degree is None else by_degree[self.return_degree]

    def read(
        self,
        x: Features | Data,
        pos: Tensor | None,
        edge_index: Tensor | None,
        edge_attr: Features | None,
        batch: Tensor | None,
        num_graphs: int | None,
        geometry: EdgeGeometry | None,
    ) -> Graph:
        """Check and pack the arguments of :meth:`forward`; compute the geometry."""
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
        )
        return graph.sorted_edges()

    def embed(self, graph: Graph) -> Tensor:
        """Packed node features ``[N, fiber_out.dim]``: all layers, one after the other."""
        x, geometry = graph.x.to(graph.geometry.distance.dtype), graph.geometry
        if self.detach_geometry:
            geometry = geometry.detach_directions()
        memory = self.kernel_options.memory
        # Training on forces goes backward twice, and would compute the norms again each time.
        store = memory != "default" or geometry.distance.requires_grad
        for block, norm in zip(self.blocks, self.norms, strict=True):

            def layer(x: Tensor, block: nn.Module = block, norm: nn.Module = norm) -> Tensor:
                edges, attr = graph.edge_index, graph.edge_attr
                x = block(x, edges, edge_attr=attr, geometry=geometry)
                return recomputed_rows(norm, x, store=store)

            x = recomputed(layer, x, store=memory != "low")
        return self.last(x, graph.edge_index, edge_attr=graph.edge_attr, geometry=geometry)


class SE3TransformerPooled(EquivariantModel):
    """SE(3)-Transformer with invariant output per graph: pooled degree 0, then an MLP.

    Args:
        fiber_in: fiber of the node features.
        num_degrees: number of degrees of the hidden features.
        num_channels: channels of each degree of the hidden features.
        output_dim: numbers per graph.
        fiber_edge: fiber of the edge features.
        num_layers: number of attention blocks.
        num_heads: number of heads.
        channels_div: keys and values have ``num_channels // channels_div`` channels.
        norm: put an equivariant norm after every block.
        radial_layer_norm: layer norm in the radial MLPs.
        radial_sharing: as in :class:`SE3Transformer`.
        radial_hidden: width of the radial MLPs.
        pooling: ``max``, ``mean`` or ``sum``.
        detach_geometry: as in :class:`SE3Transformer`.
        kernel: how to compute; not part of the architecture.

    Raises:
        ValueError: arguments that do not fit together.
    """

    def __init__(
        self,
        fiber_in: Mapping[int, int],
        num_degrees: int = 4,
        num_channels: int = 32,
        *,
        output_dim: int = 1,
        fiber_edge: Mapping[int, int] | None = None,
        num_layers: int = 7,
        num_heads: int = 8,
        channels_div: int = 2,
        norm: bool = True,
        radial_layer_norm: bool = True,
        radial_sharing: RadialSharing | Sequence[RadialSharing] = "full",
        radial_hidden: int = 32,
        pooling: Pooling = "max",
        detach_geometry: bool = False,
        kernel: KernelOptions | None = None,
    ) -> None:
        super().__init__(kernel)
        width = num_degrees * num_channels
        self.transformer = SE3Transformer(
            fiber_in,
            Fiber.create(num_degrees, num_channels),
            Fiber({0: width}),
            fiber_edge=fiber_edge,
            num_layers=num_layers,
            num_heads=num_heads,
            channels_div=channels_div,
            norm=norm,
            radial_layer_norm=radial_layer_norm,
            radial_sharing=radial_sharing,
            radial_hidden=radial_hidden,
            pooling=pooling,
            return_degree=0,
            detach_geometry=detach_geometry,
            kernel=kernel,
        )
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, output_dim))
        inner = self.transformer.config
        shared = [
            "num_layers",
            "num_heads",
            "channels_div",
            "norm",
            "radial_layer_norm",
            "radial_sharing",
            "radial_hidden",
            "pooling",
            "detach_geometry",
        ]
        self.config = {
            "fiber_in": inner["fiber_in"],
            "num_degrees": num_degrees,
            "num_channels": num_channels,
            "output_dim": output_dim,
            "fiber_edge": inner["fiber_edge"],
            **{name: inner[name] for name in shared},
        }

    @property
    def max_degree(self) -> int:
        """Largest degree of any feature; the geometry must reach it."""
        return self.transformer.max_degree

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        self.transformer.reset_parameters()
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

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
    ) -> Tensor:
        """Predict ``[B, output_dim]``; arguments as for :meth:`SE3Transformer.forward`."""
        pooled = self.transformer(
            x, pos, edge_index, edge_attr, batch, num_graphs=num_graphs, geometry=geometry
        )
        return self.mlp(pooled.squeeze(-1))


def _per_layer(sharing: RadialSharing | Sequence[RadialSharing], count: int) -> list[RadialSharing]:
    if isinstance(sharing, str):
        return [sharing] * count  # type: ignore[list-item]
    if len(sharing) != count:
        raise ValueError(
            f"radial_sharing lists {len(sharing)} levels, expected one or {count} "
            "(one per block and one for the last convolution)"
        )
    return list(sharing)
