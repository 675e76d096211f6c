"""What went wrong, in words that say what to do."""

from __future__ import annotations

import errno
import traceback

import torch
from hydra.errors import InstantiationException
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from pyg_se3.training.callbacks.finite import NonFiniteLossError

# What a user can cause and repair.
USER_ERRORS = (
    ValueError,
    TypeError,
    OSError,
    ModuleNotFoundError,
    NonFiniteLossError,
    InstantiationException,
    MisconfigurationException,
)

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
_LOST_PEER = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "timed out waiting",
    "application timeout caused pair closure",
    "remote process exited",
    "gloo connectfullmesh failed",
)


def explain(error: BaseException) -> str | None:
    """A message that says what to do; None for a bug, which deserves its traceback."""
    # Hydra wraps what a constructor says.
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return explain(error.__cause__) or str(error.__cause__)
    if isinstance(error.__cause__, NonFiniteLossError):
        return str(error.__cause__)
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"the GPU has too little memory ({text.splitlines()[0]}): use a smaller "
            "data.batch_size, kernel.memory=low or trainer.precision=bf16-mixed"
        )
    if _is_lost_worker(error):
        what = text.splitlines()[0] if text else type(error).__name__
        return (
            f"a process that loads data died ({what}), often because memory or "
            "/dev/shm ran out: use fewer of them (data.num_workers=0 is usually fast enough), and "
            "continue with resume=true"
        )
    if _is_lost_peer(error):
        return (
            "another process of this run died or no longer answers; its own message, if it left "
            "one, is above, in error*.log or in the log of its node. Continue with resume=true"
        )
    if isinstance(error, RuntimeError) and "in your SLURM bash script" in text:
        return text
    if not isinstance(error, USER_ERRORS):
        return None
    number = getattr(error, "errno", None)
    if number in _NO_ROOM:
        return f"{text}. Make room and continue with resume=true"
    if number in _FORBIDDEN:
        return f"{text}. Choose a folder that can be written: paths.runs=..., paths.data=..."
    return text


def _is_lost_worker(error: BaseException) -> bool:
    if isinstance(error, RuntimeError):
        return "DataLoader worker" in str(error)
    # It may also die while a batch is fetched from it.
    frames = traceback.walk_tb(error.__traceback__)
    modules = {frame.f_globals.get("__name__") for frame, _ in frames}
    return isinstance(error, (OSError, EOFError)) and "multiprocessing.resource_sharer" in modules


def _is_lost_peer(error: BaseException) -> bool:
    if isinstance(error, torch.distributed.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _LOST_PEER)
