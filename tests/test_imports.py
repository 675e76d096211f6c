"""Imports flow one way through the package."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "pyg_se3"
MATHS = {"autocast", "fiber", "so3"}
MAY_IMPORT = {
    "autocast": set(),
    "fiber": set(),
    "so3": {"autocast"},
    "ops": MATHS,
    "nn": MATHS | {"ops"},
    "models": MATHS | {"ops", "nn"},
    "data": MATHS,
    "training": MATHS | {"ops", "nn", "models"},
    "compat": MATHS | {"ops", "nn", "models", "training"},
    "cli": MATHS | {"ops", "nn", "models", "data", "training", "compat"},
    "testing": MATHS,
}
TOP = {"__init__", "__main__"}


def room(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_rooms(text, package):
    """Rooms of pyg_se3 that a module imports, lazily or not; ``package`` is where it lies."""
    names = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *base.split(".")])
            base = base.rstrip(".")
            names += [f"{base}.{alias.name}" for alias in node.names]
    parts = [name.split(".") for name in names]
    return {p[1] for p in parts if p[0] == "pyg_se3" and len(p) > 1}


MODULES = sorted(path for path in SOURCE.rglob("*.py") if room(path) not in TOP)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_imports_only_from_rooms_before_its_own(path):
    package = ["pyg_se3", *path.relative_to(SOURCE).parts[:-1]]
    own = room(path)
    found = imported_rooms(path.read_text(encoding="utf-8"), package) - {own}
    if found - set(MAY_IMPORT):  # names of pyg_se3/__init__.py, which imports up to the models
        found = (found & set(MAY_IMPORT)) | {"models"}
    assert found <= MAY_IMPORT[own], f"{own} may not import {sorted(found - MAY_IMPORT[own])}"


def test_every_room_is_known():
    rooms = {room(path) for path in SOURCE.rglob("*.py")} - TOP
    assert rooms <= set(MAY_IMPORT)
    assert {"fiber", "so3", "ops", "nn", "models"} <= rooms


def test_the_parser_sees_every_form_of_import():
    text = (
        "import pyg_se3.nn.conv as c\nfrom pyg_se3 import ops\nfrom ..models import base\n"
        "def f():\n    from pyg_se3.cli.train import x\n    from . import y\nimport torch.nn\n"
    )
    assert imported_rooms(text, ["pyg_se3", "so3"]) == {"nn", "ops", "models", "cli", "so3"}
