"""Fill the run's folder: predictions, plots, summary."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from pyg_se3.training import report
from pyg_se3.training.callbacks.throughput import Throughput
from pyg_se3.training.machine import peak_memory


class RunReport(pl.Callback):
    """Write results into a folder when training and test end.

    After training: ``learning_curve.png`` (from ``metrics.csv``). After the test:
    ``test_predictions.csv``, ``parity.png`` (``parity_<target>.png`` for several), ``summary.json``
    and ``summary.md``.

    Args:
        dirpath: The folder; the trainer's root folder if None.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        self.dirpath = dirpath
        self.table: str | None = None
        self.summary: dict[str, Any] = {}
        self._training: dict[str, Any] = {}
        self._seconds_before = 0.0
        self._started: float | None = None
        self._parameters = 0
        self._collected: list[tuple[Tensor, Tensor, Tensor]] = []

    def _folder(self, trainer: pl.Trainer) -> Path:
        return Path(self.dirpath or trainer.default_root_dir)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Count the parameters, which FSDP divides later on."""
        self._parameters = sum(p.numel() for p in pl_module.parameters())

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember figures of the training and plot its curve, also if it had ended before."""
        speed = next(
            (c.rate for c in trainer.callbacks if isinstance(c, Throughput)),  # type: ignore[attr-defined]
            None,
        )
        self._training = {
            "train_seconds": self._elapsed(),
            "steps": trainer.global_step,
            "epochs": trainer.current_epoch,
            "molecules_per_second": speed,
        }
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()
            metrics = self._folder(trainer) / "metrics.csv"
            if metrics.is_file():
                path = self._folder(trainer) / "learning_curve.png"
                report.plot_learning_curve(path, metrics, str(pl_module.unit))

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin anew."""
        self._collected = []

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep predictions."""
        self._collected.append(
            (batch.idx.cpu(), outputs["target"].cpu(), outputs["prediction"].cpu())
        )

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write everything."""
        idx, target, prediction = (torch.cat(part) for part in zip(*self._collected, strict=True))
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, (idx, target, prediction))
            idx, target, prediction = (torch.cat(part) for part in zip(*gathered, strict=True))
        self._write(trainer, pl_module, idx, target.double(), prediction.double())

    @rank_zero_only
    def _write(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        idx: Tensor,
        target: Tensor,
        prediction: Tensor,
    ) -> None:
        folder, names, units = self._folder(trainer), pl_module.targets, pl_module.units
        order = idx.argsort()
        idx, target, prediction = idx[order], target[order], prediction[order]
        data: Any = getattr(trainer, "datamodule", None)
        molecules = data.test_names(idx) if hasattr(data, "test_names") else None
        path = folder / "test_predictions.csv"
        report.write_predictions(path, idx, target, prediction, names, molecules)
        mean = pl_module.target_mean.cpu().double()
        results = {}
        for column, (name, unit) in enumerate(zip(names, units, strict=True)):
            y, p = target[:, column], prediction[:, column]
            picture = "parity.png" if len(names) == 1 else f"parity_{name}.png"
            report.plot_parity(folder / picture, y, p, name, unit)
            results[name] = {
                "mae": float((p - y).abs().mean()),
                "rmse": float((p - y).square().mean().sqrt()),
                "mean_mae": float((mean[column] - y).abs().mean()),
                "unit": unit,
            }
        device = pl_module.device
        self.summary = {
            "targets": results,
            "test_molecules": idx.numel(),
            "parameters": self._parameters,
            **self._training,
            "peak_memory_mb": peak_memory(device),
            "device": torch.cuda.get_device_name(device)
            if device.type == "cuda"
            else f"{device.type}, {torch.get_num_threads()} threads",
            "precision": str(trainer.precision),
            "torch": str(torch.__version__),
        }
        self.table = report.write_summary(folder, self.summary)

    def _elapsed(self) -> float:
        now = 0.0 if self._started is None else time.monotonic() - self._started
        return self._seconds_before + now

    def state_dict(self) -> dict[str, Any]:
        """Seconds of training so far."""
        return {"train_seconds": self._elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._seconds_before = state_dict["train_seconds"]
