"""Lightning callbacks, one concern each."""

from pyg_se3.training.callbacks.best import BestCheckpoint
from pyg_se3.training.callbacks.ema import ExponentialMovingAverage
from pyg_se3.training.callbacks.finite import StopOnNonFinite
from pyg_se3.training.callbacks.gradient_norm import GradientNorm
from pyg_se3.training.callbacks.last import LastCheckpoint
from pyg_se3.training.callbacks.lr_finder import LearningRateSearch
from pyg_se3.training.callbacks.progress import ProgressBar
from pyg_se3.training.callbacks.randomness import TrainingRandomness
from pyg_se3.training.callbacks.record import RunRecord
from pyg_se3.training.callbacks.report import RunReport
from pyg_se3.training.callbacks.swa import WeightAveraging
from pyg_se3.training.callbacks.throughput import Throughput
from pyg_se3.training.callbacks.time_budget import TimeBudget

__all__ = [
    "BestCheckpoint",
    "ExponentialMovingAverage",
    "GradientNorm",
    "LastCheckpoint",
    "LearningRateSearch",
    "ProgressBar",
    "RunRecord",
    "RunReport",
    "StopOnNonFinite",
    "Throughput",
    "TimeBudget",
    "TrainingRandomness",
    "WeightAveraging",
]
