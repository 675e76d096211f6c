"""Results as JSON and Markdown tables, and how far the systems agree."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path

from pyg_se3.training.files import write_text

from .common import Result
from .systems import SYSTEMS

RESULTS = Path("benchmarks/results")
"""Where results go, in the folder in which a command is started."""

AGREEMENT = {"32": 1e-5, "bf16-mixed": 0.2, "16-mixed": 0.05}
"""Largest difference from the first system in float32 that its precision explains."""


def default_stem(name: str, machine: dict) -> Path:
    """`benchmarks/results/DATE-MACHINE-name`, without a suffix."""
    device = (machine.get("gpu") or machine["cpu"]).lower()
    words = re.findall(r"[a-z0-9]+", re.sub(r"\(.*?\)|processor|cpu|@.*", " ", device))
    slug = "-".join(words) or "machine"
    return RESULTS / f"{date.today().isoformat()}-{slug}-{machine['threads']}t-{name}"


def free_stem(stem: Path) -> Path:
    """The stem itself, or with a number if results are there already: none is overwritten."""
    candidate, number = stem, 1
    while any(stem.parent.glob(f"{candidate.name}[.-][!0-9]*")):
        number += 1
        candidate = stem.with_name(f"{stem.name}-{number}")
    return candidate


def file_of(stem: Path, suffix: str) -> Path:
    """Append a suffix to a stem, which may contain dots."""
    return stem.with_name(stem.name + suffix)


def write_results(
    stem: Path, kind: str, machine: dict, results: Sequence[Result], page: str
) -> list[Path]:
    """`stem.json` with everything that was measured and `stem.md` with the page."""
    record = {"kind": kind, "machine": machine, "results": [r.to_dict() for r in results]}
    paths = [file_of(stem, ".json"), file_of(stem, ".md")]
    write_text(paths[0], json.dumps(record, indent=1) + "\n")
    write_text(paths[1], page)
    return paths


def read_results(path: Path) -> tuple[str, dict, list[Result]]:
    """Kind, machine and results of a JSON file.

    Raises:
        ValueError: It is not one that `write_results` made.
    """
    record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict) or {"kind", "machine", "results"} - set(record):
        raise ValueError(f"{path} has no results of a benchmark: no kind, machine, results")
    return record["kind"], record["machine"], [Result.from_dict(r) for r in record["results"]]


def machine_line(machine: dict) -> str:
    """The head of a page."""
    parts = [machine.get("gpu") or machine["cpu"], f"{machine['cores']} cores"]
    parts += [f"{machine['threads']} threads"]
    parts += [f"{machine['memory_gb']} GB", f"torch {machine['torch']}"]
    parts += [f"commit {machine['commit']}", machine["date"]]
    return ", ".join(parts) + f". Load average before: {machine['load_at_start']:.2f}."


def disturbance(cores: Iterable[float | None]) -> str:
    """How busy other processes kept the machine meanwhile; above a tenth of a core it shows.

    Args:
        cores: `other_cores` of every measurement.
    """
    known = [c for c in cores if c is not None]
    if not known:
        return "What else ran on the machine is not known."
    text = f"Other processes kept {max(known):.2f} cores busy during the worst measurement"
    return text + (": **the machine was not idle**." if max(known) > 0.1 else ".")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table; the first columns are text, the others numbers. Columns are aligned."""
    marks = ["---"] * texts + ["---:"] * (len(header) - texts)
    widths = [max(map(len, column)) for column in zip(header, marks, *rows, strict=True)]

    def line(cells: Sequence[str], fill: str = " ") -> str:
        padded = [
            cell.ljust(width) if i < texts else cell.rjust(width, fill)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    marks = [m if i >= texts else m.ljust(widths[i], "-") for i, m in enumerate(marks)]
    return "\n".join([line(header), line(marks, "-"), *map(line, rows)])


def quantity(value: float | None, unit: str = "") -> str:
    """Three significant digits, or a dash."""
    if value is None:
        return "–"
    text = f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    return f"{text} {unit}".strip()


def times(theirs: float | None, ours: float | None) -> str:
    """How many times less than theirs is ours, `12.3x`, or a dash."""
    return f"{theirs / ours:.3g}x" if theirs and ours else "–"


def least(
    results: Iterable[Result], value: Callable[[Result], float | None]
) -> tuple[Result | None, float | None]:
    """The result with the least value, and the value; None where nothing has one."""
    found = [(v, r) for r in results if r.status == "ok" and (v := value(r)) is not None]
    if not found:
        return None, None
    smallest, result = min(found, key=lambda pair: pair[0])
    return result, smallest


def difference(result: Result, reference: Result) -> float:
    """Root mean square of the outputs' difference over that of the reference's outputs."""
    pairs = zip(result.outputs, reference.outputs, strict=True)
    squares = math.fsum(d * d for d in (a - b for a, b in pairs))
    return math.sqrt(squares / max(math.fsum(b * b for b in reference.outputs), 1e-24))


def comparisons(results: Sequence[Result]) -> list[tuple[Result, Result, float]]:
    """Every result with outputs, the float32 result that it is held against, and the difference.

    Compared are results of the same graphs, model and mode; the first in float32 is the judge.
    """
    found = []
    judges: dict[tuple, Result] = {}
    ran = [r for r in results if r.outputs]
    for r in sorted(ran, key=lambda r: r.job.precision != "32"):
        job = r.job
        case = (job.inputs, job.kind, job.mode, json.dumps(job.spec))
        judge = judges.setdefault(case, r)
        if judge is not r:
            found.append((r, judge, difference(r, judge)))
    return found


def disagreements(results: Sequence[Result]) -> list[str]:
    """Sentences about systems whose outputs differ by more than their precision explains."""
    return [
        f"{r.job.system} and {judge.job.system} differ by {found:.2g} "
        f"({r.case}, {r.job.mode}, {r.job.precision})"
        for r, judge, found in comparisons(results)
        if not found <= AGREEMENT[r.job.precision]
    ]


def agreement(results: Sequence[Result]) -> str:
    """What the comparison of the outputs gave, as lines of a page."""
    found = comparisons(results)
    if not found:
        return "No two systems computed the same, so no outputs were compared."
    worst: dict[str, float] = {}
    for r, _, value in found:
        worst[r.job.precision] = max(worst.get(r.job.precision, 0.0), value)
    differ = disagreements(results)
    if differ:
        return "\n".join(["**The systems do not agree:**", "", *(f"- {line}" for line in differ)])
    parts = [f"{value:.1e} in {precision}" for precision, value in worst.items()]
    return (
        "All systems computed the same outputs; the largest difference, root mean square over "
        f"root mean square, was {', '.join(parts)}."
    )


def exit_status(results: Sequence[Result]) -> int:
    """1 if something failed or systems disagree; lack of memory or time is a result."""
    return 1 if any(r.status == "failed" for r in results) or disagreements(results) else 0


def label(result: Result) -> str:
    """Name of a system, and its precision if it is not float32, for people."""
    name = SYSTEMS[result.job.system].label
    return name if result.job.precision == "32" else f"{name}, {result.job.precision}"


def shortfalls(results: Iterable[Result]) -> list[str]:
    """Lines below a table that say why there are no numbers, after an empty one if there are."""
    lines = [
        f"- {label(r)}, {r.job.mode}: {r.status}" + (f" ({r.message})" if r.message else "")
        for r in results
        if r.status != "ok"
    ]
    return ["", *lines] if lines else []
