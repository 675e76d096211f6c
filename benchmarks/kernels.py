"""The kernels' table: whole model and lone dense layers, against NVIDIA's formulation.

    python -m benchmarks.kernels            # every case
    python -m benchmarks.kernels --cases dense-L1-C32 step-100

Adding a case is one entry of `CASES`; adding a system is one of `benchmarks.systems.SYSTEMS`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import report
from benchmarks.common import Job, Result, machine, measure_all
from benchmarks.inputs import GraphBatch, dense_batch, qm9_batch
from benchmarks.systems import SYSTEMS
from pyg_se3.training.files import write_text

STRONG = ("nvidia-full", "nvidia-low-memory", "ours")


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        title: For people.
        kind: "model" on QM9 molecules or "layer" on a dense graph.
        size: Number of molecules, or nodes.
        neighbours: Of every node of a dense graph.
        modes: What to measure.
        spec: Arguments of `ModelSpec` or `LayerSpec`.
        systems: Which to compare; the first is the baseline of the ratios.
        memory_limit_gb: Let allocations beyond this fail.
        repeats: Timed calls at most, where a case must not take long.
    """

    title: str
    kind: str
    size: int
    neighbours: int = 0
    modes: tuple[str, ...] = ("inference", "training")
    spec: dict = field(default_factory=dict)
    systems: tuple[str, ...] = STRONG
    memory_limit_gb: float | None = None
    repeats: int | None = None


def dense(max_degree: int, channels: int, nodes: int, neighbours: int) -> Case:
    """A lone layer on a dense graph; the making of bases and frames is not counted."""
    return Case(
        f"layer L={max_degree}, C={channels}, {nodes} nodes x {neighbours}",
        "layer",
        nodes,
        neighbours,
        spec={"max_degree": max_degree, "channels": channels},
        systems=("nvidia-full", "nvidia-low-memory", "ours", "ours-exact"),
    )


CASES: dict[str, Case] = {
    "step-100": Case(
        "QM9 model, batch 100",
        "model",
        100,
        modes=("training",),
        systems=("nvidia-full", "nvidia-low-memory", "ours", "ours-exact", "ours-fast"),
    ),
    "inference-400": Case("QM9 model, batch 400", "model", 400, modes=("inference",)),
    "single": Case("QM9 model, one molecule", "model", 1),
    "dense-L1-C32": dense(1, 32, 300, 64),
    "dense-L1-C64": dense(1, 64, 200, 32),
    "dense-L1-C16": dense(1, 16, 300, 32),
    "dense-L3-C32": dense(3, 32, 100, 32),
    "dense-L3-C32-large": dense(3, 32, 500, 32),
    "dense-L3-C16": dense(3, 16, 200, 32),
    "forces": Case(
        "QM9 model, batch 100, energies and forces",
        "model",
        100,
        modes=("training", "forces"),
        systems=("ours",),
    ),
    **{
        f"degree-{degree}": Case(
            f"QM9 model, L={degree}, batch 16",
            "model",
            16,
            modes=("training",),
            spec={"num_degrees": degree + 1},
            systems=("nvidia-low-memory", "ours"),
        )
        for degree in range(1, 7)
    },
    "largest": Case(
        "QM9 model, batch 7000 in 16 GB",
        "model",
        7000,
        modes=("training",),
        systems=("ours",),
        memory_limit_gb=16,
        repeats=1,
    ),
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), help="of each case's")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=2, help="interleaved runs of every system")
    parser.add_argument("--max-seconds", type=float, default=30.0)
    parser.add_argument("--data", type=Path, default=Path("data/qm9"), help="processed QM9")
    parser.add_argument("--raw-path", type=Path, help="part of QM9 in qm9pack's format")
    parser.add_argument("--output", type=Path, help="stem of the files to write")
    return parser.parse_args(arguments)


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
            warmup=0 if case.repeats == 1 else options.warmup,
            repeats=case.repeats or options.repeats,
            max_seconds=options.max_seconds,
            memory_limit_gb=case.memory_limit_gb,
        )
        for mode in case.modes
        for system in case.systems
        if options.systems is None or system in options.systems
    ]


def page(head: dict, results: list[Result]) -> str:
    """The table."""
    rows = []
    bases: dict[tuple[str, str], Result] = {}
    for r in results:
        name = Path(r.job.inputs).stem
        base = bases.setdefault((name, r.job.mode), r)
        memory = r.peak_bytes / 1e6 if r.peak_bytes is not None else None
        ok = r.status == "ok"
        rows.append(
            [
                f"{CASES[name].title}, {r.job.mode}",
                report.label(r),
                report.quantity(r.best and 1e3 * r.best) if ok else f"{r.status} {r.message}",
                report.quantity(r.seconds and 1e3 * r.seconds),
                report.ratio(base, r, lambda x: x.best),
                report.quantity(memory),
                report.ratio(base, r, lambda x: x.peak_bytes),
            ]
        )
    header = ["case", "system", "min (ms)", "median (ms)", "speed", "memory (MB)", "less memory"]
    found = report.disagreements(results)
    lines = [
        "# Kernels",
        "",
        report.machine_line(head),
        "Ratios are against the first system of each case. Lone layers: bases and edge frames "
        "are made beforehand and not counted for any system; training is forward and backward. "
        "Memory is the peak above what the process holds with model, optimizer "
        f"state and inputs. {report.disturbance(results)}",
        "",
        report.table(header, rows, texts=2),
        "",
        "All systems computed the same number." if not found else "**Differences:**",
    ]
    return "\n".join(lines + [f"- {sentence}" for sentence in found]) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the page, write the files; not zero if a system failed or disagreed."""
    options = parse(arguments)
    head = machine(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        jobs = [job for name in options.cases for job in jobs_of(name, options, Path(folder))]
        results = measure_all(jobs, rounds=options.rounds)
    stem = report.free_stem(options.output or report.default_stem("kernels"))
    text = page(head, results)
    print(text)
    report.write_json(stem.with_name(stem.name + ".json"), head, results)
    write_text(stem.with_name(stem.name + ".md"), text)
    print(f"Written: {stem}.json, {stem}.md", file=sys.stderr)
    failed = any(r.status == "failed" for r in results)
    return 1 if failed or report.disagreements(results) else 0


if __name__ == "__main__":
    sys.exit(main())
