"""Imports flow one way through the packages."""

from __future__ import annotations

import ast
from pathlib import Path

import pyg_se3

SOURCE = Path(pyg_se3.__file__).parent
# What each room may import, besides itself.
ALLOWED = {
    "fiber": set(),
    "so3": {"fiber"},
    "ops": {"fiber", "so3"},
    "nn": {"fiber", "so3", "ops"},
    "models": {"fiber", "so3", "ops", "nn"},
    "data": {"fiber", "so3"},
    "training": {"fiber", "so3", "ops", "nn", "models"},
    "compat": {"fiber", "so3", "ops", "nn", "models", "training"},
    "cli": {"fiber", "so3", "ops", "nn", "models", "data", "training", "compat"},
    "testing": {"fiber", "so3", "ops", "nn", "models"},
}


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names]
            # `from pyg_se3 import models` names a room; `from pyg_se3.ops import x` does already.
            rooms |= {n.split(".")[1] for n in names if n.startswith("pyg_se3.")}
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            rooms |= {n.split(".")[1] for n in names if n.startswith("pyg_se3.")}
    return rooms


def test_imports_flow_one_way():
    seen = set()
    for path in sorted(SOURCE.rglob("*.py")):
        room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        seen.add(room)
        too_many = imported_rooms(path) & (ALLOWED.keys() - ALLOWED[room] - {room})
        assert not too_many, f"{path.relative_to(SOURCE)} may not import {sorted(too_many)}"
    assert {"fiber", "so3", "ops", "nn", "models", "data", "training", "cli"} <= seen


def test_every_room_is_known():
    rooms = {p.name.removesuffix(".py") for p in SOURCE.iterdir() if not p.name.startswith("_")}
    assert rooms - {"conf"} <= ALLOWED.keys()
