"""Lightning callbacks, one concern each."""

from pyg_se3.training.callbacks.best import BestCheckpoint
from pyg_se3.training.callbacks.ema import ExponentialMovingAverage
from pyg_se3.training.callbacks.finite import StopOnNonFinite
from pyg_se3.training.callbacks.last import LastCheckpoint
from pyg_se3.training.callbacks.progress import ProgressBar
from pyg_se3.training.callbacks.randomness import TrainingRandomness
from pyg_se3.training.callbacks.report import RunReport
from pyg_se3.training.callbacks.throughput import Throughput
from pyg_se3.training.callbacks.time_budget import TimeBudget

__all__ = [
    "BestCheckpoint",
    "ExponentialMovingAverage",
    "LastCheckpoint",
    "ProgressBar",
    "RunReport",
    "StopOnNonFinite",
    "Throughput",
    "TimeBudget",
    "TrainingRandomness",
]
