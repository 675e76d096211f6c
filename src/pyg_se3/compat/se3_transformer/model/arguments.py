"""Keyword arguments that NVIDIA's constructors take and drop."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

TRAINING_ARGUMENTS = frozenset(
    """
    accumulate_grad_batches amp batch_size benchmark ckpt_interval data_dir dllogger_name epochs
    eval_interval force_reload gradient_clip learning_rate load_ckpt_path local_rank log_dir
    min_learning_rate momentum num_workers optimizer precompute_bases save_ckpt_path seed silent
    task wandb weight_decay
    """.split()
)
"""Arguments of NVIDIA's training script, which hands all of them to the model."""


def refuse_unknown(given: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raise a ``TypeError`` for keywords that are neither known nor of NVIDIA's training script."""
    for name in given:
        if name in TRAINING_ARGUMENTS:
            continue
        close = difflib.get_close_matches(name, list(known), 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise TypeError(f"{where} has no argument {name!r}{hint}")
