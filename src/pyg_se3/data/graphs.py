"""Edges from positions: complete, radius and k-nearest graphs, and farthest-point samples.

Edges are ``(source j, target i)``; all graphs come without self-loops, sorted by target and then
source. Small graphs (molecules) use dense distances in plain torch, exact and without a limit on
the number of neighbours. Graphs with more than :data:`DENSE_LIMIT` nodes use ``torch_cluster``,
whose cost does not grow with the square of the number of nodes.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

DENSE_LIMIT = 2048
"""Largest graph (nodes) whose distance matrix is built in full."""

ACCEL_HINT = "`make accel` or `pip install pyg-se3[accel]` installs it"


def complete_graph(num_nodes: int, device: torch.device | str | None = None) -> Tensor:
    """All ordered pairs of different nodes.

    Args:
        num_nodes: Number of nodes N.
        device: Where to create the edges.

    Returns:
        ``edge_index`` [2, N (N - 1)].

    Raises:
        ValueError: If ``num_nodes`` is negative.
    """
    if num_nodes < 0:
        raise ValueError(f"num_nodes must not be negative, got {num_nodes}")
    node = torch.arange(num_nodes, device=device)
    target, source = torch.meshgrid(node, node, indexing="ij")
    keep = target != source
    return torch.stack([source[keep], target[keep]])


def radius_graph(
    pos: Tensor,
    cutoff: float,
    batch: Tensor | None = None,
    *,
    max_num_neighbors: int | None = None,
) -> Tensor:
    """All pairs of nodes of the same graph at most ``cutoff`` apart.

    Args:
        pos: Positions [N, 3].
        cutoff: Largest distance, in the unit of ``pos``.
        batch: Graph of every node [N], ascending; one graph if None.
        max_num_neighbors: Keep the nearest so many sources per target; all if None.

    Returns:
        ``edge_index`` [2, E].

    Raises:
        ValueError: If shapes or values do not fit.
        ModuleNotFoundError: If a graph is large and ``torch_cluster`` is missing.
    """
    if not cutoff > 0:
        raise ValueError(f"cutoff must be positive, got {cutoff}")
    sizes = _sizes(pos, batch)
    if max_num_neighbors is not None:
        nearest = knn_graph(pos, max_num_neighbors, batch)
        length = (pos[nearest[0]] - pos[nearest[1]]).norm(dim=-1)
        return nearest[:, length <= cutoff]
    if _is_small(sizes):
        distance, valid, offset = _padded_distances(pos, sizes)
        return _edges_from_mask(valid & (distance <= cutoff), offset)
    cluster = _torch_cluster("radius graphs", sizes)
    # torch_cluster drops neighbours beyond this number without a word; it must never bind.
    limit = int(sizes.max())
    return _sorted(cluster.radius_graph(pos, cutoff, batch, max_num_neighbors=limit))


def knn_graph(pos: Tensor, k: int, batch: Tensor | None = None) -> Tensor:
    """Edges to every node from its ``k`` nearest nodes in the same graph.

    Args:
        pos: Positions [N, 3].
        k: Number of neighbours; nodes of smaller graphs get as many as there are.
        batch: Graph of every node [N], ascending; one graph if None.

    Returns:
        ``edge_index`` [2, E].

    Raises:
        ValueError: If shapes or values do not fit.
        ModuleNotFoundError: If a graph is large and ``torch_cluster`` is missing.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    sizes = _sizes(pos, batch)
    if _is_small(sizes):
        distance, valid, offset = _padded_distances(pos, sizes)
        distance = distance.masked_fill(~valid, float("inf"))
        width = min(k, distance.size(-1))
        nearest = distance.topk(width, dim=-1, largest=False).indices
        mask = torch.zeros_like(valid).scatter_(-1, nearest, True)
        return _edges_from_mask(mask & valid, offset)
    cluster = _torch_cluster("k-nearest-neighbour graphs", sizes)
    return _sorted(cluster.knn_graph(pos, k, batch))


def farthest_points(
    pos: Tensor, ratio: float, batch: Tensor | None = None, *, random_start: bool = False
) -> Tensor:
    """Farthest-point sample: a subset of nodes spread evenly over every graph.

    Args:
        pos: Positions [N, 3].
        ratio: Share of the nodes of every graph to keep, in (0, 1].
        batch: Graph of every node [N], ascending; one graph if None.
        random_start: Begin with a random node instead of the first.

    Returns:
        Indices of the sampled nodes.

    Raises:
        ValueError: If shapes or values do not fit.
        ModuleNotFoundError: If ``torch_cluster`` is missing.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must lie in (0, 1], got {ratio}")
    sizes = _sizes(pos, batch)
    cluster = _torch_cluster("farthest-point sampling", sizes)
    return cluster.fps(pos, batch, ratio=ratio, random_start=random_start)


def _sizes(pos: Tensor, batch: Tensor | None) -> Tensor:
    """Number of nodes per graph [B], after checking shapes."""
    if pos.dim() != 2 or pos.size(1) != 3:
        raise ValueError(f"pos must be [N, 3], got {list(pos.shape)}")
    if not bool(torch.isfinite(pos).all()):
        raise ValueError("pos holds values that are not finite")
    if batch is None:
        return torch.tensor([pos.size(0)], device=pos.device)
    if batch.shape != pos.shape[:1]:
        raise ValueError(f"batch must be [{pos.size(0)}], got {list(batch.shape)}")
    if bool((batch.diff() < 0).any()):
        raise ValueError("batch must be ascending")
    return torch.bincount(batch)


def _is_small(sizes: Tensor) -> bool:
    if sizes.numel() == 0:
        return True
    largest = int(sizes.max())
    # The second bound keeps one padded distance tensor below a few hundred megabytes.
    return largest <= DENSE_LIMIT and largest**2 * sizes.numel() <= 2**26


def _padded_distances(pos: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distances [B, n, n] (target, source), which of them are pairs, first node of each graph."""
    offset = sizes.cumsum(0) - sizes
    width = int(sizes.max()) if sizes.numel() else 0
    slot = torch.arange(width, device=pos.device)
    filled = slot < sizes[:, None]
    index = (offset[:, None] + slot).clamp(max=max(pos.size(0) - 1, 0))
    padded = pos[index] if pos.size(0) else pos.new_zeros(sizes.numel(), width, 3)
    # Differences, not the expanded square: that one loses digits far from the origin.
    distance = (padded[:, :, None] - padded[:, None]).square().sum(-1).sqrt()
    valid = filled[:, :, None] & filled[:, None] & (slot[:, None] != slot)
    return distance, valid, offset


def _edges_from_mask(mask: Tensor, offset: Tensor) -> Tensor:
    graph, target, source = mask.nonzero(as_tuple=True)
    return torch.stack([source, target]) + offset[graph]


def _sorted(edge_index: Tensor) -> Tensor:
    """Sort by target, then source, as the dense form does."""
    order = edge_index[0].argsort(stable=True)
    order = order[edge_index[1][order].argsort(stable=True)]
    return edge_index[:, order]


def _torch_cluster(purpose: str, sizes: Tensor) -> ModuleType:
    try:
        import torch_cluster
    except ImportError as error:
        largest = int(sizes.max()) if sizes.numel() else 0
        raise ModuleNotFoundError(
            f"{purpose} (largest graph here: {largest} nodes) need torch_cluster, which is not "
            f"installed: {ACCEL_HINT}"
        ) from error
    return torch_cluster
