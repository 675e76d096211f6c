"""The SE(3)-Transformer with NVIDIA's interface, and the forks' arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from pyg_se3.compat.se3_transformer.graph import Graph, as_graph, relative_positions
from pyg_se3.compat.se3_transformer.model.arguments import refuse_unknown
from pyg_se3.compat.se3_transformer.model.basis import Basis
from pyg_se3.compat.se3_transformer.model.context import (
    EdgeContext,
    check_basis,
    pack_features,
    unpack_features,
)
from pyg_se3.compat.se3_transformer.model.fiber import Fiber, as_fiber
from pyg_se3.compat.se3_transformer.model.layers.attention import AttentionBlockSE3
from pyg_se3.compat.se3_transformer.model.layers.convolution import (
    ConvSE3,
    ConvSE3FuseLevel,
)
from pyg_se3.compat.se3_transformer.model.layers.linear import LinearSE3
from pyg_se3.compat.se3_transformer.model.layers.norm import NormSE3
from pyg_se3.compat.se3_transformer.model.layers.pooling import GPooling
from pyg_se3.compat.signs import Convention, check_convention, warn_of_default
from pyg_se3.fiber import Fiber as NativeFiber
from pyg_se3.models.inputs import Graph as SortedGraph
from pyg_se3.ops import KernelOptions, RadialSharing
from pyg_se3.so3 import EdgeGeometry

POPULATE_EDGE: dict[str, Callable[[Tensor], Tensor]] = {
    "lin": lambda r: r,
    "arcsin": lambda r: torch.arcsinh(r.clamp(min=4.0) - 4.0) / 3.0,
    "log": torch.log1p,
    "zero": torch.zeros_like,
}
"""What the radial MLPs see of the distance."""


class Sequential(nn.Sequential):
    """Modules one after the other, all given the same further arguments."""

    def forward(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        """Apply all modules."""
        for module in self:
            input = module(input, *args, **kwargs)
        return input


def get_populated_edge_features(
    relative_pos: Tensor, edge_features: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Edge features with the distance appended to degree 0; the given ones are left alone.

    Args:
        relative_pos: ``[E, 3]``.
        edge_features: ``{'l': [E, C_l, 2l+1]}``.
    """
    features = dict(edge_features or {})
    distance = relative_pos.norm(dim=-1)[:, None, None]
    given = features.get("0")
    features["0"] = distance if given is None else torch.cat([given, distance], dim=1)
    return features


class SE3Transformer(nn.Module):
    """SE(3)-Transformer; arguments, parameter names and layouts are NVIDIA's.

    Args:
        num_layers: number of attention blocks.
        fiber_in: fiber of the node features.
        fiber_hidden: fiber between the layers.
        fiber_out: fiber of the output.
        num_heads: number of heads.
        channels_div: values and keys have ``C // channels_div`` channels.
        fiber_edge: fiber of the edge features, without the distance.
        return_type: give only this degree.
        pooling: ``avg`` or ``max`` over the nodes of each graph; needs ``return_type``.
        norm: put a norm after every block.
        use_layer_norm: layer norm in the radial MLPs.
        tensor_cores: build fully fused layers where the fibers allow, else partially fused ones.
            It decides the parameters, not the speed.
        low_memory: build pairwise layers (``nvidia_version`` 1.0: partially fused ones).
        final_layer: ``conv``, ``lin`` or ``att`` (RoseTTAFold).
        populate_edge: what the radial MLPs see of the distance: ``lin``, ``arcsin``, ``log``,
            ``zero`` (RoseTTAFold).
        sum_over_edge: of the final convolution: sum, else average (RoseTTAFold).
        mid_dim: width of the radial MLPs.
        nonlinearity: of the norms; ReLU if left out.
        compute_gradients: let gradients reach positions through directions, too. NVIDIA's code
            lets them through the distance only.
        nvidia_version: ``1.2`` or ``1.0``; see ``low_memory``.
        layouts: layout per block and for a final convolution or attention, instead of
            ``tensor_cores`` and ``low_memory``.
        cg_convention: Clebsch-Gordan signs of the weights: ``e3nn-0.3`` (NVIDIA's, the default) or
            ``e3nn-0.5``.
        reproduce_v12_bug: as in :class:`NormSE3`.
        **kwargs: arguments of NVIDIA's training script, which it hands over, play no part; any
            other is an error.

    Raises:
        ValueError: arguments that do not fit together.
        TypeError: an unknown argument.
    """

    def __init__(
        self,
        num_layers: int,
        fiber_in: Any,
        fiber_hidden: Any,
        fiber_out: Any,
        num_heads: int,
        channels_div: int,
        fiber_edge: Any = None,
        return_type: int | None = None,
        pooling: str | None = None,
        norm: bool = True,
        use_layer_norm: bool = True,
        tensor_cores: bool = False,
        low_memory: bool = False,
        final_layer: Literal["conv", "lin", "att"] = "conv",
        populate_edge: str = "lin",
        sum_over_edge: bool = True,
        mid_dim: int = 32,
        nonlinearity: nn.Module | None = None,
        compute_gradients: bool = False,
        nvidia_version: Literal["1.0", "1.2"] = "1.2",
        layouts: Sequence[RadialSharing] | None = None,
        cg_convention: Convention | None = None,
        reproduce_v12_bug: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        refuse_unknown(kwargs, ARGUMENTS, type(self).__name__)
        _check_choice("final_layer", final_layer, ("conv", "lin", "att"))
        _check_choice("populate_edge", populate_edge, tuple(POPULATE_EDGE))
        _check_choice("nvidia_version", nvidia_version, ("1.0", "1.2"))
        if pooling is not None and return_type is None:
            raise ValueError(f"pooling={pooling!r} needs return_type, the degree to pool")
        fiber_in, fiber_hidden, fiber_out = map(as_fiber, (fiber_in, fiber_hidden, fiber_out))
        if return_type is not None and return_type not in fiber_out:
            raise ValueError(f"return_type={return_type} is not in fiber_out={fiber_out}")
        self.num_layers, self.num_heads, self.channels_div = num_layers, num_heads, channels_div
        self.fiber_in, self.fiber_hidden, self.fiber_out = fiber_in, fiber_hidden, fiber_out
        self.fiber_edge = as_fiber(fiber_edge)
        self.return_type, self.pooling = return_type, pooling
        self.max_degree = max(*fiber_in.degrees, *fiber_hidden.degrees, *fiber_out.degrees)
        self.tensor_cores, self.low_memory = tensor_cores, low_memory
        self.final_layer, self.populate_edge = final_layer, populate_edge
        self.compute_gradients = compute_gradients
        self.fuse_level = _fuse_level(tensor_cores, low_memory, nvidia_version)
        self.cg_convention = check_convention(cg_convention)
        self.kernel_options = KernelOptions()
        radial = final_layer != "lin"
        given = _layouts(layouts, num_layers, radial)
        common: dict[str, Any] = {
            "fiber_edge": self.fiber_edge,
            "use_layer_norm": use_layer_norm,
            "max_degree": self.max_degree,
            "fuse_level": self.fuse_level,
            "low_memory": low_memory,
            "mid_dim": mid_dim,
            "cg_convention": self.cg_convention,
        }
        modules: list[nn.Module] = []
        fiber = fiber_in
        for layer in range(num_layers):
            modules.append(
                AttentionBlockSE3(
                    fiber,
                    fiber_hidden,
                    num_heads=num_heads,
                    channels_div=channels_div,
                    layout=given[layer],
                    **common,
                )
            )
            if norm:
                modules.append(
                    NormSE3(fiber_hidden, nonlinearity, reproduce_v12_bug=reproduce_v12_bug)
                )
            fiber = fiber_hidden
        modules.append(self._final(fiber, sum_over_edge, given[-1], common))
        self.graph_modules = Sequential(*modules)
        if pooling is not None:
            assert return_type is not None
            self.pooling_module = GPooling(return_type, pooling)
        if cg_convention is None and self.depends_on_convention:
            warn_of_default(type(self).__name__)

    def _final(
        self,
        fiber: Fiber,
        sum_over_edge: bool,
        layout: RadialSharing | None,
        common: dict[str, Any],
    ) -> nn.Module:
        if self.final_layer == "lin":
            return LinearSE3(fiber, self.fiber_out)
        if self.final_layer == "att":
            return AttentionBlockSE3(
                fiber,
                self.fiber_out,
                num_heads=1,
                channels_div={0: self.channels_div},
                layout=layout,
                **common,
            )
        return ConvSE3(
            fiber,
            self.fiber_out,
            self_interaction=True,
            sum_over_edge=sum_over_edge,
            layout=layout,
            **common,
        )

    @property
    def blocks(self) -> list[AttentionBlockSE3]:
        """The attention blocks, without one that is the final layer."""
        inside = list(self.graph_modules)[:-1]
        return [module for module in inside if isinstance(module, AttentionBlockSE3)]

    @property
    def norms(self) -> list[NormSE3]:
        """The norms between the blocks."""
        return [module for module in self.graph_modules if isinstance(module, NormSE3)]

    @property
    def final(self) -> ConvSE3 | LinearSE3 | AttentionBlockSE3:
        """The last layer."""
        return cast("ConvSE3 | LinearSE3 | AttentionBlockSE3", self.graph_modules[-1])

    @property
    def convolutions(self) -> list[ConvSE3]:
        """All convolutions, those inside attention included."""
        return [module for module in self.modules() if isinstance(module, ConvSE3)]

    @property
    def depends_on_convention(self) -> bool:
        """Whether ``cg_convention`` changes the output."""
        return any(conv.depends_on_convention for conv in self.convolutions)

    def set_kernel(self, options: KernelOptions) -> None:
        """Compute all convolutions as ``options`` says from now on."""
        for module in self.modules():
            if isinstance(module, (ConvSE3, SE3Transformer)):
                module.kernel_options = options

    def forward(
        self,
        graph: Any,
        node_feats: Mapping[str, Tensor],
        edge_feats: Mapping[str, Tensor] | None = None,
        basis: Basis | None = None,
    ) -> dict[str, Tensor] | Tensor:
        """Features of nodes, or of graphs if pooled.

        Args:
            graph: :class:`Graph` with ``edata['rel_pos']`` ``[E, 3]``, a PyG ``Data``, or a graph
                of DGL.
            node_feats: ``{'l': [N, C_l, 2l+1]}``.
            edge_feats: ``{'l': [E, C_l, 2l+1]}`` without the distance; left as they are.
            basis: geometry from ``get_basis``, if computed already.

        Returns:
            ``{'l': [N, C_l, 2l+1]}``, or one of them if ``return_type`` is set.
        """
        graph = as_graph(graph)
        context = self._context(graph, edge_feats or {}, basis)
        x = pack_features(self.fiber_in.native, node_feats, "node_feats")
        x = x.to(context.geometry.distance.dtype)
        for module in self.graph_modules:
            if isinstance(module, (AttentionBlockSE3, ConvSE3)):
                x = module.packed(x, context)
            else:
                x = module.packed(x)  # type: ignore[operator]
        features = unpack_features(self.fiber_out.native, x)
        if self.pooling is not None:
            return self.pooling_module(features, graph=graph)
        return features if self.return_type is None else features[str(self.return_type)]

    def _context(
        self, graph: Graph, edge_feats: Mapping[str, Tensor], basis: Basis | None
    ) -> EdgeContext:
        """Edges in an order that suits the kernels, with geometry and features."""
        rel_pos = relative_positions(graph)
        if basis is not None:
            geometry = check_basis(basis).geometry
            if geometry.max_degree < self.max_degree:
                raise ValueError(
                    f"basis has degrees up to {geometry.max_degree}, needed: {self.max_degree}"
                )
        else:
            geometry = EdgeGeometry.from_vectors(rel_pos, self.max_degree)
        if not self.compute_gradients:
            geometry = geometry.detach_directions()
        used = NativeFiber(
            {d: c for d, c in self.fiber_edge.structure if d == 0 or self._convolves(d)}
        )
        attr = pack_features(used, edge_feats, "edge_feats") if used else None
        if attr is not None:
            attr = attr.to(rel_pos.dtype)
        ordered = SortedGraph(
            rel_pos, graph.edge_index, attr, geometry, graph.edge_index[0], 1
        ).sorted_edges()
        geometry, distance = ordered.geometry, ordered.geometry.distance[:, None]
        populated = [POPULATE_EDGE[self.populate_edge](distance)]
        higher: dict[int, Tensor] = {}
        if ordered.edge_attr is not None:
            higher = used.unpack(ordered.edge_attr)
            if 0 in higher:
                populated.insert(0, higher.pop(0)[..., 0])
        source, target = ordered.edge_index
        return EdgeContext(
            source, target, graph.num_nodes(), geometry, torch.cat(populated, dim=1), higher
        )

    def _convolves(self, degree: int) -> bool:
        """Whether any layer has node features of this degree, so that edge features join them."""
        return degree in self.fiber_in or degree in self.fiber_hidden

    @staticmethod
    def add_argparse_args(parser: Any) -> Any:
        """Add NVIDIA's command line arguments of the architecture to a parser."""
        from pyg_se3.compat.se3_transformer.runtime.utils import str2bool

        parser.add_argument("--num_layers", type=int, default=7)
        parser.add_argument("--num_heads", type=int, default=8)
        parser.add_argument("--channels_div", type=int, default=2)
        parser.add_argument(
            "--pooling", default=None, const=None, nargs="?", choices=["max", "avg"]
        )
        for flag in ("norm", "use_layer_norm", "low_memory"):
            parser.add_argument(f"--{flag}", type=str2bool, nargs="?", const=True, default=False)
        return parser


class SE3TransformerPooled(nn.Module):
    """SE(3)-Transformer with invariant output per graph: pooled degree 0, then an MLP.

    Args:
        fiber_in: fiber of the node features.
        fiber_out: fiber before pooling, of degree 0.
        fiber_edge: fiber of the edge features.
        num_degrees: number of degrees of the hidden features.
        num_channels: channels of each.
        output_dim: numbers per graph.
        pooling: ``max`` (also for ``None``) or ``avg``.
        **kwargs: further arguments of :class:`SE3Transformer`.
    """

    def __init__(
        self,
        fiber_in: Any,
        fiber_out: Any,
        fiber_edge: Any,
        num_degrees: int,
        num_channels: int,
        output_dim: int,
        pooling: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        fiber_out = as_fiber(fiber_out)
        self.transformer = SE3Transformer(
            fiber_in=fiber_in,
            fiber_hidden=Fiber.create(num_degrees, num_channels),
            fiber_out=fiber_out,
            fiber_edge=fiber_edge,
            return_type=0,
            pooling=pooling or "max",
            **kwargs,
        )
        self.output_dim = output_dim
        width = fiber_out.num_features
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, output_dim))

    def set_kernel(self, options: KernelOptions) -> None:
        """Compute all convolutions as ``options`` says from now on."""
        self.transformer.set_kernel(options)

    def forward(
        self,
        graph: Any,
        node_feats: Mapping[str, Tensor],
        edge_feats: Mapping[str, Tensor] | None = None,
        basis: Basis | None = None,
    ) -> Tensor:
        """``[B]`` for one output, else ``[B, output_dim]``."""
        features = self.transformer(graph, node_feats, edge_feats, basis)
        return self.mlp(features).squeeze(-1)

    @staticmethod
    def add_argparse_args(parent_parser: Any) -> Any:
        """Add NVIDIA's command line arguments of the architecture to a parser."""
        parser = parent_parser.add_argument_group("Model architecture")
        SE3Transformer.add_argparse_args(parser)
        parser.add_argument("--num_degrees", type=int, default=4)
        parser.add_argument("--num_channels", type=int, default=32)
        return parent_parser


def _named(function: Callable[..., Any]) -> tuple[str, ...]:
    parameters = inspect.signature(function).parameters.values()
    return tuple(
        p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"
    )


ARGUMENTS = _named(SE3Transformer.__init__)
"""Names of the arguments of :class:`SE3Transformer`."""

POOLED_ARGUMENTS = _named(SE3TransformerPooled.__init__)
"""Names of the arguments that :class:`SE3TransformerPooled` has of its own."""


def _fuse_level(tensor_cores: bool, low_memory: bool, version: str) -> ConvSE3FuseLevel:
    if low_memory:
        return ConvSE3FuseLevel.NONE if version == "1.2" else ConvSE3FuseLevel.PARTIAL
    return ConvSE3FuseLevel.FULL if tensor_cores else ConvSE3FuseLevel.PARTIAL


def _layouts(
    layouts: Sequence[RadialSharing] | None, num_layers: int, final: bool
) -> list[RadialSharing | None]:
    count = num_layers + int(final)
    if layouts is None:
        return [None] * (num_layers + 1)
    if len(layouts) != count:
        raise ValueError(f"layouts has {len(layouts)} entries, expected {count}")
    return [*layouts, None] if not final else list(layouts)


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}, expected one of {choices}")
