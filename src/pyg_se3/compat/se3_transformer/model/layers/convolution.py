"""Tensor-field convolution with NVIDIA's names and parameter layouts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyg_se3.compat.layout import Piece, best_layout, pieces, split_rows
from pyg_se3.compat.se3_transformer.model.basis import Basis
from pyg_se3.compat.se3_transformer.model.context import (
    EdgeContext,
    layer_context,
    pack_features,
    segment_counts,
    unpack_features,
)
from pyg_se3.compat.se3_transformer.model.fiber import as_fiber
from pyg_se3.compat.signs import Convention, check_convention, depends_on_convention
from pyg_se3.fiber import Fiber as NativeFiber
from pyg_se3.nn.conv import add_degrees
from pyg_se3.nn.linear import concatenate
from pyg_se3.nn.radial import RadialProfile as NativeProfile
from pyg_se3.nn.radial import radial_activations
from pyg_se3.ops import (
    ConvInputs,
    KernelOptions,
    RadialSharing,
    TFNPlan,
    pack_plan,
    tfn_conv,
    uses_tangents,
)
from pyg_se3.ops.packing import PackedWeights
from pyg_se3.ops.plan import Pair
from pyg_se3.ops.segment import segment_sum


class ConvSE3FuseLevel(Enum):
    """How far radial MLPs are shared: it decides the parameters, hence the function."""

    FULL = 2
    PARTIAL = 1
    NONE = 0


class RadialProfile(nn.Module):
    """Radial MLP: invariants of an edge to radial weights; parameters under ``net``.

    Args:
        num_freq: radial coefficients per channel pair.
        channels_in: input channels.
        channels_out: output channels.
        edge_dim: number of invariants.
        mid_dim: width of both hidden layers.
        use_layer_norm: normalise the hidden layers.
    """

    def __init__(
        self,
        num_freq: int,
        channels_in: int,
        channels_out: int,
        edge_dim: int = 1,
        mid_dim: int = 32,
        use_layer_norm: bool = False,
    ) -> None:
        super().__init__()
        hidden = NativeProfile(edge_dim, mid_dim, use_layer_norm)
        last = nn.Linear(mid_dim, num_freq * channels_in * channels_out, bias=False)
        self.net = nn.Sequential(*hidden, last)

    def forward(self, features: Tensor) -> Tensor:
        """Radial weights ``[E, C_out * C_in * F]`` of invariants ``[E, edge_dim]``."""
        return self.net(features)

    def hidden_layers(self) -> NativeProfile:
        """All but the last layer, as a view that shares the parameters."""
        view = NativeProfile.__new__(NativeProfile)
        nn.Module.__init__(view)
        for index, layer in enumerate(list(self.net)[:-1]):
            view.add_module(str(index), layer)
        return view

    @property
    def last_weight(self) -> Tensor:
        """Weight of the last layer ``[C_out * C_in * F, H]``."""
        return cast(nn.Linear, self.net[-1]).weight


class VersatileConvSE3(nn.Module):
    """Parameters of one radial MLP of a convolution, under ``radial_func.net``."""

    def __init__(
        self,
        freq_sum: int,
        channels_in: int,
        channels_out: int,
        edge_dim: int,
        use_layer_norm: bool,
        fuse_level: ConvSE3FuseLevel,
        mid_dim: int = 32,
    ) -> None:
        super().__init__()
        self.freq_sum, self.fuse_level = freq_sum, fuse_level
        self.channels_in, self.channels_out = channels_in, channels_out
        self.radial_func = RadialProfile(
            freq_sum, channels_in, channels_out, edge_dim, mid_dim, use_layer_norm
        )

    def forward(self, features: Tensor, invariant_edge_feats: Tensor, basis: Tensor) -> Tensor:
        """Not computed piece by piece here."""
        raise NotImplementedError(
            "VersatileConvSE3 holds parameters only; call the ConvSE3 that it belongs to"
        )


class ConvSE3(nn.Module):
    """Tensor-field convolution; parameters as NVIDIA's, computed by this package's kernels.

    Args:
        fiber_in: fiber of the nodes.
        fiber_out: fiber of the output.
        fiber_edge: fiber of the edge features, without the distance.
        pool: sum (or average) over the edges that end at a node, instead of giving edge features.
        use_layer_norm: layer norm in the radial MLPs.
        self_interaction: add a linear map of the receiving node to every message.
        max_degree: of all features of the model; full and partial fusing need all degrees up to it.
        fuse_level: largest level of sharing to use where the fibers allow.
        allow_fused_output: give ``[E, C, sum(2l+1)]`` if fully fused and not pooled.
        low_memory: accepted as NVIDIA's; memory is bounded either way.
        sum_over_edge: sum over the edges; else average.
        mid_dim: width of the radial MLPs.
        layout: use this layout instead of what ``fuse_level`` and fibers say.
        cg_convention: Clebsch-Gordan signs of the weights; ``e3nn-0.3`` if left out.
    """

    def __init__(
        self,
        fiber_in: Any,
        fiber_out: Any,
        fiber_edge: Any = None,
        pool: bool = True,
        use_layer_norm: bool = False,
        self_interaction: bool = False,
        max_degree: int = 4,
        fuse_level: ConvSE3FuseLevel = ConvSE3FuseLevel.FULL,
        allow_fused_output: bool = False,
        low_memory: bool = False,
        sum_over_edge: bool = True,
        mid_dim: int = 32,
        *,
        layout: RadialSharing | None = None,
        cg_convention: Convention | None = None,
    ) -> None:
        super().__init__()
        self.fiber_in, self.fiber_out = as_fiber(fiber_in), as_fiber(fiber_out)
        self.fiber_edge = as_fiber(fiber_edge)
        self.pool, self.self_interaction = pool, self_interaction
        self.max_degree, self.allow_fused_output = max_degree, allow_fused_output
        self.low_memory, self.sum_over_edge = low_memory, sum_over_edge
        self.cg_convention = check_convention(cg_convention)
        self.kernel_options = KernelOptions()
        self.native_in, self.native_out = self.fiber_in.native, self.fiber_out.native
        self.native_higher = NativeFiber(
            {d: c for d, c in self.fiber_edge.structure if d > 0}
        ).restricted_to(self.native_in)
        convolved = self.native_in + self.native_higher
        self.layout: RadialSharing = layout or best_layout(
            convolved, self.native_out, max_degree, fuse_level.value
        )
        self.used_fuse_level = {
            "full": ConvSE3FuseLevel.FULL,
            "output": ConvSE3FuseLevel.PARTIAL,
            "input": ConvSE3FuseLevel.PARTIAL,
            "pairwise": ConvSE3FuseLevel.NONE,
        }[self.layout]
        self.plan = TFNPlan.create(convolved, self.native_out, self.layout, mid_dim)
        self._build(use_layer_norm, mid_dim)
        if self_interaction:
            self.to_kernel_self = nn.ParameterDict()
            for degree, channels in self.fiber_out:
                width = self.fiber_in[degree]
                if width:
                    weight = torch.randn(channels, width) / math.sqrt(width)
                    self.to_kernel_self[str(degree)] = nn.Parameter(weight)
        self._cache: tuple[object, PackedWeights] | None = None

    def _build(self, use_layer_norm: bool, mid_dim: int) -> None:
        """Create the radial MLPs under NVIDIA's names, in NVIDIA's order."""
        self.pieces = {
            piece.key: piece
            for piece in pieces(
                self.layout,
                [degree for degree, _ in self.fiber_in],
                [degree for degree, _ in self.fiber_out],
            )
        }
        for key, piece in self.pieces.items():
            degree_in, degree_out = piece.pairs[0]
            conv = VersatileConvSE3(
                piece.frequencies,
                self.plan.fiber_in[degree_in],
                self.plan.fiber_out[degree_out],
                self.fiber_edge[0] + 1,
                use_layer_norm,
                self.used_fuse_level,
                mid_dim,
            )
            parent, _, name = key.partition(".")
            if not name:
                self.add_module(parent, conv)
                continue
            if parent not in self._modules:
                self.add_module(parent, nn.ModuleDict())
            cast(nn.ModuleDict, self._modules[parent])[name] = conv

    @property
    def depends_on_convention(self) -> bool:
        """Whether ``cg_convention`` changes the output."""
        return depends_on_convention(list(self.plan.pairs))

    def radial_pieces(self) -> list[tuple[Piece, VersatileConvSE3]]:
        """The radial MLPs in the order of the plan's groups."""
        by_pairs = {frozenset(piece.pairs): piece for piece in self.pieces.values()}
        ordered = [by_pairs[frozenset(group.pairs)] for group in self.plan.groups]
        return [(p, cast(VersatileConvSE3, self.get_submodule(p.key))) for p in ordered]

    def pair_weights(self) -> dict[Pair, Tensor]:
        """Radial weights ``{(l, k): [2 min(l, k) + 1, H, C_l, C_k]}``, views where possible."""
        weights: dict[Pair, Tensor] = {}
        for piece, conv in self.radial_pieces():
            weights |= split_rows(
                conv.radial_func.last_weight,
                piece,
                conv.channels_in,
                conv.channels_out,
                self.cg_convention,
            )
        return weights

    def kernel_inputs(self, x: Tensor, context: EdgeContext) -> ConvInputs:
        """What the kernels ask for, of packed node features ``[N, fiber_in.dim]``."""
        features, rows = self._sources(x, context)
        if context.invariants.shape[1] != self.fiber_edge[0] + 1:
            raise ValueError(
                f"edge features of degree 0 have {context.invariants.shape[1]} channels with the "
                f"distance, expected {self.fiber_edge[0] + 1}"
            )
        sketch = uses_tangents(self.plan, x, context.geometry, self.kernel_options)
        profiles: Iterable[nn.Module] = [
            conv.radial_func.hidden_layers() for _, conv in self.radial_pieces()
        ]
        activations, tangents = radial_activations(profiles, context.invariants, sketch)
        weights = self.pair_weights()
        packed = partial(self._packed, weights)
        return ConvInputs(
            self.plan, features, rows, activations, context.geometry, weights, packed, tangents
        )

    def convolve(self, x: Tensor, context: EdgeContext) -> Tensor:
        """Messages of all edges, packed ``[E, fiber_out.dim]``, of packed node features."""
        return tfn_conv(self.kernel_inputs(x, context), self.kernel_options)

    def packed(self, x: Tensor, context: EdgeContext) -> Tensor:
        """Output for packed node features: packed ``[N, fiber_out.dim]``, or ``[E, ...]``."""
        out = self.convolve(x, context)
        own = self._own(x)
        if not self.pool:
            if own is not None:
                out = add_degrees(self.native_out, out, own[0], own[1][context.target])
            return out
        out = segment_sum(out, context.target, context.num_nodes)
        counts = segment_counts(context, out)
        if own is not None:
            # Added to every message, it comes back once per incoming edge.
            out = add_degrees(self.native_out, out, own[0], own[1].to(out.dtype) * counts)
        return out if self.sum_over_edge else out / counts.clamp(min=1)

    def forward(
        self,
        node_feats: Mapping[str, Tensor],
        edge_feats: Mapping[str, Tensor],
        graph: Any,
        basis: Basis | None = None,
    ) -> dict[str, Tensor] | Tensor:
        """Convolve features by degree.

        Args:
            node_feats: ``{'l': [N, C_l, 2l+1]}``.
            edge_feats: ``{'l': [E, C_l, 2l+1]}``, degree 0 ending with the distance.
            graph: of the edges.
            basis: geometry from ``get_basis``; made from the graph if left out.

        Returns:
            ``{'l': [N or E, C_l, 2l+1]}``.
        """
        context = layer_context(graph, edge_feats, basis, self.plan.max_degree)
        packed = self.packed(pack_features(self.native_in, node_feats, "node features"), context)
        features = unpack_features(self.native_out, packed)
        fused = self.used_fuse_level is ConvSE3FuseLevel.FULL and self.allow_fused_output
        if fused and not (self.pool or self.self_interaction):
            return torch.cat(list(features.values()), dim=-1)
        return features

    def _own(self, x: Tensor) -> tuple[NativeFiber, Tensor] | None:
        """Self-interaction of every node, and the fiber of what it gives."""
        if not self.self_interaction:
            return None
        fiber = self.native_out.restricted_to(self.native_in)
        blocks = self.native_in.split(x)
        parts = [
            (blocks[degree] @ self.to_kernel_self[str(degree)].T).flatten(1) for degree in fiber
        ]
        return (fiber, torch.cat(parts, dim=1)) if parts else None

    def _sources(self, x: Tensor, context: EdgeContext) -> tuple[Tensor, Tensor]:
        """Features to convolve and, per edge, the row that belongs to it."""
        if not self.native_higher:
            return x, context.source
        higher = pack_features(
            self.native_higher,
            {str(degree): value for degree, value in context.higher.items()},
            "edge features",
        )
        joined = concatenate(self.native_in, self.native_higher, x[context.source], higher)
        return joined, torch.arange(context.source.numel(), device=x.device)

    def _packed(self, weights: Mapping[Pair, Tensor]) -> PackedWeights:
        """Weights as the kernels use them, kept while evaluating on a CPU."""
        parameters = [conv.radial_func.last_weight for _, conv in self.radial_pieces()]
        recorded = torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
        on_cpu = all(p.device.type == "cpu" for p in parameters)
        if self.training or recorded or not on_cpu:
            self._cache = None
            return pack_plan(self.plan, weights)
        # The content is part of the key: user code changes ``p.data`` behind autograd's back.
        state = tuple(
            (p.data_ptr(), p.dtype, float(p.double().square().sum()), float(p.double().sum()))
            for p in (parameter.detach() for parameter in parameters)
        )
        if self._cache is None or self._cache[0] != (state, self.cg_convention):
            self._cache = ((state, self.cg_convention), pack_plan(self.plan, weights))
        return self._cache[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None}

    def extra_repr(self) -> str:
        """Fibers and layout."""
        return f"{self.fiber_in} -> {self.fiber_out}, edge={self.fiber_edge}, {self.layout}"


def layout_of(
    fiber_in: Mapping[int, int],
    fiber_edge: Mapping[int, int],
    fiber_out: Mapping[int, int],
    max_degree: int,
    level: int,
) -> RadialSharing:
    """The layout that :class:`ConvSE3` takes for these channels by degree."""
    convolved = {d: c + (fiber_edge.get(d, 0) if d else 0) for d, c in fiber_in.items()}
    return best_layout(convolved, fiber_out, max_degree, level)
