"""Coupling coefficients against e3nn and against what defines them."""

import pytest
import torch
from e3nn import o3

from pyg_se3.so3 import clebsch_gordan, wigner_d
from pyg_se3.testing import random_rotations

TRIPLES = [(j, i, k) for i in range(5) for k in range(5) for j in range(abs(i - k), i + k + 1)] + [
    (16, 8, 8),
    (1, 8, 8),
    (12, 6, 7),
]


@pytest.mark.parametrize("triple", TRIPLES, ids=str)
def test_is_e3nns_with_axes_reversed(triple):
    j, i, k = triple
    coupling = clebsch_gordan(j, i, k)
    assert coupling.shape == (2 * k + 1, 2 * i + 1, 2 * j + 1)
    assert coupling.dtype == torch.float64
    expected = o3.wigner_3j(j, i, k, dtype=torch.float64).permute(2, 1, 0)
    torch.testing.assert_close(coupling, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("pair", [(0, 0), (0, 3), (1, 1), (2, 1), (3, 3), (4, 2), (8, 5)], ids=str)
def test_couplings_of_a_pair_are_orthogonal(pair):
    i, k = pair
    rows = torch.cat(
        [clebsch_gordan(j, i, k).flatten(0, 1).T for j in range(abs(i - k), i + k + 1)]
    )
    degrees = torch.cat(
        [torch.full((2 * j + 1,), 2.0 * j + 1) for j in range(abs(i - k), i + k + 1)]
    )
    # Complete: as many rows as products of components, each of square norm 1 / (2J + 1).
    assert rows.shape[0] == (2 * i + 1) * (2 * k + 1)
    torch.testing.assert_close(rows @ rows.T, torch.diag(1 / degrees.double()), rtol=0, atol=1e-13)


@pytest.mark.parametrize("triple", [(1, 1, 1), (2, 1, 2), (3, 2, 4), (4, 4, 4), (7, 8, 2)], ids=str)
def test_commutes_with_rotations(triple, generator):
    j, i, k = triple
    d = [m[0] for m in wigner_d(random_rotations(1, generator=generator), max(triple))]
    coupling = clebsch_gordan(j, i, k)
    turned = torch.einsum("abc,xa,yb,zc->xyz", coupling, d[k], d[i], d[j])
    torch.testing.assert_close(turned, coupling, rtol=0, atol=1e-12)


@pytest.mark.parametrize("triple", [(3, 1, 1), (0, 1, 2), (1, 4, 2)], ids=str)
def test_degrees_that_do_not_couple_are_refused(triple):
    with pytest.raises(ValueError, match="do not couple"):
        clebsch_gordan(*triple)
