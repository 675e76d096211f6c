"""The summary of the kernels' measurements: one row per goal."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from . import report
from .common import Result
from .systems import NVIDIA

HEADER = ["", "pyg-se3", "NVIDIA, best", "ratio", "NVIDIA, fully fused", "ratio to it"]
BUDGET_GB = 16
Row = list[str]


class Measured:
    """Results by case, mode and system."""

    def __init__(self, results: Sequence[Result]) -> None:
        self.results = [r for r in results if r.status == "ok"]
        self.cases = list(dict.fromkeys(r.case for r in results))

    def of(self, case: str, mode: str, system: str = "ours") -> Result | None:
        """A result that is ok, or None."""
        return next(
            (r for r in self.results if (r.case, r.job.mode, r.job.system) == (case, mode, system)),
            None,
        )

    def nvidia(self, case: str, mode: str) -> list[Result]:
        """NVIDIA's formulation at every level."""
        return [r for r in self.results if (r.case, r.job.mode) == (case, mode) and _nvidia(r)]


def _nvidia(result: Result) -> bool:
    return result.job.system in NVIDIA


def summary(results: Sequence[Result]) -> str:
    """The table as Markdown, with the rows that the results allow."""
    measured = Measured(results)
    rows = [*_model_rows(measured), *_dense_rows(measured)]
    rows += [*_largest(measured), *_degrees(measured), *_forces(measured)]
    return report.table(HEADER, rows)


def _model_rows(measured: Measured) -> list[Row]:
    step = ("step", "training")
    return [
        *_time_row(measured, "training step, batch 100", *step),
        *_memory_row(measured, "the same, peak memory above base", *step),
        *_time_row(measured, "training step, uncompressed", *step, system="ours-exact"),
        *_time_row(measured, "training step, `fast`", *step, system="ours-fast"),
        *_time_row(measured, "inference, batch 400", "inference", "inference"),
        *_memory_row(measured, "the same, peak memory above base", "inference", "inference"),
        *_time_row(measured, "inference, one molecule", "single", "inference"),
        *_time_row(measured, "training step, one molecule", "single", "training"),
    ]


def _dense_rows(measured: Measured) -> list[Row]:
    rows = []
    for case in measured.cases:
        if case.startswith("dense-"):
            sizes = next(r.inputs for r in measured.results if r.case == case)
            spec = next(r.job.spec for r in measured.results if r.case == case)
            name = (
                f"dense layer, L={spec['max_degree']}, C={spec['channels']}, "
                f"{sizes['nodes']} nodes x {sizes['edges'] // sizes['nodes']}"
            )
            rows += _time_row(measured, f"{name}: forward", case, "inference")
            rows += _time_row(measured, f"{name}: training", case, "training")
    return rows


def _time_row(
    measured: Measured, name: str, case: str, mode: str, system: str = "ours"
) -> list[Row]:
    """Least times; medians in brackets."""
    ours = measured.of(case, mode, system)
    if ours is None or ours.best is None:
        return []
    fastest, least = report.least(measured.nvidia(case, mode), lambda r: r.best)
    full = measured.of(case, mode, "nvidia-full")
    return [
        [
            name,
            _time(ours),
            _named(_time(fastest), fastest),
            report.times(least, ours.best),
            _time(full),
            report.times(full.best if full else None, ours.best),
        ]
    ]


def _time(result: Result | None) -> str:
    if result is None or result.best is None or result.seconds is None:
        return "–"
    if result.best < 1:
        best, median = (report.quantity(1e3 * t) for t in (result.best, result.seconds))
        return f"{best} ({median}) ms"
    return f"{report.quantity(result.best)} ({report.quantity(result.seconds)}) s"


def _named(text: str, result: Result | None) -> str:
    if result is None:
        return text
    return f"{text}, {report.label(result).removeprefix('NVIDIA, ')}"


def _memory_row(measured: Measured, name: str, case: str, mode: str) -> list[Row]:
    ours = measured.of(case, mode)
    if ours is None or not ours.peak_bytes:
        return []
    smallest, least = report.least(measured.nvidia(case, mode), lambda r: r.peak_bytes)
    full = measured.of(case, mode, "nvidia-full")
    return [
        [
            name,
            _memory(ours),
            _named(_memory(smallest), smallest),
            report.times(least, ours.peak_bytes),
            _memory(full),
            report.times(full.peak_bytes if full else None, ours.peak_bytes),
        ]
    ]


def _memory(result: Result | None) -> str:
    if result is None or result.peak_bytes is None:
        return "–"
    return report.quantity(result.peak_bytes / 1e6, "MB")


def _own(name: str, text: str) -> Row:
    """A row without a baseline."""
    return [name, text, "–", "–", "–", "–"]


def _largest(measured: Measured) -> list[Row]:
    """What fits in the budget, extrapolated from two sizes; and the step that was really run."""
    rows = []
    points = [
        (r.inputs["graphs"], r.base_bytes + r.peak_bytes)
        for r in measured.results
        if r.case.startswith("memory-") and r.base_bytes is not None and r.peak_bytes is not None
    ]
    if len(points) >= 2:
        (small, low), (large, high) = min(points), max(points)
        slope = (high - low) / (large - small)
        most = int((BUDGET_GB * 1e9 - (low - slope * small)) / slope)
        rows.append(
            _own(
                f"largest batch that trains in {BUDGET_GB} GB, from {small} and {large} molecules",
                f"{round(most, -2)} ({slope / 1e6:.2f} MB per molecule)",
            )
        )
    run = measured.of("largest", "training")
    if run is not None and run.best is not None and run.peak_bytes is not None:
        total = ((run.base_bytes or 0) + run.peak_bytes) / 1e9
        rows.append(
            _own(
                f"training step, batch {run.inputs['graphs']}, limited to {BUDGET_GB} GB, run",
                f"{report.quantity(run.best)} s, {report.quantity(total)} GB in all",
            )
        )
    return rows


def _degrees(measured: Measured) -> list[Row]:
    """Time of the largest degree, and its growth with the degree."""
    points = [
        (int(found[1]), r.best)
        for r in measured.results
        if (found := re.fullmatch(r"degree-(\d+)", r.case)) and r.best is not None
    ]
    if len(points) < 2:
        return []
    largest, seconds = max(points)
    size = next(r.inputs for r in measured.results if r.case == f"degree-{largest}")
    slopes = [growth([(degree + add, t) for degree, t in points]) for add in (0, 1)]
    return [
        _own(
            f"L = {largest}, C = 32, bonds, training step, batch {size['graphs']}",
            f"{report.quantity(seconds)} s",
        ),
        _own(
            f"growth over L = {min(points)[0]}..{largest}: with L, with L + 1",
            f"L^{slopes[0]:.2f}, (L+1)^{slopes[1]:.2f}",
        ),
    ]


def growth(points: Sequence[tuple[float, float]]) -> float:
    """Exponent p of y ~ x^p, by least squares on logarithms."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    mean_x, mean_y = (sum(column) / len(logs) for column in zip(*logs, strict=True))
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in logs)
    return covariance / sum((x - mean_x) ** 2 for x, _ in logs)


def _forces(measured: Measured) -> list[Row]:
    both, energy = measured.of("forces", "forces"), measured.of("forces", "training")
    if both is None or energy is None or both.best is None or energy.best is None:
        return []
    return [
        _own("energies and forces, training step, batch 100", _time(both)),
        _own("the same over energies only", f"{both.best / energy.best:.3g}x as long"),
    ]
