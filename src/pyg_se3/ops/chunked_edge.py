"""The edge form chunk by chunk, forward and backward, without a graph.

Three levels: a *batch* of blocks makes the weights that fit their bases together; a *block* of
edges shares one basis of radial activations and the weights that go with it; within a block,
*chunks* are small enough that their outer products stay in the cache.

Features in the edge frame are flat rows (:class:`FrameLayout`). In the products, rows are the
components (-m, +m) and columns the two parts (A, B).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from pyg_se3.ops.compression import RadialBasis, compressed_basis, full_basis, pruned_basis
from pyg_se3.ops.edge_frames import EdgeFrames, FramePair
from pyg_se3.ops.frame_products import couple, over_channels, over_ranks, uncouple
from pyg_se3.ops.frame_rotation import channel_slices
from pyg_se3.ops.plan import RadialGroup, TFNPlan
from pyg_se3.ops.stacked_bases import ProductSums, StackedBases, pad_columns


@dataclass(frozen=True)
class EdgeSettings:
    """Execution settings of the edge form, all decided.

    Attributes:
        block_size: edges that share a basis of radial activations, unless ``bounds`` says.
        chunk_size: edges per product.
        chunk_columns: edges times columns of the basis that a product may have in any case: with
            few columns, chunks are longer.
        compress: whether to prune and compress the radial activations.
        tolerance: of the compression.
        product_dtype: type of the large matrix products; sums and the rest stay in the type of x.
        activation_grad_dtype: type of the product for the gradient of the radial activations.
        bounds: ``0, .., E``, where runs of similar edges begin and end; a run shares a basis.
        multiple: columns of the large products are padded to a multiple of this.
        store: keep keys and values for the backward pass rather than compute them again.
    """

    block_size: int
    chunk_size: int
    compress: bool
    tolerance: float
    product_dtype: torch.dtype
    activation_grad_dtype: torch.dtype
    chunk_columns: int = 0
    bounds: tuple[int, ...] | None = None
    store: bool = False
    multiple: int = 1


@dataclass(frozen=True)
class EdgeNeeds:
    """Which gradients a backward pass must produce besides that of the features."""

    radial: bool
    wigner: bool
    packed: bool


@dataclass
class EdgeGradients:
    """Accumulators of a backward pass; ``None`` where no gradient is wanted."""

    radial: list[Tensor] | None
    wigner: list[Tensor] | None
    packed: list[list[Tensor]] | None

    @classmethod
    def zeros(
        cls,
        needed: EdgeNeeds,
        radial: Sequence[Tensor],
        wigner: Sequence[Tensor],
        packed: Sequence[Sequence[Tensor]],
    ) -> EdgeGradients:
        """For these tensors, as far as they are needed."""
        return cls(
            [torch.zeros_like(g) for g in radial] if needed.radial else None,
            [torch.zeros_like(d) for d in wigner] if needed.wigner else None,
            [[torch.zeros_like(w) for w in ws] for ws in packed] if needed.packed else None,
        )


@dataclass(frozen=True)
class _Factor:
    """Where a group works at one ``|m|``: its channels among those of all degrees >= ``|m|``."""

    order: int
    rows: slice
    columns: slice

    @property
    def num_rows(self) -> int:
        """Incoming channels."""
        return self.rows.stop - self.rows.start

    @property
    def num_columns(self) -> int:
        """Outgoing channels."""
        return self.columns.stop - self.columns.start

    @property
    def components(self) -> int:
        """1 for m = 0, else 2."""
        return 2 if self.order else 1


def _factor(plan: TFNPlan, group: RadialGroup, order: int) -> _Factor:
    return _Factor(
        order,
        channel_slices(plan.fiber_in, group.degrees_in, order),
        channel_slices(plan.fiber_out, group.degrees_out, order),
    )


@dataclass
class Block:
    """A range of edges with the bases of their radial activations, one per group."""

    edges: slice
    bases: tuple[RadialBasis, ...]


@dataclass
class EdgeForm:
    """A convolution in the edge form on given activations, geometry and weights.

    Args:
        plan: the convolution.
        settings: how to compute.
        frames: rotations of the incoming and of the outgoing features.
        radial: per group ``[E, H]``.
        wigner: per degree ``[E, 2l+1, 2l+1]``.
        packed: per group and ``|m|`` the packed weights.
        tangents: per group ``[E, s]``, see :func:`compressed_basis`; empty if there are none.
    """

    plan: TFNPlan
    settings: EdgeSettings
    frames: FramePair
    radial: Sequence[Tensor]
    wigner: Sequence[Tensor]
    packed: Sequence[Sequence[Tensor]]
    tangents: Sequence[Tensor] = ()
    factors: list[list[_Factor]] = field(init=False)
    frames_in: EdgeFrames = field(init=False)
    frames_out: EdgeFrames = field(init=False)

    def __post_init__(self) -> None:
        plan = self.plan
        self.factors = [
            [_factor(plan, group, m) for m in range(group.max_order + 1)] for group in plan.groups
        ]
        self.frames_in, self.frames_out = self.frames

    def batches(self) -> list[list[Block]]:
        """All edges in blocks, with the bases for their activations, in batches.

        The weights that fit a batch of blocks take at most about twice the space of the packed
        weights.
        """
        batches: list[list[Block]] = []
        room = 0
        for block in self._blocks():
            rank = max(basis.rank for basis in block.bases)
            if room < rank:
                batches.append([])
                room = 2 * self.plan.hidden
            batches[-1].append(block)
            room -= rank
        return batches

    def _blocks(self) -> Iterator[Block]:
        total, settings = self.radial[0].shape[0], self.settings
        if not settings.compress:
            if total:
                yield Block(slice(0, total), tuple(full_basis(g) for g in self.radial))
            return
        bounds = settings.bounds or (*range(0, total, settings.block_size), total)
        tangents: Sequence[Tensor | None] = self.tangents or [None] * len(self.radial)
        for start, stop in pairwise(bounds):
            edges = slice(start, stop)
            bases = tuple(
                compressed_basis(g[edges], None if t is None else t[edges], settings.tolerance)
                for g, t in zip(self.radial, tangents, strict=True)
            )
            yield Block(edges, bases)

    def stacks(self, batch: Sequence[Block]) -> list[StackedBases]:
        """The bases of a batch, by group."""
        hidden, multiple = self.plan.hidden, self.settings.multiple
        return [
            StackedBases([block.bases[index] for block in batch], hidden, multiple)
            for index in range(len(self.plan.groups))
        ]

    def weights(self, batch: Sequence[Block]) -> list[list[list[Tensor]]]:
        """Packed weights that fit the bases: by block, group and ``|m|``."""
        dtype = self.settings.product_dtype
        by_group = [
            [stack.weights(matrix, dtype) for matrix in matrices]
            for stack, matrices in zip(self.stacks(batch), self.packed, strict=True)
        ]
        return [
            [[parts[position] for parts in orders] for orders in by_group]
            for position in range(len(batch))
        ]

    def weighted(
        self, batches: Sequence[Sequence[Block]]
    ) -> Iterator[tuple[Block, list[list[Tensor]]]]:
        """Every block with the weights that fit its bases, by group and ``|m|``."""
        for batch in batches:
            yield from zip(batch, self.weights(batch), strict=True)

    def backward(
        self, batches: Sequence[Sequence[Block]], total: EdgeGradients
    ) -> Iterator[tuple[Block, BlockBackward]]:
        """Every block with its backward pass, to be run before the next one is asked for."""
        for batch in batches:
            work = BatchBackward(self, batch, total)
            for part in work.blocks():
                yield part.block, part
            work.finish()

    def chunks(self, block: Block) -> Iterator[tuple[slice, slice]]:
        """Chunks of a block, similar in size: which edges, and where they are within the block."""
        first, total = block.edges.start, block.edges.stop - block.edges.start
        width = max(basis.width for basis in block.bases)
        size = max(self.settings.chunk_size, self.settings.chunk_columns // width)
        size = math.ceil(total / math.ceil(total / size))
        for start in range(0, total, size):
            stop = min(start + size, total)
            yield slice(first + start, first + stop), slice(start, stop)

    def outer_products(
        self, block: Block, within: slice, local: Tensor, full: bool
    ) -> list[list[Tensor]]:
        """``values x x'`` per group and ``|m|``, ``[e * c, w * K]``; w = rank if not full.

        Args:
            block: the edges.
            within: which of them.
            local: features in the edge frame.
            full: with all columns of the bases rather than those that make the messages.
        """
        dtype = self.settings.product_dtype
        local = local.to(dtype)
        products = []
        for basis, factors in zip(block.bases, self.factors, strict=True):
            width = basis.width if full else basis.rank
            scale = basis.values[within, :width].to(dtype)[:, None, :, None]
            products.append(
                [
                    (self.frames_in.layout.order(local, f.order)[:, :, None, f.rows] * scale).view(
                        -1, width * f.num_rows
                    )
                    for f in factors
                ]
            )
        return products

    def messages(
        self, block: Block, weights: list[list[Tensor]], outer: list[list[Tensor]], like: Tensor
    ) -> Tensor:
        """Messages of a chunk in the edge frame, in the type of ``like``, from outer products."""
        layout = self.frames_out.layout
        edges = outer[0][0].shape[0]
        local = like.new_empty(edges, layout.dim)
        written: set[tuple[int, int]] = set()
        for index, factors in enumerate(self.factors):
            rank = block.bases[index].rank
            for factor, matrix, rows in zip(factors, weights[index], outer[index], strict=True):
                product = rows[:, : rank * factor.num_rows] @ matrix
                product = product[:, : factor.components * factor.num_columns]
                if product.dtype != like.dtype:
                    product = product.to(like.dtype)
                target = layout.order(local, factor.order)[:, :, factor.columns]
                place = factor.order, factor.columns.start
                couple(product, target, add=place in written)
                written.add(place)
        return local


class BatchBackward:
    """Backward pass of a batch of blocks: one after the other, then what they have in common.

    Args:
        form: the convolution.
        batch: the blocks.
        total: accumulators for the gradients.
    """

    def __init__(self, form: EdgeForm, batch: Sequence[Block], total: EdgeGradients) -> None:
        self.form, self.batch, self.total = form, batch, total
        wanted: Sequence[Sequence[Tensor | None]] = total.packed or [
            [None] * len(matrices) for matrices in form.packed
        ]
        self._sums = [
            [ProductSums(stack, w, dw) for w, dw in zip(matrices, gradients, strict=True)]
            for stack, matrices, gradients in zip(
                form.stacks(batch), form.packed, wanted, strict=True
            )
        ]

    def blocks(self) -> Iterator[BlockBackward]:
        """The backward passes of the blocks."""
        weights = self.form.weights(self.batch)
        for position, block in enumerate(self.batch):
            yield BlockBackward(
                self.form, block, weights[position], self.total, self._sums, position
            )

    def finish(self) -> None:
        """Add what the blocks have in common to the gradients."""
        total = self.total
        for index, sums in enumerate(self._sums):
            if total.packed is not None:
                for part in sums:
                    part.add_weight_gradient()
            if total.radial is None:
                continue
            bases = [block.bases[index] for block in self.batch]
            if not any(basis.spans_tangents for basis in bases):
                continue
            spanned = sums[0].activation_gradient()
            for part in sums[1:]:
                spanned += part.activation_gradient()
            rows = spanned.split([basis.width for basis in bases])
            for block, basis, row in zip(self.batch, bases, rows, strict=True):
                if basis.spans_tangents:
                    torch.mm(basis.values, row, out=total.radial[index][block.edges])


class BlockBackward:
    """Backward pass of one block, chunk by chunk.

    Args:
        form: the convolution.
        block: the edges.
        weights: that fit its bases, by group and ``|m|``.
        total: accumulators for the gradients.
        sums: of the products of the batch, by group and ``|m|``.
        position: of the block in its batch.
    """

    def __init__(
        self,
        form: EdgeForm,
        block: Block,
        weights: list[list[Tensor]],
        total: EdgeGradients,
        sums: list[list[ProductSums]],
        position: int,
    ) -> None:
        self.form, self.block, self.weights, self.total = form, block, weights, total
        self._sums, self._position = sums, position
        hidden, narrow = form.plan.hidden, form.settings.activation_grad_dtype
        # The gradient of the activations is a by-product where the basis spans their derivatives;
        # elsewhere it takes a product of its own with all active columns.
        self._exact: list[RadialBasis | None] = []
        self._exact_weights: list[list[Tensor]] = []
        for index, basis in enumerate(block.bases):
            exact = None
            if total.radial is not None and not basis.spans_tangents:
                exact = basis
                if basis.coordinates is not None:
                    exact = pruned_basis(form.radial[index][block.edges])
            self._exact.append(exact)
            self._exact_weights.append(
                []
                if exact is None or (exact is basis and narrow == form.settings.product_dtype)
                else [
                    StackedBases([exact], hidden, form.settings.multiple).weights(w, narrow)[0]
                    for w in form.packed[index]
                ]
            )

    def chunk(
        self,
        edges: slice,
        within: slice,
        gathered: Tensor,
        local: Tensor,
        outer: list[list[Tensor]],
        messages: Tensor | None,
        gradient: Tensor,
    ) -> Tensor:
        """Gradient of a chunk's source features, packed, and adds to the others.

        Args:
            edges: which edges.
            within: where they are within the block.
            gathered: packed features of their sources.
            local: the same in the edge frame.
            outer: outer products with all columns of the bases.
            messages: in the edge frame, if at hand; needed for the gradient of the geometry only.
            gradient: of the messages, packed.
        """
        form = self.form
        dy = form.frames_out.rotate_in(gradient, edges)
        dx = torch.empty_like(local)
        written: set[tuple[int, int]] = set()
        for index, factors in enumerate(form.factors):
            for factor in factors:
                rows = self._message_gradient(dy, factor)
                if self.total.packed is not None or self.block.bases[index].spans_tangents:
                    sums = self._sums[index][factor.order]
                    sums.add(self._position, outer[index][factor.order], rows)
                back = self._product_gradient(index, factor, rows)
                self._feature_gradient(index, factor, within, back, dx, written)
                self._activation_gradient(index, factor, edges, rows, back, local)
        if self.total.wigner is not None:
            if messages is None:
                messages = form.messages(self.block, self.weights, outer, local)
            form.frames_out.add_gradient(self.total.wigner, edges, gradient, messages)
            form.frames_in.add_gradient(self.total.wigner, edges, gathered, dx)
        return form.frames_in.rotate_out(dx, edges)

    def _message_gradient(self, dy: Tensor, factor: _Factor) -> Tensor:
        """Gradient of the products with ``[A | B]``: ``[e * c, C or 2 C]``, padded."""
        form = self.form
        pair = form.frames_out.layout.order(dy, factor.order)[:, :, factor.columns]
        rows = uncouple(pair, form.settings.product_dtype)
        return pad_columns(rows, form.settings.multiple)

    def _product_gradient(self, index: int, factor: _Factor, rows: Tensor) -> Tensor:
        """Gradient of the outer products, ``[e, c, rank, K]``."""
        rank = self.block.bases[index].rank
        back = rows @ self.weights[index][factor.order].T
        return back.view(-1, factor.components, rank, factor.num_rows)

    def _feature_gradient(
        self,
        index: int,
        factor: _Factor,
        within: slice,
        back: Tensor,
        dx: Tensor,
        written: set[tuple[int, int]],
    ) -> None:
        basis = self.block.bases[index]
        target = self.form.frames_in.layout.order(dx, factor.order)[:, :, factor.rows]
        place = factor.order, factor.rows.start
        over_ranks(back, basis.values[within, : basis.rank], target, add=place in written)
        written.add(place)

    def _activation_gradient(
        self, index: int, factor: _Factor, edges: slice, rows: Tensor, back: Tensor, local: Tensor
    ) -> None:
        exact = self._exact[index]
        if exact is None:
            return
        assert self.total.radial is not None
        m = factor.order
        if self._exact_weights[index]:  # else the columns that make the messages are all there are
            matrix = self._exact_weights[index][m]
            back = (rows.to(matrix.dtype) @ matrix.T).view(
                -1, factor.components, exact.width, factor.num_rows
            )
        x = self.form.frames_in.layout.order(local, m)[:, :, factor.rows]
        part = over_channels(back, x)
        target = self.total.radial[index][edges]
        if exact.active is None:
            target += part
        else:
            target.index_add_(1, exact.active, part)
