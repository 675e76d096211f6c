"""The edge form of activations that are expanded in the edge lengths: blocks, weights and sums."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from pyg_se3.ops.chunked_edge import EdgeSettings
from pyg_se3.ops.edge_frames import FramePair
from pyg_se3.ops.frame_products import couple, outer
from pyg_se3.ops.frame_rotation import channel_slices
from pyg_se3.ops.joint_basis import Columns, JointBasis, compressed_joint_basis, selected_basis
from pyg_se3.ops.plan import TFNPlan
from pyg_se3.ops.radial_expansion import RadialExpansion


@dataclass(frozen=True)
class ExpandedBlock:
    """A range of edges with the bases of their radial activations, one per group."""

    edges: slice
    bases: tuple[JointBasis, ...]


@dataclass(frozen=True)
class Factor:
    """What one group of a plan couples at one ``|m|``.

    Attributes:
        group: its number.
        order: ``|m|``.
        inside: incoming channels among those of all degrees >= ``|m|``.
        outside: outgoing channels among those of all degrees >= ``|m|``.
        alone: there is no other group, so these are all.
    """

    group: int
    order: int
    inside: slice
    outside: slice
    alone: bool


@dataclass(frozen=True)
class FittedBlock:
    """A block with the packed weights that fit its bases.

    Attributes:
        edges: which.
        bases: per group.
        weights: per group and ``|m|`` the rows ``[r * K, C or 2 C]``.
        position: of the block in its batch.
    """

    edges: slice
    bases: tuple[JointBasis, ...]
    weights: list[list[Tensor]]
    position: int


@dataclass
class ExpandedBatch:
    """Blocks whose weights are made together, by one product with the packed weights.

    Attributes:
        blocks: of edges.
        fitted: the same with weights, once they are known.
    """

    blocks: list[ExpandedBlock]
    fitted: list[FittedBlock] = field(default_factory=list)


def expanded_batches(
    plan: TFNPlan, settings: EdgeSettings, expansion: RadialExpansion
) -> list[ExpandedBatch]:
    """All edges in blocks, with the bases for their activations, in batches.

    Sums over the edges of a batch take at most a few times the space of the packed weights.
    """
    batches: list[ExpandedBatch] = []
    room = 0
    with torch.no_grad():
        for block in _blocks(settings, expansion):
            rank = max(basis.rank for basis in block.bases)
            if room < rank:
                batches.append(ExpandedBatch([]))
                room = 2 * plan.hidden
            batches[-1].blocks.append(block)
            room -= rank
    return batches


def _blocks(settings: EdgeSettings, expansion: RadialExpansion) -> Iterator[ExpandedBlock]:
    groups = list(zip(expansion.values, expansion.slopes, expansion.curvatures, strict=True))
    total = expansion.change.numel()
    if not settings.compress:
        if total:
            everything = tuple(selected_basis(*group, prune=False) for group in groups)
            yield ExpandedBlock(slice(0, total), everything)
        return
    needed = any(part.requires_grad for part in expansion.values)
    sketches = list(zip(expansion.value_tangents, expansion.slope_tangents, strict=True))
    bounds = settings.bounds or (*range(0, total, settings.block_size), total)
    for start, stop in pairwise(bounds):
        edges = slice(start, stop)
        bases = []
        for index, (values, slopes, curvatures) in enumerate(groups):
            parts = values[edges], slopes[edges], curvatures[edges]
            if needed and not sketches:
                bases.append(selected_basis(*parts, prune=True))
                continue
            sketch = None
            if needed:
                first, second = sketches[index]
                sketch = first[edges], second[edges]
            bases.append(compressed_joint_basis(*parts, sketch, settings.tolerance))
        yield ExpandedBlock(edges, tuple(bases))


@dataclass(frozen=True)
class ExpandedForm:
    """A convolution in the edge form, in batches of blocks.

    Attributes:
        plan: the convolution.
        settings: how to compute.
        batches: blocks of edges with bases.
        packed: per group and ``|m|`` the packed weights.
        frames: rotations of the incoming and of the outgoing features.
    """

    plan: TFNPlan
    settings: EdgeSettings
    batches: Sequence[ExpandedBatch]
    packed: Sequence[Sequence[Tensor]]
    frames: FramePair

    @cached_property
    def factors(self) -> list[Factor]:
        """Every group at every ``|m|`` that it couples."""
        plan = self.plan
        return [
            Factor(
                index,
                m,
                channel_slices(plan.fiber_in, group.degrees_in, m),
                channel_slices(plan.fiber_out, group.degrees_out, m),
                len(plan.groups) == 1,
            )
            for index, group in enumerate(plan.groups)
            for m in range(group.max_order + 1)
        ]

    def fitted(self, batch: ExpandedBatch) -> list[FittedBlock]:
        """The blocks of a batch with their weights, which are kept for the next pass."""
        if not batch.fitted:
            batch.fitted = list(self._fit(batch.blocks))
        return batch.fitted

    def _fit(self, blocks: Sequence[ExpandedBlock]) -> Iterator[FittedBlock]:
        dtype, hidden = self.settings.product_dtype, self.plan.hidden
        by_group = []
        for index, matrices in enumerate(self.packed):
            rows = torch.cat([block.bases[index].rows for block in blocks])
            ranks = [block.bases[index].rank for block in blocks]
            by_group.append([(rows @ w.view(hidden, -1)).to(dtype).split(ranks) for w in matrices])
        for position, block in enumerate(blocks):
            weights = [
                [
                    parts[position].reshape(-1, w.shape[1])
                    for parts, w in zip(orders, ws, strict=True)
                ]
                for orders, ws in zip(by_group, self.packed, strict=True)
            ]
            yield FittedBlock(block.edges, block.bases, weights, position)

    def chunks(self, block: FittedBlock) -> Iterator[tuple[slice, slice]]:
        """Chunks of a block, similar in size: which edges, and where they are in the block."""
        first, total = block.edges.start, block.edges.stop - block.edges.start
        rank = max(1, *(basis.rank for basis in block.bases))
        size = max(self.settings.chunk_size, self.settings.chunk_columns // rank)
        size = math.ceil(total / math.ceil(total / size))
        for start in range(0, total, size):
            stop = min(start + size, total)
            yield slice(first + start, first + stop), slice(start, stop)

    def back(self, gradient: Tensor, block: FittedBlock, factor: Factor, rank: int) -> Tensor:
        """``[e, c, rank, K]``: gradient of the outer products from that of the products."""
        weights = block.weights[factor.group][factor.order]
        channels = factor.inside.stop - factor.inside.start
        rows = gradient @ weights[: rank * channels].T
        return rows.view(-1, 2 if factor.order else 1, rank, channels)

    def put_product(
        self, rows: Tensor, block: FittedBlock, factor: Factor, messages: Tensor
    ) -> None:
        """Write, or add, products with the first rows of a basis to messages."""
        weights = block.weights[factor.group][factor.order]
        add = not factor.alone
        couple(rows @ weights[: rows.shape[1]], self.outgoing(messages, factor), add)

    def room(self, like: Tensor, outgoing: bool = False) -> Tensor:
        """Rows in the edge frame to be written or, if there are several groups, added to."""
        shape = like.shape[0], self.frames[outgoing].layout.dim
        return like.new_empty(shape) if len(self.plan.groups) == 1 else like.new_zeros(shape)

    def incoming(self, local: Tensor, factor: Factor) -> Tensor:
        """Features ``[e, c, K]`` that a factor takes, a view of rows in the edge frame."""
        part = self.frames[0].layout.order(local, factor.order)
        return part if factor.alone else part[:, :, factor.inside]

    def outgoing(self, local: Tensor, factor: Factor) -> Tensor:
        """Features ``[e, c, C]`` that a factor adds to, a view of rows in the edge frame."""
        part = self.frames[1].layout.order(local, factor.order)
        return part if factor.alone else part[:, :, factor.outside]

    def put_messages(
        self, block: FittedBlock, within: slice, local: Tensor, messages: Tensor
    ) -> None:
        """Write messages of a chunk in the edge frame to a :meth:`room`."""
        for factor in self.factors:
            values = block.bases[factor.group].values[within]
            rows = outer(values, self.incoming(local, factor), self.settings.product_dtype)
            self.put_product(rows, block, factor, messages)


class ColumnSums:
    """Sums over the edges of a batch, by columns: the gradients of weights and activations.

    Args:
        columns: of every block of the batch.
        matrices: packed weights by ``|m|``.
        hidden: number H of radial activations.
    """

    def __init__(self, columns: Sequence[Columns], matrices: Sequence[Tensor], hidden: int) -> None:
        self.columns, self.matrices, self.hidden = columns, matrices, hidden
        self._widths = [part.width for part in columns]
        total = sum(self._widths)
        self._rooms = [w.new_zeros(total, w.numel() // hidden) for w in matrices]
        self._parts = [
            [part.view(-1, w.shape[1]) for part in room.split(self._widths)]
            for room, w in zip(self._rooms, matrices, strict=True)
        ]

    def add(self, position: int, order: int, rows: Tensor, gradient: Tensor) -> None:
        """Add ``rows^T gradient``, ``[w * K, C]``, of some edges of a block."""
        part = self._parts[order][position]
        if rows.dtype == part.dtype:
            part.addmm_(rows.T, gradient)
        else:
            part.add_(rows.T @ gradient)

    def add_weight_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Add the sums to the gradients of the packed weights."""
        rows = torch.cat([part.rows for part in self.columns]).T
        for total, room in zip(gradients, self._rooms, strict=True):
            total.view(self.hidden, -1).addmm_(rows, room)

    def activation_gradients(self) -> list[Tensor]:
        """Per block ``[e, H]``: the gradient of its matrix, projected to its columns."""
        pairs = zip(self._rooms, self.matrices, strict=True)
        spanned = sum(room @ w.view(self.hidden, -1).T for room, w in pairs)
        assert isinstance(spanned, Tensor)
        return [
            part.values @ rows
            for part, rows in zip(self.columns, spanned.split(self._widths), strict=True)
        ]
