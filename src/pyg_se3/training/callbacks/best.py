"""The checkpoint with the smallest validation error."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from pyg_se3.training.checkpoint import read_checkpoint
from pyg_se3.training.files import atomic_path


class BestCheckpoint(ModelCheckpoint):
    """Keep ``best.ckpt``, also when a run goes on in another folder.

    Lightning forgets the best error so far when the folder changes; here the best checkpoint
    comes along.

    Args:
        dirpath: Folder.
        monitor: What to minimise.
    """

    def __init__(self, dirpath: str, monitor: str = "val/mae") -> None:
        super().__init__(dirpath, "best", monitor=monitor, enable_version_counter=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best error, and copy its checkpoint if the folder is another one."""
        assert self.dirpath is not None
        score, old = state_dict["best_model_score"], Path(state_dict["best_model_path"])
        new = Path(self.dirpath) / "best.ckpt"
        if score is None:
            return
        if not self._holds(old, score):
            rank_zero_warn(
                f"{old} no longer holds the best weights of when the checkpoint was made; the "
                "search for the best starts anew"
            )
            return
        if old.resolve() != new.resolve():
            with atomic_path(new) as temporary:
                shutil.copyfile(old, temporary)
        path = str(new)
        moved = {"dirpath": self.dirpath, "best_model_path": path, "kth_best_model_path": path}
        super().load_state_dict(state_dict | moved | {"best_k_models": {path: score}})

    def _holds(self, path: Path, score: torch.Tensor) -> bool:
        if not path.is_file():
            return False
        state = read_checkpoint(path)["callbacks"].get(self.state_key, {})
        found = state.get("best_model_score")
        return found is not None and torch.equal(found.cpu(), score.cpu())
