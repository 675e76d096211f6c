"""Scaling curves: time and memory over batch size, degree, channels and neighbours.

    pyg-se3 benchmark scaling               # a quarter of an hour on two cores
    pyg-se3 benchmark scaling --quick
    pyg-se3 benchmark scaling --sweeps batch neighbours-L1

Training steps, every one in a process of its own. A system whose step took longer than
`--stop-seconds`, or that ran out of memory or time, is not tried with larger values, and the page
says so. For this package the page also says which kernel was chosen. A page, a JSON file and a
chart go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import report
from .charts import Curve, Plot, curve_chart
from .common import Job, Result, machine, measure
from .inputs import GraphBatch, dense_batch, qm9_batch
from .kernel_table import growth
from .memory import available_gb
from .systems import SYSTEMS

KIND = "scaling"
LIMIT_FRACTION = 0.9
MODEL_SYSTEMS = ("nvidia-full", "nvidia-low-memory", "reference", "ours")
LAYER_SYSTEMS = ("nvidia-full", "reference", "ours-edge", "ours-source", "ours")


@dataclass(frozen=True)
class Sweep:
    """One quantity that varies.

    Attributes:
        title: What is measured.
        axis: What varies.
        values: Ascending.
        quick: Those of a quick run.
        spec: Arguments of `ModelSpec` or `LayerSpec` for a value.
        molecules: Of the batch for a value; None for a lone layer.
        nodes: Of the dense graph of a lone layer, of which the value is the number of neighbours.
    """

    title: str
    axis: str
    values: tuple[int, ...]
    quick: tuple[int, ...]
    spec: Callable[[int], dict] = lambda value: {}
    molecules: Callable[[int], int] | None = None
    nodes: int = 0

    @property
    def systems(self) -> tuple[str, ...]:
        """Which to compare."""
        return MODEL_SYSTEMS if self.molecules is not None else LAYER_SYSTEMS


def _neighbours(max_degree: int, nodes: int) -> Sweep:
    return Sweep(
        f"layer, L={max_degree}, C=32, {nodes} nodes",
        "neighbours",
        (2, 4, 8, 16, 32, 64),
        (4, 16),
        spec=lambda value: {"max_degree": max_degree, "channels": 32},
        nodes=nodes,
    )


SWEEPS: dict[str, Sweep] = {
    "batch": Sweep(
        "QM9 model", "molecules", (1, 4, 16, 64, 256), (1, 8), molecules=lambda value: value
    ),
    "degree": Sweep(
        "QM9 model, batch 16",
        "degree L",
        (1, 2, 3, 4, 5, 6),
        (1, 2, 3),
        spec=lambda value: {"num_degrees": value + 1},
        molecules=lambda value: 16,
    ),
    "channels": Sweep(
        "QM9 model, batch 16",
        "channels C",
        (16, 32, 64, 128),
        (16, 32),
        spec=lambda value: {"num_channels": value},
        molecules=lambda value: 16,
    ),
    "neighbours-L1": _neighbours(1, 200),
    "neighbours-L3": _neighbours(3, 100),
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="pyg-se3 benchmark scaling",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="few and small values")
    parser.add_argument("--sweeps", nargs="+", default=list(SWEEPS), choices=list(SWEEPS))
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), help="only these of a sweep")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--warmup", type=int, default=1, help="untimed calls")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls at most")
    parser.add_argument(
        "--max-seconds", type=float, default=8.0, help="start no further timed call after"
    )
    parser.add_argument(
        "--stop-seconds", type=float, default=8.0, help="no larger values after such a step"
    )
    parser.add_argument(
        "--time-limit", type=float, default=180.0, help="end a measurement after, in seconds"
    )
    parser.add_argument("--data", type=Path, default=Path("data/qm9"), help="processed QM9")
    parser.add_argument("--raw-path", type=Path, help="part of QM9 in qm9pack's format")
    parser.add_argument("--output", type=Path, help="stem of the files to write")
    return parser.parse_args(arguments)


def make_inputs(sweep: Sweep, value: int, options: argparse.Namespace) -> GraphBatch:
    """The graphs for a value."""
    if sweep.molecules is None:
        return dense_batch(sweep.nodes, value)
    return qm9_batch(sweep.molecules(value), root=options.data, raw_path=options.raw_path)


def run(name: str, options: argparse.Namespace, folder: Path) -> list[Result]:
    """A sweep, value by value; a system that becomes too slow or too large is left out then."""
    sweep = SWEEPS[name]
    stopped: dict[str, str] = {}
    results = []
    for value in sweep.quick if options.quick else sweep.values:
        path = folder / f"{name}-{value}.pt"
        make_inputs(sweep, value, options).save(path)
        for system in sweep.systems:
            if options.systems is not None and system not in options.systems:
                continue
            job = Job(
                system=system,
                inputs=str(path),
                kind="layer" if sweep.molecules is None else "model",
                spec=sweep.spec(value),
                threads=options.threads,
                warmup=options.warmup,
                repeats=options.repeats,
                max_seconds=options.max_seconds,
                memory_limit_gb=LIMIT_FRACTION * available_gb(),
            )
            if system in stopped:
                results.append(Result(job, "not run", message=stopped[system]))
                continue
            result = measure(job, options.time_limit)
            results.append(result)
            shown = report.quantity(result.best, "s") if result.best else result.status
            print(f"{name} {value} {system}: {shown}", file=sys.stderr, flush=True)
            if result.status != "ok":
                stopped[system] = f"{result.status} at {value}"
            elif result.best is not None and result.best > options.stop_seconds:
                stopped[system] = f"took {report.quantity(result.best)} s at {value}"
    return results


def of_sweep(results: list[Result], name: str) -> dict[str, dict[int, Result]]:
    """Results by system and value."""
    found: dict[str, dict[int, Result]] = {}
    for r in results:
        sweep, _, value = r.case.rpartition("-")
        if sweep == name:
            found.setdefault(r.job.system, {})[int(value)] = r
    return found


def chosen(results: dict[int, Result]) -> dict[int, str]:
    """The kernels that the dispatch chose at every value."""
    return {value: "+".join(r.kernels) for value, r in results.items() if r.kernels}


def sweeps_of(results: list[Result]) -> list[str]:
    """Names of the sweeps that were run, in order."""
    return list(dict.fromkeys(r.case.rpartition("-")[0] for r in results))


def page(head: dict, results: list[Result]) -> str:
    """The measurements as Markdown."""
    lines = [
        "# Scaling",
        "",
        f"Training steps. {report.machine_line(head)}",
        "",
        "Least time in ms / peak memory above base in MB. "
        f"{report.disturbance(r.other_cores for r in results)}",
        "",
        report.agreement(results),
    ]
    for name in sweeps_of(results):
        sweep = SWEEPS[name]
        lines += ["", f"## {sweep.title}: {sweep.axis}", "", sweep_table(results, name)]
        lines += report.shortfalls([r for r in results if r.case.rpartition("-")[0] == name])
    return "\n".join(lines) + "\n"


def sweep_table(results: list[Result], name: str) -> str:
    """A row per value, a column per system; the last row is the growth of the time."""
    found = of_sweep(results, name)
    values = list(dict.fromkeys(value for line in found.values() for value in line))
    kernels = chosen(found.get("ours", {}))

    def cell(r: Result | None) -> str:
        if r is None or r.best is None or r.peak_bytes is None:
            return r.status if r is not None else "–"
        return f"{report.quantity(1e3 * r.best)} / {report.quantity(r.peak_bytes / 1e6)}"

    rows = [
        [str(value), *(cell(line.get(value)) for line in found.values()), kernels.get(value, "–")]
        for value in values
    ]
    rows.append(["time grows as", *(_growth(line) for line in found.values()), ""])
    header = [SWEEPS[name].axis, *(SYSTEMS[s].label for s in found), "chosen"]
    return report.table(header, rows)


def _growth(line: dict[int, Result]) -> str:
    """Exponent between the last two values: where fixed costs no longer count."""
    points = [(value, r.best) for value, r in line.items() if r.best is not None]
    return f"^{growth(points[-2:]):.2f}" if len(points) >= 2 else "–"


def chart(path: Path, head: dict, results: list[Result]) -> None:
    """Time above, memory below, a column per sweep."""
    rows: list[list[Plot]] = [[], []]
    quantities: list[tuple[str, Callable[[Result], float | None]]] = [
        ("time of a training step (s)", lambda r: r.best),
        ("peak memory above base (MB)", lambda r: r.peak_bytes and r.peak_bytes / 1e6),
    ]
    for name in sweeps_of(results):
        sweep, found = SWEEPS[name], of_sweep(results, name)
        marks = list(chosen(found.get("ours", {})).items())
        for row, (axis, value) in zip(rows, quantities, strict=True):
            curves = [
                Curve(SYSTEMS[system].label, list(line), [value(r) for r in line.values()])
                for system, line in found.items()
            ]
            row.append(Plot(sweep.title, sweep.axis, axis, curves, marks if row is rows[0] else ()))
    device = f"{head['cpu']}, {head['threads']} threads, torch {head['torch']}, {head['date'][:10]}"
    curve_chart(path, rows, f"{device}; on top: the kernel that pyg-se3 chose")


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the page, write the files; not zero if a system failed or disagreed."""
    options = parse(arguments)
    head = machine(options.threads)
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.sweeps:
            results += run(name, options, Path(folder))
    stem = report.free_stem(options.output or report.default_stem(KIND, head))
    text = page(head, results)
    print(text)
    written = report.write_results(stem, KIND, head, results, text)
    chart(report.file_of(stem, ".png"), head, results)
    written.append(report.file_of(stem, ".png"))
    print(f"Written: {', '.join(map(str, written))}", file=sys.stderr)
    return report.exit_status(results)


if __name__ == "__main__":
    sys.exit(main())
