"""The precision that a configuration asks for is the one that is used, or people hear of it."""

from __future__ import annotations

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from pyg_se3.cli.config import ConfigError
from pyg_se3.training.machine import set_matmul_precision


def apply_precision(config: DictConfig, trainer: pl.Trainer) -> None:
    """Check ``trainer.precision`` and set ``matmul_precision``.

    Args:
        config: Of a run.
        trainer: Made from it.

    Raises:
        ConfigError: If Lightning replaced the precision by another one.
    """
    asked = str(config.trainer.get("precision"))
    if asked in ("16", "16-mixed") and trainer.precision != "16-mixed":
        raise ConfigError(
            "trainer.precision=16-mixed needs a GPU; on a CPU use bf16-mixed, which needs no "
            "scaling of gradients"
        )
    matmul = config.get("matmul_precision")
    if matmul is None:
        return
    device = trainer.strategy.root_device
    has_effect = set_matmul_precision(matmul, device)
    if matmul == "high" and (not has_effect or trainer.precision == "64-true"):
        why = (
            "there are no float32 products under precision 64"
            if has_effect
            else f"this device ({device}) has no TF32"
        )
        _tell(f"matmul_precision=high has no effect: {why}")


@rank_zero_only
def _tell(message: str) -> None:
    print(message, flush=True)
