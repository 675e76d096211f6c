r"""Source-node form: the weights act on a node once, not on each of its edges.

In the frame of an edge the messages of :mod:`pyg_se3.ops.edge` are, for input degree l and
``|m|``, linear in the source's features before their rotation,

.. math::
    y'_{e,r} = \sum_{m', c, h} Q_{e,r,m'c}\, g_{eh}\; U_{m'ch},
    \qquad U_{m'ch} = \sum_i W_{chi}\, x_{m'i},

with rows r = (-m, +m), c the parts (A, B) of the weights and Q the columns of the Wigner-D matrix:
:math:`Q_{r,A} = (D_{-m}, D_{+m})`, :math:`Q_{r,B} = (-D_{+m}, D_{-m})`. U belongs to a node. The
sums over m', c and h are one matrix product per node between all its edges and U; nodes with
similarly many edges share a batched product (:mod:`pyg_se3.ops.source_schedule`).

The products ``z = Q g`` are stored with the edges along the last axis, where every operation on
them runs along contiguous memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyg_se3.fiber import Fiber
from pyg_se3.ops.chunked_edge import Blocks, EdgeGradients, EdgeSettings, Local
from pyg_se3.ops.compression import RadialBasis, compressed_basis, full_basis, pruned_basis
from pyg_se3.ops.plan import TFNPlan
from pyg_se3.ops.source_schedule import SourceChunk, SourceSchedule
from pyg_se3.ops.stacked_bases import StackedBases


@dataclass(frozen=True)
class _Term:
    """One input degree of one group at one ``|m|``."""

    degree: int
    order: int
    channels: slice

    @property
    def parts(self) -> int:
        """Rows per edge, and parts (A, B) of the weights: 1 for m = 0, else 2."""
        return 2 if self.order else 1

    @property
    def size(self) -> int:
        """Components times parts, ``(2l+1) c``."""
        return (2 * self.degree + 1) * self.parts


@dataclass(frozen=True)
class _Product:
    """One group at one ``|m|``: terms that are summed, and where their sum belongs."""

    group: int
    order: int
    terms: tuple[_Term, ...]
    columns: tuple[tuple[int, slice], ...]
    num_rows: int
    num_columns: int


def _products(plan: TFNPlan) -> tuple[_Product, ...]:
    def ranges(fiber: Fiber, degrees: tuple[int, ...], order: int) -> list[tuple[int, slice]]:
        start, found = 0, []
        for degree in degrees:
            if degree >= order:
                found.append((degree, slice(start, start + fiber[degree])))
                start += fiber[degree]
        return found

    products = []
    for index, group in enumerate(plan.groups):
        for m in range(group.max_order + 1):
            rows = ranges(plan.fiber_in, group.degrees_in, m)
            columns = ranges(plan.fiber_out, group.degrees_out, m)
            terms = tuple(_Term(degree, m, channels) for degree, channels in rows)
            products.append(
                _Product(index, m, terms, tuple(columns), rows[-1][1].stop, columns[-1][1].stop)
            )
    return tuple(products)


@dataclass
class SourceBlock:
    """Consecutive chunks whose edges share bases of their radial activations.

    Attributes:
        chunks: the chunks.
        edges: the edges of the chunks, without padding.
        start: position of the first in the schedule's order.
        bases: one per group.
        values: per group the basis' values and below them a row of zeros, for the padding.
    """

    chunks: Sequence[SourceChunk]
    edges: Tensor
    start: int
    bases: tuple[RadialBasis, ...]
    values: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.values = [_with_zero_row(basis.values) for basis in self.bases]

    def slots(self, chunk: SourceChunk) -> Tensor:
        """Row of :attr:`values` of every slot."""
        return (chunk.sorted_edges - self.start).clamp_(max=self.edges.numel())


def _with_zero_row(values: Tensor) -> Tensor:
    return torch.cat([values, values.new_zeros(1, values.shape[1])])


@dataclass
class ChunkInputs:
    """What the products of a chunk are made of.

    Attributes:
        nodes: features of the rows' nodes by degree, ``[n * (2l+1), C_l]``.
        wigner: per degree above 0, of every slot.
        couplings: Q by degree and ``|m|``, ``[n, (2l+1) c, 1, d c]``.
        radial: per group values of the basis by parts c, ``[n, 1, w, d c]``.
    """

    nodes: Blocks
    wigner: dict[int, Tensor]
    couplings: dict[tuple[int, int], Tensor]
    radial: list[dict[int, Tensor]]


@dataclass
class SourceForm:
    """A convolution in the source-node form on given activations, geometry and weights.

    Args:
        plan: the convolution.
        settings: how to compute.
        schedule: the edges in chunks.
        radial: per group ``[E, H]``.
        wigner: per degree ``[E, 2l+1, 2l+1]``.
        packed: per group and ``|m|`` the packed weights.
        tangents: per group ``[E, s]``, see :func:`compressed_basis`; empty if there are none.
    """

    plan: TFNPlan
    settings: EdgeSettings
    schedule: SourceSchedule
    radial: Sequence[Tensor]
    wigner: Sequence[Tensor]
    packed: Sequence[Sequence[Tensor]]
    tangents: Sequence[Tensor] = ()
    products: tuple[_Product, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.products = _products(self.plan)

    def blocks(self) -> list[SourceBlock]:
        """All chunks in blocks, with the bases for their activations."""
        chunks = self.schedule.chunks
        tangents: Sequence[Tensor | None] = self.tangents or [None] * len(self.radial)
        blocks, first = [], 0
        while first < len(chunks):
            stop = len(chunks)
            if self.settings.compress:
                stop = first + 1
                while stop < len(chunks) and (
                    chunks[stop].span.stop - chunks[first].span.start <= self.settings.block_size
                ):
                    stop += 1
            start = chunks[first].span.start
            edges = self.schedule.order[start : chunks[stop - 1].span.stop]
            if self.settings.compress:
                bases = tuple(
                    compressed_basis(
                        g.index_select(0, edges),
                        None if t is None else t.index_select(0, edges),
                        self.settings.tolerance,
                    )
                    for g, t in zip(self.radial, tangents, strict=True)
                )
            else:
                bases = tuple(full_basis(g.index_select(0, edges)) for g in self.radial)
            blocks.append(SourceBlock(chunks[first:stop], edges, start, bases))
            first = stop
        return blocks

    def weights(
        self, bases: Sequence[RadialBasis | None], dtype: torch.dtype
    ) -> list[list[Tensor]]:
        """Per product and term the weights ``[C_l, c * r * C_out]`` that fit the bases."""
        hidden, weights = self.plan.hidden, []
        for product in self.products:
            basis, terms = bases[product.group], []
            if basis is not None:
                packed = self.packed[product.group][product.order]
                (matrix,) = StackedBases([basis], hidden).weights(packed, packed.dtype)
                parts = 2 if product.order else 1
                split = matrix.view(basis.rank, product.num_rows, parts, product.num_columns)
                split = split.permute(1, 2, 0, 3)
                terms = [split[term.channels].to(dtype).flatten(1) for term in product.terms]
            weights.append(terms)
        return weights

    def inputs(
        self, block: SourceBlock, chunk: SourceChunk, x: Tensor, values: Sequence[Tensor]
    ) -> ChunkInputs:
        """Gather what a chunk needs; ``values`` as :attr:`SourceBlock.values`."""
        n, d, dtype = chunk.num_rows, chunk.length, self.settings.product_dtype
        gathered = self.plan.fiber_in.split(x.index_select(0, chunk.nodes))
        nodes = {
            degree: part.to(dtype).reshape(-1, part.shape[2]) for degree, part in gathered.items()
        }
        degrees = {*self.plan.fiber_in, *self.plan.fiber_out} - {0}
        wigner = {k: self.wigner[k].index_select(0, chunk.edges) for k in degrees}
        couplings = {}
        for product in self.products:
            for term in product.terms:
                key = term.degree, term.order
                if key not in couplings:
                    matrix = wigner.get(term.degree)
                    if matrix is None:
                        matrix = x.new_ones(n * d, 1, 1)
                    couplings[key] = _coupling(matrix.unflatten(0, (n, d)), *key).to(dtype)
        slots = block.slots(chunk)
        radial = [_by_parts(part, slots, n, d, dtype, self.plan.max_order) for part in values]
        return ChunkInputs(nodes, wigner, couplings, radial)

    def messages(
        self, chunk: SourceChunk, given: ChunkInputs, weights: list[list[Tensor]]
    ) -> list[Tensor]:
        """Messages in the edge frame by product, ``[n, d * c, C_out]``."""
        found = []
        for product, matrices in zip(self.products, weights, strict=True):
            total: Tensor | None = None
            for term, matrix in zip(product.terms, matrices, strict=True):
                u = self.node_products(chunk, given, product, term, matrix)
                z = self.edge_products(given, product, term, u.shape[1] // term.size)
                total = _accumulate(total, z.transpose(1, 2), u, self.radial[0].dtype)
            assert total is not None
            found.append(total)
        return found

    def node_products(
        self,
        chunk: SourceChunk,
        given: ChunkInputs,
        product: _Product,
        term: _Term,
        matrix: Tensor,
    ) -> Tensor:
        """U of every row, ``[n, (2l+1) c r, C_out]``."""
        x = given.nodes[term.degree]
        if x.dtype != matrix.dtype:
            x = x.to(matrix.dtype)
        return (x @ matrix).view(chunk.num_rows, -1, product.num_columns)

    def edge_products(
        self, given: ChunkInputs, product: _Product, term: _Term, rank: int, start: int = 0
    ) -> Tensor:
        """``z = Q g`` of every row, ``[n, (2l+1) c r, d c]``."""
        values = given.radial[product.group][term.parts][:, :, start : start + rank]
        return (given.couplings[term.degree, term.order] * values).flatten(1, 2)

    def rotate_out(self, chunk: SourceChunk, given: ChunkInputs, found: list[Tensor]) -> Blocks:
        """Messages by degree of every slot from those in the edge frame."""
        plan, features = self.plan, {}
        for degree, block in self.local(chunk, found).items():
            features[degree] = block
            if degree:
                features[degree] = torch.bmm(self._columns(given.wigner[degree]), block)
        assert list(features) == list(plan.fiber_out)
        return features

    def local(self, chunk: SourceChunk, found: list[Tensor]) -> Local:
        """Messages in the edge frame by degree."""
        plan, slots = self.plan, chunk.num_slots
        local = {
            degree: found[0].new_empty(slots, 2 * min(degree, plan.max_order) + 1, channels)
            for degree, channels in plan.fiber_out.items()
        }
        written: set[tuple[int, int]] = set()
        for product, part in zip(self.products, found, strict=True):
            m = product.order
            part = part.view(slots, 2 if m else 1, product.num_columns)
            for degree, channels in product.columns:
                target = _pair(local[degree], m)
                if (degree, m) in written:
                    target += part[:, :, channels]
                else:
                    target.copy_(part[:, :, channels])
                    written.add((degree, m))
        return local

    def _columns(self, matrix: Tensor) -> Tensor:
        """Columns of Wigner-D matrices that couple."""
        degree, limit = matrix.shape[2] // 2, self.plan.max_order
        return matrix[:, :, degree - limit : degree + limit + 1] if degree > limit else matrix


class SourceBlockBackward:
    """Backward pass of one block: chunk by chunk, then what they have in common.

    Args:
        form: the convolution.
        block: the chunks.
        total: accumulators for the gradients.
    """

    def __init__(self, form: SourceForm, block: SourceBlock, total: EdgeGradients) -> None:
        self.form, self.block, self.total = form, block, total
        settings = form.settings
        self.weights = form.weights(block.bases, settings.product_dtype)
        # Per product and term [C_l, c * w * C_out], first the columns of the messages, then those
        # for the derivatives of the radial MLP.
        self._sums: list[list[list[Tensor]]] = [
            [[] for _ in product.terms] for product in form.products
        ]
        # The gradient of the activations is a by-product where the basis spans their derivatives;
        # elsewhere it takes a product of its own with all active columns.
        self._exact: list[RadialBasis | None] = []
        for index, basis in enumerate(block.bases):
            exact = None
            if total.radial is not None and not basis.spans_tangents:
                exact = basis
                if basis.coordinates is not None:
                    exact = pruned_basis(form.radial[index][block.edges])
            self._exact.append(exact)
        narrow = settings.activation_grad_dtype
        apart = [
            exact
            if exact is not None and not (exact is basis and narrow == settings.product_dtype)
            else None
            for exact, basis in zip(self._exact, block.bases, strict=True)
        ]
        self._exact_weights = form.weights(apart, narrow)

    def chunk(
        self,
        chunk: SourceChunk,
        given: ChunkInputs,
        gradient: Blocks,
        dx: Tensor,
        messages: list[Tensor] | None = None,
    ) -> None:
        """Add the gradients that come from a chunk.

        Args:
            chunk: the edges.
            given: inputs of the chunk.
            gradient: of the messages by degree, of every slot.
            dx: gradient of ``x``, added to.
            messages: in the edge frame by product, if at hand.
        """
        form, total = self.form, self.total
        local = dict(gradient)
        for degree in gradient:
            if degree:
                matrix = form._columns(given.wigner[degree])
                local[degree] = torch.bmm(matrix.transpose(1, 2), gradient[degree])
        dnodes: dict[int, Tensor] = {}
        dradial: list[dict[int, Tensor]] = [{} for _ in form.plan.groups]
        dwigner = {}
        if total.wigner is not None:
            dwigner = {degree: torch.zeros_like(w) for degree, w in given.wigner.items()}
        for number, product in enumerate(form.products):
            dy = self._product_gradient(chunk, product, local)
            for index in range(len(product.terms)):
                self._term(chunk, given, number, index, dy, dnodes, dradial, dwigner)
        blocks = [dnodes[degree].view(chunk.num_rows, -1) for degree in form.plan.fiber_in]
        dx.index_add_(0, chunk.nodes, blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1))
        self._add_radial(chunk, dradial)
        if total.wigner is not None:
            if messages is None:
                messages = form.messages(chunk, given, self.weights)
            for degree, block in form.local(chunk, messages).items():
                if degree:
                    columns = form._columns(dwigner[degree])
                    columns += torch.bmm(gradient[degree], block.transpose(1, 2))
            edges = chunk.real(chunk.edges)
            for degree, part in dwigner.items():
                total.wigner[degree].index_copy_(0, edges, chunk.real(part))

    def _product_gradient(self, chunk: SourceChunk, product: _Product, local: Local) -> Tensor:
        """Gradient of a product's messages, ``[n, d * c, C_out]``."""
        dtype, m = self.form.settings.product_dtype, product.order
        like = next(iter(local.values()))
        dy = like.new_empty(chunk.num_slots, 2 if m else 1, product.num_columns, dtype=dtype)
        for degree, channels in product.columns:
            dy[:, :, channels] = _pair(local[degree], m)
        return dy.view(chunk.num_rows, -1, product.num_columns)

    def _term(
        self,
        chunk: SourceChunk,
        given: ChunkInputs,
        number: int,
        index: int,
        dy: Tensor,
        dnodes: dict[int, Tensor],
        dradial: list[dict[int, Tensor]],
        dwigner: dict[int, Tensor],
    ) -> None:
        form, total = self.form, self.total
        product = form.products[number]
        term, matrix = product.terms[index], self.weights[number][index]
        basis, exact = self.block.bases[product.group], self._exact[product.group]
        x, dtype = given.nodes[term.degree], form.radial[0].dtype

        z = form.edge_products(given, product, term, basis.rank)
        du = torch.bmm(z, dy).view(x.shape[0], -1)
        previous = dnodes.get(term.degree)
        dnodes[term.degree] = _accumulate(previous, du, matrix.T, dtype)
        if total.packed is not None or basis.spans_tangents:
            sums = self._sums[number][index]
            extra = basis.width - basis.rank
            _add_product(sums, 0, x.T, du, dtype)
            if extra:
                rest = form.edge_products(given, product, term, extra, basis.rank)
                _add_product(sums, 1, x.T, torch.bmm(rest, dy).view(x.shape[0], -1), dtype)

        coupling = given.couplings[term.degree, term.order]
        apart = bool(self._exact_weights[number])
        if total.wigner is not None or (exact is not None and not apart):
            u = form.node_products(chunk, given, product, term, matrix)
            dz = torch.bmm(u, dy.transpose(1, 2)).view(*coupling.shape[:2], basis.rank, -1)
            if total.wigner is not None and term.degree:
                values = given.radial[product.group][term.parts][:, :, : basis.rank]
                part = (dz * values).sum(2).to(dtype)
                _add_coupling_gradient(dwigner[term.degree], part, term.order)
            if exact is not None and not apart:
                _add_radial_gradient(dradial[product.group], term.parts, dz, coupling, dtype)
        if exact is not None and apart:
            weights = self._exact_weights[number][index]
            u = form.node_products(chunk, given, product, term, weights)
            dz = torch.bmm(u, dy.to(u.dtype).transpose(1, 2))
            dz = dz.view(*coupling.shape[:2], exact.rank, -1)
            _add_radial_gradient(dradial[product.group], term.parts, dz, coupling, dtype)

    def _add_radial(self, chunk: SourceChunk, dradial: list[dict[int, Tensor]]) -> None:
        for index, parts in enumerate(dradial):
            if not parts:
                continue
            assert self.total.radial is not None
            exact, rows = self._exact[index], None
            assert exact is not None
            for count, part in parts.items():
                part = part.view(chunk.num_rows, exact.rank, chunk.length, count).sum(3)
                rows = part if rows is None else rows.add_(part)
            assert rows is not None
            rows = chunk.real(rows.transpose(1, 2).reshape(chunk.num_slots, exact.rank))
            target, edges = self.total.radial[index], chunk.real(chunk.edges)
            if exact.active is not None:
                full = rows.new_zeros(rows.shape[0], target.shape[1])
                rows = full.index_copy_(1, exact.active, rows)
            target.index_copy_(0, edges, rows)

    def finish(self) -> None:
        """Add what the chunks of the block have in common to the gradients."""
        form, total, hidden = self.form, self.total, self.form.plan.hidden
        spanned: dict[int, Tensor] = {}
        for product, sums in zip(form.products, self._sums, strict=True):
            if not sums[0]:
                continue
            basis, m = self.block.bases[product.group], product.order
            shape = (basis.width, product.num_rows, 2 if m else 1, product.num_columns)
            gradient = sums[0][0].new_empty(shape)
            for term, parts in zip(product.terms, sums, strict=True):
                start = 0
                for part in parts:
                    rows = part.view(part.shape[0], shape[2], -1, shape[3])
                    stop = start + rows.shape[2]
                    gradient[start:stop, term.channels] = rows.permute(2, 0, 1, 3)
                    start = stop
            if total.packed is not None:
                grad = total.packed[product.group][m].view(hidden, -1)
                flat = gradient.view(basis.width, -1)
                if basis.is_identity:
                    grad += flat
                else:
                    grad.addmm_(basis.rows(hidden).T, flat[: basis.rank])
            if total.radial is not None and basis.spans_tangents:
                flat = form.packed[product.group][m].view(hidden, -1)
                part = gradient.view(basis.width, -1) @ flat.T
                known = spanned.get(product.group)
                spanned[product.group] = part if known is None else known + part
        for index, part in spanned.items():
            assert total.radial is not None
            rows = self.block.bases[index].values @ part
            total.radial[index].index_copy_(0, self.block.edges, rows)


def _pair(local: Tensor, order: int) -> Tensor:
    """Components -m and +m (or 0) of a feature in the edge frame, a view ``[e, c, C]``."""
    centre = local.shape[1] // 2
    return local[:, centre - order : centre + order + 1 : 2 * order or 1]


def _coupling(wigner: Tensor, degree: int, order: int) -> Tensor:
    """Q ``[n, (2l+1) c, 1, d c]`` from Wigner-D matrices ``[n, d, 2l+1, 2l+1]``."""
    n, d, size, _ = wigner.shape
    if order == 0:
        return wigner[..., degree].transpose(1, 2).contiguous()[:, :, None]
    pair = wigner[..., degree - order : degree + order + 1 : 2 * order].transpose(1, 2)
    coupling = wigner.new_empty(n, size, 2, d, 2)
    coupling[:, :, 0] = pair
    torch.neg(pair[..., 1], out=coupling[:, :, 1, :, 0])
    coupling[:, :, 1, :, 1] = pair[..., 0]
    return coupling.view(n, 2 * size, 1, 2 * d)


def _add_coupling_gradient(dwigner: Tensor, gradient: Tensor, order: int) -> None:
    """Add the gradient ``[n, (2l+1) c, d c]`` of Q to that of ``[n d, 2l+1, 2l+1]``."""
    size = dwigner.shape[1]
    degree, n = size // 2, gradient.shape[0]
    if order == 0:
        dwigner[:, :, degree] += gradient.transpose(1, 2).reshape(-1, size)
        return
    parts = gradient.view(n, size, 2, -1, 2)
    low = parts[:, :, 0, :, 0] + parts[:, :, 1, :, 1]
    high = parts[:, :, 0, :, 1] - parts[:, :, 1, :, 0]
    dwigner[:, :, degree - order] += low.transpose(1, 2).reshape(-1, size)
    dwigner[:, :, degree + order] += high.transpose(1, 2).reshape(-1, size)


def _by_parts(
    values: Tensor, slots: Tensor, n: int, d: int, dtype: torch.dtype, max_order: int
) -> dict[int, Tensor]:
    """Values of the slots by rows per edge c, ``[n, 1, w, d c]``."""
    single = values.index_select(0, slots).to(dtype).view(n, d, -1).transpose(1, 2)
    parts = {1: single.contiguous()[:, None]}
    if max_order:
        parts[2] = parts[1].repeat_interleave(2, dim=3)
    return parts


def _accumulate(total: Tensor | None, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """``total + a @ b`` in place, products in the type of the factors, sums in ``dtype``."""
    if total is None:
        return (a @ b).to(dtype)
    if a.dtype != dtype:
        return total.add_(a @ b)
    return total.baddbmm_(a, b) if a.dim() == 3 else total.addmm_(a, b)


def _add_product(
    sums: list[Tensor], position: int, a: Tensor, b: Tensor, dtype: torch.dtype
) -> None:
    if position == len(sums):
        sums.append((a @ b).to(dtype))
    else:
        _accumulate(sums[position], a, b, dtype)


def _add_radial_gradient(
    known: dict[int, Tensor], parts: int, dz: Tensor, coupling: Tensor, dtype: torch.dtype
) -> None:
    """Add the sum over components and parts of ``Q dz``, ``[n, r, d c]``."""
    first = 0
    if parts not in known:
        known[parts] = (dz[:, 0] * coupling[:, 0]).to(dtype)
        first = 1
    for index in range(first, dz.shape[1]):  # one pass each, where a product and a sum take three
        known[parts].addcmul_(dz[:, index], coupling[:, index])
