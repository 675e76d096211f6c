"""Operations and bytes of a stretch of code, and where its time goes, as PyTorch ran it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "addmm_": 1, "baddbmm": 1, "baddbmm_": 1, "mv": 0}
"""Matrix products, and which argument is the first of the two factors."""

SIZES = (1024, 2048, 3072)
"""Of the square matrices that measure the machine's peak."""

TRAFFIC_PER_PARAMETER = 10
"""Reads and writes of a parameter's size in a training step: the weight in the forward and in the
backward pass, its gradient written; by Adam weight, gradient and two moments read, and weight and
two moments written."""


@dataclass(frozen=True)
class Counts:
    """Of one step.

    Attributes:
        products: Floating point operations of matrix products, two per multiply-add.
        product_share: Part of the time that is spent in them.
        shares: Part of the time by operation, the largest first.
        necessary_bytes: Parameters and optimizer state, and what the forward pass leaves for the
            backward pass, written and read once: what no cache can spare a training step.
    """

    products: int
    product_share: float
    shares: dict[str, float]
    necessary_bytes: int


def count(step: Callable[[], object], module: nn.Module, training: bool) -> Counts:
    """Run a step twice: once for operations and times, once for what it saves."""
    products, shares = _profile(step)
    parameters = sum(p.numel() * p.element_size() for p in module.parameters())
    necessary = TRAFFIC_PER_PARAMETER * parameters if training else parameters
    return Counts(
        products=products,
        product_share=sum(share for name, share in shares.items() if _is_product(name)),
        shares=dict(sorted(shares.items(), key=lambda item: -item[1])),
        necessary_bytes=necessary + (2 * saved_bytes(step, module) if training else 0),
    )


def _profile(step: Callable[[], object]) -> tuple[int, dict[str, float]]:
    """Operations in matrix products, and every operation's part of the time."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as run:
        step()
    products = 0
    seconds: dict[str, float] = {}
    for event in run.events():
        if _is_product(event.name):
            first = PRODUCTS[event.name.removeprefix("aten::")]
            left, right = event.input_shapes[first : first + 2]
            products += 2 * math.prod(left) * (right[-1] if len(right) > 1 else 1)
        seconds[event.name] = seconds.get(event.name, 0.0) + event.self_cpu_time_total
    total = sum(seconds.values())
    return products, {name: value / total for name, value in seconds.items()}


def _is_product(name: str) -> bool:
    return name.startswith("aten::") and name.removeprefix("aten::") in PRODUCTS


def saved_bytes(step: Callable[[], object], module: nn.Module) -> int:
    """Size of what a training step keeps for its backward pass, without the parameters."""
    seen = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: list[Tensor] = []  # so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            kept.append(tensor.detach())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(t.untyped_storage().nbytes() for t in kept)


def peak_flops(dtype: torch.dtype, seconds: Callable[[Callable[[], object]], float]) -> float:
    """Floating point operations per second of the fastest of some large matrix products."""
    rates = []
    for size in SIZES:
        matrix = torch.randn(size, size).to(dtype)
        out = torch.empty_like(matrix)
        rates.append(2 * size**3 / seconds(lambda a=matrix, o=out: torch.mm(a, a, out=o)))
    return max(rates)


def bandwidth(seconds: Callable[[Callable[[], object]], float]) -> float:
    """Bytes per second of an addition of arrays that no cache holds, reads and writes together."""
    a, b, out = (torch.ones(2**25) for _ in range(3))
    return 3 * 4 * a.numel() / seconds(lambda: torch.add(a, b, out=out))
