"""Layers shared by the baselines: radial profile, linear map, norm, attention, sums.

Features are dicts by degree, `{l: [N, C_l, 2l+1]}`; parameter names are those of NVIDIA's code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .basis import dim

Fiber = dict[int, int]
Features = dict[int, Tensor]

RADIAL_WIDTH = 32
NORM_CLAMP = 2**-24


@dataclass
class Graph:
    """Edges j -> i, their vectors `pos[i] - pos[j]`, and the graph of each node."""

    src: Tensor
    dst: Tensor
    rel_pos: Tensor
    num_nodes: int
    batch: Tensor | None = None
    num_graphs: int = 1


class RadialProfile(nn.Module):
    """Edge invariants -> all radial weights of an edge, [E, F * C_in * C_out].

    `net` ends in the bias-free linear map whose output is what makes this formulation expensive.
    """

    def __init__(self, num_weights: int, edge_dim: int, layer_norm: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (edge_dim, RADIAL_WIDTH):
            layers.append(nn.Linear(width, RADIAL_WIDTH))
            if layer_norm:
                layers.append(nn.LayerNorm(RADIAL_WIDTH))
            layers.append(nn.ReLU())
        layers.append(nn.Linear(RADIAL_WIDTH, num_weights, bias=False))
        self.net = nn.Sequential(*layers)

    def forward(self, invariants: Tensor) -> Tensor:
        return self.net(invariants)


class LinearSE3(nn.Module):
    """Mix the channels of each degree, `y_l = W_l x_l`."""

    def __init__(self, fiber_in: Fiber, fiber_out: Fiber) -> None:
        super().__init__()
        self.weights = nn.ParameterDict(
            {
                str(d): nn.Parameter(torch.randn(c, fiber_in[d]) / math.sqrt(fiber_in[d]))
                for d, c in fiber_out.items()
                if d in fiber_in
            }
        )

    def forward(self, x: Features) -> Features:
        return {int(d): weight @ x[int(d)] for d, weight in self.weights.items()}


class NormSE3(nn.Module):
    """Rescale every feature vector by a function of the norms of its node.

    One group norm (a group per degree) over all norms where all degrees have as many channels, a
    layer norm per degree otherwise; `x / |x| * relu(norm(|x|))`.
    """

    def __init__(self, fiber: Fiber) -> None:
        super().__init__()
        self.degrees = sorted(fiber)
        if len(set(fiber.values())) == 1:
            self.group_norm = nn.GroupNorm(len(fiber), sum(fiber.values()))
        else:
            self.layer_norms = nn.ModuleDict({str(d): nn.LayerNorm(fiber[d]) for d in fiber})

    def forward(self, x: Features) -> Features:
        # Root of the sum of squares: many times faster than Tensor.norm over a short last axis.
        norms = {d: x[d].square().sum(-1).clamp(min=NORM_CLAMP**2).sqrt() for d in self.degrees}
        if hasattr(self, "group_norm"):
            sizes = [norms[d].shape[1] for d in self.degrees]
            joint = self.group_norm(torch.cat([norms[d] for d in self.degrees], 1))
            new = dict(zip(self.degrees, torch.relu(joint).split(sizes, 1), strict=True))
        else:
            new = {d: torch.relu(self.layer_norms[str(d)](norms[d])) for d in self.degrees}
        return {d: x[d] * (new[d] / norms[d]).unsqueeze(-1) for d in self.degrees}


def sum_over_receivers(messages: Tensor, graph: Graph) -> Tensor:
    """`[E, ...] -> [N, ...]`, zero where nothing arrives."""
    total = messages.new_zeros(graph.num_nodes, *messages.shape[1:])
    return total.index_add(0, graph.dst, messages)


def softmax_over_receivers(logits: Tensor, graph: Graph) -> Tensor:
    """Softmax of `[E, heads]` over the edges that arrive at the same node."""
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    index = graph.dst.unsqueeze(1).expand_as(logits)
    largest = logits.new_full((graph.num_nodes, logits.shape[1]), -torch.inf)
    largest = largest.scatter_reduce(0, index, logits.detach(), "amax")
    weights = (logits - largest[graph.dst]).exp()
    return weights / sum_over_receivers(weights, graph)[graph.dst]


def fuse(x: Features, heads: int) -> Tensor:
    """Put the degrees of each head next to each other, `[N, heads, sum of C_l (2l+1) / heads]`."""
    return torch.cat([x[d].reshape(len(x[d]), heads, -1) for d in sorted(x)], -1)


def split_degrees(x: Tensor, degrees: list[int]) -> Features:
    """Cut `[N, C, sum of 2l+1]` into degrees."""
    return dict(zip(degrees, x.split([dim(d) for d in degrees], -1), strict=True))


def attend(
    query: Features,
    key: Features | Tensor,
    value: Features | Tensor,
    graph: Graph,
    heads: int,
    key_fiber: Fiber,
    value_fiber: Fiber,
) -> Features:
    """Attention over incoming edges; keys and values per edge, as dicts or fused over degrees.

    `alpha = softmax_j(q_i . k_ij / sqrt(sum_l C_l (2l+1)))` per head, over all degrees of the key.
    """
    if isinstance(key, Tensor):
        # Fused keys keep the degrees last; the query is laid out the same way.
        key = key.reshape(len(key), heads, -1)
        q = torch.cat([query[d] for d in sorted(query)], -1)
        q = q.reshape(len(q), heads, -1)
    else:
        key, q = fuse(key, heads), fuse(query, heads)
    scale = math.sqrt(sum(c * dim(d) for d, c in key_fiber.items()))
    logits = (key * q[graph.dst]).sum(-1) / scale
    weights = softmax_over_receivers(logits, graph).unsqueeze(-1)

    def weighted_sum(v: Tensor) -> Tensor:
        weighted = weights.to(v.dtype) * v.reshape(len(v), heads, -1)
        return sum_over_receivers(weighted, graph).view(graph.num_nodes, *v.shape[1:])

    if isinstance(value, Tensor):
        return split_degrees(weighted_sum(value), sorted(value_fiber))
    return {d: weighted_sum(v) for d, v in value.items()}


def concat(x: Features, other: Features) -> Features:
    """Append the channels of `other` where it has the degree."""
    return {d: torch.cat([y, other[d]], 1) if d in other else y for d, y in x.items()}


def populate_edge_features(rel_pos: Tensor, edge_feats: Features | None) -> Features:
    """Append the edge length to the degree-0 edge features; the caller's dict is left alone."""
    edge_feats = dict(edge_feats or {})
    length = rel_pos.square().sum(-1, keepdim=True).sqrt().unsqueeze(-1)
    edge_feats[0] = torch.cat([edge_feats[0], length], 1) if 0 in edge_feats else length
    return edge_feats


def gather_sources(
    node_feats: Features, edge_feats: Features, graph: Graph, degrees: list[int]
) -> Features:
    """Source features per edge, edge features of the same degree > 0 appended as channels."""
    gathered: Features = {}
    for d in degrees:
        gathered[d] = node_feats[d][graph.src]
        if d > 0 and d in edge_feats:
            gathered[d] = torch.cat([gathered[d], edge_feats[d].to(gathered[d].dtype)], 1)
    return gathered


def pool_graphs(x: Tensor, graph: Graph, pooling: str) -> Tensor:
    """Maximum or mean over the nodes of each graph, `[N, C] -> [B, C]`."""
    assert graph.batch is not None
    if pooling == "max":
        index = graph.batch.unsqueeze(1).expand_as(x)
        return x.new_zeros(graph.num_graphs, x.shape[1]).scatter_reduce(
            0, index, x, "amax", include_self=False
        )
    if pooling == "avg":
        counts = torch.bincount(graph.batch, minlength=graph.num_graphs).clamp(min=1)
        total = x.new_zeros(graph.num_graphs, x.shape[1]).index_add(0, graph.batch, x)
        return total / counts.unsqueeze(1)
    raise ValueError(f"pooling must be 'max' or 'avg', got {pooling!r}")
