"""What the baselines' models share: order of the layers, attention, pooling, final perceptron."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .basis import Bases, BasisKey, compute_bases
from .layers import (
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


class AttentionBlock(nn.Module):
    """Attention over incoming edges, skip, projection; keys and values are the subclass's."""

    def __init__(
        self, fiber_in: Fiber, fiber_out: Fiber, *, num_heads: int, channels_div: int
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.value_fiber = {d: c // channels_div for d, c in sorted(fiber_out.items())}
        self.key_fiber = {d: c for d, c in self.value_fiber.items() if d in fiber_in}
        for d, c in {**self.value_fiber, **self.key_fiber}.items():
            if c % num_heads:
                raise ValueError(f"{num_heads} heads do not divide {c} channels of degree {d}")
        self.to_query = LinearSE3(fiber_in, self.key_fiber)
        skip = {d: c + fiber_in.get(d, 0) for d, c in self.value_fiber.items()}
        self.project = LinearSE3(skip, fiber_out)

    def keys_and_values(
        self, x: Features, edge_feats: Features, graph: Graph, bases: Bases
    ) -> tuple[Features | Tensor, Features | Tensor]:
        """Per edge, as dicts or fused over degrees."""
        raise NotImplementedError

    def forward(self, x: Features, edge_feats: Features, graph: Graph, bases: Bases) -> Features:
        key, value = self.keys_and_values(x, edge_feats, graph, bases)
        query = self.to_query(x)
        out = attend(query, key, value, graph, self.num_heads, self.key_fiber, self.value_fiber)
        return self.project(concat(out, x))


class Transformer(nn.Module):
    """Attention blocks and norms, then one convolution.

    Args:
        block: Makes an attention block for an input fiber.
        last: Makes the convolution.
        num_layers: Number of attention blocks.
        fiber_in: Input channels by degree.
        fiber_hidden: Channels by degree between the layers.
        fiber_out: Output channels by degree.
        norm: Whether a norm follows every block.
        pad: Pad bases to even sizes.
    """

    def __init__(
        self,
        block: Callable[[Fiber], nn.Module],
        last: Callable[[Fiber], nn.Module],
        *,
        num_layers: int,
        fiber_in: Fiber,
        fiber_hidden: Fiber,
        fiber_out: Fiber,
        norm: bool,
        pad: bool = False,
    ) -> None:
        super().__init__()
        self.max_degree, self.pad = max(*fiber_in, *fiber_hidden, *fiber_out), pad
        self.graph_modules = nn.ModuleList()
        for _ in range(num_layers):
            self.graph_modules.append(block(fiber_in))
            if norm:
                self.graph_modules.append(NormSE3(fiber_hidden))
            fiber_in = fiber_hidden
        self.graph_modules.append(last(fiber_in))

    def basis_keys(self) -> list[BasisKey]:
        """The bases that any convolution reads."""
        layers = [m for m in self.graph_modules.modules() if hasattr(m, "basis_keys")]
        return [key for layer in layers for key in layer.basis_keys()]

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


class PooledTransformer(nn.Module):
    """A transformer to degree 0, pooling over each graph, and a two-layer perceptron.

    Arguments that are not named here are those of `transformer_type`.
    """

    transformer_type: type[Transformer]

    def __init__(
        self,
        *,
        fiber_in: Fiber,
        fiber_edge: Fiber,
        num_degrees: int,
        num_channels: int,
        output_dim: int = 1,
        pooling: str = "max",
        **transformer: object,
    ) -> None:
        super().__init__()
        width = num_degrees * num_channels
        self.pooling = pooling
        self.transformer = self.transformer_type(
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
