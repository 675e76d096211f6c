"""The two published figures: training throughput and peak memory on QM9, for every formulation.

    python -m benchmarks.qm9_step --batch-sizes 100 --systems nvidia-full nvidia-low-memory ours

Every system runs in a process of its own on the same molecules with the same weights. A page, a
JSON file and a bar chart go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from benchmarks import report
from benchmarks.common import Job, Result, machine, measure_all
from benchmarks.inputs import qm9_batch
from benchmarks.systems import SYSTEMS, ModelSpec
from pyg_se3.training.files import write_text

DEFAULT_SYSTEMS = ["nvidia-full", "nvidia-partial", "nvidia-low-memory", "ours", "ours-fast"]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    spec = ModelSpec()
    parser.add_argument("--systems", nargs="+", default=DEFAULT_SYSTEMS, choices=list(SYSTEMS))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[100])
    parser.add_argument("--modes", nargs="+", default=["training"])
    parser.add_argument("--precisions", nargs="+", default=["32"])
    parser.add_argument("--layers", type=int, default=spec.num_layers)
    parser.add_argument("--degrees", type=int, default=spec.num_degrees)
    parser.add_argument("--channels", type=int, default=spec.num_channels)
    parser.add_argument("--heads", type=int, default=spec.num_heads)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1, help="interleaved runs of every system")
    parser.add_argument("--max-seconds", type=float, default=60.0)
    parser.add_argument("--memory-limit-gb", type=float, help="let larger allocations fail")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, default=Path("data/qm9"), help="processed QM9")
    parser.add_argument("--raw-path", type=Path, help="part of QM9 in qm9pack's format")
    parser.add_argument("--output", type=Path, help="stem of the files to write")
    return parser.parse_args(arguments)


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
        jobs += [
            Job(
                system=system,
                inputs=str(path),
                mode=mode,
                spec=spec,
                precision=precision,
                threads=options.threads,
                warmup=options.warmup,
                repeats=options.repeats,
                max_seconds=options.max_seconds,
                memory_limit_gb=options.memory_limit_gb,
                device=options.device,
            )
            for mode in options.modes
            for precision in options.precisions
            for system in options.systems
        ]
    return measure_all(jobs, rounds=options.rounds)


def page(head: dict, results: list[Result], options: argparse.Namespace) -> str:
    """The measurements as Markdown."""
    lines = [
        "# QM9: throughput and peak memory",
        "",
        f"{options.layers} layers, {options.degrees} degrees, {options.channels} channels, "
        f"{options.heads} heads. {report.machine_line(head)}",
        "Times are of one step: minimum, and median in brackets. Memory is the peak above what "
        "the process holds with model, optimizer state and inputs. Same molecules, same weights "
        f"for all systems. {report.disturbance(results)}",
    ]
    for (size, mode, precision), group in grouped(results).items():
        sizes = next((r.inputs for r in group if r.inputs), {})
        lines += [
            "",
            f"## {mode}, batch {size}, precision {precision}",
            "",
            f"{sizes.get('nodes', '?')} atoms, {sizes.get('edges', '?')} edges, "
            f"{sizes.get('source', '')}",
            "",
            report.table(
                ["system", "time (s)", "molecules/s", "speed", "memory (GB)", "less memory"],
                [row(r, size, baseline(group)) for r in group],
            ),
        ]
    found = report.disagreements(results)
    lines += ["", "All systems computed the same number." if not found else "**Differences:**"]
    return "\n".join(lines + [f"- {sentence}" for sentence in found]) + "\n"


def grouped(results: list[Result]) -> dict[tuple[int, str, str], list[Result]]:
    """Results by (batch size, mode, precision)."""
    groups: dict[tuple[int, str, str], list[Result]] = {}
    for r in results:
        size = int(Path(r.job.inputs).stem.removeprefix("qm9-"))
        groups.setdefault((size, r.job.mode, r.job.precision), []).append(r)
    return groups


def baseline(group: list[Result]) -> Result | None:
    """NVIDIA's fully fused formulation where it was measured, else the first that ran."""
    ran = [r for r in group if r.status == "ok"]
    return next((r for r in ran if r.job.system == "nvidia-full"), ran[0] if ran else None)


def row(r: Result, size: int, base: Result | None) -> list[str]:
    """One line of the table."""
    if r.status != "ok":
        return [report.label(r), r.status, "–", "–", "–", "–"]
    assert r.best is not None and r.peak_bytes is not None
    return [
        report.label(r),
        f"{report.quantity(r.best)} ({report.quantity(r.seconds)})",
        report.quantity(size / r.best),
        report.ratio(base, r, lambda x: x.best),
        report.quantity(r.peak_bytes / 1e9),
        report.ratio(base, r, lambda x: x.peak_bytes),
    ]


def charts(stem: Path, results: list[Result]) -> list[Path]:
    """One PNG per batch size, mode and precision."""
    paths = []
    for (size, mode, precision), group in grouped(results).items():
        path = stem.with_name(f"{stem.name}-{mode}-{size}-{precision}.png")
        speed = [(report.label(r), size / r.best if r.best else None) for r in group]
        memory = [(report.label(r), r.peak_bytes / 1e9 if r.peak_bytes else None) for r in group]
        title = f"QM9 {mode}, batch {size}, precision {precision}"
        report.bar_charts(
            path, [("molecules per second", speed), ("peak memory (GB)", memory)], title
        )
        paths.append(path)
    return paths


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the page, write the files; not zero if a system failed or disagreed."""
    options = parse(arguments)
    head = machine(options.threads, options.device)
    with tempfile.TemporaryDirectory() as folder:
        results = run(options, Path(folder))
    stem = report.free_stem(options.output or report.default_stem("qm9"))
    text = page(head, results, options)
    print(text)
    report.write_json(stem.with_name(stem.name + ".json"), head, results)
    write_text(stem.with_name(stem.name + ".md"), text)
    written = charts(stem, results)
    print(f"Written: {stem}.json, {stem}.md, {', '.join(map(str, written))}", file=sys.stderr)
    failed = any(r.status == "failed" for r in results)
    return 1 if failed or report.disagreements(results) else 0


if __name__ == "__main__":
    sys.exit(main())
