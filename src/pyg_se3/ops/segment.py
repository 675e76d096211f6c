"""Sums and softmax over the edges that end at a node."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_sum(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """Sum of ``values`` ``[E, ...]`` by segment, ``[num_segments, ...]``."""
    return values.new_zeros(num_segments, *values.shape[1:]).index_add(0, index, values)


def segment_max(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """Maximum of ``values`` ``[E, C]`` by segment, 0 where a segment is empty."""
    expanded = index[:, None].expand_as(values)
    start = values.new_zeros(num_segments, values.shape[1])
    return start.scatter_reduce(0, expanded, values, "amax", include_self=False)


def segment_softmax(logits: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """Softmax within each segment.

    Args:
        logits: ``[E, heads]``.
        index: segment of each row, ``[E]``.
        num_segments: number of segments.

    Returns:
        ``[E, heads]``; the rows of every segment sum to 1.
    """
    with torch.no_grad():
        largest = segment_max(logits, index, num_segments)
    weights = (logits - largest[index]).exp()
    return weights / segment_sum(weights, index, num_segments)[index]
