"""The kernels' table: whole model and lone dense layers, against NVIDIA's formulation.

    make bench-kernels                      # every case, about 25 minutes on two cores
    pyg-se3 benchmark kernels --cases dense-L1-C32 step
    pyg-se3 benchmark kernels --largest     # also train a step with 10,000 molecules in 16 GB

Every system runs in a process of its own on the same inputs with the same weights, and their
outputs are compared. A page and a JSON file go to benchmarks/results/. Adding a case is one entry
of `CASES`; adding a system is one of `systems.SYSTEMS`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from . import report
from .common import Job, Result, machine, measure_all
from .inputs import GraphBatch, dense_batch, qm9_batch
from .kernel_table import summary
from .memory import available_gb
from .systems import NVIDIA, SYSTEMS

KIND = "kernels"
LARGEST, LARGEST_GB = 10_000, 16
LIMIT_FRACTION = 0.9


@dataclass(frozen=True)
class Case:
    """One or more rows of the table.

    Attributes:
        title: For people.
        kind: "model" on QM9 molecules or "layer" on a dense graph.
        size: Number of molecules, or nodes.
        neighbours: Of every node of a dense graph.
        modes: What to measure.
        spec: Arguments of `ModelSpec` or `LayerSpec`.
        systems: Which to compare.
        memory_limit_gb: Let allocations beyond this fail; None for what is free.
        once: A single call and no warm-up, where a case must not take long.
    """

    title: str
    kind: str
    size: int
    neighbours: int = 0
    modes: tuple[str, ...] = ("inference", "training")
    spec: dict = field(default_factory=dict)
    systems: tuple[str, ...] = (*NVIDIA, "ours")
    memory_limit_gb: float | None = None
    once: bool = False


def dense(max_degree: int, channels: int, nodes: int, neighbours: int) -> Case:
    """A lone layer on a dense graph; the making of bases and frames is not counted."""
    return Case(
        f"layer L={max_degree}, C={channels}, {nodes} nodes x {neighbours}",
        "layer",
        nodes,
        neighbours,
        spec={"max_degree": max_degree, "channels": channels},
        systems=("nvidia-full", "nvidia-partial", "nvidia-none", "ours", "ours-exact"),
    )


def ours_in_training(title: str, size: int, **more: object) -> Case:
    """Training steps of this package's model only."""
    return Case(title, "model", size, modes=("training",), systems=("ours",), **more)


CASES: dict[str, Case] = {
    "step": Case(
        "QM9 model, batch 100",
        "model",
        100,
        modes=("training",),
        systems=(
            *NVIDIA,
            "ours",
            "ours-memory-fast",
            "ours-low-memory",
            "ours-exact",
            "ours-fast",
        ),
    ),
    "inference": Case("QM9 model, batch 400", "model", 400, modes=("inference",)),
    "single": Case("QM9 model, one molecule", "model", 1),
    "dense-L1-C32": dense(1, 32, 300, 64),
    "dense-L1-C64": dense(1, 64, 300, 64),
    "dense-L3-C32-small": dense(3, 32, 100, 32),
    "dense-L3-C32-large": dense(3, 32, 500, 32),
    **{f"memory-{size}": ours_in_training(f"QM9 model, batch {size}", size) for size in (400, 800)},
    **{
        f"degree-{degree}": ours_in_training(
            f"QM9 model, L={degree}, batch 16", 16, spec={"num_degrees": degree + 1}
        )
        for degree in range(2, 7)
    },
    "forces": Case(
        "QM9 model, batch 100, energies and forces",
        "model",
        100,
        modes=("training", "forces"),
        systems=("ours",),
    ),
    "largest": ours_in_training(
        f"QM9 model, batch {LARGEST} in {LARGEST_GB} GB",
        LARGEST,
        memory_limit_gb=LARGEST_GB,
        once=True,
    ),
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="pyg-se3 benchmark kernels",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    usual = [name for name in CASES if name != "largest"]
    parser.add_argument("--cases", nargs="+", default=usual, choices=list(CASES))
    parser.add_argument(
        "--largest", action="store_true", help=f"run batch {LARGEST} in {LARGEST_GB} GB, too"
    )
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), help="only these of a case")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--warmup", type=int, default=1, help="untimed calls")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls at most")
    parser.add_argument("--rounds", type=int, default=1, help="interleaved runs of every system")
    parser.add_argument(
        "--max-seconds", type=float, default=25.0, help="start no further timed call after"
    )
    parser.add_argument(
        "--time-limit", type=float, default=900.0, help="end a measurement after, in seconds"
    )
    parser.add_argument("--data", type=Path, default=Path("data/qm9"), help="processed QM9")
    parser.add_argument("--raw-path", type=Path, help="part of QM9 in qm9pack's format")
    parser.add_argument("--output", type=Path, help="stem of the files to write")
    options = parser.parse_args(arguments)
    if options.largest and "largest" not in options.cases:
        options.cases.append("largest")
    return options


def make_inputs(case: Case, options: argparse.Namespace) -> GraphBatch:
    """The graphs of a case."""
    if case.kind == "layer":
        return dense_batch(case.size, case.neighbours)
    return qm9_batch(case.size, root=options.data, raw_path=options.raw_path)


def jobs_of(name: str, options: argparse.Namespace, folder: Path) -> list[Job]:
    """The measurements of a case."""
    case = CASES[name]
    path = folder / f"{name}.pt"
    make_inputs(case, options).save(path)
    return [
        Job(
            system=system,
            inputs=str(path),
            kind=case.kind,
            mode=mode,
            spec=case.spec,
            threads=options.threads,
            warmup=0 if case.once else options.warmup,
            repeats=1 if case.once else options.repeats,
            max_seconds=options.max_seconds,
            memory_limit_gb=case.memory_limit_gb or LIMIT_FRACTION * available_gb(),
        )
        for mode in case.modes
        for system in case.systems
        if options.systems is None or system in options.systems
    ]


def page(head: dict, results: list[Result]) -> str:
    """The table, and everything that was measured."""
    lines = [
        "# Kernels",
        "",
        report.machine_line(head),
        "",
        report.disturbance(r.other_cores for r in results),
        "Minima of the times, medians in brackets. Memory is the peak above what the process holds "
        "with model, optimizer state and inputs. Lone layers: bases and edge frames are made "
        "beforehand and not counted for any system; training is forward and backward. Same inputs, "
        "same weights for all systems.",
        "",
        report.agreement(results),
        "",
        "## Summary",
        "",
        "NVIDIA's formulation is measured at every fuse level and in its low-memory mode; ratios "
        "are against the best of these in the quantity of the row, and against full fusing.",
        "",
        summary(results),
        "",
        "## All measurements",
        "",
        details(results),
    ]
    return "\n".join(lines) + "\n"


def details(results: list[Result]) -> str:
    """Every measurement."""
    rows = []
    for r in results:
        ok = r.status == "ok" and r.best is not None and r.seconds is not None
        rows.append(
            [
                f"{CASES[r.case].title}, {r.job.mode}",
                report.label(r),
                report.quantity(1e3 * r.best) if ok else r.status,
                report.quantity(1e3 * r.seconds) if ok else "–",
                str(len(r.times)),
                report.quantity(r.peak_bytes / 1e6) if r.peak_bytes is not None else "–",
                ", ".join(r.kernels) or "–",
            ]
        )
    header = ["case", "system", "min (ms)", "median (ms)", "calls", "memory (MB)", "kernels"]
    return "\n".join([report.table(header, rows, texts=2), *report.shortfalls(results)])


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the page, write the files; not zero if a system failed or disagreed."""
    options = parse(arguments)
    head = machine(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        jobs = [job for name in options.cases for job in jobs_of(name, options, Path(folder))]
        results = measure_all(jobs, rounds=options.rounds, time_limit=options.time_limit)
    stem = report.free_stem(options.output or report.default_stem(KIND, head))
    text = page(head, results)
    print(text)
    written = report.write_results(stem, KIND, head, results, text)
    print(f"Written: {', '.join(map(str, written))}", file=sys.stderr)
    return report.exit_status(results)


if __name__ == "__main__":
    sys.exit(main())
