"""Small helpers with NVIDIA's names."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor


def degree_to_dim(degree: int) -> int:
    """``2 l + 1``."""
    return 2 * degree + 1


def unfuse_features(features: Tensor, degrees: list[int]) -> dict[str, Tensor]:
    """Features by degree of a tensor ``[N, C, sum(2l+1)]`` of equally many channels each."""
    parts = features.split([degree_to_dim(degree) for degree in degrees], dim=-1)
    return {str(degree): part for degree, part in zip(degrees, parts, strict=True)}


def aggregate_residual(
    feats1: dict[str, Tensor], feats2: dict[str, Tensor], method: str
) -> dict[str, Tensor]:
    """Features of ``feats2``, added to or (``cat``) followed by those of ``feats1``.

    Raises:
        ValueError: unknown method.
    """
    if method in ("add", "sum"):
        return {k: v + feats1[k] if k in feats1 else v for k, v in feats2.items()}
    if method in ("cat", "concat"):
        return {
            k: torch.cat([v, feats1[k]], dim=1) if k in feats1 else v for k, v in feats2.items()
        }
    raise ValueError(f"unknown method {method!r}, expected 'add', 'sum', 'cat' or 'concat'")


def str2bool(value: bool | str) -> bool:
    """A truth value of a command line argument."""
    if isinstance(value, bool):
        return value
    if value.lower() in ("yes", "true", "t", "y", "1"):
        return True
    if value.lower() in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"expected a truth value, got {value!r}")


def to_cuda(x: Any) -> Any:
    """``x`` on the current CUDA device; tensors, graphs, and lists, tuples and dicts of them."""
    if isinstance(x, dict):
        return {key: to_cuda(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return type(x)(to_cuda(value) for value in x)
    if isinstance(x, Tensor):
        return x.cuda(non_blocking=True)
    return x.to(device=torch.cuda.current_device()) if hasattr(x, "to") else x


def using_tensor_cores(amp: bool) -> bool:
    """Whether NVIDIA's training script would build fully fused layers on this machine's GPU."""
    if not torch.cuda.is_available():
        return False
    major, _ = torch.cuda.get_device_capability()
    return major >= 8 or (amp and major == 7)
