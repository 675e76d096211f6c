"""Wigner-D matrices and edge frames: right, smooth on the poles, finite at zero length."""

import pytest
import torch
from e3nn import o3

from pyg_se3.so3 import EdgeGeometry, polar_rotation, spherical_harmonics, wigner_d
from pyg_se3.testing import random_rotations

AXES = torch.tensor(
    [[0, 1, 0], [0, -1, 0], [1, 0, 0], [-1, 0, 0], [0, 0, 1], [0, 0, -1]], dtype=torch.float64
)
NEAR_POLES = torch.tensor(
    [[1e-9, 1, 0], [0, -1, 1e-9], [1e-5, -1, 1e-5], [1, 1e-12, 0], [1, -1e-12, 0]],
    dtype=torch.float64,
)


@pytest.fixture
def directions(generator):
    random = torch.randn(30, 3, dtype=torch.float64, generator=generator)
    vectors = torch.cat([AXES, NEAR_POLES, random])
    return vectors / vectors.norm(dim=1, keepdim=True)


def test_random_rotations_are_rotations(generator):
    rotations = random_rotations(100, generator=generator)
    identity = torch.eye(3, dtype=torch.float64).expand(100, 3, 3)
    torch.testing.assert_close(rotations @ rotations.mT, identity, rtol=0, atol=1e-14)
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(100, dtype=torch.float64))
    # uniform: no direction is preferred
    assert random_rotations(20000, generator=generator).mean(0).abs().max() < 0.02


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_polar_axis_goes_to_the_direction(directions, dtype):
    directions = directions.to(dtype)
    rotations = polar_rotation(directions)
    tolerance = 1e-14 if dtype == torch.float64 else 1e-6
    pole = torch.tensor([0.0, 1.0, 0.0], dtype=dtype)
    torch.testing.assert_close(rotations @ pole, directions, rtol=0, atol=tolerance)
    identity = torch.eye(3, dtype=dtype).expand_as(rotations)
    torch.testing.assert_close(rotations @ rotations.mT, identity, rtol=0, atol=tolerance)
    assert (torch.linalg.det(rotations) > 0).all()


def test_degree_one_is_the_rotation_itself(generator):
    rotations = random_rotations(5, generator=generator)
    matrices = wigner_d(rotations, 1)
    assert torch.equal(matrices[0], torch.ones(5, 1, 1, dtype=torch.float64))
    assert torch.equal(matrices[1], rotations)


def test_wigner_d_is_a_representation(generator):
    first, second = random_rotations(4, generator=generator), random_rotations(4)
    products = zip(
        wigner_d(first, 8), wigner_d(second, 8), wigner_d(first @ second, 8), strict=True
    )
    for one, two, both in products:
        torch.testing.assert_close(one @ two, both, rtol=0, atol=1e-12)
    for matrix in wigner_d(torch.eye(3, dtype=torch.float64)[None], 8):
        identity = torch.eye(matrix.shape[1], dtype=torch.float64)
        torch.testing.assert_close(matrix[0], identity, rtol=0, atol=1e-13)


def test_wigner_d_is_e3nns(generator):
    """To e3nn's own precision: it stores constants of its Wigner-D in float32."""
    rotations = random_rotations(4, generator=generator)
    angles = o3.matrix_to_angles(rotations)
    for degree, matrix in enumerate(wigner_d(rotations, 6)):
        expected = o3.wigner_D(degree, *angles)
        torch.testing.assert_close(matrix, expected, rtol=0, atol=1e-5)


def test_wigner_d_of_no_edges():
    shapes = [tuple(m.shape) for m in wigner_d(torch.zeros(0, 3, 3), 3)]
    assert shapes == [(0, 1, 1), (0, 3, 3), (0, 5, 5), (0, 7, 7)]


def test_frames_turn_the_polar_harmonics_to_the_edge(directions):
    geometry = EdgeGeometry.from_vectors(2.5 * directions, 8)
    pole = spherical_harmonics(8, torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64))
    for degree, harmonic in enumerate(spherical_harmonics(8, directions)):
        turned = geometry.wigner[degree] @ pole[degree][0]
        torch.testing.assert_close(turned, harmonic, rtol=0, atol=1e-10)
    torch.testing.assert_close(geometry.distance, torch.full_like(geometry.distance, 2.5))


def _numbers(vectors):
    """Functions of the geometry: what is free (the angle about an edge) stays free."""
    geometry = EdgeGeometry.from_vectors(vectors, 3)
    return (geometry.distance, *geometry.wigner[1:])


def _off_the_charts_border(vectors):
    """At n_y = 0 the frame jumps (harmlessly): finite differences must not cross it."""
    return vectors + torch.tensor([0.0, 0.05, 0.0], dtype=torch.float64)


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_geometry_is_differentiable_on_poles_and_axes(check):
    vectors = torch.cat([AXES[:2], _off_the_charts_border(AXES[2:]), NEAR_POLES[:3]])
    assert check(_numbers, (1.7 * vectors).requires_grad_())


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_what_does_not_depend_on_the_gauge_is_smooth_everywhere(check):
    """The m = 0 column of D_l is the harmonic of the edge: no chart can be seen in it."""

    def columns(vectors):
        wigner = EdgeGeometry.from_vectors(vectors, 3).wigner
        return tuple(matrix[:, :, degree] for degree, matrix in enumerate(wigner) if degree)

    assert check(columns, (1.3 * torch.cat([AXES, NEAR_POLES])).requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_edges_of_zero_length_are_finite(dtype):
    vectors = torch.tensor([[0, 0, 0], [1, 2, 2], [0, 0, 0]], dtype=dtype).requires_grad_()
    geometry = EdgeGeometry.from_vectors(vectors, 4)
    assert geometry.undirected.tolist() == [0, 2]
    assert geometry.distance.tolist() == [0.0, 3.0, 0.0]
    for degree, matrix in enumerate(geometry.wigner):
        assert bool(matrix[[0, 2]].any()) == (degree == 0)
    total = geometry.distance.sum() + sum(m.square().sum() + m.sum() for m in geometry.wigner)
    (first,) = torch.autograd.grad(total, vectors, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), vectors)
    for gradient in (first, second):
        assert gradient.isfinite().all()
        assert not gradient[[0, 2]].any()
    assert first[1].abs().sum() > 0


def test_no_edges():
    geometry = EdgeGeometry.from_vectors(torch.zeros(0, 3), 2)
    assert geometry.num_edges == 0
    assert geometry.max_degree == 2
    assert geometry.undirected is None


def test_permute_takes_zero_length_edges_along(generator):
    vectors = torch.randn(6, 3, dtype=torch.float64, generator=generator)
    vectors[[1, 4]] = 0
    order = torch.tensor([4, 0, 5, 1, 2, 3])
    moved = EdgeGeometry.from_vectors(vectors, 2).permute(order)
    fresh = EdgeGeometry.from_vectors(vectors[order], 2)
    assert sorted(moved.undirected.tolist()) == fresh.undirected.tolist() == [0, 3]
    assert torch.equal(moved.distance, fresh.distance)
    for one, other in zip(moved.wigner, fresh.wigner, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-15)


def test_detaching():
    vectors = torch.randn(3, 3).requires_grad_()
    geometry = EdgeGeometry.from_vectors(vectors, 2)
    assert geometry.requires_grad
    assert not geometry.detach().requires_grad
    half = geometry.detach_directions()
    assert half.distance.requires_grad
    assert not any(matrix.requires_grad for matrix in half.wigner)


def test_conversion_keeps_indices():
    vectors = torch.tensor([[0.0, 0, 0], [1, 0, 0]])
    geometry = EdgeGeometry.from_vectors(vectors, 1).to(torch.float64)
    assert geometry.distance.dtype == geometry.wigner[1].dtype == torch.float64
    assert geometry.undirected.dtype == torch.int64


@pytest.mark.parametrize(
    "vectors", [torch.zeros(4, 2), torch.zeros(3), torch.zeros(4, 3, dtype=torch.long)], ids=str
)
def test_other_than_vectors_are_refused(vectors):
    with pytest.raises(ValueError, match=r"expected floating point of shape \[E, 3\]"):
        EdgeGeometry.from_vectors(vectors, 1)
