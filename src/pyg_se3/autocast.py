"""Where autocast must not reach."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def no_autocast(device_type: str) -> AbstractContextManager[object]:
    """Keep autocast out of a block.

    Where it is off there is nothing to keep out: that saves time, and exported programs need no
    block for it.

    Args:
        device_type: whose autocast, such as ``"cpu"``.
    """
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
