"""Where results come from: code, packages, machine."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

PACKAGES = (
    "pyg-se3", "torch", "torch_geometric", "torch_cluster", "torch_scatter", "triton", "e3nn",
    "pytorch-lightning", "torchmetrics", "hydra-core", "numpy", "rdkit", "qm9pack",
)  # fmt: skip


def provenance(folder: str | os.PathLike[str] = ".") -> dict[str, Any]:
    """What was run, with which code, on which machine; plain values.

    Args:
        folder: Folder whose git revision is recorded.
    """
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "git": git_state(folder),
        "packages": {name: found for name in PACKAGES if (found := _version(name)) is not None},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cuda": torch.version.cuda,
    }


def git_state(folder: str | os.PathLike[str] = ".") -> dict[str, Any] | None:
    """Commit of a folder and whether its tracked files differ from it.

    Args:
        folder: Any folder.

    Returns:
        ``revision`` and ``dirty``; None outside a repository, without a commit, or without git.
    """
    revision = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if revision is None or changes is None:
        return None
    return {"revision": revision, "dirty": bool(changes)}


def _git(folder: str | os.PathLike[str], *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", os.fspath(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
