"""How a convolution is computed. Never what: no option here changes a result beyond round-off."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, get_args

Kernel = Literal["auto", "reference", "edge", "source", "weights", "triton"]
Memory = Literal["low", "default", "fast"]


@dataclass(frozen=True)
class KernelOptions:
    """Execution options of the convolutions; not part of the architecture or of a checkpoint.

    Args:
        kernel: ``edge`` works edge by edge in the edge frame, ``source`` applies the weights per
            source node first, ``weights`` makes the weights of every edge first, ``reference`` is
            the slow literal formula, ``triton`` the edge form with a kernel of its own for CUDA
            devices; ``auto`` chooses among the first three by cost.
        compress: let the edge kernel prune and compress radial activations, to ``tolerance``, and
            the source kernel prune them. ``None`` decides by device and number of edges (on for
            CPU and more than a few).
        tolerance: relative error that compression may make in the radial activations.
        chunk_size: edges worked on at a time; ``None`` chooses by device.
        memory: what the backward pass computes again instead of storing: ``default`` keys and
            values, norms and radial MLPs; ``low`` whole layers; ``fast`` nothing of these (the
            source kernel computes keys and values again in any case, the weights kernel never).
        fast: compute the gradient of the radial activations with bfloat16 products in the edge and
            source kernels.

    Raises:
        ValueError: an option has a value that does not exist.
    """

    kernel: Kernel = "auto"
    compress: bool | None = None
    tolerance: float = 2e-7
    chunk_size: int | None = None
    memory: Memory = "default"
    fast: bool = False
    code: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.kernel not in get_args(Kernel):
            raise ValueError(f"unknown kernel {self.kernel!r}, expected one of {get_args(Kernel)}")
        if self.memory not in get_args(Memory):
            raise ValueError(
                f"unknown memory mode {self.memory!r}, expected one of {get_args(Memory)}"
            )
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {self.chunk_size}")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must lie between 0 and 1, got {self.tolerance}")
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "code"}
        object.__setattr__(self, "code", json.dumps(fields))

    @classmethod
    @cache
    def from_code(cls, code: str) -> KernelOptions:
        """The options whose :attr:`code` this is."""
        return cls(**json.loads(code))
