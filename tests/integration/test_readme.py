"""The README's code runs, and its commands are accepted."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import hydra
import pytest
import torch
from torch_geometric.data import Batch

from pyg_se3.cli.benchmark import BENCHMARKS
from pyg_se3.cli.config import SCHEMAS, check_overrides, config_dir, validate
from pyg_se3.data import QM9

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = [p.read_text(encoding="utf-8") for p in (*ROOT.glob("docs/*.md"), ROOT / "CONTRIBUTING.md")]
PATTERN = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
PYTHON = [code for language, code in PATTERN.findall(README) if language == "python"]
COMMANDS = [
    line
    for text in (README, *DOCS)
    for language, code in PATTERN.findall(text)
    if language == "bash"
    for line in code.replace("\\\n", " ").splitlines()
]


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
    known = {"train": 0, "evaluate": 0, "predict": 0}
    for words in lines:
        for start, name in (("train.py", "train"), *((name, name) for name in known)):
            if start in words[:5]:
                given = [word for word in words[words.index(start) + 1 :] if word != "-m"]
                assert_accepted(name, [word.replace("...", "x") for word in given])
                known[name] += 1
                break
    assert known["train"] >= 15 and known["evaluate"] >= 2 and known["predict"] >= 2
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    made = [
        word for words in lines if words[:1] == ["make"] for word in words[1:] if "=" not in word
    ]
    assert {"train", "test"} <= set(made)
    assert all(re.search(rf"^{target}:.*##", targets, re.MULTILINE) for target in made)
    benchmarks = [words[2:] for words in lines if words[:2] == ["pyg-se3", "benchmark"]]
    assert {words[0] for words in benchmarks if words and words[0][0] != "-"} <= BENCHMARKS.keys()


def assert_accepted(name: str, arguments: list[str]) -> None:
    if "--help" in arguments or "+experiment=qm9_homo_sweep" in arguments:
        return  # The sweep needs Optuna, which the tests of configurations look for.
    check_overrides(name, arguments)
    first = [re.sub(r"=([^\[{,]*),.*", r"=\1", argument) for argument in arguments]  # of a sweep
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = hydra.compose(name, first)
    validate(config, SCHEMAS[name])
