"""Operations and bytes of a step against the limits of the machine: how far from the limit is it?

    pyg-se3 benchmark roofline
    pyg-se3 benchmark roofline --batch-size 400 --systems ours ours-exact --mode inference

The machine's limits are measured: the rate of large matrix products and the bandwidth of memory. A
step needs at least the larger of the two times that follow from its operations and from the bytes
it cannot avoid to move; this time over the measured one is the fraction reached. A page and a JSON
file go to benchmarks/results/. Processors only: all systems run in one process here.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pyg_se3.nn import TFNConv
from pyg_se3.ops.cost import work
from pyg_se3.training.files import write_text

from . import report
from .common import Job, OtherProcesses, machine
from .counts import Counts, bandwidth, count, peak_flops
from .inputs import GraphBatch, qm9_batch
from .systems import SYSTEMS, ModelSpec, Runner, build_model
from .worker import model_step

SHOWN = 8


@dataclass(frozen=True)
class Limits:
    """Of the machine.

    Attributes:
        flops: Of float32 matrix products, per second.
        bf16_flops: The same in bfloat16.
        bandwidth: Of memory, bytes per second.
    """

    flops: float
    bf16_flops: float
    bandwidth: float


@dataclass(frozen=True)
class Point:
    """A step of a system.

    Attributes:
        system: Name in `systems.SYSTEMS`.
        seconds: Least time of a step.
        counts: Its operations and bytes.
        uncompressed: Operations that the edge form takes for the same convolutions without
            compression; None for other formulations.
        other_cores: Kept busy by other processes meanwhile.
    """

    system: str
    seconds: float
    counts: Counts
    uncompressed: int | None
    other_cores: float | None

    def attainable(self, limits: Limits) -> float:
        """Seconds that the machine's limits leave for the operations and the necessary bytes."""
        return max(
            self.counts.products / limits.flops, self.counts.necessary_bytes / limits.bandwidth
        )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="pyg-se3 benchmark roofline",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    spec = ModelSpec()
    parser.add_argument(
        "--systems", nargs="+", default=["ours", "ours-exact", "nvidia-full"], choices=list(SYSTEMS)
    )
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--mode", default="training", choices=["training", "inference"])
    parser.add_argument("--layers", type=int, default=spec.num_layers)
    parser.add_argument("--degrees", type=int, default=spec.num_degrees)
    parser.add_argument("--channels", type=int, default=spec.num_channels)
    parser.add_argument("--heads", type=int, default=spec.num_heads)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max-seconds", type=float, default=20.0)
    parser.add_argument("--data", type=Path, default=Path("data/qm9"), help="processed QM9")
    parser.add_argument("--raw-path", type=Path, help="part of QM9 in qm9pack's format")
    parser.add_argument("--output", type=Path, help="stem of the files to write")
    return parser.parse_args(arguments)


def least_seconds(
    function: Callable[[], object], repeats: int = 5, max_seconds: float = 20.0
) -> float:
    """Least time of some calls, after one that does not count."""
    function()
    times: list[float] = []
    while len(times) < repeats and sum(times) < max_seconds:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def measure_limits() -> Limits:
    """Of the machine, with the threads that PyTorch uses now."""
    return Limits(
        peak_flops(torch.float32, least_seconds),
        peak_flops(torch.bfloat16, least_seconds),
        bandwidth(least_seconds),
    )


def edge_form_operations(runner: Runner, edges: int, training: bool) -> int:
    """Operations of the matrix products of the edge form with all columns, from its plans.

    The backward pass takes two products of the size of the forward one: for the gradients of the
    weights, and of the outer products of activations and features.
    """
    plans = [module.plan for module in runner.module.modules() if isinstance(module, TFNConv)]
    forward = sum(2 * work(plan).edge * plan.hidden * edges for plan in plans)
    return 3 * forward if training else forward


def measure(options: argparse.Namespace, system: str, batch: GraphBatch) -> Point:
    """A system's step in this process."""
    spec = ModelSpec(
        num_layers=options.layers,
        num_degrees=options.degrees,
        num_channels=options.channels,
        num_heads=options.heads,
    )
    training = options.mode == "training"
    runner = build_model(system, spec)
    step = model_step(Job(system, "", mode=options.mode), runner, batch)
    with OtherProcesses() as others:
        seconds = least_seconds(step, options.repeats, options.max_seconds)
    edges = batch.edge_index.shape[1]
    ours = system.startswith("ours")
    return Point(
        system,
        seconds,
        count(step, runner.module, training),
        edge_form_operations(runner, edges, training) if ours else None,
        others.cores,
    )


def page(head: dict, limits: Limits, points: list[Point], batch: GraphBatch, mode: str) -> str:
    """The measurements as Markdown."""
    sizes = batch.describe()
    balance = limits.flops / limits.bandwidth
    lines = [
        "# Roofline",
        "",
        f"{mode.capitalize()} step, batch {sizes['graphs']} ({sizes['nodes']} atoms, "
        f"{sizes['edges']} edges, {sizes['source']}). {report.machine_line(head)} "
        f"{report.disturbance(p.other_cores for p in points)}",
        "",
        f"Measured limits: matrix products {limits.flops / 1e9:.0f} GFLOP/s in float32, "
        f"{limits.bf16_flops / 1e9:.0f} in bfloat16; memory {limits.bandwidth / 1e9:.1f} GB/s; "
        f"balanced at {balance:.1f} operations per byte.",
        "",
        table(limits, points),
        "",
        "- *Operations*: of the matrix products that were done, as the profiler counts them.",
        "- *Uncompressed*: what the edge form needs with every radial activation: one product "
        "forward and two of its size backward.",
        "- *Necessary bytes*: parameters and optimizer state, and what the forward pass leaves for "
        "the backward pass, written and read once.",
        "- *Reached*: the time that the limits leave for the operations and the necessary bytes, "
        "over the measured time.",
    ]
    for point in points:
        shares = list(point.counts.shares.items())[:SHOWN]
        parts = ", ".join(f"`{name}` {share:.0%}" for name, share in shares)
        lines += ["", f"Where the time of {SYSTEMS[point.system].label} goes: {parts}."]
    return "\n".join(lines) + "\n"


def table(limits: Limits, points: list[Point]) -> str:
    """A row per quantity, a column per system."""

    def row(name: str, text: Callable[[Point], str]) -> list[str]:
        return [name, *map(text, points)]

    return report.table(
        ["", *(SYSTEMS[p.system].label for p in points)],
        [
            row("time (ms)", lambda p: report.quantity(1e3 * p.seconds)),
            row("operations (GFLOP)", lambda p: report.quantity(p.counts.products / 1e9)),
            row(
                "uncompressed (GFLOP)",
                lambda p: report.quantity(p.uncompressed / 1e9 if p.uncompressed else None),
            ),
            row("necessary bytes (MB)", lambda p: report.quantity(p.counts.necessary_bytes / 1e6)),
            row(
                "operations per necessary byte",
                lambda p: report.quantity(p.counts.products / p.counts.necessary_bytes),
            ),
            row("GFLOP/s", lambda p: report.quantity(p.counts.products / p.seconds / 1e9)),
            row(
                "bound by",
                lambda p: (
                    "products"
                    if p.counts.products * limits.bandwidth
                    > p.counts.necessary_bytes * limits.flops
                    else "memory"
                ),
            ),
            row("attainable time (ms)", lambda p: report.quantity(1e3 * p.attainable(limits))),
            row("reached", lambda p: f"{p.attainable(limits) / p.seconds:.0%}"),
            row("time in matrix products", lambda p: f"{p.counts.product_share:.0%}"),
        ],
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the page, write the files."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    head = machine(options.threads)
    batch = qm9_batch(options.batch_size, root=options.data, raw_path=options.raw_path)
    limits = measure_limits()
    points = []
    for system in options.systems:
        points.append(measure(options, system, batch))
        print(f"{system}: {points[-1].seconds:.4g} s", file=sys.stderr, flush=True)
    stem = report.free_stem(options.output or report.default_stem("roofline", head))
    text = page(head, limits, points, batch, options.mode)
    print(text)
    record = {
        "kind": "roofline",
        "machine": head,
        "mode": options.mode,
        "inputs": batch.describe(),
        "limits": asdict(limits),
        "results": [asdict(p) | {"reached": p.attainable(limits) / p.seconds} for p in points],
    }
    paths = [report.file_of(stem, ".json"), report.file_of(stem, ".md")]
    write_text(paths[0], json.dumps(record, indent=1) + "\n")
    write_text(paths[1], text)
    print(f"Written: {', '.join(map(str, paths))}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
