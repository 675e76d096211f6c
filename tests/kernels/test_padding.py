"""Tensor cores want rows of 16 bytes: widths are padded there, and nothing else changes."""

import pytest
import torch

from pyg_se3 import KernelOptions
from pyg_se3.ops import dispatch
from pyg_se3.ops.stacked_bases import StackedBases


@pytest.fixture
def padded(monkeypatch):
    """As on a GPU in 16 bits."""
    monkeypatch.setattr(dispatch, "_column_multiple", lambda *_: 8)


@pytest.mark.parametrize("compress", [False, True], ids=["full", "compress"])
@pytest.mark.parametrize(
    "fibers, options",
    [
        (({0: 3, 1: 3}, {0: 3, 1: 3}), {}),
        (({0: 4, 1: 6}, {0: 6, 1: 2}), {"sharing": "output"}),
        (({0: 4, 1: 4}, {0: 8, 1: 8}), {}),
        (({0: 4, 1: 2}, {0: 3, 1: 5}), {"heads": 1, "value": {0: 2, 1: 3}}),
    ],
    ids=["equal", "unequal", "aligned", "attention"],
)
def test_padding_changes_nothing(
    fibers, options, compress, padded, make_problem, reference, assert_agree
):
    problem = make_problem(*fibers, nodes=12, edges=150, **options)
    found = problem.derivatives(KernelOptions(kernel="edge", compress=compress, chunk_size=40))
    assert_agree(found, problem.derivatives(reference))


def test_products_have_padded_widths(padded, make_problem, monkeypatch):
    widths, weights = [], StackedBases.weights

    def watch(*arguments):
        found = weights(*arguments)
        widths.extend(matrix.shape[1] for matrix in found)
        return found

    monkeypatch.setattr(StackedBases, "weights", watch)
    problem = make_problem({0: 3, 1: 3}, {0: 3, 1: 3}, nodes=12, edges=150)
    problem.derivatives(KernelOptions(kernel="edge", compress=False))
    assert set(widths) == {8}


def test_where_there_are_tensor_cores():
    choose, cuda, cpu = dispatch._column_multiple, torch.device("cuda"), torch.device("cpu")
    assert [choose(cuda, d) for d in (torch.bfloat16, torch.float16, torch.float32)] == [8, 8, 1]
    assert choose(cuda, torch.float64) == 1 and choose(cpu, torch.bfloat16) == 1
    earlier = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    assert choose(cuda, torch.float32) == 4
    torch.set_float32_matmul_precision(earlier)
