"""Bases of radial activations, slopes and curvatures together."""

import torch

from pyg_se3.nn.radial import RadialProfile
from pyg_se3.nn.radial_expansion import radial_expansion
from pyg_se3.ops.joint_basis import compressed_joint_basis, selected_basis


def _expansion(dtype, low=1.0, high=1.02, edges=300):
    torch.manual_seed(0)
    profile = RadialProfile(1, 32).to(dtype)
    distance = torch.linspace(low, high, edges, dtype=torch.float64).to(dtype)
    expansion = radial_expansion([profile], distance[:, None], distance, sketch=True)
    matrices = expansion.values[0], expansion.slopes[0], expansion.curvatures[0]
    tangents = expansion.value_tangents[0], expansion.slope_tangents[0]
    return [matrix.detach() for matrix in matrices], tangents


def _error(got, expected):
    return float((got - expected).norm() / expected.norm())


def test_few_rows_and_columns_hold_all_to_the_tolerance():
    matrices, tangents = _expansion(torch.float32)
    active = selected_basis(*matrices, prune=True).rank
    basis = compressed_joint_basis(*matrices, tangents, tolerance=1e-6)
    assert basis.projects and basis.rank < active / 2
    values, slopes, curvatures = matrices
    rank = basis.values.shape[1]
    assert basis.slopes.shape[1] == rank <= basis.rank == basis.curvatures.shape[1]
    assert _error(basis.values @ basis.rows[:rank], values) < 2e-6
    assert _error(basis.slopes @ basis.rows[:rank], slopes) < 8e-6
    assert _error(basis.curvatures @ basis.rows, curvatures) < 2e-5
    for columns, matrix, sketch in zip(
        (basis.value_columns, basis.slope_columns), (values, slopes), tangents, strict=True
    ):
        assert columns.width < active / 2
        assert _error(columns.values @ columns.rows, matrix) < 8e-6
        unit = columns.values.T @ columns.values
        torch.testing.assert_close(unit, torch.eye(columns.width), rtol=0, atol=1e-4)
        assert _error(columns.values @ (columns.values.T @ sketch), sketch) < 2e-5


def test_exact_where_compression_is_not_worthwhile():
    for matrices, tangents in (_expansion(torch.float64), _expansion(torch.float32, 0.1, 9.0)):
        basis = compressed_joint_basis(*matrices, tangents, tolerance=1e-7)
        assert not basis.projects
        for part, matrix in zip(
            (basis.values, basis.slopes, basis.curvatures), matrices, strict=True
        ):
            assert torch.equal(part @ basis.rows, matrix)


def test_silent_activations_and_constant_ones():
    zeros = torch.zeros(20, 32)
    silent = compressed_joint_basis(zeros, zeros, zeros, None, tolerance=1e-6)
    assert silent.rank == 1 and torch.equal(silent.values @ silent.rows, zeros)
    values = torch.ones(20, 1) * torch.rand(32)
    constant = compressed_joint_basis(values, zeros, zeros, None, tolerance=1e-6)
    assert constant.rank == 1 and constant.slope_columns.width == 0
    torch.testing.assert_close(constant.values @ constant.rows, values)
