from __future__ import annotations

from pathlib import Path

import pytest

from pyg_se3.data import QM9

MINI = Path(__file__).parents[1] / "fixtures" / "qm9_mini.csv"


@pytest.fixture(scope="session")
def mini_path() -> Path:
    return MINI


@pytest.fixture(scope="session")
def mini_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("qm9")


@pytest.fixture(scope="session")
def mini(mini_root: Path) -> QM9:
    return QM9(mini_root, raw_path=MINI, progress=False)
