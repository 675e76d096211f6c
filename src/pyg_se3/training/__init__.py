"""Training with Lightning: module, schedules, callbacks, checkpoints, report."""

from pyg_se3.training.checkpoint import AtomicCheckpointIO, load_model, read_checkpoint
from pyg_se3.training.module import SE3Module, load_module
from pyg_se3.training.schedules import WarmupCosine

__all__ = [
    "AtomicCheckpointIO",
    "SE3Module",
    "WarmupCosine",
    "load_model",
    "load_module",
    "read_checkpoint",
]
