"""Cheap pieces that are computed again in the backward pass rather than stored."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

FEW_ROWS = 256
"""With fewer rows, storing takes little memory, and less time than computing again."""


def recomputed(function: Callable[..., Tensor], *tensors: Tensor, store: bool = False) -> Tensor:
    """``function(*tensors)``, keeping only the arguments for the backward pass.

    Args:
        function: without random numbers.
        tensors: its arguments.
        store: keep intermediate results instead, as usual; compilers decide for themselves.
    """
    if store or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(*tensors)
    return checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)


def recomputed_rows(
    function: Callable[..., Tensor], *tensors: Tensor, store: bool = False
) -> Tensor:
    """:func:`recomputed` for functions that act row by row, if there are many rows."""
    if torch.compiler.is_compiling():  # which makes no difference between few and many
        return function(*tensors)
    return recomputed(function, *tensors, store=store or tensors[0].shape[0] < FEW_ROWS)
