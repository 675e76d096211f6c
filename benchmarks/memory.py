"""Peak memory of a stretch of code in this process, above what it held before."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import threading
from pathlib import Path

import torch

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _kib(name: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise RuntimeError(f"{STATUS} has no {name}")


class PeakMemory:
    """Context in which the peak is watched; `base` and `peak` are in bytes.

    On CPU the kernel's own high-water mark is used, reset at the start; where it cannot be reset, a
    thread samples the resident size every 2 ms. On CUDA the allocator's mark.
    """

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self.base = self.peak = 0
        self.method = "cuda allocator" if self.cuda else ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.base = torch.cuda.memory_allocated()
            return self
        # Hand free heap back, or it would count as base and hide what is allocated next.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        try:
            CLEAR.write_text("5")
            self.method = "kernel high-water mark"
        except OSError:
            self.method = "resident size, sampled every 2 ms"
            self._thread = threading.Thread(target=self._sample, daemon=True)
        self.base = self.peak = _kib("VmRSS") * 1024
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            torch.cuda.synchronize()
            self.peak = torch.cuda.max_memory_allocated()
        elif self._thread is not None:
            self._stop.set()
            self._thread.join()
        else:
            self.peak = _kib("VmHWM") * 1024

    @property
    def above_base(self) -> int:
        """Bytes."""
        return max(0, self.peak - self.base)

    def _sample(self) -> None:
        while not self._stop.wait(0.002):
            self.peak = max(self.peak, _kib("VmRSS") * 1024)


def limit_memory(gigabytes: float) -> None:
    """Make allocations beyond a limit fail in this process, instead of the machine."""
    size = int(gigabytes * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def available_gb() -> float:
    """Memory that processes can still have, no more than a container may have at all."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    if MEMINFO.exists():
        line = next(x for x in MEMINFO.read_text().splitlines() if x.startswith("MemAvailable"))
        found.append(int(line.split()[1]) * 1024)
    if CGROUP.exists() and CGROUP.read_text().strip() != "max":
        found.append(int(CGROUP.read_text()))
    return min(found) / 1e9
