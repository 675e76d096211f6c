"""The original SE(3)-Transformer formulation (Fuchs et al. 2020), unfused, in plain PyTorch.

Keys and values are two convolutions; each is a sum over degree pairs with a radial profile of its
own; on every edge the kernel of a pair, `[C_out (2k+1), C_in (2l+1)]` (equation 8 of the paper), is
materialised and then applied. Norms, attention, skip and pooling are those of NVIDIA's model, so
that both compute the same function from the same weights.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from .basis import Bases, BasisKey, dim, num_frequencies, pair_key
from .layers import (
    Features,
    Fiber,
    Graph,
    LinearSE3,
    RadialProfile,
    gather_sources,
    sum_over_receivers,
)
from .model import AttentionBlock, PooledTransformer, Transformer

PRODUCTS = ("matmul", "broadcast")


class PairKernel(nn.Module):
    """`K[e, (o,k), (i,l)] = sum_f R[e,o,i,f] basis[e,l,f,k]`, materialised.

    `product="broadcast"` multiplies and sums a tensor over (o, k, i, l, f), as the published code
    does; `"matmul"` makes the same kernel by one batched product, which is faster and smaller.
    """

    def __init__(
        self,
        degree_in: int,
        degree_out: int,
        channels_in: int,
        channels_out: int,
        edge_dim: int,
        layer_norm: bool,
        product: str,
    ) -> None:
        super().__init__()
        self.shape = (
            channels_out,
            channels_in,
            num_frequencies(degree_in, degree_out),
        )
        self.rows, self.columns = channels_out * dim(degree_out), channels_in * dim(degree_in)
        self.product = product
        self.radial_func = RadialProfile(math.prod(self.shape), edge_dim, layer_norm)

    def forward(self, invariants: Tensor, basis: Tensor) -> Tensor:
        edges, (c_out, c_in, frequencies) = len(invariants), self.shape
        radial = self.radial_func(invariants)
        if self.product == "broadcast":
            radial = radial.view(edges, c_out, 1, c_in, 1, frequencies)
            kernel = (radial * basis.permute(0, 3, 1, 2)[:, None, :, None]).sum(-1)
        else:
            radial = radial.view(edges, c_out * c_in, frequencies)
            width_in, width_out = basis.shape[1], basis.shape[3]
            kernel = radial @ basis.permute(0, 2, 3, 1).reshape(edges, frequencies, -1)
            kernel = kernel.view(edges, c_out, c_in, width_out, width_in).transpose(2, 3)
        return kernel.reshape(edges, self.rows, self.columns)


class UnfusedConv(nn.Module):
    """Messages per edge: for every output degree a sum over input degrees of kernel times x."""

    def __init__(
        self,
        fiber_in: Fiber,
        fiber_out: Fiber,
        fiber_edge: Fiber,
        *,
        layer_norm: bool = True,
        product: str = "matmul",
    ) -> None:
        super().__init__()
        if product not in PRODUCTS:
            raise ValueError(f"product must be one of {PRODUCTS}, got {product!r}")
        self.fiber_in, self.fiber_out = (
            dict(sorted(fiber_in.items())),
            dict(sorted(fiber_out.items())),
        )
        self.kernels = nn.ModuleDict(
            {
                f"{i},{o}": PairKernel(
                    i,
                    o,
                    c_in + (fiber_edge.get(i, 0) if i > 0 else 0),
                    c_out,
                    fiber_edge.get(0, 0) + 1,
                    layer_norm,
                    product,
                )
                for i, c_in in self.fiber_in.items()
                for o, c_out in self.fiber_out.items()
            }
        )

    def basis_keys(self) -> list[BasisKey]:
        """Every degree pair that is coupled."""
        return [pair_key(i, o) for i in self.fiber_in for o in self.fiber_out]

    def forward(
        self, node_feats: Features, edge_feats: Features, graph: Graph, bases: Bases
    ) -> Features:
        invariants = edge_feats[0].squeeze(-1)
        x = gather_sources(node_feats, edge_feats, graph, list(self.fiber_in))
        flat = {d: y.reshape(len(y), -1, 1) for d, y in x.items()}
        out: Features = {}
        for o, channels in self.fiber_out.items():
            message: Tensor | int = 0
            for i in self.fiber_in:
                kernel = self.kernels[f"{i},{o}"](invariants, bases[pair_key(i, o)])
                message = message + kernel @ flat[i]
            out[o] = message.view(-1, channels, dim(o))
        return out


class UnfusedAttentionBlock(AttentionBlock):
    """A convolution for the values and another for the keys."""

    def __init__(
        self,
        fiber_in: Fiber,
        fiber_out: Fiber,
        fiber_edge: Fiber,
        *,
        num_heads: int,
        channels_div: int,
        layer_norm: bool,
        product: str,
    ) -> None:
        super().__init__(fiber_in, fiber_out, num_heads=num_heads, channels_div=channels_div)
        self.to_value, self.to_key = (
            UnfusedConv(fiber_in, fiber, fiber_edge, layer_norm=layer_norm, product=product)
            for fiber in (self.value_fiber, self.key_fiber)
        )

    def keys_and_values(
        self, x: Features, edge_feats: Features, graph: Graph, bases: Bases
    ) -> tuple[Features, Features]:
        return (
            self.to_key(x, edge_feats, graph, bases),
            self.to_value(x, edge_feats, graph, bases),
        )


class UnfusedOutput(nn.Module):
    """Convolution with self-interaction, summed over incoming edges."""

    def __init__(
        self,
        fiber_in: Fiber,
        fiber_out: Fiber,
        fiber_edge: Fiber,
        *,
        layer_norm: bool,
        product: str,
    ) -> None:
        super().__init__()
        self.conv = UnfusedConv(
            fiber_in, fiber_out, fiber_edge, layer_norm=layer_norm, product=product
        )
        self.to_self = LinearSE3(fiber_in, fiber_out)

    def forward(self, x: Features, edge_feats: Features, graph: Graph, bases: Bases) -> Features:
        out = self.conv(x, edge_feats, graph, bases)
        for d, y in self.to_self(x).items():
            out[d] = out[d] + y[graph.dst]
        return {d: sum_over_receivers(y, graph) for d, y in out.items()}


class OriginalSE3Transformer(Transformer):
    """Unfused attention blocks and norms, then an unfused convolution.

    Takes the arguments of the NVIDIA-layout `SE3Transformer` that concern the function, and
    `product` (see `PairKernel`).
    """

    def __init__(
        self,
        *,
        num_layers: int,
        fiber_in: Fiber,
        fiber_hidden: Fiber,
        fiber_out: Fiber,
        fiber_edge: Fiber | None = None,
        num_heads: int = 8,
        channels_div: int = 2,
        norm: bool = True,
        layer_norm: bool = True,
        product: str = "matmul",
    ) -> None:
        fiber_edge = fiber_edge or {}
        common = {"layer_norm": layer_norm, "product": product}

        def block(fiber: Fiber) -> UnfusedAttentionBlock:
            heads = {"num_heads": num_heads, "channels_div": channels_div}
            return UnfusedAttentionBlock(fiber, fiber_hidden, fiber_edge, **heads, **common)

        def last(fiber: Fiber) -> UnfusedOutput:
            return UnfusedOutput(fiber, fiber_out, fiber_edge, **common)

        super().__init__(
            block,
            last,
            num_layers=num_layers,
            fiber_in=fiber_in,
            fiber_hidden=fiber_hidden,
            fiber_out=fiber_out,
            norm=norm,
        )


class OriginalSE3TransformerPooled(PooledTransformer):
    """OriginalSE3Transformer to degree 0, pooling, and a two-layer perceptron."""

    transformer_type = OriginalSE3Transformer
