from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from pyg_se3.data import QM9DataModule
from pyg_se3.models import SE3TransformerPooled
from pyg_se3.training import AtomicCheckpointIO, SE3Module

MINI = Path(__file__).parents[1] / "fixtures" / "qm9_mini.csv"


@pytest.fixture
def make_data(data_root: Path) -> Callable[..., QM9DataModule]:
    def make(**kwargs: Any) -> QM9DataModule:
        settings = {"batch_size": 8, "split": [40, 12, 12], "progress": False} | kwargs
        return QM9DataModule(str(data_root), raw_path=str(MINI), **settings)

    return make


@pytest.fixture
def make_net() -> Callable[..., SE3TransformerPooled]:
    def make(**kwargs: Any) -> SE3TransformerPooled:
        torch.manual_seed(0)
        sizes = {"num_degrees": 2, "num_channels": 4, "num_layers": 2, "num_heads": 2}
        return SE3TransformerPooled({0: 6}, fiber_edge={0: 4}, **(sizes | kwargs))

    return make


@pytest.fixture
def make_module(make_net: Callable[..., SE3TransformerPooled]) -> Callable[..., SE3Module]:
    def make(net: torch.nn.Module | None = None, lr: float = 5e-3, **kwargs: Any) -> SE3Module:
        def optimizer(parameters: Any) -> torch.optim.Optimizer:
            return torch.optim.Adam(parameters, lr=lr)

        return SE3Module(net or make_net(), optimizer=optimizer, **kwargs)

    return make


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., pl.Trainer]:
    def make(**kwargs: Any) -> pl.Trainer:
        settings: dict[str, Any] = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "default_root_dir": str(tmp_path),
            "plugins": [AtomicCheckpointIO()],
        }
        if any(isinstance(c, pl.callbacks.Checkpoint) for c in kwargs.get("callbacks", [])):
            settings["enable_checkpointing"] = True
        return pl.Trainer(**(settings | kwargs))

    return make
