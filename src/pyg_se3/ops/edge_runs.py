"""Where to divide sorted edges so that radial activations of a part are nearly a curve."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

MAX_CANDIDATES = 96
"""Places at which edges may be divided."""

MIN_CELL = 32
"""Edges per such place, at least."""

MAX_KINDS = 16
"""With more kinds of edges, dividing them well is not worth its time."""

BLOCK_OVERHEAD = 150.0
"""What a block costs besides its edges, in edges."""

MAX_RANK = 16.0
"""Rank of activations from which on they are not compressed."""


def similar_runs(kinds: np.ndarray, distance: np.ndarray) -> tuple[int, ...]:
    """Divide edges, sorted by kind and then distance, into runs of similar ones.

    A basis of the radial activations of a run has about ``1 + 10 (spread / length)^0.4`` columns
    per kind of edge in it (fitted to models of QM9), with the spread of the distances relative to
    the mean length. Work is edges times columns, and a fixed amount per run; the cheapest division
    is found by dynamic programming over candidates, the largest gaps in equal parts of the edges.

    Args:
        kinds: a number per edge that is the same for edges with the same features, sorted ``[E]``.
        distance: ``[E]``, ascending within a kind.

    Returns:
        ``0, .., E``: where runs begin and end; nothing if there are too many kinds of edges.
    """
    total = distance.size
    if total < 2 * MIN_CELL:
        return (0, total) if total else (0,)
    new_kind = np.flatnonzero(np.diff(kinds)) + 1
    if new_kind.size >= MAX_KINDS:
        return ()
    length = distance / max(distance.mean(), 1e-30)
    gaps = np.diff(length)
    gaps[new_kind - 1] = np.inf
    cell = max(MIN_CELL, -(-total // MAX_CANDIDATES))
    starts = range(0, total - 1, cell)
    inner = [start + 1 + int(np.argmax(gaps[start : start + cell])) for start in starts]
    bounds = np.array(sorted({0, *inner, total}))

    first, stop = bounds[:, None], bounds[None, :]
    rank = np.zeros((bounds.size, bounds.size))
    for begin, end in zip((0, *new_kind), (*new_kind, total), strict=True):
        low, high = np.maximum(first, begin), np.minimum(stop, end)
        spread = length[np.maximum(high - 1, 0)] - length[np.minimum(low, total - 1)]
        columns = 1 + 10 * (np.maximum(spread, 0)) ** 0.4
        rank += np.where(high > low, columns, 0)
    work = (stop - first + BLOCK_OVERHEAD) * np.minimum(rank, MAX_RANK)
    work[stop <= first] = np.inf

    best, previous = np.zeros(bounds.size), np.zeros(bounds.size, dtype=int)
    for end in range(1, bounds.size):
        costs = best[:end] + work[:end, end]
        previous[end] = np.argmin(costs)
        best[end] = costs[previous[end]]
    runs, end = [total], bounds.size - 1
    while end:
        end = previous[end]
        runs.append(int(bounds[end]))
    return tuple(reversed(runs))


def edge_kinds(edge_attr: Tensor | None, distance: Tensor) -> Tensor:
    """A number per edge ``[E]`` that differs between edges with different features ``[E, C]``."""
    if edge_attr is None or edge_attr.shape[1] == 0:
        return torch.zeros_like(distance)
    # Square roots of integers are hardly ever combined to the same sum by features of a data set.
    roots = torch.arange(2.0, edge_attr.shape[1] + 2, dtype=torch.double).sqrt()
    sums = (edge_attr.detach().double() * roots.to(edge_attr.device)).sum(1)
    return sums.round(decimals=6)  # the same features give the same number, not only nearly so
