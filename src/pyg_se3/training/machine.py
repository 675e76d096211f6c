"""Peak memory of this process, and durations in words."""

from __future__ import annotations

import resource
import sys

import torch


def peak_memory() -> dict[str, float]:
    """Largest memory used so far in MB: ``host`` (resident) and, with a GPU, ``gpu``."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}
    if torch.cuda.is_available():
        peak["gpu"] = torch.cuda.max_memory_allocated() / 1e6
    return peak


def duration(seconds: float) -> str:
    """A duration for people: ``"1:02:03"`` or ``"2:03"``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
