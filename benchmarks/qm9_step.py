"""The two published figures: throughput and peak memory on QM9, for every formulation.

    pyg-se3 benchmark                 # or `make bench`, or python -m benchmarks.qm9_step
    pyg-se3 benchmark --quick         # batch 20, a few minutes on two cores
    pyg-se3 benchmark --batch-sizes 100 400 --systems nvidia-full ours ours:bf16-mixed

Every system runs in a process of its own on the same molecules with the same weights, and their
outputs are compared. What does not fit in the memory or the time is reported as such. A page, a
JSON file and a bar chart per batch size go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from . import report
from .charts import Bar, Panel, bar_chart
from .common import MODES, PRECISIONS, Job, Result, machine, measure_all
from .inputs import qm9_batch
from .memory import available_gb
from .systems import NVIDIA, SYSTEMS, ModelSpec

KIND = "qm9"
OURS = ("ours", "ours-fast", "ours:bf16-mixed")
DEFAULT_SYSTEMS = ("original", *NVIDIA, "nvidia-full:bf16-mixed", *OURS)
QUICK = {"batch_sizes": [20], "repeats": 3, "max_seconds": 4.0, "time_limit": 60.0}
LIMIT_FRACTION = 0.9


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="pyg-se3 benchmark",
        description=__doc__.splitlines()[0],
        epilog=f"Systems: {', '.join(SYSTEMS)}; each with :PRECISION ({', '.join(PRECISIONS)}).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    spec = ModelSpec()
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small batch, few repeats; other options given explicitly still hold",
    )
    parser.add_argument(
        "--systems", nargs="+", default=list(DEFAULT_SYSTEMS), type=_variant, help="see below"
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[100], help="molecules")
    parser.add_argument(
        "--modes",
        nargs="+",
        default=["training", "inference"],
        choices=MODES[:2],
        help="a whole step, or the forward pass alone",
    )
    parser.add_argument("--layers", type=int, default=spec.num_layers, help="of attention")
    parser.add_argument("--degrees", type=int, default=spec.num_degrees, help="0 to one less")
    parser.add_argument("--channels", type=int, default=spec.num_channels, help="of every degree")
    parser.add_argument("--heads", type=int, default=spec.num_heads, help="of attention")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of PyTorch")
    parser.add_argument("--warmup", type=int, default=1, help="untimed calls")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls at most")
    parser.add_argument("--rounds", type=int, default=1, help="interleaved runs of every system")
    parser.add_argument(
        "--max-seconds", type=float, default=30.0, help="start no further timed call after"
    )
    parser.add_argument(
        "--time-limit", type=float, default=900.0, help="end a measurement after, in seconds"
    )
    parser.add_argument(
        "--memory-limit-gb",
        type=float,
        help="let larger allocations fail; by default 90 %% of what is free",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--data", type=Path, default=Path("data/qm9"), help="processed QM9")
    parser.add_argument("--raw-path", type=Path, help="part of QM9 in qm9pack's format")
    parser.add_argument("--output", type=Path, help="stem of the files to write")
    if parser.parse_args(arguments).quick:
        parser.set_defaults(**QUICK)
    options = parser.parse_args(arguments)
    if options.memory_limit_gb is None and options.device == "cpu":
        options.memory_limit_gb = LIMIT_FRACTION * available_gb()
    return options


def _variant(text: str) -> str:
    system, _, precision = text.partition(":")
    if system not in SYSTEMS:
        raise argparse.ArgumentTypeError(f"unknown system {system!r}")
    if precision and precision not in PRECISIONS:
        raise argparse.ArgumentTypeError(f"unknown precision {precision!r}")
    return text


def run(options: argparse.Namespace, folder: Path) -> list[Result]:
    """Measure everything that the options ask for."""
    spec = {
        "num_layers": options.layers,
        "num_degrees": options.degrees,
        "num_channels": options.channels,
        "num_heads": options.heads,
    }
    jobs = []
    for size in options.batch_sizes:
        path = folder / f"qm9-{size}.pt"
        qm9_batch(size, root=options.data, raw_path=options.raw_path).save(path)
        for mode in options.modes:
            for variant in options.systems:
                system, _, precision = variant.partition(":")
                jobs.append(
                    Job(
                        system=system,
                        inputs=str(path),
                        mode=mode,
                        spec=spec,
                        precision=precision or "32",
                        threads=options.threads,
                        warmup=options.warmup,
                        repeats=options.repeats,
                        max_seconds=options.max_seconds,
                        memory_limit_gb=options.memory_limit_gb,
                        device=options.device,
                    )
                )
    return measure_all(jobs, rounds=options.rounds, time_limit=options.time_limit)


def grouped(results: list[Result]) -> dict[tuple[int, str], list[Result]]:
    """Results by (batch size, mode)."""
    groups: dict[tuple[int, str], list[Result]] = {}
    for r in results:
        groups.setdefault((_size(r), r.job.mode), []).append(r)
    return groups


def _size(result: Result) -> int:
    return int(result.case.removeprefix("qm9-"))


def baselines(group: list[Result]) -> list[Result]:
    """NVIDIA's formulation at every level, in float32."""
    return [r for r in group if r.job.system in NVIDIA and r.job.precision == "32"]


def seconds(result: Result) -> float | None:
    """The least time of a step."""
    return result.best


def memory(result: Result) -> int | None:
    """Peak memory above base."""
    return result.peak_bytes


def page(head: dict, results: list[Result]) -> str:
    """The measurements as Markdown."""
    spec = ModelSpec(**results[0].job.spec)
    lines = [
        "# QM9: throughput and peak memory",
        "",
        f"{spec.num_layers} layers, {spec.num_degrees} degrees, {spec.num_channels} channels, "
        f"{spec.num_heads} heads. {report.machine_line(head)}",
        "",
        "Times are of one step: minimum, and median in brackets. Throughput is at the minimum. "
        "Memory is the peak above what the process holds with model, optimizer state and inputs. "
        "Same molecules, same weights for all systems. Ratios are against the best of NVIDIA's "
        f"formulation in float32 (bold). {report.disturbance(r.other_cores for r in results)}",
        "",
        report.agreement(results),
    ]
    for (size, mode), group in grouped(results).items():
        sizes = next((r.inputs for r in group if r.inputs), {})
        lines += ["", f"## {mode.capitalize()}, batch {size}", ""]
        if sizes:
            lines += [f"{sizes['nodes']} atoms, {sizes['edges']} edges, {sizes['source']}.", ""]
        lines.append(group_table(group))
    return "\n".join(lines) + "\n"


def group_table(group: list[Result]) -> str:
    """The systems of one batch size and mode."""
    fastest, least_time = report.least(baselines(group), seconds)
    smallest, least_memory = report.least(baselines(group), memory)
    rows = []
    for r in group:
        if r.status != "ok":
            rows.append([report.label(r), r.status, "–", "–", "–", "–"])
            continue
        assert r.best is not None and r.peak_bytes is not None
        time = f"{report.quantity(r.best)} ({report.quantity(r.seconds)})"
        size = report.quantity(r.peak_bytes / 1e9)
        rows.append(
            [
                report.label(r),
                f"**{time}**" if r is fastest else time,
                report.quantity(_size(r) / r.best),
                report.times(least_time, r.best),
                f"**{size}**" if r is smallest else size,
                report.times(least_memory, r.peak_bytes),
            ]
        )
    header = ["system", "time (s)", "molecules/s", "speed", "memory (GB)", "less memory"]
    lines = [report.table(header, rows), *report.shortfalls(group)]
    return "\n".join(lines)


def charts(stem: Path, head: dict, results: list[Result]) -> list[Path]:
    """One PNG per batch size: speed and memory side by side, a row per mode."""
    groups = grouped(results)
    paths = []
    for size in dict.fromkeys(size for size, _ in groups):
        rows = [_panels(mode, group) for (n, mode), group in groups.items() if n == size]
        path = report.file_of(stem, f"-batch-{size}.png")
        name = head.get("gpu") or f"{head['cpu']}, {head['threads']} threads"
        title = (
            f"QM9, batch {size}: {name}, torch {head['torch']}, {head['date'][:10]}\n"
            "in brackets: against the best of NVIDIA's formulation in float32"
        )
        bar_chart(path, rows, title)
        paths.append(path)
    return paths


def _panels(mode: str, group: list[Result]) -> list[Panel]:
    _, least_time = report.least(baselines(group), seconds)
    _, least_memory = report.least(baselines(group), memory)
    speed, size = [], []
    for r in group:
        name, ours = report.label(r), r.job.system.startswith("ours")
        if r.status != "ok" or not r.best or not r.peak_bytes:
            note = r.message if r.status == "timed out" else r.status
            speed.append(Bar(name, None, note, ours))
            size.append(Bar(name, None, note, ours))
            continue
        rate = _size(r) / r.best
        ratio = f" ({report.times(least_time, r.best)})" if least_time else ""
        speed.append(Bar(name, rate, report.quantity(rate) + ratio, ours))
        gigabytes = r.peak_bytes / 1e9
        ratio = f" ({_less(least_memory, r.peak_bytes)})" if least_memory else ""
        size.append(Bar(name, gigabytes, report.quantity(gigabytes) + ratio, ours))
    return [
        Panel(f"{mode}: speed", "molecules per second (more is better)", speed),
        Panel(f"{mode}: peak memory", "GB above base (less is better)", size),
    ]


def _less(theirs: float, ours: float) -> str:
    less, more = report.times(theirs, ours), report.times(ours, theirs)
    return f"{more} more" if ours > theirs else f"{less} less"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the page, write the files; not zero if a system failed or disagreed."""
    options = parse(arguments)
    head = machine(options.threads, options.device)
    with tempfile.TemporaryDirectory() as folder:
        results = run(options, Path(folder))
    stem = report.free_stem(options.output or report.default_stem(KIND, head))
    text = page(head, results)
    print(text)
    written = report.write_results(stem, KIND, head, results, text)
    written += charts(stem, head, results)
    print(f"Written: {', '.join(map(str, written))}", file=sys.stderr)
    return report.exit_status(results)


if __name__ == "__main__":
    sys.exit(main())
