"""Random numbers of training that no interruption changes."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_warn


class TrainingRandomness(pl.Callback):
    """Give training steps a stream of random numbers of their own.

    Each step continues with the generators' states after the previous one, whatever validation,
    loaders or a restart drew in between. The states of all processes are saved, so a resumed run
    draws the same numbers as one that was never stopped. Covers Python, NumPy, PyTorch on CPU and
    on all GPUs.
    """

    def __init__(self) -> None:
        self._state: dict[str, Any] | None = None

    def on_train_batch_start(self, *args: Any) -> None:
        """Continue where the last step ended."""
        if self._state is not None:
            set_random_state(self._state)

    def on_train_batch_end(self, *args: Any) -> None:
        """Remember where this step ended."""
        self._state = get_random_state()

    def state_dict(self) -> dict[str, Any]:
        """States after the last step, by process; all processes must ask."""
        return {"processes": _gather(self._state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from saved states at the next step."""
        states, world_size, rank = state_dict["processes"], _world_size(), _rank()
        if len(states) != world_size:
            rank_zero_warn(
                f"the checkpoint was made by {len(states)} processes and is resumed by "
                f"{world_size}: where the model draws random numbers, they are other ones"
            )
        self._state = states[rank] if rank < len(states) else None


def _gather(value: Any) -> list[Any]:
    values = [value] * _world_size()
    if len(values) > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def _world_size() -> int:
    return torch.distributed.get_world_size() if _distributed() else 1


def _rank() -> int:
    return torch.distributed.get_rank() if _distributed() else 0


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def get_random_state() -> dict[str, Any]:
    """States of all global generators, as plain values and tensors."""
    version, internal, gauss = random.getstate()
    numpy_state: Any = np.random.get_state()
    name, keys, position, has_gauss, cached = numpy_state
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), int(position),
                  int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }  # fmt: skip
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Set all global generators to what :func:`get_random_state` gave."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
