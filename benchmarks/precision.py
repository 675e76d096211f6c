"""Errors of the QM9 model in low precision, against float64, as a Markdown table.

Plain PyTorch in the same precision (the reference kernel under autocast) is the yardstick: 16-bit
errors of the other kernels should be at most twice its own.

    pyg-se3 benchmark precision
"""

from __future__ import annotations

import argparse
import contextlib
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyg_se3 import KernelOptions, SE3TransformerPooled
from pyg_se3.testing import random_rotations

from .common import machine
from .inputs import GraphBatch, qm9_batch

QUANTITIES = ("equivariance", "output", "gradient")


@dataclass(frozen=True)
class Setting:
    """A way of computing.

    Attributes:
        name: In the table.
        autocast: Type of autocast; None for none.
        dtype: Type of weights and inputs.
        tf32: Let float32 products on GPUs use TF32.
        fast: The kernels' option of this name.
    """

    name: str
    autocast: torch.dtype | None = None
    dtype: torch.dtype = torch.float32
    tf32: bool = False
    fast: bool = False


EXACT = Setting("64", dtype=torch.float64)
FLOAT32 = Setting("32")
BFLOAT16 = Setting("bf16-mixed", torch.bfloat16)
# What is measured, and the setting of the reference kernel that it is compared with.
PAIRS = (
    (FLOAT32, FLOAT32),
    (Setting("32, kernel.fast=true", fast=True), BFLOAT16),
    (BFLOAT16, BFLOAT16),
    (Setting("16-mixed", torch.float16), Setting("16-mixed", torch.float16)),
)
ON_GPU = ((Setting("32, matmul_precision=high", tf32=True),) * 2,)


@dataclass
class Result:
    """What a setting computes: predictions, of rotated molecules too, and the gradient [P]."""

    output: Tensor
    rotated: Tensor
    gradient: Tensor

    def errors(self, exact: Result) -> dict[str, float]:
        """Relative errors (Euclidean) by quantity."""

        def relative(difference: Tensor, size: Tensor) -> float:
            return float(difference.norm() / size.norm())

        return {
            "equivariance": relative(self.rotated - self.output, exact.output),
            "output": relative(self.output - exact.output, exact.output),
            "gradient": relative(self.gradient - exact.gradient, exact.gradient),
        }


def compute(
    model: nn.Module, batch: GraphBatch, rotation: Tensor, setting: Setting, kernel: str
) -> Result:
    """Predict, predict the rotated molecules, and differentiate a squared error.

    Args:
        model: With float64 weights; unchanged.
        batch: Molecules.
        rotation: [3, 3] float64.
        setting: How.
        kernel: Name of the kernel.
    """
    weights = {name: value.to(setting.dtype) for name, value in model.state_dict().items()}
    model = SE3TransformerPooled(
        **model.config, kernel=KernelOptions(kernel=kernel, fast=setting.fast)
    )
    model.to(batch.pos.device, setting.dtype).load_state_dict(weights)
    earlier = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if setting.tf32 else "highest")
    device = batch.pos.device.type
    if setting.autocast is None:
        cast: contextlib.AbstractContextManager = contextlib.nullcontext()
    else:
        cast = torch.autocast(device, setting.autocast)
    try:
        with cast:
            output = model(**_tensors(batch, setting.dtype, torch.eye(3)))
        # The backward pass runs outside, as in training; the scale keeps float16 in range.
        scale = 1024.0 if setting.autocast is torch.float16 else 1.0
        target = batch.y.to(output.device, torch.float64)
        loss = (output.squeeze(1).double() - target).square().mean() * scale
        loss.backward()
        gradient = torch.cat(
            [p.grad.double().flatten() for p in model.parameters() if p.grad is not None]
        )
        with torch.no_grad(), cast:
            rotated = model(**_tensors(batch, setting.dtype, rotation))
    finally:
        torch.set_float32_matmul_precision(earlier)
    return Result(output.detach().double(), rotated.double(), gradient / scale)


def _tensors(batch: GraphBatch, dtype: torch.dtype, rotation: Tensor) -> dict[str, Any]:
    pos = batch.pos.double() @ rotation.to(batch.pos.device, torch.float64).T
    return {
        "x": batch.x.to(dtype),
        "pos": pos.to(dtype),
        "edge_index": batch.edge_index,
        "edge_attr": batch.edge_attr.to(dtype),
        "batch": batch.batch,
        "num_graphs": batch.num_graphs,
    }


def measure(
    batch: GraphBatch, sizes: dict[str, int], seeds: int, kernel: str
) -> list[tuple[Setting, Setting, dict[str, float], dict[str, float]]]:
    """Median errors over random weights and rotations: settings, ours, the reference's."""
    pairs = PAIRS + (ON_GPU if batch.pos.is_cuda else ())
    collected: list[tuple[list[dict[str, float]], list[dict[str, float]]]] = [
        ([], []) for _ in pairs
    ]
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = SE3TransformerPooled({0: 6}, fiber_edge={0: 4}, **sizes).double()
        model.to(batch.pos.device)
        rotation = random_rotations(1)[0]
        exact = compute(model, batch, rotation, EXACT, kernel)
        plain: dict[Setting, dict[str, float]] = {}
        for (setting, other), (ours, references) in zip(pairs, collected, strict=True):
            ours.append(compute(model, batch, rotation, setting, kernel).errors(exact))
            if other not in plain:
                plain[other] = compute(model, batch, rotation, other, "reference").errors(exact)
            references.append(plain[other])
    return [
        (setting, other, _median(ours), _median(references))
        for (setting, other), (ours, references) in zip(pairs, collected, strict=True)
    ]


def _median(errors: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(error[name] for error in errors) for name in QUANTITIES}


def table(
    rows: list[tuple[Setting, Setting, dict[str, float], dict[str, float]]],
) -> str:
    """The errors as Markdown."""
    head = ["`trainer.precision`"]
    for name in QUANTITIES:
        head += [f"{name} error", "plain PyTorch", "ratio"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for setting, other, ours, reference in rows:
        cells = [setting.name + ("" if setting.name == other.name else f" (plain: {other.name})")]
        for name in QUANTITIES:
            ratio = ours[name] / reference[name] if reference[name] > 0 else math.nan
            cells += [f"{ours[name]:.1e}", f"{reference[name]:.1e}", f"{ratio:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/qm9"), help="processed QM9")
    parser.add_argument("--raw-path", type=Path, help="part of QM9 in qm9pack's format instead")
    parser.add_argument("--molecules", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3, help="random weights and rotations")
    parser.add_argument("--kernel", default="auto")
    parser.add_argument("--layers", type=int, default=7)
    parser.add_argument("--degrees", type=int, default=4)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args(arguments)
    batch = qm9_batch(given.molecules, root=given.data, raw_path=given.raw_path).to(given.device)
    sizes = {
        "num_layers": given.layers,
        "num_degrees": given.degrees,
        "num_channels": given.channels,
    }
    rows = measure(batch, sizes, given.seeds, given.kernel)
    print(table(rows))
    record = machine(torch.get_num_threads(), given.device)
    where = record.get("gpu", record["cpu"])
    print(
        f"\n{given.layers} layers, {given.degrees} degrees, {given.channels} channels, random "
        f"weights; {given.molecules} molecules ({batch.source}); kernel={given.kernel}; median of "
        f"{given.seeds} seeds. {where}, torch {record['torch']}, {record['date'][:10]}, "
        f"{record['commit']}."
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
