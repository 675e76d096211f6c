from __future__ import annotations

import importlib
import sys

import pytest

from pyg_se3.cli import benchmark, main


@pytest.fixture(autouse=True)
def _path(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))  # benchmark.package() adds the checkout


def test_help_names_every_benchmark(capsys):
    main(["benchmark", "--help"])
    out = capsys.readouterr().out
    assert all(name in out for name in benchmark.BENCHMARKS)


def test_unknown_benchmark():
    with pytest.raises(SystemExit, match="unknown benchmark 'speed'"):
        benchmark.main(["speed"])


@pytest.mark.parametrize("name", benchmark.BENCHMARKS)
def test_every_benchmark_is_there_and_explains_itself(name, capsys):
    module = importlib.import_module(f"{benchmark.package()}.{benchmark.BENCHMARKS[name][0]}")
    assert callable(module.main)
    with pytest.raises(SystemExit) as end:
        benchmark.main([name, "--help"])
    assert end.value.code == 0
    assert "usage: " in capsys.readouterr().out


def test_options_without_a_name_are_those_of_the_qm9_figure(capsys):
    with pytest.raises(SystemExit) as end:
        benchmark.main(["--quick", "--batch-sizes", "many"])
    assert end.value.code == 2
    assert "--batch-sizes: invalid int value: 'many'" in capsys.readouterr().err


def test_missing_folder_is_named(monkeypatch, tmp_path):
    package = tmp_path / "src" / "pyg_se3"
    package.mkdir(parents=True)
    monkeypatch.setattr(benchmark.pyg_se3, "__file__", str(package / "__init__.py"))
    with pytest.raises(FileNotFoundError, match="no benchmarks folder"):
        benchmark.package()
