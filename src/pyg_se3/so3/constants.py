"""Tables that are computed once and then shared."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cache, wraps

import torch
from torch import Tensor, library


def cached_constant(build: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compute a tensor once per set of arguments, and so that training can use it later.

    A tensor made under ``torch.inference_mode``, as in a test run before a training run, could not
    take part in a backward pass.
    """

    @cache
    @wraps(build)
    def cached(*arguments: Hashable) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            return build(*arguments)

    return cached


def traceable_constant(
    shape: Callable[..., tuple[int, ...]],
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """:func:`cached_constant` for functions ``(*integers, dtype, device)`` in compiled models.

    A compiler sees an operator of known shape and does not look inside.

    Args:
        shape: of the tensor, from the integers.
    """

    def decorate(build: Callable[..., Tensor]) -> Callable[..., Tensor]:
        cached = cached_constant(build)

        @library.custom_op(f"pyg_se3::{build.__name__.strip('_')}", mutates_args=())
        def operator(numbers: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
            return cached(*numbers, dtype, device).clone()

        @operator.register_fake
        def _(numbers: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
            return torch.empty(shape(*numbers), dtype=dtype, device=device)

        @wraps(build)
        def constant(*arguments: Hashable) -> Tensor:
            if torch.compiler.is_compiling():
                *numbers, dtype, device = arguments
                return operator(numbers, dtype, device)
            return cached(*arguments)

        return constant

    return decorate
