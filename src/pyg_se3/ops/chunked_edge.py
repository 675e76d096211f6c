"""The edge form chunk by chunk, forward and backward, without a graph.

Three levels: a *batch* of blocks makes the weights that fit their bases together; a *block* of
edges shares one basis of radial activations and the weights that go with it; within a block,
*chunks* are small enough that their outer products stay in the cache.

Components of a rotated block of degree l are -m .. m around the centre, so a stride of 2m picks
the pair (-m, +m). In the products, rows are that pair and columns the two parts (A, B).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from pyg_se3.fiber import Fiber
from pyg_se3.ops.compression import RadialBasis, compressed_basis, full_basis, pruned_basis
from pyg_se3.ops.frame_rotation import channel_slices
from pyg_se3.ops.plan import RadialGroup, TFNPlan
from pyg_se3.ops.stacked_bases import ProductSums, StackedBases

Blocks = dict[int, Tensor]
"""Features of a chunk of edges by degree, ``{l: [e, 2l+1, C_l]}``."""

Local = dict[int, Tensor]
"""The same in the edge frame, without components that do not couple:
``{l: [e, 2 min(l, max_order) + 1, C_l]}``."""


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
    """Where a group works at one ``|m|``: degrees with their channels among rows and columns."""

    order: int
    rows: tuple[tuple[int, slice], ...]
    columns: tuple[tuple[int, slice], ...]
    num_rows: int
    num_columns: int


def _factor(plan: TFNPlan, group: RadialGroup, order: int) -> _Factor:
    def ranges(fiber: Fiber, degrees: tuple[int, ...]) -> tuple[tuple[int, slice], ...]:
        start, found = 0, []
        for degree in degrees:
            if degree >= order:
                found.append((degree, slice(start, start + fiber[degree])))
                start += fiber[degree]
        return tuple(found)

    rows = ranges(plan.fiber_in, group.degrees_in)
    columns = ranges(plan.fiber_out, group.degrees_out)
    return _Factor(order, rows, columns, rows[-1][1].stop, columns[-1][1].stop)


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
        radial: per group ``[E, H]``.
        wigner: per degree ``[E, 2l+1, 2l+1]``.
        packed: per group and ``|m|`` the packed weights.
        tangents: per group ``[E, s]``, see :func:`compressed_basis`; empty if there are none.
    """

    plan: TFNPlan
    settings: EdgeSettings
    radial: Sequence[Tensor]
    wigner: Sequence[Tensor]
    packed: Sequence[Sequence[Tensor]]
    tangents: Sequence[Tensor] = ()
    factors: list[list[_Factor]] = field(init=False)

    def __post_init__(self) -> None:
        self.factors = [
            [_factor(self.plan, group, m) for m in range(group.max_order + 1)]
            for group in self.plan.groups
        ]

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
        hidden = self.plan.hidden
        return [
            StackedBases([block.bases[index] for block in batch], hidden)
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

    def rotate_in(self, fiber: Fiber, features: Blocks, edges: slice) -> Local:
        """Features by degree into the edge frame."""
        limit, local = self.plan.max_order, {}
        for degree in fiber:
            local[degree] = features[degree]
            if degree:
                matrix = self.wigner[degree][edges]
                if degree > limit:
                    matrix = matrix[:, :, degree - limit : degree + limit + 1]
                local[degree] = torch.bmm(matrix.transpose(1, 2), features[degree])
        return local

    def rotate_out(self, fiber: Fiber, local: Local, edges: slice) -> Blocks:
        """Features by degree out of the edge frame."""
        limit, features = self.plan.max_order, {}
        for degree in fiber:
            features[degree] = local[degree]
            if degree:
                matrix = self.wigner[degree][edges]
                if degree > limit:
                    matrix = matrix[:, :, degree - limit : degree + limit + 1]
                features[degree] = torch.bmm(matrix, local[degree])
        return features

    def outer_products(self, block: Block, within: slice, local: Local, full: bool) -> list:
        """``values x x'`` per group and ``|m|``, ``[e * c, w * K]``; w = rank if not full."""
        products = []
        for basis, factors in zip(block.bases, self.factors, strict=True):
            width = basis.width if full else basis.rank
            values = basis.values[within, :width].to(self.settings.product_dtype)
            products.append([self._outer(values, local, factor) for factor in factors])
        return products

    def _outer(self, values: Tensor, local: Local, factor: _Factor) -> Tensor:
        m, (edges, width) = factor.order, values.shape
        components = 2 if m else 1
        outer = values.new_empty(edges, components, width, factor.num_rows)
        scale = values[:, None, :, None]
        for degree, channels in factor.rows:
            x = self._pair(local[degree], m)[:, :, None, :]
            if x.dtype != outer.dtype:
                x = x.to(outer.dtype)
            torch.mul(x, scale, out=outer[..., channels])
        return outer.view(edges * components, width * factor.num_rows)

    def messages(
        self, block: Block, weights: list[list[Tensor]], outer: list[list[Tensor]], like: Tensor
    ) -> Local:
        """Messages of a chunk in the edge frame from its outer products."""
        plan = self.plan
        edges = outer[0][0].shape[0]
        local: Local = {
            degree: like.new_empty(edges, 2 * min(degree, plan.max_order) + 1, channels)
            for degree, channels in plan.fiber_out.items()
        }
        written: set[tuple[int, int]] = set()
        for index, factors in enumerate(self.factors):
            rank = block.bases[index].rank
            for factor, matrix, rows in zip(factors, weights[index], outer[index], strict=True):
                m = factor.order
                product = rows[:, : rank * factor.num_rows] @ matrix
                if product.dtype != like.dtype:
                    product = product.to(like.dtype)
                if m == 0:
                    part = product.view(edges, 1, -1)
                else:
                    pair = product.view(edges, 2, 2, -1)
                    part = product.new_empty(edges, 2, factor.num_columns)
                    torch.sub(pair[:, 0, 0], pair[:, 1, 1], out=part[:, 0])
                    torch.add(pair[:, 1, 0], pair[:, 0, 1], out=part[:, 1])
                for degree, channels in factor.columns:
                    target = self._pair(local[degree], m)
                    if (degree, m) in written:
                        target += part[:, :, channels]
                    else:
                        target.copy_(part[:, :, channels])
                        written.add((degree, m))
        return local

    def _pair(self, local: Tensor, order: int) -> Tensor:
        """Components -m and +m (or 0) of a feature in the edge frame, a view ``[e, c, C]``."""
        centre = local.shape[1] // 2
        return local[:, centre - order : centre + order + 1 : 2 * order or 1]


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
                    StackedBases([exact], hidden).weights(w, narrow)[0] for w in form.packed[index]
                ]
            )

    def chunk(
        self,
        edges: slice,
        within: slice,
        gathered: Blocks,
        local: Local,
        outer: list[list[Tensor]],
        messages: Local | None,
        gradient: Blocks,
    ) -> Blocks:
        """Gradient of a chunk's source features by degree, and adds to the others.

        Args:
            edges: which edges.
            within: where they are within the block.
            gathered: features of their sources by degree.
            local: the same in the edge frame.
            outer: outer products with all columns of the bases.
            messages: in the edge frame, if at hand; needed for the gradient of the geometry only.
            gradient: of the messages, by degree.
        """
        form = self.form
        plan = form.plan
        dy = form.rotate_in(plan.fiber_out, gradient, edges)
        dx = {degree: torch.empty_like(x) for degree, x in local.items()}
        written: set[tuple[int, int]] = set()
        for index, factors in enumerate(form.factors):
            for factor in factors:
                rows = self._message_gradient(dy, factor)
                if self.total.packed is not None or self.block.bases[index].spans_tangents:
                    sums = self._sums[index][factor.order]
                    sums.add(self._position, outer[index][factor.order], rows)
                self._feature_gradient(index, factor, within, rows, dx, written)
                self._activation_gradient(index, factor, edges, within, rows, local)
        if self.total.wigner is not None:
            if messages is None:
                first = next(iter(local.values()))
                messages = form.messages(self.block, self.weights, outer, first)
            self._wigner_gradient(edges, gradient, messages)
            self._wigner_gradient(edges, gathered, dx)
        return form.rotate_out(plan.fiber_in, dx, edges)

    def _message_gradient(self, dy: Local, factor: _Factor) -> Tensor:
        """Gradient of the products with ``[A | B]``: ``[e * c, C or 2 C]``."""
        form, m = self.form, factor.order
        like = next(iter(dy.values()))
        edges, dtype = like.shape[0], form.settings.product_dtype
        if m == 0:
            rows = like.new_empty(edges, factor.num_columns, dtype=dtype)
            for degree, channels in factor.columns:
                rows[:, channels] = dy[degree][:, dy[degree].shape[1] // 2]
            return rows
        rows = like.new_empty(edges, 2, 2, factor.num_columns, dtype=dtype)
        for degree, channels in factor.columns:
            pair = form._pair(dy[degree], m)
            rows[:, :, 0, channels] = pair
            rows[:, 0, 1, channels] = pair[:, 1]
            if dtype == like.dtype:
                torch.neg(pair[:, 0], out=rows[:, 1, 1, channels])
            else:
                rows[:, 1, 1, channels] = -pair[:, 0]
        return rows.view(2 * edges, 2 * factor.num_columns)

    def _feature_gradient(
        self,
        index: int,
        factor: _Factor,
        within: slice,
        rows: Tensor,
        dx: Local,
        written: set[tuple[int, int]],
    ) -> None:
        basis, m = self.block.bases[index], factor.order
        components = 2 if m else 1
        values = basis.values[within, : basis.rank]
        back = (rows @ self.weights[index][m].T).view(
            values.shape[0], components, basis.rank, factor.num_rows
        )
        part = _contract_values(back, values)
        for degree, channels in factor.rows:
            target = self.form._pair(dx[degree], m)
            if (degree, m) in written:
                target += part[:, :, channels]
            else:
                target.copy_(part[:, :, channels])
                written.add((degree, m))

    def _activation_gradient(
        self, index: int, factor: _Factor, edges: slice, within: slice, rows: Tensor, local: Local
    ) -> None:
        exact = self._exact[index]
        if exact is None:
            return
        assert self.total.radial is not None
        m = factor.order
        components = 2 if m else 1
        matrix = (self._exact_weights[index] or self.weights[index])[m]
        back = (rows.to(matrix.dtype) @ matrix.T).view(-1, components, exact.width, factor.num_rows)
        x = torch.cat([self.form._pair(local[degree], m) for degree, _ in factor.rows], dim=2)
        part = _contract_channels(back, x)
        target = self.total.radial[index][edges]
        if exact.active is None:
            target += part
        else:
            target.index_add_(1, exact.active, part)

    def _wigner_gradient(self, edges: slice, outside: Blocks, local: Local) -> None:
        """Add ``outside local^T``: gradient of D where ``outside = D local`` or its transpose."""
        assert self.total.wigner is not None
        for degree, block in outside.items():
            if degree == 0:
                continue
            centre = local[degree].shape[1] // 2
            columns = slice(degree - centre, degree + centre + 1)
            product = torch.bmm(block, local[degree].transpose(1, 2))
            self.total.wigner[degree][edges, :, columns] += product


def _contract_values(back: Tensor, values: Tensor) -> Tensor:
    """``sum_r a_er back_ecrK``: ``[e, c, K]`` from ``[e, c, r, K]`` and ``[e, r]``."""
    edges, components, rank, _ = back.shape
    if rank == 0:
        return values.new_zeros(edges, components, back.shape[3])
    if rank <= 12 and back.device.type == "cpu":
        # a few multiply-adds beat many tiny matrix products
        total = back[:, :, 0] * values[:, :1, None]
        for r in range(1, rank):
            total.addcmul_(back[:, :, r], values[:, r : r + 1, None])
        return total
    rows = values.to(back.dtype)[:, None, None, :].expand(edges, components, 1, rank)
    flat = torch.bmm(rows.reshape(-1, 1, rank), back.flatten(0, 1))
    return flat.view(edges, components, -1).to(values.dtype)


def _contract_channels(back: Tensor, x: Tensor) -> Tensor:
    """``sum_cK back_ecrK x_ecK``: ``[e, r]`` from ``[e, c, r, K]`` and ``[e, c, K]``."""
    edges, components, rank, _ = back.shape
    flat = torch.bmm(back.flatten(0, 1), x.to(back.dtype).reshape(edges * components, -1, 1))
    return flat.view(edges, components, rank).sum(1).to(x.dtype)


__all__ = [
    "BatchBackward",
    "Block",
    "BlockBackward",
    "Blocks",
    "EdgeForm",
    "EdgeGradients",
    "EdgeNeeds",
    "EdgeSettings",
    "channel_slices",
]
