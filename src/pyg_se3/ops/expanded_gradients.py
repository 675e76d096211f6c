r"""First and second gradients of the edge form by hand, without a graph.

With :math:`x' = D^T x`, :math:`dy' = D^T dy` and the activations
:math:`g(\delta) = g_0 + \delta g_1 + \delta^2 g_2 / 2` at :math:`\delta = 0`, the first gradients
are

.. math::
    u_0 = (W g_0)^T dy', \quad dx = D\,u_0, \quad
    d\delta = \langle (W g_1)^T dy', x' \rangle, \quad dD = dy\,y'^T + x\,u_0^T .

Let :math:`\dot x, \dot\delta, \dot D` be the gradients that these get in turn. What is to be
differentiated then is a directional derivative of the convolution,

.. math::
    S = \langle dy', W (g_0 \otimes \dot x' + \dot\delta g_1 \otimes x') \rangle
      + \langle \dot{dy}', W (g_0 \otimes x') \rangle, \qquad
    \dot x' = D^T \dot x + \dot D^T x, \quad \dot{dy}' = \dot D^T dy .
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyg_se3.ops.edge_frames import EdgeFrames, FramePair
from pyg_se3.ops.expanded_form import ColumnSums, ExpandedBatch, ExpandedForm, Factor, FittedBlock
from pyg_se3.ops.frame_products import add_outer, outer, over_channels, over_ranks, uncouple


@dataclass(frozen=True)
class Wanted:
    """Which gradients to compute besides those of features.

    Attributes:
        change: of the lengths.
        wigner: of the Wigner-D matrices.
        radial: of activations and slopes.
        packed: of the weights.
    """

    change: bool
    wigner: bool
    radial: bool
    packed: bool

    @property
    def sums(self) -> bool:
        """Whether sums over edges are needed."""
        return self.radial or self.packed


@dataclass(frozen=True)
class Kept:
    """What the first gradients leave for the second ones, in the edge frame.

    Attributes:
        back_values: :math:`u_0` of all edges.
        back_slopes: the same with slopes for activations.
        curved: inner product of x' and the same with curvatures, ``[E]``.
    """

    back_values: Tensor
    back_slopes: Tensor
    curved: Tensor


class Totals:
    """Gradients as they add up.

    Args:
        wanted: which.
        form: the convolution.
        x: node features.
        edges: number of edges.
        second: whether these are second gradients; slopes have no first ones.
    """

    def __init__(
        self, wanted: Wanted, form: ExpandedForm, x: Tensor, edges: int, second: bool
    ) -> None:
        hidden, groups = form.plan.hidden, len(form.plan.groups)

        def matrices() -> list[Tensor]:
            return [x.new_zeros(edges, hidden) for _ in range(groups)] if wanted.radial else []

        self.features = torch.zeros_like(x)
        self.change = x.new_zeros(edges) if wanted.change else None
        self.values, self.slopes = matrices(), matrices() if second else []
        self.packed = (
            [[torch.zeros_like(w) for w in ws] for ws in form.packed] if wanted.packed else []
        )
        self._wigner = WignerSums(form.frames) if wanted.wigner else None

    def add_wigner(self, frames: EdgeFrames, edges: slice, outside: Tensor, local: Tensor) -> None:
        """Add ``outside local^T`` to the gradient of the Wigner-D matrices, if it is wanted."""
        if self._wigner is not None:
            self._wigner.add(frames, edges, outside, local)

    def wigner(self) -> list[Tensor] | None:
        """Gradients of the Wigner-D matrices, if wanted."""
        return None if self._wigner is None else self._wigner.by_degree()


class WignerSums:
    """Gradient of the Wigner-D matrices; of all degrees at once where features allow.

    Args:
        pair: rotations of the incoming and of the outgoing features.
    """

    def __init__(self, pair: FramePair) -> None:
        self._total = [torch.zeros_like(matrix) for matrix in pair[0].wigner]
        self._blocks: dict[tuple[int, ...], tuple[EdgeFrames, Tensor]] = {}
        for frames in pair:
            degrees = frames.layout.fiber.degrees
            if frames.block is not None and degrees not in self._blocks:
                self._blocks[degrees] = frames, torch.zeros_like(frames.block)

    def add(self, frames: EdgeFrames, edges: slice, outside: Tensor, local: Tensor) -> None:
        """Add ``outside local^T`` of packed features and features in the edge frame."""
        layout = frames.layout
        if frames.block is None:
            frames.add_gradient(self._total, edges, outside, local)
            return
        part = self._blocks[layout.fiber.degrees][1][edges]
        count, rows, columns = part.shape
        local = local.view(count, columns, layout.channels)
        part.baddbmm_(outside.view(count, rows, layout.channels), local.transpose(1, 2))

    def by_degree(self) -> list[Tensor]:
        """Per degree ``[E, 2l+1, 2l+1]``."""
        for frames, block in self._blocks.values():
            first = 0
            for degree, columns in frames.layout.columns():
                rows, limit = slice(first, first + 2 * degree + 1), len(columns) // 2
                first += 2 * degree + 1
                if degree:
                    within = slice(degree - limit, degree + limit + 1)
                    self._total[degree][:, :, within] += block[:, rows, columns]
        return self._total


class _Sums:
    """Sums over the edges of a batch for activations or slopes, by group."""

    def __init__(self, form: ExpandedForm, batch: ExpandedBatch, slopes: bool) -> None:
        self._blocks = batch.blocks
        self._by_group = []
        for index, matrices in enumerate(form.packed):
            bases = [block.bases[index] for block in batch.blocks]
            columns = [b.slope_columns if slopes else b.value_columns for b in bases]
            self._by_group.append(ColumnSums(columns, matrices, form.plan.hidden))

    def add(self, block: FittedBlock, factor: Factor, rows: Tensor, gradient: Tensor) -> None:
        self._by_group[factor.group].add(block.position, factor.order, rows, gradient)

    def finish(self, radial: Sequence[Tensor], packed: Sequence[Sequence[Tensor]]) -> None:
        """Add to the gradients of activations or slopes, and of weights, as far as given."""
        for index, sums in enumerate(self._by_group):
            if packed:
                sums.add_weight_gradients(packed[index])
            if radial and any(block.bases[index].projects for block in self._blocks):
                gradients = sums.activation_gradients()
                for block, gradient in zip(self._blocks, gradients, strict=True):
                    if block.bases[index].projects:
                        radial[index][block.edges] = gradient


def first_gradients(
    form: ExpandedForm,
    wanted: Wanted,
    source: Tensor,
    x: Tensor,
    messages: Tensor,
    dy: Tensor,
    kept: Kept | None,
) -> Totals:
    """Gradients of the convolution.

    Args:
        form: the convolution.
        wanted: which gradients.
        source: source node of every edge ``[E]``.
        x: node features ``[N, fiber_in.dim]``.
        messages: of all edges, in the edge frame.
        dy: gradient of the messages ``[E, fiber_out.dim]``.
        kept: to be filled, if second gradients may follow.
    """
    dtype, (frames_in, frames_out) = form.settings.product_dtype, form.frames
    total = Totals(wanted, form, x, source.numel(), second=False)
    for batch in form.batches:
        sums = _Sums(form, batch, slopes=False) if wanted.sums else None
        for block in form.fitted(batch):
            for edges, within in form.chunks(block):
                sources, gradient = source[edges], dy[edges]
                gathered = x.index_select(0, sources)
                local = frames_in.rotate_in(gathered, edges)
                dlocal = frames_out.rotate_in(gradient, edges)
                u0 = kept.back_values[edges] if kept else form.room(local)
                u1 = kept.back_slopes[edges] if kept else form.room(local)
                curved = form.room(local) if kept else None
                for factor in form.factors:
                    basis, features = block.bases[factor.group], form.incoming(local, factor)
                    rows = uncouple(form.outgoing(dlocal, factor), dtype)
                    values, slopes = basis.values[within], basis.slopes[within]
                    back = form.back(rows, block, factor, basis.rank if kept else values.shape[1])
                    add = not factor.alone
                    over_ranks(back, values, form.incoming(u0, factor), add)
                    if wanted.change:
                        over_ranks(back, slopes, form.incoming(u1, factor), add)
                    if curved is not None:
                        curvatures = basis.curvatures[within]
                        over_ranks(back, curvatures, form.incoming(curved, factor), add)
                    if sums:
                        columns = basis.value_columns.values[within]
                        sums.add(block, factor, outer(columns, features, dtype), rows)
                    if wanted.radial and not basis.projects:
                        read = over_channels(back[:, :, : values.shape[1]], features)
                        total.values[factor.group][edges] += read @ basis.rows
                if kept and curved is not None:
                    kept.curved[edges] = (curved * local).sum(1)
                if total.change is not None:
                    total.change[edges] = (u1 * local).sum(1)
                total.add_wigner(frames_out, edges, gradient, messages[edges])
                total.add_wigner(frames_in, edges, gathered, u0)
                total.features.index_add_(0, sources, frames_in.rotate_out(u0, edges))
        if sums:
            sums.finish(total.values, total.packed)
    return total


@dataclass(frozen=True)
class Direction:
    """Gradients of the first gradients: along what S is a derivative.

    Attributes:
        features: ``[N, fiber_in.dim]``.
        lengths: ``[E]``.
        frames: of the changes of the Wigner-D matrices; ``None`` if these do not change.
    """

    features: Tensor
    lengths: Tensor
    frames: FramePair | None


def second_gradients(
    form: ExpandedForm,
    wanted: Wanted,
    source: Tensor,
    x: Tensor,
    messages: Tensor,
    dy: Tensor,
    kept: Kept,
    along: Direction,
) -> tuple[Totals, Tensor]:
    """Gradients of S, see the module.

    Args:
        form: the convolution.
        wanted: which gradients.
        source: source node of every edge ``[E]``.
        x: node features ``[N, fiber_in.dim]``.
        messages: of all edges, in the edge frame.
        dy: gradient of the messages ``[E, fiber_out.dim]``.
        kept: from the first gradients.
        along: the direction.

    Returns:
        the gradients, and that of ``dy``.
    """
    dtype, (frames_in, frames_out) = form.settings.product_dtype, form.frames
    total, ddy = Totals(wanted, form, x, source.numel(), second=True), torch.empty_like(dy)
    for batch in form.batches:
        by_values = _Sums(form, batch, slopes=False) if wanted.sums else None
        by_slopes = _Sums(form, batch, slopes=True) if wanted.sums else None
        for block in form.fitted(batch):
            for edges, within in form.chunks(block):
                sources, gradient, step = source[edges], dy[edges], along.lengths[edges, None]
                gathered = x.index_select(0, sources)
                moved = along.features.index_select(0, sources)
                u0, u1 = kept.back_values[edges], kept.back_slopes[edges]
                local = frames_in.rotate_in(gathered, edges)
                moving = frames_in.rotate_in(moved, edges)
                dlocal = frames_out.rotate_in(gradient, edges)
                turning: Tensor | None = None
                if along.frames is not None:
                    moving = moving + _turn_in(along.frames[0], gathered, edges)
                    turning = _turn_in(along.frames[1], gradient, edges)
                x_local, y_local = u1 * step, form.room(local, outgoing=True)
                bent = torch.zeros_like(local) if wanted.change else None
                for factor in form.factors:
                    basis = block.bases[factor.group]
                    values, slopes = basis.values[within], basis.slopes[within]
                    features, moves = form.incoming(local, factor), form.incoming(moving, factor)
                    products = outer(values, moves, dtype)
                    add_outer(products, slopes * step, features)
                    form.put_product(products, block, factor, y_local)
                    rows = uncouple(form.outgoing(dlocal, factor), dtype)
                    columns = basis.value_columns.values[within]
                    if by_values and by_slopes:
                        sloped = basis.slope_columns.values[within] * step
                        by_values.add(block, factor, outer(columns, moves, dtype), rows)
                        by_slopes.add(block, factor, outer(sloped, features, dtype), rows)
                    if wanted.radial and not basis.projects:
                        back = form.back(rows, block, factor, values.shape[1])
                        read = over_channels(back, moves)
                        total.values[factor.group][edges] += read @ basis.rows
                        read = over_channels(back, features) * step
                        total.slopes[factor.group][edges] += read @ basis.rows
                    if turning is None:
                        continue
                    rows = uncouple(form.outgoing(turning, factor), dtype)
                    back = form.back(rows, block, factor, values.shape[1])
                    over_ranks(back, values, form.incoming(x_local, factor), add=True)
                    if bent is not None:
                        over_ranks(back, slopes, form.incoming(bent, factor), add=True)
                    if by_values:
                        by_values.add(block, factor, outer(columns, features, dtype), rows)
                    if wanted.radial and not basis.projects:
                        read = over_channels(back, features)
                        total.values[factor.group][edges] += read @ basis.rows
                if total.change is not None and bent is not None:
                    part = (bent * local).sum(1) + (u1 * moving).sum(1)
                    total.change[edges] = part + along.lengths[edges] * kept.curved[edges]
                frames_out.rotate_out(y_local, edges, ddy[edges])
                dx = frames_in.rotate_out(x_local, edges)
                if along.frames is not None:
                    ddy[edges] += _turn_out(along.frames[1], messages[edges], edges)
                    dx = dx + _turn_out(along.frames[0], u0, edges)
                total.features.index_add_(0, sources, dx)
                total.add_wigner(frames_in, edges, gathered, x_local)
                total.add_wigner(frames_in, edges, moved, u0)
                total.add_wigner(frames_out, edges, gradient, y_local)
        if by_values and by_slopes:
            by_values.finish(total.values, total.packed)
            by_slopes.finish(total.slopes, total.packed)
    return total, ddy


def _turn_in(frames: EdgeFrames, features: Tensor, edges: slice) -> Tensor:
    """Into the edge frame by changes of the Wigner-D matrices; that of degree 0 is constant."""
    layout = frames.layout
    if layout.fiber.max_degree == 0:
        return torch.zeros_like(features)
    local = frames.rotate_in(features, edges)
    if 0 in layout.fiber:
        layout.order(local, 0)[:, :, : layout.fiber[0]] = 0
    return local


def _turn_out(frames: EdgeFrames, local: Tensor, edges: slice) -> Tensor:
    """Transpose of :func:`_turn_in`."""
    fiber = frames.layout.fiber
    if fiber.max_degree == 0:
        return torch.zeros_like(local)
    features = frames.rotate_out(local, edges)
    if 0 in fiber:
        features[:, : fiber[0]] = 0
    return features
