"""One representation of radial activations, their slopes and curvatures, for a block of edges.

Two sides of the same matrices ``[e, H]`` are compressed. Products with features need few *rows*
that span the activations of every edge. Gradients of the weights and of the radial MLPs need few
*columns* that span, over the edges, what is summed over.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyg_se3.ops.compression import TANGENT_TOLERANCE, WORTHWHILE_RANK, orthonormal_span

SLOPE_SHARE = 0.25
"""Accuracy of the slopes as a fraction of that of the activations: they carry more round-off,
which would raise the rank."""

CURVATURE_SHARE = 0.1
"""The same of the curvatures. They only enter the gradient by positions of a function of forces,
next to larger terms."""


@dataclass(frozen=True)
class Columns:
    """Matrices ``[e, H]`` of a block as ``values @ rows``.

    Attributes:
        values: ``[e, w]``; orthonormal if it spans tangents.
        rows: ``[w, H]``.
    """

    values: Tensor
    rows: Tensor

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.values.shape[1]


@dataclass(frozen=True)
class JointBasis:
    """How the activations of a radial MLP over a block of edges enter the products.

    Attributes:
        rows: orthonormal ``[r, H]``. The first rows span activations and slopes, all of them the
            curvatures, too.
        values: ``[e, r1]``, coordinates of the activations: ``values @ rows[:r1]`` gives them.
        slopes: ``[e, r1]``, those of the slopes.
        curvatures: ``[e, r]``, those of the curvatures.
        value_columns: the activations by columns.
        slope_columns: the slopes by columns.
        projects: the columns also span the derivatives with respect to the parameters of the MLP:
            gradients of activations and slopes may be projected to them. Otherwise the rows are
            rows of the unit matrix and gradients of all activations can be read off.
    """

    rows: Tensor
    values: Tensor
    slopes: Tensor
    curvatures: Tensor
    value_columns: Columns
    slope_columns: Columns
    projects: bool

    @property
    def rank(self) -> int:
        """Number of rows."""
        return self.rows.shape[0]


def selected_basis(values: Tensor, slopes: Tensor, curvatures: Tensor, prune: bool) -> JointBasis:
    """All activations ``[e, H]``, or those that are not zero throughout; exact.

    Args:
        values: activations.
        slopes: their derivatives along the distance.
        curvatures: their second derivatives.
        prune: leave out activations that are zero throughout, and so have no gradient behind a
            ReLU.
    """
    rows = torch.eye(values.shape[1], dtype=values.dtype, device=values.device)
    if prune:
        active = (values != 0).any(0).nonzero().squeeze(-1)
        if active.numel() == 0:  # keep the shapes of the products
            active = active.new_zeros(1)
        values, slopes, curvatures = values[:, active], slopes[:, active], curvatures[:, active]
        rows = rows[active]
    by_columns = Columns(values, rows), Columns(slopes, rows)
    return JointBasis(rows, values, slopes, curvatures, *by_columns, projects=False)


def compressed_joint_basis(
    values: Tensor,
    slopes: Tensor,
    curvatures: Tensor,
    tangents: tuple[Tensor, Tensor] | None,
    tolerance: float,
) -> JointBasis:
    """Cheapest basis that is right to ``tolerance``, relative, for activations out of a ReLU.

    Args:
        values: activations ``[e, H]``.
        slopes: their derivatives along the distance.
        curvatures: their second derivatives.
        tangents: columns ``[e, s]`` that span the derivatives of values and of slopes with respect
            to the parameters of the radial MLP; ``None`` if these need no gradient.
        tolerance: allowed error (Frobenius norm).
    """
    active = int((values != 0).any(0).sum())
    if values.dtype == torch.float64 or active <= 1:
        return selected_basis(values, slopes, curvatures, prune=True)
    wide = [matrix.double() for matrix in (values, slopes, curvatures)]
    both = torch.cat([_scaled(wide[0]), SLOPE_SHARE * _scaled(wide[1])])
    rows = _row_span(both, tolerance)
    rank = rows.shape[1]
    rest = _scaled(wide[2])
    rest = rest - (rest @ rows) @ rows.T
    rows = torch.cat([rows, _row_span(rest, tolerance / CURVATURE_SHARE)], dim=1)
    if rows.shape[1] > WORTHWHILE_RANK * active:
        return selected_basis(values, slopes, curvatures, prune=True)
    sketches = (None, None) if tangents is None else tangents
    value_columns = _columns(wide[0], sketches[0], tolerance)
    slope_columns = _columns(wide[1], sketches[1], tolerance / SLOPE_SHARE)
    if max(value_columns.width, slope_columns.width) > active:
        return selected_basis(values, slopes, curvatures, prune=True)
    first, second = ((matrix @ rows[:, :rank]).to(values.dtype) for matrix in wide[:2])
    return JointBasis(
        rows.T.to(values.dtype),
        first,
        second,
        (wide[2] @ rows).to(values.dtype),
        value_columns,
        slope_columns,
        projects=True,
    )


def _scaled(matrix: Tensor) -> Tensor:
    """A matrix of norm 1, unless it is zero."""
    return matrix / matrix.norm().clamp(min=torch.finfo(matrix.dtype).tiny)


def _row_span(matrix: Tensor, tolerance: float) -> Tensor:
    """Orthonormal ``[H, r]`` that spans the rows of a matrix up to an error of ``tolerance``."""
    energies, vectors = torch.linalg.eigh(matrix.T @ matrix)
    lost = energies.clamp(min=0).cumsum(0)  # ascending: energy lost when dropping the first ones
    return vectors[:, lost > tolerance**2]


def _columns(matrix: Tensor, tangents: Tensor | None, tolerance: float) -> Columns:
    """Orthonormal columns that span those of a matrix ``[e, H]``, and its tangents."""
    basis = orthonormal_span(matrix, matrix.norm(), tolerance)
    if tangents is not None:
        wide = tangents.double()
        rest = wide - basis @ (basis.T @ wide)
        extra = orthonormal_span(rest, wide.norm(), TANGENT_TOLERANCE * tolerance)
        basis = torch.cat([basis, extra], dim=1)
    return Columns(basis.float(), (basis.T @ matrix).float())
