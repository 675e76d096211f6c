"""The checkpoint with the smallest validation error."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from pyg_se3.training.checkpoint import read_checkpoint
from pyg_se3.training.files import atomic_path


class BestCheckpoint(ModelCheckpoint):
    """Keep ``best.ckpt``, also when a run goes on in another folder.

    Lightning forgets the best error so far when the folder changes; here the best checkpoint
    comes along. Nor does Lightning validate where ``max_steps`` ends a run inside an epoch; here
    the last weights are candidates, too.

    Args:
        dirpath: Folder.
        monitor: What to minimise.
    """

    def __init__(self, dirpath: str, monitor: str = "val/mae") -> None:
        super().__init__(dirpath, "best", monitor=monitor, enable_version_counter=False)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Ask for a last validation when the run ends."""
        if trainer.global_step == trainer.max_steps:
            # Lightning validates before it stops early.
            trainer.should_stop = True
        super().on_train_batch_end(trainer, *args, **kwargs)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best error, and copy its checkpoint if the folder is another one."""
        assert self.dirpath is not None
        score, old = state_dict["best_model_score"], Path(state_dict["best_model_path"])
        new = Path(self.dirpath) / "best.ckpt"
        if score is None:
            return
        # A folder may be renamed between two stretches of a run.
        old = old if old.is_file() else new
        found = self._score_of(old)
        if found is not None and old.resolve() == new.resolve() and bool(found < score.cpu()):
            # The run was stopped after it found better weights and before its next checkpoint.
            score = found
        if found is None or not torch.equal(found, score.cpu()):
            rank_zero_warn(
                f"{old} no longer holds the best weights of when the checkpoint was made; the "
                "search for the best starts anew"
            )
            return
        if old.resolve() != new.resolve():
            with atomic_path(new) as temporary:
                shutil.copyfile(old, temporary)
        path = str(new)
        moved = {
            "dirpath": self.dirpath,
            "best_model_score": score,
            "best_model_path": path,
            "kth_best_model_path": path,
            "kth_value": score,
            "best_k_models": {path: score},
        }
        super().load_state_dict(state_dict | moved)

    def _score_of(self, path: Path) -> torch.Tensor | None:
        """The best error so far that a checkpoint tells; None if it cannot be read."""
        try:
            state = read_checkpoint(path)["callbacks"].get(self.state_key, {})
        except (FileNotFoundError, ValueError):
            return None
        score = state.get("best_model_score")
        return None if score is None else score.cpu()
