from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pyg_se3.cli import main

MINI = Path(__file__).parents[1] / "fixtures" / "qm9_mini.csv"


@pytest.fixture(scope="session")
def tiny(data_root: Path) -> list[str]:
    """Overrides that make a run of seconds on the fixture."""
    return [
        f"data.raw_path={MINI}", f"data.root={data_root}", "data.split=[40,12,12]",
        "data.batch_size=8", "data.limit_val=null", "model.num_layers=2", "model.num_degrees=2",
        "model.num_channels=4", "model.num_heads=2", "trainer=cpu",
    ]  # fmt: skip


@dataclass
class Done:
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Run ``pyg-se3`` in a folder of its own, in this process: importing torch takes seconds."""

    def run(*arguments: str, code: int = 0) -> Done:
        monkeypatch.chdir(tmp_path)
        # It sets them for Hydra and LightningCLI; this puts them back after the test.
        monkeypatch.setattr(sys, "argv", list(sys.argv))
        capsys.readouterr()
        found: int | str | None = 0
        try:
            main(list(arguments))
        except SystemExit as end:
            found = end.code
        out, err = capsys.readouterr()
        if isinstance(found, str):  # Python prints it when the process ends.
            found, err = 1, f"{err}{found}\n"
        assert (found or 0) == code, out + err
        return Done(found or 0, out, err)

    return run


@pytest.fixture(scope="session")
def in_a_child() -> Callable[..., int]:
    """Run ``pyg-se3`` in a copy of this process, which may die of it; its exit status."""

    def run(arguments: list[str], prepare: Callable[[], None], errors: str = os.devnull) -> int:
        child = os.fork()
        if child == 0:
            code = 1  # pytest must not see what happens here
            sys.stderr = open(errors, "w", buffering=1)
            try:
                prepare()
                main(arguments)
                code = 0
            except SystemExit as end:
                code = int(bool(end.code))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.close()
                os._exit(code)
        return os.waitpid(child, 0)[1]

    return run
