"""The precision that a configuration asks for is the one that is used, or people hear of it."""

from __future__ import annotations

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from pyg_se3.cli.config import ConfigError
from pyg_se3.training.machine import set_matmul_precision


def apply_precision(config: DictConfig, trainer: pl.Trainer) -> None:
    """See to ``trainer.precision`` and set ``matmul_precision``.

    Args:
        config: Of a run.
        trainer: Made from it.

    Raises:
        ConfigError: If weights would have 16 bits or less.
    """
    settle_precision(config.trainer.get("precision"), trainer)
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


def settle_precision(asked: object, trainer: pl.Trainer) -> None:
    """Use ``16-mixed`` on a CPU, too, where Lightning replaces it by ``bf16-mixed``.

    PyTorch's autocast and scaling of gradients work there, slowly: for trying out what will run on
    a GPU.

    Args:
        asked: The precision that was asked for.
        trainer: Made with it.

    Raises:
        ConfigError: If weights, too, would have 16 bits or less.
    """
    if str(asked) in ("16", "16-mixed") and trainer.precision != "16-mixed":
        device = trainer.strategy.root_device.type
        trainer.strategy.precision_plugin = MixedPrecision("16-mixed", device)
    if trainer.precision not in ("32-true", "64-true", "bf16-mixed", "16-mixed"):
        raise ConfigError(
            f"trainer.precision={asked} would store weights and positions in 16 bits or less, "
            "which no longer suffice for equivariance; expected 32, bf16-mixed, 16-mixed or 64"
        )


@rank_zero_only
def _tell(message: str) -> None:
    print(message, flush=True)
