"""The comparison of Triton with cuBLAS; without a device the interpreter stands in for one."""

import importlib.util

import pytest
import torch
from benchmarks.triton_product import KERNELS, Case, main, measure, tiles


@pytest.fixture
def kernels():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed: pip install 'pyg-se3[triton]'")
    from pyg_se3.ops import triton_kernels

    if not triton_kernels.INTERPRETED:
        pytest.skip("TRITON_INTERPRET=1 came after Triton's first import, or is not wanted")
    return triton_kernels


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_measures_both_kernels(kernels, precision, monkeypatch):
    called = []
    for name, kernel in KERNELS.items():
        monkeypatch.setitem(
            KERNELS, name, lambda *a, name=name, kernel=kernel: called.append(name) or kernel(*a)
        )
    case = Case(degree=1, channels=1, edges=6, chunk=4, precision=precision, hidden=2)
    for name in KERNELS:
        found = measure(case, name, torch.device("cpu"), repeats=1)
        assert found.forward > 0 and found.training > 0
        assert set(called) == {name}
        called.clear()


def test_tries_tiles(kernels, monkeypatch, capsys):
    monkeypatch.setattr("itertools.product", lambda *sides: [(16, 16, 16, 4, 2)])
    case = Case(degree=1, channels=1, edges=3, chunk=4, precision="float32", hidden=2)
    tiles(case, torch.device("cpu"), repeats=1)
    output = capsys.readouterr().out
    for name in ("product", "inputs", "weights"):
        assert f"float32 {name}: " in output
    assert output.count("the default") == output.count("rows=16, inner=16") == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_refuses_without_a_device(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert "no CUDA device here" in capsys.readouterr().err
