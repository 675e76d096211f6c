"""The machine a run is on: peak memory, precision of float32 products, durations in words."""

from __future__ import annotations

import resource
import sys
from typing import Literal

import torch


def peak_memory(device: torch.device | None = None) -> dict[str, float]:
    """Largest memory used so far by this process, in MB.

    Args:
        device: Where the model is.

    Returns:
        ``host`` (resident) and, for a CUDA device, ``gpu`` (allocated by tensors on it).
    """
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}
    if device is not None and device.type == "cuda":
        peak["gpu"] = torch.cuda.max_memory_allocated(device) / 1e6
    return peak


def set_matmul_precision(precision: Literal["highest", "high"], device: torch.device) -> bool:
    """Choose how products of float32 matrices are computed, for the whole process.

    Args:
        precision: ``highest`` is float32; ``high`` allows TF32 (10 bits of mantissa).
        device: Where the model is.

    Returns:
        Whether ``high`` differs from ``highest`` on this device.

    Raises:
        ValueError: If the precision is another one.
    """
    if precision not in ("highest", "high"):
        raise ValueError(f"matmul_precision must be 'highest' or 'high', got {precision!r}")
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 256, 256, generator=generator).to(device)
    products = []
    for each in ("highest", "high"):
        torch.set_float32_matmul_precision(each)
        products.append(left @ right)
    torch.set_float32_matmul_precision(precision)
    return not torch.equal(*products)


def duration(seconds: float) -> str:
    """A duration for people: ``"1:02:03"`` or ``"2:03"``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
