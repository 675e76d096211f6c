"""Checkpoints: written atomically, read safely, and enough to rebuild the model from."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import nn

from pyg_se3 import models
from pyg_se3.ops import KernelOptions
from pyg_se3.training.files import atomic_path

FORMAT = 1
"""Version of what ``hyper_parameters`` holds in a checkpoint."""

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
"""The checkpoint to resume from, and the one before it."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are whole or not there, also after a crash or on a full disk."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,
    ) -> None:
        """Write to a temporary file beside ``path``, flush it to disk, and rename it.

        Raises:
            OSError: If it cannot be written; names the file. An older file stays as it was.
            TypeError: If storage options are given.
        """
        if storage_options is not None:
            raise TypeError("storage_options are for remote file systems, which are not supported")
        try:
            with atomic_path(path) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:
            # torch reports a full disk as a RuntimeError of its zip writer.
            raise OSError(
                f"the checkpoint {path} could not be written ({_first_line(error)}). Is the disk "
                "full, a quota reached, or the folder read-only? Earlier checkpoints are intact: "
                "make room and continue with resume=true"
            ) from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint; see :func:`read_checkpoint`. Unsafe loading is refused.

        Raises:
            ValueError: If ``weights_only`` is False.
        """
        if weights_only is False:
            raise ValueError("checkpoints are read with weights_only=True; they need nothing else")
        return read_checkpoint(path, map_location or "cpu")


def read_checkpoint(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of this package safely (``weights_only``).

    Args:
        path: The file.
        map_location: See ``torch.load``.

    Returns:
        The checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint of this package, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        _check_sums(path)
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except OSError:
        raise
    except Exception as error:
        # Any kind: torch takes what is no archive for instructions, and follows them.
        raise ValueError(
            f"{path} is not a checkpoint that can be read safely, or it is damaged "
            f"({_why_unreadable(error)})"
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ValueError(f"{path} is not a checkpoint: it has no 'state_dict'")
    record = checkpoint.get("hyper_parameters")
    if not isinstance(record, dict) or "model" not in record:
        raise ValueError(f"{path} is not a checkpoint of pyg-se3: it does not name a model")
    if record.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {record.get('format')!r}; this version reads format {FORMAT}"
        )
    return checkpoint


def _why_unreadable(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        # torch's own words recommend to read it unsafely.
        return "it holds other things than tensors and plain values"
    return f"{type(error).__name__}: {_first_line(error)}"


def _check_sums(path: Path) -> None:
    """Compare the contents with the checksums in the file, which torch writes but does not read."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def find_checkpoint(folder: str | os.PathLike[str]) -> tuple[Path | None, list[str]]:
    """The newest checkpoint to resume from that is whole.

    Args:
        folder: Folder of ``last.ckpt`` and ``previous.ckpt``.

    Returns:
        Its path, None if there are no checkpoints; and what is wrong with a newer one.

    Raises:
        ValueError: If there are checkpoints, but none that can be read.
    """
    problems: list[str] = []
    for path in (Path(folder) / LAST, Path(folder) / PREVIOUS):
        if not path.exists():
            continue
        try:
            read_checkpoint(path)
        except ValueError as error:
            problems.append(str(error))
        else:
            return path, problems
    if problems:
        raise ValueError(
            "; ".join(problems)
            + ". There is no other to resume from: start again in another folder"
        )
    return None, []


def model_record(net: nn.Module) -> dict[str, Any]:
    """Class name and architecture of a model, as plain values."""
    return {"class": type(net).__name__, "config": getattr(net, "config", None)}


def build_model(record: dict[str, Any], kernel: KernelOptions | None = None) -> nn.Module:
    """A model of the recorded architecture, with fresh weights.

    Args:
        record: See :func:`model_record`.
        kernel: How it computes.

    Raises:
        ValueError: If the class is not one of :mod:`pyg_se3.models`.
    """
    name, config = record["class"], record["config"]
    if name not in models.__all__ or config is None:
        raise ValueError(
            f"the checkpoint holds a {name}, which is not one of {', '.join(models.__all__)}; "
            "build it yourself and load the checkpoint's 'state_dict'"
        )
    return getattr(models, name)(**config, kernel=kernel)


def load_model(
    path: str | os.PathLike[str], kernel: KernelOptions | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """The trained model of a checkpoint, in evaluation mode.

    Its outputs are standardised: times ``target_std``, plus ``target_mean`` of the checkpoint's
    ``state_dict`` they have the target's unit. The averaged weights are used where there are any.

    Args:
        path: The checkpoint.
        kernel: How the model computes.

    Returns:
        The model and the whole checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a checkpoint, or of another architecture than it says.
    """
    checkpoint = read_checkpoint(path)
    net = build_model(checkpoint["hyper_parameters"]["model"], kernel)
    prefix = "net."
    weights = {
        key.removeprefix(prefix): value
        for key, value in checkpoint["state_dict"].items()
        if key.startswith(prefix)
    }
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the weights in {path} do not fit its architecture: {error}") from error
    return net.eval(), checkpoint


def check_same_architecture(checkpoint: dict[str, Any], expected: dict[str, Any]) -> None:
    """Refuse a checkpoint of another model, target or split.

    Args:
        checkpoint: As read.
        expected: What the run at hand describes itself as.

    Raises:
        ValueError: Naming every difference.
    """
    found = checkpoint["hyper_parameters"]
    differences = _differences(found["model"], expected["model"], "model")
    differences += _differences(found["targets"], expected["targets"], "targets")
    splits = _split_of(found), _split_of(expected)
    if None not in splits:
        differences += _differences(splits[0], splits[1], "the split of the data")
    if differences:
        raise ValueError(
            "the checkpoint is of another run: " + "; ".join(differences) + ". Use the settings it "
            "was made with, or another checkpoint"
        )


def _split_of(record: dict[str, Any]) -> str | None:
    description = (record.get("data") or {}).get("description") or {}
    return description.get("split")


def _differences(found: Any, expected: Any, name: str) -> list[str]:
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = list(dict.fromkeys([*found, *expected]))
        return [
            text
            for key in keys
            for text in _differences(found.get(key), expected.get(key), f"{name}.{key}")
        ]
    if found == expected:
        return []
    return [f"{name} is {found!r} in the checkpoint, {expected!r} here"]
