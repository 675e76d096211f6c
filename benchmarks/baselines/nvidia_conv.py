"""NVIDIA's TFN convolution: materialised radial weights times fused bases, at four fuse levels."""

from __future__ import annotations

import math
from enum import Enum

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .basis import (
    FULL_KEY,
    Bases,
    BasisKey,
    dim,
    in_key,
    num_frequencies,
    out_key,
    pair_key,
)
from .layers import (
    Features,
    Fiber,
    Graph,
    RadialProfile,
    gather_sources,
    split_degrees,
    sum_over_receivers,
)


class FuseLevel(Enum):
    """How many degree pairs share a radial profile and a basis."""

    FULL = 2
    PARTIAL = 1
    NONE = 0


class VersatileConv(nn.Module):
    """`y[e,o,c] = sum_{i,a,f} R[e,o,i,f] x[e,i,a] basis[e,a,f,c]` with R from a radial profile."""

    def __init__(
        self,
        frequencies: int,
        channels_in: int,
        channels_out: int,
        out_dim: int,
        edge_dim: int,
        layer_norm: bool,
    ) -> None:
        super().__init__()
        self.frequencies, self.out_dim = frequencies, out_dim
        self.channels_in, self.channels_out = channels_in, channels_out
        self.radial_func = RadialProfile(
            frequencies * channels_in * channels_out, edge_dim, layer_norm
        )

    def forward(self, x: Tensor, invariants: Tensor, basis: Tensor | None) -> Tensor:
        edges = len(x)
        radial = self.radial_func(invariants).view(
            edges, self.channels_out, self.channels_in * self.frequencies
        )
        if basis is None:
            return radial @ x
        coupled = (x @ basis.view(edges, x.shape[2], -1)).view(
            edges, self.channels_in * self.frequencies, -1
        )
        y = radial @ coupled
        return y if y.shape[2] == self.out_dim else y[..., : self.out_dim]


class ConvSE3(nn.Module):
    """TFN convolution at the deepest fuse level that its fibers and `fuse_level` allow.

    FULL needs the same number of channels in every degree and all degrees 0..max_degree on both
    sides; PARTIAL needs that of the input (one profile per output degree) or else of the output
    (one per input degree); what is left is one profile per degree pair.
    """

    def __init__(
        self,
        fiber_in: Fiber,
        fiber_out: Fiber,
        fiber_edge: Fiber,
        *,
        pool: bool = True,
        self_interaction: bool = False,
        layer_norm: bool = True,
        max_degree: int = 4,
        fuse_level: FuseLevel = FuseLevel.FULL,
        allow_fused_output: bool = False,
        low_memory: bool = False,
    ) -> None:
        super().__init__()
        self.fiber_in = {d: fiber_in[d] for d in sorted(fiber_in)}
        self.fiber_out = {d: fiber_out[d] for d in sorted(fiber_out)}
        self.pool, self.low_memory, self.max_degree = pool, low_memory, max_degree
        self.allow_fused_output = allow_fused_output and not pool and not self_interaction
        edge_dim = fiber_edge.get(0, 0) + 1
        # Edge features of degree > 0 enter as further source channels.
        self.channels_in = {
            d: c + (fiber_edge.get(d, 0) if d > 0 else 0) for d, c in self.fiber_in.items()
        }
        every = list(range(max_degree + 1))
        complete_in = len(set(self.channels_in.values())) == 1 and list(self.fiber_in) == every
        complete_out = len(set(self.fiber_out.values())) == 1 and list(self.fiber_out) == every
        any_in = next(iter(self.channels_in.values()))
        any_out = next(iter(self.fiber_out.values()))

        def conv(pairs: list[tuple[int, int]], c_in: int, c_out: int, width: int) -> VersatileConv:
            frequencies = sum(num_frequencies(i, o) for i, o in pairs)
            return VersatileConv(frequencies, c_in, c_out, width, edge_dim, layer_norm)

        total = (max_degree + 1) ** 2
        if fuse_level is FuseLevel.FULL and complete_in and complete_out:
            self.form = "full"
            self.conv = conv([(i, o) for o in every for i in every], any_in, any_out, total)
        elif fuse_level is not FuseLevel.NONE and complete_in:
            self.form = "out"
            self.conv_out = nn.ModuleDict(
                {
                    str(o): conv([(i, o) for i in every], any_in, c, dim(o))
                    for o, c in self.fiber_out.items()
                }
            )
        elif fuse_level is not FuseLevel.NONE and complete_out:
            self.form = "in"
            self.conv_in = nn.ModuleDict(
                {
                    str(i): conv([(i, o) for o in every], c, any_out, total)
                    for i, c in self.channels_in.items()
                }
            )
        else:
            self.form = "pair"
            self.conv = nn.ModuleDict(
                {
                    f"{i},{o}": conv([(i, o)], c_in, c_out, dim(o))
                    for i, c_in in self.channels_in.items()
                    for o, c_out in self.fiber_out.items()
                }
            )
        if self_interaction:
            self.to_kernel_self = nn.ParameterDict(
                {
                    str(d): nn.Parameter(torch.randn(c, self.fiber_in[d]) / math.sqrt(fiber_in[d]))
                    for d, c in self.fiber_out.items()
                    if d in self.fiber_in
                }
            )
        else:
            self.to_kernel_self = None

    def basis_keys(self) -> list[BasisKey]:
        """The bases that `forward` reads; the pair 0,0 needs none."""
        if self.form == "full":
            return [FULL_KEY]
        if self.form == "out":
            return [out_key(o) for o in self.fiber_out]
        if self.form == "in":
            return [in_key(i) for i in self.fiber_in]
        pairs = [(i, o) for i in self.fiber_in for o in self.fiber_out]
        return [pair_key(i, o) for i, o in pairs if (i, o) != (0, 0)]

    def forward(
        self, node_feats: Features, edge_feats: Features, graph: Graph, bases: Bases
    ) -> Features | Tensor:
        """Messages per edge, or their sums per node with `pool`; fused over degrees if allowed."""
        invariants = edge_feats[0].squeeze(-1)
        x = gather_sources(node_feats, edge_feats, graph, list(self.fiber_in))
        fused: Tensor | None = None
        out: Features = {}
        if self.form == "full":
            fused = self.conv(torch.cat(list(x.values()), -1), invariants, bases[FULL_KEY])
        elif self.form == "out":
            joint = torch.cat(list(x.values()), -1)
            for o in self.fiber_out:
                out[o] = self.conv_out[str(o)](joint, invariants, bases[out_key(o)])
        elif self.form == "in":
            for i in self.fiber_in:
                part = self.conv_in[str(i)](x[i], invariants, bases[in_key(i)])
                fused = part if fused is None else fused + part
        else:
            for o in self.fiber_out:
                out[o] = self._pairwise(x, o, invariants, bases)
        if fused is not None:
            if self.allow_fused_output:
                return fused
            out = split_degrees(fused, list(self.fiber_out))
        if self.to_kernel_self is not None:
            for d, weight in self.to_kernel_self.items():
                # Applied before the gather: the same sum for fewer products.
                out[int(d)] = out[int(d)] + (weight @ node_feats[int(d)])[graph.dst]
        return {d: sum_over_receivers(y, graph) for d, y in out.items()} if self.pool else out

    def _pairwise(self, x: Features, o: int, invariants: Tensor, bases: Bases) -> Tensor:
        total: Tensor | None = None
        for i in self.fiber_in:
            conv, basis = self.conv[f"{i},{o}"], bases.get(pair_key(i, o))
            if self.low_memory and torch.is_grad_enabled():
                part = checkpoint(
                    conv, x[i], invariants, basis, use_reentrant=False, preserve_rng_state=False
                )
            else:
                part = conv(x[i], invariants, basis)
            total = part if total is None else total + part
        assert total is not None
        return total
