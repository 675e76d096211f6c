"""The README's code runs, and its commands are accepted."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from torch_geometric.data import Batch

from pyg_se3.cli.config import check_overrides
from pyg_se3.data import QM9

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [line for language, code in BLOCKS if language == "bash" for line in code.splitlines()]


@pytest.fixture(scope="module")
def batch(tmp_path_factory) -> Batch:
    root = tmp_path_factory.mktemp("qm9")
    mini = QM9(root, raw_path=ROOT / "tests" / "fixtures" / "qm9_mini.csv", progress=False)
    return mini.batch(range(4))


def test_own_model(batch):
    names: dict = {}
    exec(PYTHON[0], names)
    out = names["Net"]()(batch)
    assert out.shape == (4, 1)
    out.sum().backward()


def test_whole_models(batch):
    names = {
        "batch": batch,
        "pos": batch.pos,
        "edge_index": batch.edge_index,
        "scalars": torch.randn(batch.num_nodes, 8, 1),
        "vectors": torch.randn(batch.num_nodes, 3, 3),
    }
    exec(PYTHON[1], names)
    assert names["prediction"].shape == (4, 1)
    assert names["vectors"].shape == (batch.num_nodes, 1, 3)


def test_commands_are_accepted():
    lines = [shlex.split(line, comments=True) for line in COMMANDS]
    overrides = [words[2:] for words in lines if words[:2] == ["python", "train.py"]]
    assert len(overrides) >= 7
    for arguments in overrides:
        check_overrides("train", [a.replace("...", "x") for a in arguments])
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    made = [words[1] for words in lines if words[:1] == ["make"]]
    assert {"train", "test"} <= set(made)
    assert all(re.search(rf"^{target}:.*##", targets, re.MULTILINE) for target in made)
