"""Real spherical harmonics in e3nn's convention."""

from __future__ import annotations

import math

import torch
from e3nn import o3
from torch import Tensor

from pyg_se3.so3.clebsch_gordan import clebsch_gordan

E3NN_MAX_DEGREE = 11


def spherical_harmonics(max_degree: int, vectors: Tensor) -> list[Tensor]:
    """Harmonics ``Y_0 .. Y_max`` of the directions of ``vectors``.

    Polar axis y, normalised so that the integral of ``Y_lm^2`` over the sphere is one, hence
    ``Y_0 = 1/sqrt(4 pi)``. A zero vector has ``Y_0`` and zeros otherwise. Up to degree 11 the
    polynomials are e3nn's; higher ones follow from ``Y_l ~ Y_{l-1} x Y_1``.

    Args:
        max_degree: largest degree.
        vectors: ``[E, 3]``, any length and unit.

    Returns:
        one tensor ``[E, 2l+1]`` per degree.
    """
    direct = min(max_degree, E3NN_MAX_DEGREE)
    stacked = o3.spherical_harmonics(
        list(range(direct + 1)), vectors, normalize=True, normalization="integral"
    )
    harmonics = list(stacked.split([2 * degree + 1 for degree in range(direct + 1)], dim=-1))
    for degree in range(direct + 1, max_degree + 1):
        coupling = clebsch_gordan(degree - 1, 1, degree).to(vectors)
        product = torch.einsum("kli,el,ei->ek", coupling, harmonics[1], harmonics[-1])
        # The pole (0, 1, 0) fixes sign and scale: there Y_l0 = sqrt((2l+1)/4pi) > 0.
        pole = clebsch_gordan(degree - 1, 1, degree)[degree, 1, degree - 1].item()
        pole *= math.sqrt(3 * (2 * degree - 1)) / (4 * math.pi)
        harmonics.append(product * (math.sqrt((2 * degree + 1) / (4 * math.pi)) / pole))
    return harmonics
