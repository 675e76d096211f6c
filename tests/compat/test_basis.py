"""Harmonics, coupling coefficients and the basis against their definitions and known numbers."""

from itertools import product
from pathlib import Path

import pytest
import torch

from pyg_se3.compat.se3_transformer.model.basis import get_basis
from pyg_se3.compat.signs import changed_sign, pair_signs
from pyg_se3.so3 import clebsch_gordan, spherical_harmonics

FILE = Path(__file__).resolve().parents[3] / "shared" / "golden" / "basis.pt"
known = pytest.mark.skipif(not FILE.exists(), reason="the optional reference numbers are not here")

# Ascending degrees (J, l, k) up to 4, 4 and 8 whose sign e3nn 0.5 changed.
CHANGED = {(1, 2, 2), (1, 3, 3), (1, 4, 4), (3, 4, 6), (4, 4, 5)}


@pytest.fixture(scope="module")
def numbers():
    return torch.load(FILE, weights_only=True)


def test_which_signs_changed():
    for degree_in, degree_out in product(range(5), repeat=2):
        for j in range(abs(degree_in - degree_out), degree_in + degree_out + 1):
            expected = tuple(sorted((j, degree_in, degree_out))) in CHANGED
            assert changed_sign(j, degree_in, degree_out) == expected


def test_degrees_up_to_one_do_not_depend_on_the_signs():
    for pair in product(range(2), repeat=2):
        assert set(pair_signs(pair, "e3nn-0.3")) == {1.0}
    assert pair_signs((2, 2), "e3nn-0.3") == (1.0, -1.0, 1.0, 1.0, 1.0)
    assert pair_signs((1, 2), "e3nn-0.3") == (1.0, -1.0, 1.0)
    assert set(pair_signs((2, 2), "e3nn-0.5")) == {1.0}


def test_basis_is_harmonics_times_coupling():
    vectors = torch.randn(6, 3, dtype=torch.float64)
    basis = get_basis(vectors, 3, cg_convention="e3nn-0.5")
    harmonics = spherical_harmonics(5, vectors)
    tensor = basis["2,3"]
    assert tensor.shape == (6, 5, 5, 7)
    for f in range(5):
        expected = torch.einsum("em,klm->elk", harmonics[1 + f], clebsch_gordan(1 + f, 2, 3))
        torch.testing.assert_close(tensor[:, :, f], expected)
    with pytest.raises(KeyError, match="degree_in,degree_out"):
        basis["fully_fused"]


@known
def test_spherical_harmonics(numbers):
    found = torch.cat(spherical_harmonics(8, numbers["rel_pos"]), dim=1)
    torch.testing.assert_close(found, numbers["spherical_harmonics"], rtol=0, atol=1e-12)
    special = numbers["special_rel_pos"]
    found = torch.cat(spherical_harmonics(4, special), dim=1)
    torch.testing.assert_close(found, numbers["special_spherical_harmonics"], rtol=0, atol=1e-12)


@known
def test_coupling_coefficients(numbers):
    for key, expected in numbers["clebsch_gordan"].items():
        j, degree_in, degree_out = map(int, key.split(","))
        found = clebsch_gordan(j, degree_in, degree_out)
        torch.testing.assert_close(found, expected.double(), rtol=0, atol=1e-12)
    listed = {tuple(sorted(t)) for t in numbers["cg_sign_flipped_in_e3nn_before_0_5"]}
    assert listed == CHANGED


@known
def test_basis_numbers(numbers):
    vectors = numbers["rel_pos"]
    basis = get_basis(vectors, 4, cg_convention="e3nn-0.5")
    for key, expected in numbers["basis"].items():
        found = basis[key][: len(expected)]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for key, expected in numbers["basis_f32_first20"].items():
        torch.testing.assert_close(basis[key][:20].float(), expected, rtol=0, atol=2e-6)
    special = get_basis(numbers["special_rel_pos"], 4, cg_convention="e3nn-0.5")
    for key, expected in numbers["special_basis"].items():
        torch.testing.assert_close(special[key], expected, rtol=0, atol=1e-12)
