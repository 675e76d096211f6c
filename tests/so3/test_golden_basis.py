"""Harmonics, coupling coefficients and bases against numbers made by NVIDIA's own code.

Where that folder is missing, test_spherical_harmonics.py and test_clebsch_gordan.py compare the
same functions with e3nn.
"""

from pathlib import Path

import pytest
import torch

from pyg_se3.so3 import clebsch_gordan, spherical_harmonics

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "basis.pt"

pytestmark = pytest.mark.skipif(
    not GOLDEN.is_file(), reason="the reference folder ../shared/golden is not there"
)


@pytest.fixture(scope="module")
def golden():
    return torch.load(GOLDEN, weights_only=True)


def basis(vectors, degree_in, degree_out):
    """``[E, 2l+1, J, 2k+1]``, what couples a pair of degrees along every edge."""
    harmonics = spherical_harmonics(degree_in + degree_out, vectors)
    return torch.stack(
        [
            torch.einsum(
                "em,klm->elk",
                harmonics[j],
                clebsch_gordan(j, degree_in, degree_out).to(vectors.dtype),
            )
            for j in range(abs(degree_in - degree_out), degree_in + degree_out + 1)
        ],
        dim=2,
    )


def test_spherical_harmonics(golden):
    got = torch.cat(spherical_harmonics(8, golden["rel_pos"].double()), dim=1)
    torch.testing.assert_close(got, golden["spherical_harmonics"], rtol=0, atol=1e-12)


def test_clebsch_gordan(golden):
    assert golden["clebsch_gordan"]
    for triple, expected in golden["clebsch_gordan"].items():
        got = clebsch_gordan(*map(int, triple.split(",")))
        torch.testing.assert_close(got, expected.double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name, dtype", [("basis", torch.float64), ("basis_f32_first20", None)])
def test_bases(golden, name, dtype):
    assert golden[name]
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for pair, expected in golden[name].items():
        vectors = golden["rel_pos"][: expected.shape[0]].double()
        got = basis(vectors, *map(int, pair.split(",")))
        torch.testing.assert_close(got, expected.double(), rtol=0, atol=tolerance)


def test_axes_zero_tiny_and_large_vectors(golden):
    vectors = golden["special_rel_pos"].double()
    got = torch.cat(spherical_harmonics(4, vectors), dim=1)
    torch.testing.assert_close(got, golden["special_spherical_harmonics"], rtol=0, atol=1e-12)
    for pair, expected in golden["special_basis"].items():
        got = basis(vectors, *map(int, pair.split(",")))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
