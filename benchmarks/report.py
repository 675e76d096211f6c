"""Results as JSON, Markdown tables and bar charts, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

from benchmarks.common import Result
from benchmarks.systems import SYSTEMS
from pyg_se3.training.files import atomic_path, write_text

RESULTS = Path(__file__).resolve().parent / "results"

# Systems of one process family must agree this well in the number they compute, by precision.
AGREEMENT = {"32": 1e-3, "bf16": 5e-2, "16": 2e-2}


def default_stem(name: str) -> Path:
    """`benchmarks/results/DATE-name`, without a suffix."""
    return RESULTS / f"{date.today().isoformat()}-{name}"


def free_stem(stem: Path) -> Path:
    """The stem itself, or with a number if results are there already: none is overwritten."""
    candidate, number = stem, 1
    while any(candidate.with_name(candidate.name + s).exists() for s in (".json", ".md", ".png")):
        number += 1
        candidate = stem.with_name(f"{stem.name}-{number}")
    return candidate


def write_json(path: Path, machine: dict, results: Sequence[Result]) -> None:
    """Everything that was measured."""
    record = {"machine": machine, "results": [r.to_dict() for r in results]}
    write_text(path, json.dumps(record, indent=1) + "\n")


def machine_line(machine: dict) -> str:
    """The head of a page."""
    parts = [machine.get("gpu") or machine["cpu"], f"{machine['threads']} threads"]
    parts += [f"{machine['memory_gb']} GB", f"torch {machine['torch']}"]
    parts += [f"commit {machine['commit']}", machine["date"]]
    return ", ".join(parts) + f". Load average before: {machine['load_at_start']:.2f}."


def disturbance(results: Sequence[Result]) -> str:
    """How busy other processes kept the machine meanwhile; above a tenth of a core it shows."""
    known = [r.other_cores for r in results if r.other_cores is not None]
    if not known:
        return "What else ran on the machine is not known."
    text = f"Other processes kept {max(known):.2f} cores busy during the worst measurement"
    return text + (": **the machine was not idle**." if max(known) > 0.1 else ".")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table; the first columns are text, the others numbers."""
    lines = [" | ".join(header), " | ".join(["---"] * texts + ["---:"] * (len(header) - texts))]
    lines += [" | ".join(row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def quantity(value: float | None, unit: str = "") -> str:
    """Three significant digits, or a dash."""
    if value is None:
        return "–"
    text = f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    return f"{text} {unit}".strip()


def ratio(baseline: Result | None, result: Result, value: Callable[[Result], float | None]) -> str:
    """How many times less than the baseline."""
    theirs, own = (value(baseline) if baseline else None), value(result)
    return f"{theirs / own:.3g}x" if theirs and own else "–"


def disagreements(results: Sequence[Result]) -> list[str]:
    """Sentences about systems whose numbers differ by more than their precision explains."""
    found, seen = [], {}
    for r in results:
        if r.value is None:
            continue
        job = r.job
        case = (job.inputs, job.kind, job.mode, job.precision, json.dumps(job.spec))
        first = seen.setdefault(case, r)
        scale = max(abs(first.value), 1e-12)
        if not abs(r.value - first.value) <= AGREEMENT[job.precision] * scale:
            found.append(
                f"{job.system} gives {r.value:.7g} where {first.job.system} gives "
                f"{first.value:.7g} ({job.kind}, {job.mode}, {job.precision})"
            )
    return found


def label(result: Result) -> str:
    """Name of a system for people."""
    return SYSTEMS[result.job.system].label


def bar_charts(
    path: Path, panels: Sequence[tuple[str, Sequence[tuple[str, float | None]]]], title: str
) -> None:
    """One panel of horizontal bars per quantity, side by side, in one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    height = 1.4 + 0.4 * max(len(bars) for _, bars in panels)
    figure, axes = pyplot.subplots(1, len(panels), figsize=(6.5 * len(panels), height))
    for axis, (name, bars) in zip([axes] if len(panels) == 1 else axes, panels, strict=True):
        bars = list(reversed(bars))
        values = [value or 0.0 for _, value in bars]
        colours = ["C2" if text.startswith("pyg-se3") else "C7" for text, _ in bars]
        drawn = axis.barh([text for text, _ in bars], values, color=colours)
        axis.bar_label(drawn, [quantity(value) for _, value in bars], padding=3)
        axis.set_xlabel(name)
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
    pyplot.close(figure)
