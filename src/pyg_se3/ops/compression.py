"""Fewer radial activations: leave out silent ones, then keep the span of the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

WORTHWHILE_RANK = 0.6
"""Compress only if the rank is below this fraction of the active columns."""

TANGENT_TOLERANCE = 2.0
"""Error allowed in the span of the derivatives, in units of that of the activations."""


@dataclass(frozen=True)
class RadialBasis:
    """How the radial activations ``g`` ``[e, H]`` of a block of edges enter the products.

    Attributes:
        values: ``[e, w]``, what takes the place of ``g``; the first ``rank`` columns make the
            messages, the others only gradients of the radial MLP.
        rank: number of columns that make the messages.
        active: indices of the columns of ``g`` that ``values`` holds, if it is a selection.
        coordinates: ``[rank, H]`` with ``g ~ values[:, :rank] @ coordinates``, if it is not;
            ``values`` is orthonormal then.
        spans_tangents: the columns span the derivatives of ``g`` with respect to the parameters
            of the radial MLP: for these, the gradient of ``g`` may be projected to the columns.
    """

    values: Tensor
    rank: int
    active: Tensor | None = None
    coordinates: Tensor | None = None
    spans_tangents: bool = False

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.values.shape[1]

    @property
    def is_identity(self) -> bool:
        """Whether ``values`` is ``g`` itself."""
        return self.active is None and self.coordinates is None

    def rows(self, hidden: int) -> Tensor:
        """``[rank, H]`` with ``g ~ values[:, :rank] @ rows``."""
        if self.coordinates is not None:
            return self.coordinates
        if self.active is None:
            raise ValueError("the basis is the activations themselves and needs no rows")
        return torch.eye(hidden, dtype=self.values.dtype, device=self.values.device)[self.active]


def full_basis(radial: Tensor) -> RadialBasis:
    """The activations ``[e, H]`` as they are."""
    return RadialBasis(radial, radial.shape[1])


def pruned_basis(radial: Tensor) -> RadialBasis:
    """The activations ``[e, H]`` without the columns that are zero throughout.

    Such a column contributes nothing and, behind a ReLU, has no gradient: leaving it out is exact.
    """
    active = (radial != 0).any(0).nonzero().squeeze(-1)
    if active.numel() == 0:  # keep the shapes of the products
        active = active.new_zeros(1)
    return RadialBasis(radial[:, active], active.numel(), active=active)


def compressed_basis(radial: Tensor, tangents: Tensor | None, tolerance: float) -> RadialBasis:
    """Cheapest representation of activations out of a ReLU that is right to ``tolerance``.

    Activations are nearly a curve if the edges have one type and similar lengths; an orthonormal
    basis of their span comes from the float64 Gram matrix. Singular values below about 1e-8 of the
    largest are lost in that matrix, so float64 activations are pruned only.

    Args:
        radial: activations ``[e, H]``.
        tangents: columns ``[e, s]`` that span the derivatives of the activations with respect to
            the parameters of the radial MLP, if gradients of these are wanted from the basis.
        tolerance: allowed relative error (Frobenius norm).
    """
    pruned = pruned_basis(radial)
    if radial.dtype == torch.float64 or pruned.width == 1:
        return pruned
    activations = pruned.values.double()
    basis = orthonormal_span(activations, activations.norm(), tolerance)
    if basis.shape[1] > WORTHWHILE_RANK * pruned.width:
        return pruned
    coordinates = (basis.T @ radial.double()).to(radial.dtype)
    rank = basis.shape[1]
    if tangents is not None:
        columns = tangents.double()
        rest = columns - basis @ (basis.T @ columns)
        extra = orthonormal_span(rest, columns.norm(), TANGENT_TOLERANCE * tolerance)
        basis = torch.cat([basis, extra], dim=1)
        if basis.shape[1] > pruned.width:
            return pruned
    return RadialBasis(
        basis.to(radial.dtype),
        rank,
        coordinates=coordinates,
        spans_tangents=tangents is not None,
    )


def orthonormal_span(columns: Tensor, scale: Tensor, tolerance: float) -> Tensor:
    """Orthonormal basis ``[e, r]`` of columns up to an error of ``tolerance * scale``."""
    energies, vectors = torch.linalg.eigh(columns.T @ columns)
    lost = energies.clamp(min=0).cumsum(0)  # ascending: energy lost when dropping the first ones
    kept = lost > (tolerance * scale) ** 2
    span = columns @ vectors[:, kept]
    return span / span.norm(dim=0)  # small energies are less accurate than this
