from __future__ import annotations

import pytest

from pyg_se3.training.files import atomic_path, set_aside, write_text


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="in the middle"), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("in the middle")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_set_aside_takes_the_first_free_number(tmp_path):
    path = tmp_path / "a.txt"
    for number in (1, 2, 3):
        write_text(path, str(number))
        assert set_aside(path) == tmp_path / f"a.{number}.txt"
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "a.1.txt": "1", "a.2.txt": "2", "a.3.txt": "3"
    }  # fmt: skip
