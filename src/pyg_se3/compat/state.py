"""Finding NVIDIA's parameters in what people keep them in."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ENTRIES = ("state_dict", "model_state_dict", "final_state_dict", "model", "net")
"""Where training checkpoints keep the parameters."""

MARK = "graph_modules."
"""What every parameter of an SE3Transformer has in its name."""


def read_state_dict(
    source: Mapping[str, Any] | str | os.PathLike[str],
    prefix: str | None = None,
    entry: str | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Parameters of one SE(3)-Transformer, named as NVIDIA's class names them.

    Args:
        source: a state dict, a checkpoint that holds one, or the file of either. Files are read
            with ``weights_only=True``.
        prefix: take the parameters whose names start so, of a larger model.
        entry: entry of the checkpoint to take, if several hold parameters.

    Returns:
        The parameters, and what :func:`pyg_se3.compat.nvidia.export` noted with them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read safely, holds no such parameters, or more than those.
    """
    checkpoint = source if isinstance(source, Mapping) else _read(Path(source))
    state = _unwrap(checkpoint, entry)
    note = dict(getattr(state, "_metadata", None) or {}).get("pyg_se3") or {}
    return _select(dict(state), prefix), dict(note)


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "not a checkpoint"
        raise ValueError(
            f"{path} cannot be read safely (weights_only=True): {reason}. If you trust its origin, "
            "read it with torch.load yourself and hand over the state dict"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is no checkpoint, or it is damaged: {error}") from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, expected a state dict")
    return checkpoint


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(v, Tensor) for v in value.values())
    )


def _unwrap(checkpoint: Mapping[str, Any], entry: str | None) -> Mapping[str, Any]:
    if entry is not None:
        if not _is_state_dict(checkpoint.get(entry)):
            raise ValueError(
                f"the checkpoint has no state dict under {entry!r}; its entries are "
                f"{sorted(map(str, checkpoint))[:20]}"
            )
        return checkpoint[entry]
    if _is_state_dict(checkpoint):
        return checkpoint
    found = [name for name in ENTRIES if _is_state_dict(checkpoint.get(name))]
    if len(found) == 1:
        return checkpoint[found[0]]
    if found:
        raise ValueError(f"the checkpoint has several state dicts; say entry= one of {found}")
    raise ValueError(
        f"no state dict found: expected one, or a checkpoint with one of {list(ENTRIES)}; "
        f"its entries are {sorted(map(str, checkpoint))[:20]}"
    )


def _select(state: dict[str, Tensor], prefix: str | None) -> dict[str, Tensor]:
    if prefix is not None:
        chosen = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if not chosen:
            raise ValueError(
                f"no parameter starts with {prefix!r}; SE(3)-Transformers are at {_models(state)}"
            )
        state = chosen
    while state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    models = _models(state)
    if not models:
        raise ValueError(
            "these are not the parameters of NVIDIA's SE(3)-Transformer: no name contains "
            f"{MARK!r}; the first are {sorted(state)[:5]}"
        )
    if len(models) > 1:
        raise ValueError(f"several SE(3)-Transformers are in it; say prefix= one of {models}")
    (found,) = models
    chosen = {k.removeprefix(found): v for k, v in state.items() if k.startswith(found)}
    if len(chosen) < len(state):
        others = sorted(key for key in state if not key.startswith(found))
        raise ValueError(
            f"{len(others)} parameters are not of the SE(3)-Transformer, such as {others[:3]}; "
            f"say prefix={found!r} to take that part alone"
        )
    return chosen


def _models(state: Mapping[str, Any]) -> list[str]:
    """Prefixes of the models in a state dict."""
    prefixes = {key[: key.index(MARK)] for key in state if MARK in key}
    found = []
    for prefix in prefixes:
        whole = prefix.removesuffix("transformer.")
        pooled = whole != prefix and any(key.startswith(whole + "mlp.") for key in state)
        found.append(whole if pooled else prefix)
    return sorted(found)
