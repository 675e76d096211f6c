"""Record what a run is: configuration, code, versions, size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from pyg_se3.training.files import write_text
from pyg_se3.training.provenance import provenance


class RunRecord(pl.Callback):
    """Write ``provenance.json`` when training starts, and give every logger the hyperparameters.

    The file is a list: a run that is resumed in its folder adds an entry. The hyperparameters are
    ``config.yaml`` of the folder, where there is one, and the entry as ``provenance``.

    Args:
        dirpath: The folder; the trainer's root folder if None.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        self.dirpath = dirpath
        self._counts: dict[str, int] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Count the parameters, which FSDP divides later on."""
        parameters = list(pl_module.parameters())
        self._counts = {
            "parameters": sum(p.numel() for p in parameters),
            "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        }

    @rank_zero_only
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record."""
        folder = Path(self.dirpath or trainer.default_root_dir)
        entry = provenance() | self._counts | _run(trainer)
        path = folder / "provenance.json"
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        write_text(path, json.dumps([*earlier, entry], indent=2) + "\n")
        config = folder / "config.yaml"
        parameters: Any = {}
        if config.is_file():
            parameters = OmegaConf.to_container(OmegaConf.load(config), resolve=False)
        for logger in trainer.loggers:
            logger.log_hyperparams(parameters | {"provenance": entry})


def _run(trainer: pl.Trainer) -> dict[str, Any]:
    device = trainer.strategy.root_device
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "processes": trainer.world_size,
        "threads": torch.get_num_threads(),
        "precision": str(trainer.precision),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "starts_at_step": trainer.global_step,
    }
