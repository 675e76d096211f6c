"""Fewer radial activations: leave out silent ones, then keep the span of the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

WORTHWHILE_RANK = 0.6
"""Compress only if the rank is below this fraction of the active columns."""


@dataclass(frozen=True)
class RadialBasis:
    """How the radial activations ``g`` ``[e, H]`` of one chunk of edges are represented.

    Attributes:
        active: indices of the columns of ``g`` that are not zero throughout, or ``None`` for all.
        span: ``[len(active), r]`` with orthonormal columns, ``g[:, active] ~ (g[:, active] @ span)
        @ span.T``; ``None`` keeps the active columns as they are.
    """

    active: Tensor | None = None
    span: Tensor | None = None

    @property
    def exact(self) -> RadialBasis:
        """The representation without compression, for the gradient with respect to ``g``."""
        return RadialBasis(self.active)

    def activations(self, radial: Tensor) -> Tensor:
        """Coordinates ``[e, r]`` of activations ``[e, H]``."""
        if self.active is not None:
            radial = radial[:, self.active]
        return radial if self.span is None else radial @ self.span

    def weights(self, matrix: Tensor, hidden: int) -> Tensor:
        """Rows ``[r * K, C]`` of a packed weight ``[H * K, C]`` that fit :meth:`activations`."""
        if self.active is None:
            return matrix
        rows = matrix.view(hidden, -1)
        rows = rows[self.active] if self.span is None else self._full_span(hidden).T @ rows
        return rows.view(-1, matrix.shape[1])

    def add_weight_gradient(self, total: Tensor, gradient: Tensor, hidden: int) -> None:
        """Add the gradient ``[r * K, C]`` of :meth:`weights` to ``total`` ``[H * K, C]``."""
        flat = total.view(hidden, -1)
        if self.active is None:
            total.add_(gradient)
        elif self.span is None:
            flat.index_add_(0, self.active, gradient.view(self.active.numel(), -1))
        else:
            flat.addmm_(self._full_span(hidden), gradient.view(self.span.shape[1], -1))

    def _full_span(self, hidden: int) -> Tensor:
        assert self.span is not None and self.active is not None
        full = self.span.new_zeros(hidden, self.span.shape[1])
        full[self.active] = self.span
        return full


def choose_basis(radial: Tensor, tolerance: float) -> RadialBasis:
    """Cheapest representation of non-negative activations that is right to ``tolerance``.

    A column that is zero for every edge of the chunk contributes nothing and, behind a ReLU, has no
    gradient: leaving it out is exact. What remains is nearly a curve if the edges have one type and
    similar lengths; its span comes from the float64 Gram matrix. Singular values below about 1e-8
    of the largest are lost in that matrix, so float64 activations are pruned only.

    Args:
        radial: activations of one chunk, ``[e, H]``, out of a ReLU.
        tolerance: allowed relative error (Frobenius norm).
    """
    active = (radial != 0).any(0).nonzero().squeeze(-1)
    if radial.dtype == torch.float64 or active.numel() == 0:
        return RadialBasis(active)
    columns = radial[:, active].double()
    energies, vectors = torch.linalg.eigh(columns.T @ columns)
    tail = energies.clamp(min=0).cumsum(0)  # ascending: energy lost when dropping the first ones
    rank = active.numel() - int((tail <= tolerance**2 * tail[-1]).sum())
    if rank > WORTHWHILE_RANK * active.numel():
        return RadialBasis(active)
    return RadialBasis(active, vectors[:, active.numel() - rank :].to(radial.dtype))
