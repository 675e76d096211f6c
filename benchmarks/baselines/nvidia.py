"""NVIDIA's SE(3)-Transformer in plain PyTorch, with its parameter names and layouts, without DGL.

The formulation of "Accelerating SE(3)-Transformers Training Using an NVIDIA Open-Source Model
Implementation" (2021): keys and values from one convolution, bases of several degree pairs fused
into one tensor, radial weights of all edges materialised by the last layer of the radial profile.
"""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.baselines.basis import BasisKey, compute_bases
from benchmarks.baselines.layers import (
    Features,
    Fiber,
    Graph,
    LinearSE3,
    NormSE3,
    attend,
    concat,
    pool_graphs,
    populate_edge_features,
)
from benchmarks.baselines.nvidia_conv import ConvSE3, FuseLevel

__all__ = ["ConvSE3", "FuseLevel", "Graph", "SE3Transformer", "SE3TransformerPooled"]


class AttentionBlockSE3(nn.Module):
    """Keys and values by one convolution, queries by a linear map, attention, skip, projection."""

    def __init__(
        self,
        fiber_in: Fiber,
        fiber_out: Fiber,
        fiber_edge: Fiber,
        *,
        num_heads: int,
        channels_div: int,
        layer_norm: bool,
        max_degree: int,
        fuse_level: FuseLevel,
        low_memory: bool,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.value_fiber = {d: c // channels_div for d, c in sorted(fiber_out.items())}
        self.key_fiber = {d: c for d, c in self.value_fiber.items() if d in fiber_in}
        for d, c in {**self.value_fiber, **self.key_fiber}.items():
            if c % num_heads:
                raise ValueError(f"{num_heads} heads do not divide {c} channels of degree {d}")
        both = {d: c + self.key_fiber.get(d, 0) for d, c in self.value_fiber.items()}
        self.to_key_value = ConvSE3(
            fiber_in,
            both,
            fiber_edge,
            pool=False,
            layer_norm=layer_norm,
            max_degree=max_degree,
            fuse_level=fuse_level,
            allow_fused_output=True,
            low_memory=low_memory,
        )
        self.to_query = LinearSE3(fiber_in, self.key_fiber)
        skip = {d: c + fiber_in.get(d, 0) for d, c in self.value_fiber.items()}
        self.project = LinearSE3(skip, fiber_out)

    def forward(
        self,
        x: Features,
        edge_feats: Features,
        graph: Graph,
        bases: dict[BasisKey, Tensor],
    ) -> Features:
        fused = self.to_key_value(x, edge_feats, graph, bases)
        key: Features | Tensor
        value: Features | Tensor
        if isinstance(fused, Tensor):
            value, key = fused.chunk(2, dim=1)
        else:
            value, key = {}, {}
            for d, y in fused.items():
                value[d] = y[:, : self.value_fiber[d]]
                if d in self.key_fiber:
                    key[d] = y[:, self.value_fiber[d] :]
        out = attend(
            self.to_query(x), key, value, graph, self.num_heads, self.key_fiber, self.value_fiber
        )
        return self.project(concat(out, x))


class SE3Transformer(nn.Module):
    """Attention blocks and norms, then one convolution with self-interaction.

    Args:
        num_layers: Number of attention blocks.
        fiber_in: Input channels by degree.
        fiber_hidden: Channels by degree between the layers.
        fiber_out: Output channels by degree.
        fiber_edge: Edge channels by degree, without the length, which the model adds.
        num_heads: Attention heads.
        channels_div: Values have `fiber_hidden // channels_div` channels.
        norm: Whether a norm follows every block.
        layer_norm: Whether radial profiles have layer norms.
        tensor_cores: Fuse fully and pad bases to even sizes, as NVIDIA's code does on GPUs with
            tensor cores; partial fusing otherwise.
        low_memory: No fusing, and recompute every pairwise convolution in the backward pass.
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
        tensor_cores: bool = True,
        low_memory: bool = False,
    ) -> None:
        super().__init__()
        fiber_edge = fiber_edge or {}
        self.max_degree = max(*fiber_in, *fiber_hidden, *fiber_out)
        self.pad = tensor_cores and not low_memory
        if low_memory:
            level = FuseLevel.NONE
        else:
            level = FuseLevel.FULL if tensor_cores else FuseLevel.PARTIAL
        self.graph_modules = nn.ModuleList()
        for _ in range(num_layers):
            self.graph_modules.append(
                AttentionBlockSE3(
                    fiber_in,
                    fiber_hidden,
                    fiber_edge,
                    num_heads=num_heads,
                    channels_div=channels_div,
                    layer_norm=layer_norm,
                    max_degree=self.max_degree,
                    fuse_level=level,
                    low_memory=low_memory,
                )
            )
            if norm:
                self.graph_modules.append(NormSE3(fiber_hidden))
            fiber_in = fiber_hidden
        self.graph_modules.append(
            ConvSE3(
                fiber_in,
                fiber_out,
                fiber_edge,
                self_interaction=True,
                layer_norm=layer_norm,
                max_degree=self.max_degree,
                fuse_level=level,
                low_memory=low_memory,
            )
        )

    def basis_keys(self) -> list[BasisKey]:
        """The bases that any layer reads."""
        return [k for m in self.modules() if isinstance(m, ConvSE3) for k in m.basis_keys()]

    def forward(
        self, graph: Graph, node_feats: Features, edge_feats: Features | None = None
    ) -> Features:
        """Node features by degree, `{l: [N, C_l, 2l+1]}`, to the same with `fiber_out`."""
        bases = compute_bases(graph.rel_pos, self.basis_keys(), self.max_degree, pad=self.pad)
        edge_feats = populate_edge_features(graph.rel_pos, edge_feats)
        x = node_feats
        for module in self.graph_modules:
            x = module(x) if isinstance(module, NormSE3) else module(x, edge_feats, graph, bases)
        return x


class SE3TransformerPooled(nn.Module):
    """SE3Transformer to degree 0, pooling over each graph, and a two-layer perceptron."""

    def __init__(
        self,
        *,
        fiber_in: Fiber,
        fiber_edge: Fiber,
        num_degrees: int,
        num_channels: int,
        output_dim: int = 1,
        pooling: str = "max",
        **transformer: int | bool,
    ) -> None:
        super().__init__()
        width = num_degrees * num_channels
        self.pooling = pooling
        self.transformer = SE3Transformer(
            fiber_in=fiber_in,
            fiber_hidden={d: num_channels for d in range(num_degrees)},
            fiber_out={0: width},
            fiber_edge=fiber_edge,
            **transformer,
        )
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, output_dim))

    def forward(
        self, graph: Graph, node_feats: Features, edge_feats: Features | None = None
    ) -> Tensor:
        """One prediction per graph, `[B]` or `[B, output_dim]`."""
        x = self.transformer(graph, node_feats, edge_feats)[0].squeeze(-1)
        return self.mlp(pool_graphs(x, graph, self.pooling)).squeeze(-1)
