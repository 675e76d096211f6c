"""Harmonics against e3nn, and beyond its degrees against what defines them."""

import math
import sys

import pytest
import torch
from e3nn import o3

from pyg_se3.so3 import spherical_harmonics, wigner_d
from pyg_se3.testing import random_rotations

HIGH = 16


@pytest.fixture
def vectors(generator):
    return 3 * torch.randn(40, 3, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("degree", range(12))
def test_equal_e3nns(degree, vectors):
    harmonics = spherical_harmonics(degree, vectors)
    assert len(harmonics) == degree + 1
    expected = o3.spherical_harmonics(degree, vectors, normalize=True, normalization="integral")
    torch.testing.assert_close(harmonics[degree], expected, rtol=0, atol=1e-12)


def test_high_degrees_are_equivariant(vectors, generator):
    rotation = random_rotations(1, generator=generator)
    matrices = wigner_d(rotation, HIGH)
    before = spherical_harmonics(HIGH, vectors)
    after = spherical_harmonics(HIGH, vectors @ rotation[0].T)
    for degree in range(HIGH + 1):
        turned = before[degree] @ matrices[degree][0].T
        torch.testing.assert_close(after[degree], turned, rtol=0, atol=1e-10)


def test_high_degrees_have_the_norm_of_unsoeld(vectors):
    for degree, harmonic in enumerate(spherical_harmonics(HIGH, vectors)):
        square = torch.full((40,), (2 * degree + 1) / (4 * math.pi), dtype=torch.float64)
        torch.testing.assert_close(harmonic.square().sum(1), square, rtol=1e-10, atol=0)


def test_only_the_middle_component_is_left_at_the_pole():
    harmonics = spherical_harmonics(HIGH, torch.tensor([[0.0, 2.0, 0.0]], dtype=torch.float64))
    for degree, harmonic in enumerate(harmonics):
        expected = torch.zeros(1, 2 * degree + 1, dtype=torch.float64)
        expected[0, degree] = math.sqrt((2 * degree + 1) / (4 * math.pi))
        torch.testing.assert_close(harmonic, expected, rtol=0, atol=1e-10)


def test_recursion_continues_e3nns_signs(vectors, monkeypatch):
    whole = spherical_harmonics(11, vectors)
    # the function hides the module of the same name
    monkeypatch.setattr(sys.modules[spherical_harmonics.__module__], "E3NN_MAX_DEGREE", 4)
    for got, expected in zip(spherical_harmonics(11, vectors), whole, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)


def test_length_does_not_matter_and_zero_has_degree_zero_only(vectors):
    for near, far in zip(
        spherical_harmonics(13, vectors), spherical_harmonics(13, 50 * vectors), strict=True
    ):
        torch.testing.assert_close(near, far, rtol=0, atol=1e-11)
    zero = spherical_harmonics(13, torch.zeros(1, 3))
    assert zero[0].item() == pytest.approx(1 / math.sqrt(4 * math.pi))
    assert all(not bool(h.any()) for h in zero[1:])
