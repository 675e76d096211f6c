r"""Source-node form: the weights act on a node once, not on each of its edges.

In the frame of an edge the messages of :mod:`pyg_se3.ops.edge` are, for input degree l and
``|m|``, linear in the source's features before their rotation,

.. math::
    p_{e,s} = \sum_{m', h} D_{e,m's}\, g_{eh}\; U_{m'h}, \qquad U_{m'h} = \sum_i W_{hi}\, x_{m'i},

for the components s = -m, +m and both parts (A, B) of the weights; from these products the messages
are :math:`y'_{-m} = p^A_{-m} - p^B_{+m}` and :math:`y'_{+m} = p^A_{+m} + p^B_{-m}`. U belongs to a
node. The sums over m' and h are one matrix product per node between all its edges and U; nodes with
similarly many edges share a batched product (:mod:`pyg_se3.ops.source_schedule`).

The products ``z = D g`` of all components s are formed at once, with the edges along the last axis,
where every operation on them runs along contiguous memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pyg_se3.ops.chunked_edge import EdgeGradients, EdgeSettings
from pyg_se3.ops.edge_frames import EdgeFrames
from pyg_se3.ops.frame_rotation import channel_slices
from pyg_se3.ops.plan import RadialGroup, TFNPlan
from pyg_se3.ops.source_schedule import SourceChunk

ALL = slice(None)
"""Every slot of a chunk."""

Place = tuple[int, int]
"""A group, by its number, and one ``|m|``."""


@dataclass(frozen=True)
class _Term:
    """One ``|m|`` of a product.

    Attributes:
        order: the ``|m|``.
        rows: channels of the input degree among all of the group's that have this ``|m|``.
        columns: channels of the group's messages among all that have this ``|m|``.
    """

    order: int
    rows: slice
    columns: slice

    @property
    def components(self) -> int:
        """Components (-m, +m) per edge, and parts (A, B) of the weights: 1 for m = 0, else 2."""
        return 2 if self.order else 1

    def frame_columns(self, length: int) -> slice:
        """Where the components of rows of so many edges are, which come as 0, -1, +1, -2, .."""
        first = 2 * self.order - 1 if self.order else 0
        return slice(first * length, (first + self.components) * length)


@dataclass(frozen=True)
class _Product:
    """One input degree of one group, with all ``|m|`` that it couples by."""

    group: int
    degree: int
    terms: tuple[_Term, ...]

    @property
    def num_components(self) -> int:
        """Components in the edge frame that couple."""
        return 2 * self.terms[-1].order + 1


def _products(plan: TFNPlan) -> tuple[_Product, ...]:
    products = []
    for index, group in enumerate(plan.groups):
        own = plan.fiber_in.restricted_to(dict.fromkeys(group.degrees_in, 1))
        for degree in group.degrees_in:
            terms = tuple(
                _Term(
                    m,
                    channel_slices(own, (degree,), m),
                    channel_slices(plan.fiber_out, group.degrees_out, m),
                )
                for m in range(min(degree, group.max_order) + 1)
            )
            products.append(_Product(index, degree, terms))
    return tuple(products)


@dataclass
class ChunkInputs:
    """What the products of a chunk are made of.

    Attributes:
        nodes: by degree the features of the rows' nodes, ``[n * (2l+1), C_l]``.
        rotations: by degree above 0 the Wigner-D matrices, columns ordered 0, -1, +1, -2, ..,
            with the edges last: ``[n, 2l+1, 1, 2 min(l, max_order) + 1, d]``.
        values: per group the activations, ``[n, w, d]``.
        frames: rotations of the messages of every slot.
    """

    nodes: dict[int, Tensor]
    rotations: dict[int, Tensor]
    values: list[Tensor]
    frames: EdgeFrames


@dataclass
class SourceForm:
    """A convolution in the source-node form on given activations, geometry and weights.

    Args:
        plan: the convolution.
        settings: how to compute; ``compress`` leaves out activations that are 0 at every edge.
        frames_out: rotations of the messages.
        radial: per group ``[E, H]``.
        wigner: per degree ``[E, 2l+1, 2l+1]``.
        packed: per group and ``|m|`` the packed weights.
    """

    plan: TFNPlan
    settings: EdgeSettings
    frames_out: EdgeFrames
    radial: Sequence[Tensor]
    wigner: Sequence[Tensor]
    packed: Sequence[Sequence[Tensor]]
    products: tuple[_Product, ...] = field(init=False)
    active: list[Tensor | None] = field(init=False)
    values: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.products = _products(self.plan)
        self.active, self.values = [], []
        for activations in self.radial:
            active = None
            if self.settings.compress:
                active = active_columns(activations)
                activations = activations if active is None else activations[:, active]
            self.active.append(active)
            self.values.append(activations)

    def weights(self) -> list[list[Tensor]]:
        """Per product and term ``[C_l, w * c * C]``."""
        return [
            [self._matrix(product, term) for term in product.terms] for product in self.products
        ]

    def _matrix(self, product: _Product, term: _Term) -> Tensor:
        packed = self.packed[product.group][term.order]
        matrix = packed.view(self.plan.hidden, -1, packed.shape[1])[:, term.rows]
        active = self.active[product.group]
        if active is not None:
            matrix = matrix.index_select(0, active)
        return matrix.transpose(0, 1).to(self.settings.product_dtype).flatten(1)

    def inputs(self, chunk: SourceChunk, x: Tensor) -> ChunkInputs:
        """Gather what a chunk needs."""
        dtype, plan = self.settings.product_dtype, self.plan
        gathered = plan.fiber_in.split(x.index_select(0, chunk.nodes))
        nodes = {k: part.to(dtype).reshape(-1, part.shape[2]) for k, part in gathered.items()}
        rotations = {}
        for degree in plan.fiber_in:
            if degree:
                matrix = self.wigner[degree].index_select(0, chunk.edges)
                matrix = matrix.index_select(2, self._components(degree))
                rows = matrix.unflatten(0, (chunk.num_rows, chunk.length)).to(dtype)
                rotations[degree] = rows.permute(0, 2, 3, 1).contiguous()[:, :, None]
        values = [
            part.index_select(0, chunk.edges)
            .to(dtype)
            .view(chunk.num_rows, chunk.length, -1)
            .transpose(1, 2)
            .contiguous()
            for part in self.values
        ]
        return ChunkInputs(nodes, rotations, values, self._frames(chunk))

    def _frames(self, chunk: SourceChunk) -> EdgeFrames:
        whole = self.frames_out
        if whole.block is not None:
            return replace(whole, block=whole.block.index_select(0, chunk.edges))
        wigner = [matrix.index_select(0, chunk.edges) for matrix in whole.wigner]
        return replace(whole, wigner=wigner)

    def _components(self, degree: int) -> Tensor:
        """Components 0, -1, +1, -2, .. of a degree as columns of its Wigner-D matrices."""
        orders = range(1, min(degree, self.plan.max_order) + 1)
        columns = [degree, *(degree + sign * m for m in orders for sign in (-1, 1))]
        return torch.tensor(columns, device=self.wigner[degree].device)

    def edge_products(self, given: ChunkInputs, product: _Product) -> Tensor:
        """``z = D g`` of every row, ``[n, (2l+1) w, components * d]``."""
        values = given.values[product.group]
        if product.degree == 0:
            return values
        rotations = given.rotations[product.degree][:, :, :, : product.num_components]
        return (rotations * values[:, None, :, None]).flatten(3).flatten(1, 2)

    def messages(
        self, chunk: SourceChunk, given: ChunkInputs, weights: list[list[Tensor]]
    ) -> Tensor:
        """Messages in the edge frame, rows of every slot in the layout of :attr:`frames_out`."""
        sums: dict[Place, Tensor] = {}
        dtype = self.radial[0].dtype
        for product, matrices in zip(self.products, weights, strict=True):
            z = self.edge_products(given, product)
            for term, matrix in zip(product.terms, matrices, strict=True):
                u = (given.nodes[product.degree] @ matrix).view(chunk.num_rows, z.shape[1], -1)
                part = z[:, :, term.frame_columns(chunk.length)].transpose(1, 2)
                place = product.group, term.order
                sums[place] = accumulate(sums.get(place), part, u, dtype)
        return self._couple(chunk, sums)

    def _couple(self, chunk: SourceChunk, sums: dict[Place, Tensor]) -> Tensor:
        """Messages from the products ``[n, c d, c C]`` of every group and ``|m|``."""
        layout = self.frames_out.layout
        n, d = chunk.num_rows, chunk.length
        local = self.radial[0].new_empty(chunk.num_slots, layout.dim)
        written: set[tuple[int, int]] = set()
        for (index, m), part in sums.items():
            columns = self.message_columns(index, m)
            target = layout.order(local, m)[:, :, columns].unflatten(0, (n, d))
            add = (m, columns.start) in written
            written.add((m, columns.start))
            if m == 0:
                part = part[:, :, None]
                target.add_(part) if add else target.copy_(part)
                continue
            pair = part.view(n, 2, d, 2, -1)
            if add:
                target += pair[:, :, :, 0].transpose(1, 2)
                target[:, :, 0] -= pair[:, 1, :, 1]
                target[:, :, 1] += pair[:, 0, :, 1]
            else:
                torch.sub(pair[:, 0, :, 0], pair[:, 1, :, 1], out=target[:, :, 0])
                torch.add(pair[:, 1, :, 0], pair[:, 0, :, 1], out=target[:, :, 1])
        return local

    def message_columns(self, index: int, order: int) -> slice:
        """Channels of a group's messages among all that have an ``|m|``."""
        group: RadialGroup = self.plan.groups[index]
        return channel_slices(self.plan.fiber_out, group.degrees_out, order)


@dataclass
class _ChunkGradients:
    """Gradients of :class:`ChunkInputs`, as far as they are known.

    Attributes:
        values: per group ``[n, w, d]``.
        nodes: by degree ``[n * (2l+1), C_l]``.
        rotations: by degree above 0 ``[n, 2l+1, 2 min(l, max_order) + 1, d]``.
    """

    values: list[Tensor | None]
    nodes: dict[int, Tensor] = field(default_factory=dict)
    rotations: dict[int, Tensor] = field(default_factory=dict)

    def add_values(
        self, group: int, dz: Tensor, rotations: Tensor | None, dtype: torch.dtype
    ) -> None:
        """Add the sum of ``D dz`` over all components.

        Args:
            group: the group.
            dz: gradient of z, ``[n, 2l+1, w, c, d]``.
            rotations: D, ``[n, 2l+1, c, d]``; ``None`` for degree 0.
            dtype: of the sum.
        """
        known = self.values[group]
        for row in range(dz.shape[1]):  # one pass each, where a product and a sum take three
            for column in range(dz.shape[3]):
                part = dz[:, row, :, column]
                if rotations is None:
                    known = part.to(dtype) if known is None else known.add_(part)
                    continue
                scale = rotations[:, row, None, column]
                known = (part * scale).to(dtype) if known is None else known.addcmul_(part, scale)
        self.values[group] = known


class SourceBackward:
    """Backward pass: chunk by chunk, then what they have in common.

    Args:
        form: the convolution.
        total: accumulators for the gradients.
    """

    def __init__(self, form: SourceForm, total: EdgeGradients) -> None:
        self.form, self.total = form, total
        self.weights = form.weights()
        self._sums: list[list[Tensor | None]] = [
            [None] * len(product.terms) for product in form.products
        ]
        self._values: list[Tensor] | None = None
        if total.radial is not None:
            self._values = [
                full if active is None else torch.zeros_like(values)
                for full, active, values in zip(total.radial, form.active, form.values, strict=True)
            ]

    def chunk(
        self,
        chunk: SourceChunk,
        given: ChunkInputs,
        gradient: Tensor,
        dx: Tensor,
        messages: Tensor | None = None,
    ) -> None:
        """Add the gradients that come from a chunk.

        Args:
            chunk: the edges.
            given: inputs of the chunk.
            gradient: of the messages, packed, of every slot; 0 for the padding.
            dx: gradient of ``x``, added to.
            messages: in the edge frame, if at hand; needed for the gradient of the geometry only.
        """
        form = self.form
        local = given.frames.rotate_in(gradient, ALL)
        dy: dict[Place, Tensor] = {}
        found = _ChunkGradients([None] * len(form.plan.groups))
        for number, product in enumerate(form.products):
            z = form.edge_products(given, product)
            for position, term in enumerate(product.terms):
                place = product.group, term.order
                if place not in dy:
                    dy[place] = self._product_gradient(chunk, local, term)
                part = z[:, :, term.frame_columns(chunk.length)]
                self._node_gradients(given, number, position, part, dy[place], found)
                self._edge_gradients(given, number, position, dy[place], found)
        blocks = [found.nodes[k].view(chunk.num_rows, -1) for k in form.plan.fiber_in]
        dx.index_add_(0, chunk.nodes, blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1))
        if self._values is not None:
            for target, values in zip(self._values, found.values, strict=True):
                assert values is not None
                rows = values.transpose(1, 2).reshape(chunk.num_slots, -1)
                target.index_add_(0, chunk.edges, rows)
        if self.total.wigner is not None:
            if messages is None:
                messages = form.messages(chunk, given, self.weights)
            self._add_wigner_gradient(chunk, found.rotations, gradient, messages)

    def _product_gradient(self, chunk: SourceChunk, local: Tensor, term: _Term) -> Tensor:
        """Gradient of the products at one ``|m|``, ``[n, c d, c C]``, from that of messages."""
        n, d, dtype = chunk.num_rows, chunk.length, self.form.settings.product_dtype
        rows = self.form.frames_out.layout.order(local, term.order)[:, :, term.columns]
        rows = rows.unflatten(0, (n, d))
        if term.order == 0:
            return rows[:, :, 0].to(dtype).contiguous()
        pair = rows.new_empty(n, 2, d, 2, rows.shape[3], dtype=dtype)
        pair[:, :, :, 0] = rows.transpose(1, 2)
        pair[:, 0, :, 1] = pair[:, 1, :, 0]
        torch.neg(pair[:, 0, :, 0], out=pair[:, 1, :, 1])
        return pair.view(n, 2 * d, -1)

    def _node_gradients(
        self,
        given: ChunkInputs,
        number: int,
        position: int,
        z: Tensor,
        dy: Tensor,
        found: _ChunkGradients,
    ) -> None:
        """Add what goes through U: gradients of the node features and of the weights."""
        product, dtype = self.form.products[number], self.form.radial[0].dtype
        x, matrix = given.nodes[product.degree], self.weights[number][position]
        du = torch.bmm(z, dy).view(x.shape[0], -1)
        known = found.nodes.get(product.degree)
        found.nodes[product.degree] = accumulate(known, du, matrix.T, dtype)
        if self.total.packed is not None:
            sums = self._sums[number]
            sums[position] = accumulate(sums[position], x.T, du, dtype)

    def _edge_gradients(
        self, given: ChunkInputs, number: int, position: int, dy: Tensor, found: _ChunkGradients
    ) -> None:
        """Add what goes through z: gradients of the activations and of the rotations."""
        radial, wigner = self.total.radial is not None, self.total.wigner is not None
        if not radial and not wigner:
            return
        product, settings = self.form.products[number], self.form.settings
        group, degree, term = product.group, product.degree, product.terms[position]
        n, width, length = given.values[group].shape
        shape = n, 2 * degree + 1, width, term.components, length
        u = (given.nodes[degree] @ self.weights[number][position]).view(n, -1, dy.shape[2])
        narrow = settings.activation_grad_dtype
        if radial:
            dz = torch.bmm(u.to(narrow), dy.to(narrow).transpose(1, 2)).view(shape)
            rotations = None
            if degree:
                rotations = given.rotations[degree][:, :, 0, term.frame_columns(1)]
            found.add_values(group, dz, rotations, self.form.radial[0].dtype)
        if wigner and degree:
            if not radial or narrow != u.dtype:
                dz = torch.bmm(u, dy.transpose(1, 2)).view(shape)
            part = (dz * given.values[group][:, None, :, None]).sum(2)
            if degree not in found.rotations:
                whole = given.rotations[degree][:, :, 0]
                found.rotations[degree] = torch.zeros_like(whole, dtype=self.form.radial[0].dtype)
            found.rotations[degree][:, :, term.frame_columns(1)] += part

    def _add_wigner_gradient(
        self, chunk: SourceChunk, drotations: dict[int, Tensor], gradient: Tensor, messages: Tensor
    ) -> None:
        """Add the gradients of the matrices in z and of those that rotate messages."""
        form, total = self.form, self.total.wigner
        assert total is not None
        for degree, part in drotations.items():
            part = part.permute(0, 3, 1, 2).flatten(0, 1)
            full = part.new_zeros(chunk.num_slots, *total[degree].shape[1:])
            full.index_copy_(2, form._components(degree), part)
            total[degree].index_add_(0, chunk.edges, full)
        layout = form.frames_out.layout
        for degree, part in layout.fiber.split(gradient).items():
            if degree:
                limit = min(degree, layout.max_order)
                product = torch.bmm(part, layout.degree(messages, degree).transpose(1, 2))
                full = part.new_zeros(chunk.num_slots, *total[degree].shape[1:])
                full[:, :, degree - limit : degree + limit + 1] = product
                total[degree].index_add_(0, chunk.edges, full)

    def finish(self) -> None:
        """Write what the chunks have in common to the gradients."""
        form, total = self.form, self.total
        if total.radial is not None:
            assert self._values is not None
            for full, active, part in zip(total.radial, form.active, self._values, strict=True):
                if active is not None:
                    full.index_copy_(1, active, part)
        if total.packed is None:
            return
        for product, sums in zip(form.products, self._sums, strict=True):
            active = form.active[product.group]
            for term, columns in zip(product.terms, sums, strict=True):
                if columns is None:  # no edges
                    continue
                grad = total.packed[product.group][term.order]
                target = grad.view(form.plan.hidden, -1, grad.shape[1])[:, term.rows]
                rows = columns.view(columns.shape[0], -1, grad.shape[1]).transpose(0, 1)
                if active is None:
                    target.copy_(rows)
                else:
                    target.index_copy_(0, active, rows)


def active_columns(activations: Tensor) -> Tensor | None:
    """Columns, none negative, that are not 0 throughout, at least one; ``None`` if all are."""
    active = activations.sum(0).nonzero().squeeze(-1)
    if active.numel() == activations.shape[1]:
        return None
    return active if active.numel() else active.new_zeros(1)


def accumulate(total: Tensor | None, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """``total + a @ b`` in place, products in the type of the factors, sums in ``dtype``."""
    if total is None:
        return (a @ b).to(dtype)
    if a.dtype != dtype:
        return total.add_(a @ b)
    return total.baddbmm_(a, b) if a.dim() == 3 else total.addmm_(a, b)
