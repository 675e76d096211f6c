from __future__ import annotations

import pytest

import pyg_se3
from pyg_se3.cli import main


def test_usage(capsys):
    for arguments in ([], ["--help"]):
        main(arguments)
        out = capsys.readouterr().out
        assert all(command in out for command in ("train", "evaluate", "fit"))
    main(["--version"])
    assert capsys.readouterr().out.strip() == f"pyg-se3 {pyg_se3.__version__}"


def test_unknown_command():
    with pytest.raises(SystemExit, match="unknown command 'trian'. Did you mean 'train'?"):
        main(["trian"])
