"""The table of errors, on a small model: low precision is at most twice as far off as plain."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.inputs import qm9_batch

from benchmarks import precision

MINI = Path(__file__).parents[1] / "fixtures" / "qm9_mini.csv"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    batch = qm9_batch(12, root=tmp_path_factory.mktemp("qm9"), raw_path=MINI, seed=1)
    sizes = {"num_layers": 2, "num_degrees": 2, "num_channels": 16}
    return precision.measure(batch, sizes, seeds=1, kernel="auto")


def test_errors_are_ordered_and_at_most_twice_those_of_plain_autocast(rows):
    found = {setting.name: (ours, plain) for setting, _, ours, plain in rows}
    assert list(found) == ["32", "32, kernel.fast=true", "bf16-mixed", "16-mixed"]
    for name in ("equivariance", "output"):
        exact, fast, brain, half = (found[setting][0][name] for setting in found)
        assert 0 < exact < 1e-5 and fast < 1e-5 and exact < half < brain < 0.2
        for setting in ("bf16-mixed", "16-mixed"):
            ours, plain = found[setting]
            assert ours[name] <= 2 * plain[name], (setting, name)


def test_table(rows):
    lines = precision.table(rows).splitlines()
    assert len(lines) == 2 + len(rows) and all(line.count("|") == 11 for line in lines)
    assert "nan" not in "\n".join(lines)
