r"""Edge form: the convolution as one matrix product per ``|m|``, in the frame of each edge.

With :math:`x' = D^T x` the messages are, per ``|m|``,

.. math::
    y'_{+m} = A_m x'_{+m} + B_m x'_{-m}, \qquad y'_{-m} = A_m x'_{-m} - B_m x'_{+m},
    \qquad y = D\,y',

where :math:`A_m = \sum_h g_h W^A_{mh}` depends on the edge. The sum over h is made part of the
product, :math:`A_m x' = W^A_m (g \otimes x')`, so that nothing of the size
:math:`C_{in} C_{out}` exists per edge. Edges are worked on in chunks whose outer products fit the
cache, and the backward pass builds them again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyg_se3.fiber import Fiber
from pyg_se3.ops.compression import RadialBasis, choose_basis
from pyg_se3.ops.frame_rotation import (
    Orders,
    channel_slices,
    rotate_in,
    rotate_out,
    ungroup,
)
from pyg_se3.ops.packing import PackedWeights
from pyg_se3.ops.plan import RadialGroup, TFNPlan

Blocks = dict[int, Tensor]
"""Features of a chunk of edges by degree, ``{l: [e, 2l+1, C_l]}``."""


@dataclass(frozen=True)
class EdgeSettings:
    """Execution settings of the edge form, all decided.

    Attributes:
        chunk_size: edges per chunk.
        compress: whether to prune and compress the radial activations.
        tolerance: of the compression.
        product_dtype: type of the large matrix products; sums and the rest stay in the type of x.
        activation_grad_dtype: type of the product for the gradient of the radial activations.
    """

    chunk_size: int
    compress: bool
    tolerance: float
    product_dtype: torch.dtype
    activation_grad_dtype: torch.dtype


def _outer(activations: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """``g x x'`` as rows ``[e * c, r * K]`` from ``[e, r]`` and ``[e, c, K]``."""
    edges, components, channels = x.shape
    product = activations.to(dtype)[:, None, :, None] * x.to(dtype)[:, :, None, :]
    return product.view(edges * components, activations.shape[1] * channels)


def _couple(product: Tensor, edges: int, components: int, dtype: torch.dtype) -> Tensor:
    """Messages ``[e, c, C]`` from products with ``[A | B]``, rows +m and -m."""
    product = product.to(dtype)
    if components == 1:
        return product.view(edges, 1, -1)
    product = product.view(edges, 2, 2, -1)
    return torch.stack(
        [product[:, 0, 0] + product[:, 1, 1], product[:, 1, 0] - product[:, 0, 1]], 1
    )


def _uncouple(gradient: Tensor) -> Tensor:
    """Transpose of :func:`_couple`, ``[e * c, C or 2 C]`` from ``[e, c, C]``."""
    edges, components, channels = gradient.shape
    if components == 1:
        return gradient.reshape(edges, channels)
    rows = gradient.new_empty(edges, 2, 2, channels)
    rows[:, 0, 0] = gradient[:, 0]
    torch.neg(gradient[:, 1], out=rows[:, 0, 1])
    rows[:, 1, 0] = gradient[:, 1]
    rows[:, 1, 1] = gradient[:, 0]
    return rows.view(2 * edges, 2 * channels)


def _slices(plan: TFNPlan, group: RadialGroup, order: int) -> tuple[slice, slice]:
    return (
        channel_slices(plan.fiber_in, group.degrees_in, order),
        channel_slices(plan.fiber_out, group.degrees_out, order),
    )


def frame_messages(
    plan: TFNPlan,
    orders: Orders,
    activations: Sequence[Tensor],
    packed: Sequence[Sequence[Tensor]],
    dtype: torch.dtype,
) -> Orders:
    """Messages in the edge frame. Made of differentiable operations.

    Args:
        plan: the convolution.
        orders: features in the edge frame, by ``|m|``.
        activations: per group ``[e, r]``.
        packed: per group and ``|m|`` the weights ``[r * C_in(m), C_out(m) or 2 C_out(m)]``.
        dtype: type of the matrix products.
    """
    messages: Orders = []
    for m, x in enumerate(orders):
        edges, components, _ = x.shape
        width = sum(c for d, c in plan.fiber_out.items() if d >= m)
        total: Tensor | None = None
        for group, acts, matrices in zip(plan.groups, activations, packed, strict=True):
            if m > group.max_order:
                continue
            inside, outside = _slices(plan, group, m)
            rows = _outer(acts, x[:, :, inside], dtype) @ matrices[m].to(dtype)
            part = _couple(rows, edges, components, x.dtype)
            if len(plan.groups) == 1:
                total = part
            else:
                padding = (outside.start, width - outside.stop)
                part = torch.nn.functional.pad(part, padding)
                total = part if total is None else total + part
        assert total is not None
        messages.append(total)
    return messages


def edge_form(
    plan: TFNPlan,
    x: Tensor,
    radial: Sequence[Tensor],
    wigner: Sequence[Tensor],
    packed: PackedWeights,
    dtype: torch.dtype,
) -> Tensor:
    """The whole edge form in differentiable operations, to any order; stores what it needs.

    Args:
        plan: the convolution.
        x: packed features of the source of every edge, ``[E, fiber_in.dim]``.
        radial: per group ``[E, H]``.
        wigner: per degree ``[E, 2l+1, 2l+1]``.
        packed: weights of the plan.
        dtype: type of the matrix products.

    Returns:
        packed messages ``[E, fiber_out.dim]``.
    """
    orders = rotate_in(plan.fiber_in, plan.max_order, x, wigner)
    messages = frame_messages(plan, orders, radial, packed, dtype)
    return pack_blocks(rotate_out(plan.fiber_out, plan.max_order, messages, wigner))


def pack_blocks(blocks: Blocks) -> Tensor:
    """Packed features of blocks by ascending degree."""
    flat = [block.flatten(1) for block in blocks.values()]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)


@dataclass(frozen=True)
class Chunk:
    """A range of edges with the representation of their radial activations, one per group."""

    edges: slice
    bases: tuple[RadialBasis, ...]


@dataclass(frozen=True)
class OpenChunk:
    """A chunk with what is needed while it is worked on."""

    edges: slice
    bases: tuple[RadialBasis, ...]
    wigner: list[Tensor]
    activations: list[Tensor]
    weights: list[list[Tensor]]


@dataclass
class EdgeGradients:
    """Accumulators of a backward pass; ``None`` where no gradient is wanted."""

    radial: list[Tensor] | None
    wigner: list[Tensor] | None
    packed: list[list[Tensor]] | None


@dataclass(frozen=True)
class EdgeNeeds:
    """Which gradients a backward pass must produce besides that of the features."""

    radial: bool
    wigner: bool
    packed: bool


@dataclass
class EdgeForm:
    """The edge form chunk by chunk, forward and backward, without a graph."""

    plan: TFNPlan
    settings: EdgeSettings
    radial: Sequence[Tensor]
    wigner: Sequence[Tensor]
    packed: Sequence[Sequence[Tensor]]
    chunks: list[Chunk] = field(default_factory=list)

    def new_chunks(self) -> Iterator[Chunk]:
        """Chunks of the forward pass, remembered for the backward pass."""
        total = self.radial[0].shape[0]
        for start in range(0, total, self.settings.chunk_size):
            edges = slice(start, min(start + self.settings.chunk_size, total))
            if self.settings.compress:
                bases = tuple(choose_basis(g[edges], self.settings.tolerance) for g in self.radial)
            else:
                bases = (RadialBasis(),) * len(self.radial)
            chunk = Chunk(edges, bases)
            self.chunks.append(chunk)
            yield chunk

    def open(self, chunk: Chunk) -> OpenChunk:
        """Take up a chunk: slice its geometry, bring its weights into the compressed form."""
        return OpenChunk(
            chunk.edges,
            chunk.bases,
            [matrix[chunk.edges] for matrix in self.wigner],
            [b.activations(g[chunk.edges]) for b, g in zip(chunk.bases, self.radial, strict=True)],
            [
                [
                    basis.weights(matrix, self.plan.hidden).to(self.settings.product_dtype)
                    for matrix in matrices
                ]
                for basis, matrices in zip(chunk.bases, self.packed, strict=True)
            ],
        )

    def rotate(self, chunk: OpenChunk, gathered: Tensor) -> Orders:
        """Features of the chunk's sources, ``[e, fiber_in.dim]``, in the edge frame."""
        return rotate_in(self.plan.fiber_in, self.plan.max_order, gathered, chunk.wigner)

    def frame_messages(self, chunk: OpenChunk, orders: Orders) -> Orders:
        """Messages of a chunk in the edge frame."""
        return frame_messages(
            self.plan, orders, chunk.activations, chunk.weights, self.settings.product_dtype
        )

    def messages(self, chunk: OpenChunk, local: Orders) -> Blocks:
        """Messages of a chunk by degree, out of the edge frame."""
        return rotate_out(self.plan.fiber_out, self.plan.max_order, local, chunk.wigner)

    def no_gradients(self, needed: EdgeNeeds) -> EdgeGradients:
        """Accumulators at zero for the gradients that are needed."""
        return EdgeGradients(
            [torch.zeros_like(g) for g in self.radial] if needed.radial else None,
            [torch.zeros_like(d) for d in self.wigner] if needed.wigner else None,
            [[torch.zeros_like(w) for w in ws] for ws in self.packed] if needed.packed else None,
        )

    def backward(
        self,
        chunk: OpenChunk,
        gathered: Tensor,
        orders: Orders,
        messages: Orders | None,
        gradient: Blocks,
        total: EdgeGradients,
    ) -> Tensor:
        """Gradient of a chunk's source features, packed; adds the others to ``total``.

        Args:
            chunk: the edges.
            gathered: packed features of their sources, ``[e, fiber_in.dim]``.
            orders: the same in the edge frame.
            messages: in the edge frame if at hand; needed for the gradient of the geometry only.
            gradient: of the messages, by degree.
            total: accumulators.
        """
        plan = self.plan
        dy = rotate_in(plan.fiber_out, plan.max_order, pack_blocks(gradient), chunk.wigner)
        dx: Orders = [torch.zeros_like(x) for x in orders]
        for index in range(len(plan.groups)):
            self._group_backward(index, chunk, orders, dy, dx, total)
        if total.wigner is not None:
            if messages is None:
                messages = self.frame_messages(chunk, orders)
            outward = ungroup(plan.fiber_out, plan.max_order, messages)
            inward = ungroup(plan.fiber_in, plan.max_order, dx)
            _add_wigner_gradient(total.wigner, chunk.edges, gradient, outward)
            _add_wigner_gradient(
                total.wigner, chunk.edges, plan.fiber_in.split(gathered), inward
            )
        return pack_blocks(rotate_out(plan.fiber_in, plan.max_order, dx, chunk.wigner))

    def _group_backward(
        self,
        index: int,
        chunk: OpenChunk,
        orders: Orders,
        dy: Orders,
        dx: Orders,
        total: EdgeGradients,
    ) -> None:
        """One group's part of :meth:`backward`: adds to ``dx`` and to ``total``."""
        plan, dtype = self.plan, self.settings.product_dtype
        group, basis, acts = plan.groups[index], chunk.bases[index], chunk.activations[index]
        compressed = basis.span is not None
        da = None
        if total.radial is not None:
            width = basis.active.numel() if basis.active is not None else plan.hidden
            da = acts.new_zeros(acts.shape[0], width)
        for m in range(group.max_order + 1):
            inside, outside = _slices(plan, group, m)
            x = orders[m][:, :, inside]
            rows = _uncouple(dy[m][:, :, outside]).to(dtype)
            if total.packed is not None:
                product = _outer(acts, x, dtype).T @ rows
                basis.add_weight_gradient(total.packed[index][m], product.to(x.dtype), plan.hidden)
            dz = (rows @ chunk.weights[index][m].T).view(*x.shape[:2], acts.shape[1], -1)
            dx[m][:, :, inside] += _contract_activations(dz, acts, x.dtype)
            if da is None:
                continue
            if compressed:
                narrow = self.settings.activation_grad_dtype
                matrix = basis.exact.weights(self.packed[index][m], plan.hidden).to(narrow)
                dz = (rows.to(narrow) @ matrix.T).view(*x.shape[:2], da.shape[1], -1)
            da += _contract_channels(dz, x)
        if da is not None:
            assert total.radial is not None
            if basis.active is None:
                total.radial[index][chunk.edges] = da
            else:
                total.radial[index][chunk.edges, basis.active] = da


def _contract_activations(dz: Tensor, activations: Tensor, dtype: torch.dtype) -> Tensor:
    """``sum_r a_er dz_ecrK``: ``[e, c, K]`` from ``[e, c, r, K]`` and ``[e, r]``."""
    edges, components, rank, _ = dz.shape
    if rank <= 8:  # a few multiply-adds beat many tiny matrix products
        total = dz[:, :, 0] * activations[:, :1, None]
        for r in range(1, rank):
            total = total.addcmul_(dz[:, :, r], activations[:, r : r + 1, None])
        return total.to(dtype)
    rows = activations.to(dz.dtype)[:, None, None, :].expand(edges, components, 1, rank)
    flat = torch.bmm(rows.reshape(-1, 1, rank), dz.flatten(0, 1))
    return flat.view(edges, components, -1).to(dtype)


def _contract_channels(dz: Tensor, x: Tensor) -> Tensor:
    """``sum_cK dz_ecrK x_ecK``: ``[e, r]`` from ``[e, c, r, K]`` and ``[e, c, K]``."""
    edges, components, rank, _ = dz.shape
    flat = torch.bmm(dz.flatten(0, 1), x.to(dz.dtype).reshape(edges * components, -1, 1))
    return flat.view(edges, components, rank).sum(1).to(x.dtype)


def _add_wigner_gradient(
    total: list[Tensor], edges: slice, outside: Blocks, local: Blocks
) -> None:
    """Add ``outside local^T`` to the gradient of D, for ``outside = D local`` or its transpose."""
    for degree, block in outside.items():
        if degree == 0:
            continue
        inner = local[degree]
        centre = inner.shape[1] // 2
        columns = slice(degree - centre, degree + centre + 1)
        total[degree][edges, :, columns] += torch.bmm(block, inner.transpose(1, 2))


__all__ = [
    "EdgeForm",
    "EdgeGradients",
    "EdgeNeeds",
    "EdgeSettings",
    "edge_form",
    "pack_blocks",
]
