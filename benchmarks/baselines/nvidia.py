"""NVIDIA's SE(3)-Transformer in plain PyTorch, with its parameter names and layouts, without DGL.

The formulation of "Accelerating SE(3)-Transformers Training Using an NVIDIA Open-Source Model
Implementation" (2021): keys and values from one convolution, bases of several degree pairs fused
into one tensor, radial weights of all edges materialised by the last layer of the radial profile.
"""

from __future__ import annotations

from torch import Tensor

from .basis import Bases
from .layers import Features, Fiber, Graph, NormSE3
from .model import AttentionBlock, PooledTransformer, Transformer
from .nvidia_conv import ConvSE3, FuseLevel

__all__ = [
    "AttentionBlockSE3",
    "ConvSE3",
    "FuseLevel",
    "Graph",
    "NormSE3",
    "SE3Transformer",
    "SE3TransformerPooled",
]


class AttentionBlockSE3(AttentionBlock):
    """Keys and values by one convolution."""

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
        super().__init__(fiber_in, fiber_out, num_heads=num_heads, channels_div=channels_div)
        self.to_key_value = ConvSE3(
            fiber_in,
            {d: c + self.key_fiber.get(d, 0) for d, c in self.value_fiber.items()},
            fiber_edge,
            pool=False,
            layer_norm=layer_norm,
            max_degree=max_degree,
            fuse_level=fuse_level,
            allow_fused_output=True,
            low_memory=low_memory,
        )

    def keys_and_values(
        self, x: Features, edge_feats: Features, graph: Graph, bases: Bases
    ) -> tuple[Features | Tensor, Features | Tensor]:
        fused = self.to_key_value(x, edge_feats, graph, bases)
        if isinstance(fused, Tensor):
            value, key = fused.chunk(2, dim=1)
            return key, value
        widths = self.value_fiber
        keys = {d: fused[d][:, widths[d] :] for d in self.key_fiber}
        return keys, {d: y[:, : widths[d]] for d, y in fused.items()}


class SE3Transformer(Transformer):
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
        tensor_cores: Fuse fully, as NVIDIA's code does on GPUs with tensor cores; partly otherwise.
        low_memory: No fusing, and recompute every pairwise convolution in the backward pass.
        fuse_level: Instead of the level that the two above imply. Full fusing pads bases to even
            sizes.
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
        fuse_level: FuseLevel | None = None,
    ) -> None:
        if fuse_level is None:
            fused = FuseLevel.FULL if tensor_cores else FuseLevel.PARTIAL
            fuse_level = FuseLevel.NONE if low_memory else fused
        fiber_edge = fiber_edge or {}
        common = {
            "layer_norm": layer_norm,
            "max_degree": max(*fiber_in, *fiber_hidden, *fiber_out),
            "fuse_level": fuse_level,
            "low_memory": low_memory,
        }

        def block(fiber: Fiber) -> AttentionBlockSE3:
            heads = {"num_heads": num_heads, "channels_div": channels_div}
            return AttentionBlockSE3(fiber, fiber_hidden, fiber_edge, **heads, **common)

        def last(fiber: Fiber) -> ConvSE3:
            return ConvSE3(fiber, fiber_out, fiber_edge, self_interaction=True, **common)

        super().__init__(
            block,
            last,
            num_layers=num_layers,
            fiber_in=fiber_in,
            fiber_hidden=fiber_hidden,
            fiber_out=fiber_out,
            norm=norm,
            pad=fuse_level is FuseLevel.FULL,
        )


class SE3TransformerPooled(PooledTransformer):
    """SE3Transformer to degree 0, pooling over each graph, and a two-layer perceptron."""

    transformer_type = SE3Transformer
