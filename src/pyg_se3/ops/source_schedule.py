"""Which edges the source-node form works on together: padded rows of edges with one source."""

from __future__ import annotations

from collections.abc import Hashable, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SLACK = 0.8
"""Rows of a chunk have at least this fraction of the edges of its longest one."""

MAX_ROW = 1024
"""A source with more edges is split into several rows, so that a hub needs no more memory."""


@dataclass(frozen=True)
class SourceChunk:
    """Rows of edges, one source node each, padded to the same length d.

    Attributes:
        nodes: source node of every row ``[n]``.
        edges: edge of every slot ``[n * d]``; padding repeats an edge of the row, so that it
            computes what is there already and needs a gradient of 0.
        padding: slots that are padding, ``None`` if there are none.
        length: slots per row, d.
    """

    nodes: Tensor
    edges: Tensor
    padding: Tensor | None
    length: int

    def without_padding(self, slots: Tensor) -> Tensor:
        """Values ``[n * d, ...]`` by slot, set to 0 in place for the padding."""
        return slots if self.padding is None else slots.index_fill_(0, self.padding, 0)

    @property
    def num_rows(self) -> int:
        """Number of rows n."""
        return self.nodes.numel()

    @property
    def num_slots(self) -> int:
        """Number of edges and padding, ``n * d``."""
        return self.edges.numel()


@dataclass(frozen=True)
class SourceSchedule:
    """All edges of a graph in chunks; depends on the sources only, so layers may share it.

    Attributes:
        chunks: see :class:`SourceChunk`; longest rows first.
    """

    chunks: tuple[SourceChunk, ...]

    @property
    def num_slots(self) -> int:
        """Edges and padding of all chunks."""
        return sum(chunk.num_slots for chunk in self.chunks)


def source_schedule(source: Tensor, num_nodes: int, chunk_size: int) -> SourceSchedule:
    """Divide edges by their sources.

    Rows are sorted by length, and a chunk ends where they get shorter than :data:`SLACK` allows:
    padding stays small however uneven the out-degrees are.

    Args:
        source: source node of every edge ``[E]``, in any order.
        num_nodes: number of nodes N.
        chunk_size: slots per chunk.
    """
    device, total = source.device, source.numel()
    longest = min(MAX_ROW, max(1, chunk_size))
    degree = torch.bincount(source, minlength=num_nodes)
    rows_of_node = (degree + longest - 1) // longest
    nodes = torch.arange(num_nodes, device=device).repeat_interleave(rows_of_node)
    rank = (
        torch.arange(nodes.numel(), device=device) - (rows_of_node.cumsum(0) - rows_of_node)[nodes]
    )
    lengths = (degree[nodes] - rank * longest).clamp(max=longest)
    begins = (degree.cumsum(0) - degree)[nodes] + rank * longest

    lengths, by_length = lengths.sort(descending=True, stable=True)
    nodes, begins = nodes[by_length], begins[by_length]
    after = lengths.cumsum(0)
    before = after - lengths
    slots = torch.arange(total, device=device)
    order = slots + (begins - before).repeat_interleave(lengths, output_size=total)
    if total and not bool((source[1:] >= source[:-1]).all()):
        order = source.argsort(stable=True)[order]

    chunks: list[SourceChunk] = []
    begin = 0
    ends = after.tolist()
    for first, stop, length in _ranges(lengths, chunk_size):
        end = ends[stop - 1]
        positions, padding = slots[begin:end], None
        if (stop - first) * length != end - begin:
            own, offset = before[first:stop, None], slots[:length]
            inside = offset < lengths[first:stop, None]
            positions = torch.where(inside, own + offset, own).flatten()
            padding = (~inside.flatten()).nonzero().squeeze(-1)
        chunks.append(SourceChunk(nodes[first:stop], order[positions], padding, length))
        begin = end
    return SourceSchedule(tuple(chunks))


def shared_schedule(
    source: Tensor, num_nodes: int, chunk_size: int, shared: MutableMapping[Hashable, Any]
) -> SourceSchedule:
    """:func:`source_schedule`, kept in ``shared`` for other layers on the same edges."""
    key = source_schedule, num_nodes, chunk_size
    if key in shared:
        known, schedule = shared[key]
        if torch.equal(known, source):
            return schedule
    schedule = source_schedule(source, num_nodes, chunk_size)
    shared[key] = source, schedule
    return schedule


def _ranges(lengths: Tensor, chunk_size: int) -> list[tuple[int, int, int]]:
    """First row, end and padded length of every chunk of rows sorted by descending length."""
    values, counts = lengths.unique_consecutive(return_counts=True)
    runs = list(zip(values.tolist(), counts.tolist(), strict=True))
    ranges, row, run, left = [], 0, 0, runs[0][1] if runs else 0
    while run < len(runs):
        length = runs[run][0]
        most, taken = max(1, chunk_size // length), 0
        while run < len(runs) and taken < most and runs[run][0] >= SLACK * length:
            step = min(left, most - taken)
            taken, left = taken + step, left - step
            if left == 0:
                run += 1
                left = runs[run][1] if run < len(runs) else 0
        ranges.append((row, row + taken, length))
        row += taken
    return ranges
