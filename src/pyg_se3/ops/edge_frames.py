"""Features of edges in their frames as one flat row per edge, and the rotations there and back."""

from __future__ import annotations

from collections.abc import Hashable, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pyg_se3.fiber import Fiber
from pyg_se3.ops.plan import TFNPlan


@dataclass(frozen=True)
class FrameLayout:
    """Order of features in the edge frame: what one ``|m|`` couples is contiguous.

    A row holds the components of m = 0, then for m = 1, 2, .. those of -m and of +m; each over
    the channels of all degrees >= m, ascending. Components beyond ``max_order`` couple to nothing
    and are left out.

    Attributes:
        fiber: of the features.
        max_order: largest ``|m|`` that couples.
        dim: length of a row.
    """

    fiber: Fiber
    max_order: int
    dim: int = field(init=False)
    _starts: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _widths: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        starts, widths, start = [], [], 0
        for m in range(self.max_order + 1):
            width = sum(channels for degree, channels in self.fiber.items() if degree >= m)
            starts.append(start)
            widths.append(width)
            start += 2 * width if m else width
        object.__setattr__(self, "dim", start)
        object.__setattr__(self, "_starts", tuple(starts))
        object.__setattr__(self, "_widths", tuple(widths))

    @classmethod
    @cache
    def of(cls, fiber: Fiber, max_order: int) -> FrameLayout:
        """The layout of these features, made once."""
        return cls(fiber, max_order)

    @property
    def channels(self) -> int:
        """Channels of the lowest degree, which every degree has in a uniform fiber."""
        return self.fiber.channels[0]

    def order(self, local: Tensor, m: int) -> Tensor:
        """Components -m and +m, or 0, of rows ``[e, dim]``: a view ``[e, c, C(m)]``."""
        components, width = 2 if m else 1, self._widths[m]
        part = local.narrow(1, self._starts[m], components * width)
        return part.view(local.shape[0], components, width)

    def degree(self, local: Tensor, degree: int) -> Tensor:
        """Components of one degree, -m .. m, as ``[e, 2 min(l, max_order) + 1, C_l]``."""
        negative, positive = [], []
        for m in range(min(degree, self.max_order) + 1):
            pair = self.order(local, m)[:, :, self._channels(degree, m)]
            positive.append(pair[:, -1])
            if m:
                negative.append(pair[:, 0])
        return torch.stack([*reversed(negative), *positive], 1)

    def set_degree(self, local: Tensor, degree: int, block: Tensor) -> None:
        """Write what :meth:`degree` reads."""
        centre = min(degree, self.max_order)
        for m in range(centre + 1):
            target = self.order(local, m)[:, :, self._channels(degree, m)]
            target.copy_(block[:, centre - m : centre + m + 1 : 2 * m or 1])

    def columns(self) -> list[tuple[int, list[int]]]:
        """Per degree where its components -m .. m are, in units of C channels per degree."""
        degrees = self.fiber.degrees
        start, places = 0, {}
        for m in range(self.max_order + 1):
            coupled = [degree for degree in degrees if degree >= m]
            for sign in (-1, 1) if m else (1,):
                for degree in coupled:
                    places[degree, sign * m] = start
                    start += 1
        found = []
        for degree in degrees:
            limit = min(degree, self.max_order)
            found.append((degree, [places[degree, m] for m in range(-limit, limit + 1)]))
        return found

    def _channels(self, degree: int, m: int) -> slice:
        start = sum(c for d, c in self.fiber.items() if m <= d < degree)
        return slice(start, start + self.fiber[degree])


def block_wigner(layout: FrameLayout, wigner: Sequence[Tensor]) -> Tensor:
    """Wigner-D matrices of all degrees as one block matrix, columns in the layout's order.

    Args:
        layout: of features with equally many channels of each degree.
        wigner: per degree ``[E, 2l+1, 2l+1]``.

    Returns:
        ``[E, R, dim / C]`` with R the number of components of all degrees.
    """
    degrees = layout.fiber.degrees
    rows = sum(2 * degree + 1 for degree in degrees)
    block = wigner[0].new_zeros(wigner[0].shape[0], rows, layout.dim // layout.channels)
    first = 0
    for degree, columns in layout.columns():
        matrix, limit = wigner[degree].detach(), len(columns) // 2
        coupled = matrix[:, :, degree - limit : degree + limit + 1]
        block[:, first : first + 2 * degree + 1, columns] = coupled
        first += 2 * degree + 1
    return block


@dataclass(frozen=True)
class EdgeFrames:
    """Rotations of packed features into and out of the frames of edges, without a graph.

    Attributes:
        layout: in the edge frame.
        wigner: per degree ``[E, 2l+1, 2l+1]``.
        block: of :func:`block_wigner` where every degree has as many channels, else ``None``:
            one product then rotates all degrees.
    """

    layout: FrameLayout
    wigner: Sequence[Tensor]
    block: Tensor | None

    @classmethod
    def of(
        cls,
        fiber: Fiber,
        max_order: int,
        wigner: Sequence[Tensor],
        shared: MutableMapping[Hashable, Any],
    ) -> EdgeFrames:
        """For features of a fiber.

        Args:
            fiber: of the features.
            max_order: largest ``|m|`` that couples.
            wigner: per degree ``[E, 2l+1, 2l+1]``.
            shared: where block matrices are kept for other features with the same degrees.
        """
        layout = FrameLayout.of(fiber, max_order)
        if not fiber.is_uniform or fiber.max_degree == 0:
            return cls(layout, wigner, None)
        key = block_wigner, fiber.degrees, max_order
        if key not in shared:
            shared[key] = block_wigner(layout, wigner)
        return cls(layout, wigner, shared[key])

    def rotate_in(self, features: Tensor, edges: slice) -> Tensor:
        """Rows ``[e, layout.dim]`` of packed features ``[e, fiber.dim]``."""
        layout, fiber = self.layout, self.layout.fiber
        if fiber.max_degree == 0:
            return features
        count = features.shape[0]
        if self.block is not None:
            block = self.block[edges]
            components = features.view(count, block.shape[1], self.layout.channels)
            return torch.bmm(block.transpose(1, 2), components).view(count, layout.dim)
        local = features.new_empty(count, layout.dim)
        for degree, part in fiber.split(features).items():
            if degree:
                part = torch.bmm(self._matrix(degree, edges).transpose(1, 2), part)
            layout.set_degree(local, degree, part)
        return local

    def rotate_out(self, local: Tensor, edges: slice, out: Tensor | None = None) -> Tensor:
        """Packed features ``[e, fiber.dim]`` of rows ``[e, layout.dim]``, written to ``out``."""
        layout, fiber = self.layout, self.layout.fiber
        if fiber.max_degree == 0:
            return local if out is None else out.copy_(local)
        if out is None:
            out = local.new_empty(local.shape[0], fiber.dim)
        if self.block is not None:
            block = self.block[edges]
            count, rows, columns = block.shape
            components = local.view(count, columns, layout.channels)
            torch.bmm(block, components, out=out.view(count, rows, layout.channels))
            return out
        for degree, part in fiber.split(out).items():
            found = layout.degree(local, degree)
            part.copy_(torch.bmm(self._matrix(degree, edges), found) if degree else found)
        return out

    def add_gradient(
        self, total: Sequence[Tensor], edges: slice, outside: Tensor, local: Tensor
    ) -> None:
        """Add ``outside local^T``: gradient of D where ``outside = D local`` or its transpose.

        Args:
            total: per degree ``[E, 2l+1, 2l+1]``, added to.
            edges: which edges.
            outside: packed ``[e, fiber.dim]``.
            local: ``[e, layout.dim]``.
        """
        for degree, part in self.layout.fiber.split(outside).items():
            if degree:
                limit = min(degree, self.layout.max_order)
                product = torch.bmm(part, self.layout.degree(local, degree).transpose(1, 2))
                total[degree][edges, :, degree - limit : degree + limit + 1] += product

    def _matrix(self, degree: int, edges: slice) -> Tensor:
        limit = self.layout.max_order
        matrix = self.wigner[degree][edges]
        return matrix[:, :, degree - limit : degree + limit + 1] if degree > limit else matrix


FramePair = tuple[EdgeFrames, EdgeFrames]
"""Rotations of the incoming and of the outgoing features of a convolution."""


def edge_frames(
    plan: TFNPlan,
    wigner: Sequence[Tensor],
    shared: MutableMapping[Hashable, Any] | None = None,
) -> FramePair:
    """Rotations for a convolution; see :meth:`EdgeFrames.of`."""
    memory = {} if shared is None else shared
    return (
        EdgeFrames.of(plan.fiber_in, plan.max_order, wigner, memory),
        EdgeFrames.of(plan.fiber_out, plan.max_order, wigner, memory),
    )
