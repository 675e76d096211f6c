"""Tables that are computed once and then shared."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache, wraps

import torch
from torch import Tensor


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
