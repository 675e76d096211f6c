"""What a run leaves for people: predictions, plots and a summary."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyg_se3.training.files import atomic_path, write_text
from pyg_se3.training.loggers import read_metrics
from pyg_se3.training.machine import duration


def write_predictions(
    path: str | os.PathLike[str],
    idx: Tensor,
    target: Tensor,
    prediction: Tensor,
    names: Sequence[str] = ("",),
    molecules: Sequence[str] | None = None,
) -> None:
    """Write predictions as CSV, one row per molecule.

    Columns: ``idx``, ``name`` (if known), ``target``, ``prediction``, ``error`` (prediction -
    target); for several targets with ``_<name>`` appended.

    Args:
        path: The file.
        idx: Place of every molecule in its source, from 0 [M]; QM9's index minus one.
        target: True values [M, T].
        prediction: Predicted values [M, T].
        names: Names of the T targets.
        molecules: Names of the M molecules; no column if None.
    """
    known = [] if molecules is None else [molecules]
    suffixes = [""] if len(names) == 1 else [f"_{name}" for name in names]
    header = ["idx", *("name" for _ in known)]
    header += [f"{c}{s}" for s in suffixes for c in ("target", "prediction", "error")]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        labels = zip(idx.tolist(), *known, strict=True)
        for label, y, p in zip(labels, target.tolist(), prediction.tolist(), strict=True):
            values = [v for a, b in zip(y, p, strict=True) for v in (a, b, b - a)]
            writer.writerow([*label, *(f"{value:.8g}" for value in values)])


def write_own_predictions(
    path: str | os.PathLike[str],
    numbers: Sequence[int],
    names: Sequence[str],
    prediction: Tensor,
    targets: Sequence[str],
    units: Sequence[str],
) -> None:
    """Write predictions for one's own molecules as CSV.

    Columns: ``molecule``, ``name``, and for every target ``<name> [<unit>]``.

    Args:
        path: The file.
        numbers: Position of every molecule in the input, from 1.
        names: Their names.
        prediction: Predicted values [M, T].
        targets: Names of the T targets.
        units: Their units.
    """
    columns = [f"{target} [{unit}]" for target, unit in zip(targets, units, strict=True)]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["molecule", "name", *columns])
        for number, name, values in zip(numbers, names, prediction.tolist(), strict=True):
            writer.writerow([number, name, *(f"{value:.8g}" for value in values)])


def plot_learning_curve(
    path: str | os.PathLike[str], metrics: str | os.PathLike[str], unit: str
) -> None:
    """Plot training loss, validation error and learning rate against steps as PNG.

    Args:
        path: The picture.
        metrics: ``metrics.csv`` of the run.
        unit: Unit of ``val/mae``.
    """
    rows = read_metrics(metrics)
    figure, (above, below) = _figure(2, figsize=(7, 7), sharex=True)
    steps, losses = _series(rows, "train/loss")
    above.plot(steps, losses, color="0.75", linewidth=0.8, label="training loss (batch)")
    if len(losses) > 20:
        above.plot(steps, _smooth(losses), color="C0", label="training loss (smoothed)")
    above.set_ylabel("L1 loss (standard deviations)")
    above.set_yscale("log")
    rates = above.twinx()
    name = next((n for row in rows.values() for n in row if n.startswith("lr")), None)
    if name is not None:
        rates.plot(*_series(rows, name), color="C2", linewidth=0.8, linestyle=":")
        rates.set_ylabel("learning rate (dotted)")
    above.legend(loc="upper right")
    steps, errors = _series(rows, "val/mae")
    below.plot(steps, errors, color="C1", marker="o", markersize=3)
    below.set_ylabel(f"validation MAE ({unit})")
    below.set_xlabel("step")
    _save(figure, path)


def plot_lr_search(
    path: str | os.PathLike[str], rates: Sequence[float], losses: Sequence[float], suggestion: float
) -> None:
    """Plot the smoothed loss against the learning rate as PNG.

    Args:
        path: The picture.
        rates: Learning rate of every step.
        losses: Loss of every step.
        suggestion: The learning rate to mark.
    """
    figure, (axes,) = _figure(1, figsize=(6, 4))
    axes.plot(rates, losses)
    axes.axvline(suggestion, color="C1", linestyle=":", label=f"suggestion: {suggestion:.2g}")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss (smoothed)")
    axes.legend()
    _save(figure, path)


def plot_parity(
    path: str | os.PathLike[str],
    target: Tensor,
    prediction: Tensor,
    name: str,
    unit: str,
) -> None:
    """Plot predictions against true values of one target as PNG.

    Args:
        path: The picture.
        target: True values [M].
        prediction: Predicted values [M].
        name: Name of the target.
        unit: Its unit.
    """
    figure, (axes,) = _figure(1, figsize=(5.5, 5))
    low = float(torch.min(target.min(), prediction.min()))
    high = float(torch.max(target.max(), prediction.max()))
    if target.numel() > 2000:
        artist = axes.hexbin(
            target.numpy(), prediction.numpy(), gridsize=80, bins="log", mincnt=1, cmap="viridis"
        )
        figure.colorbar(artist, ax=axes, label="molecules")
    else:
        axes.scatter(target.numpy(), prediction.numpy(), s=8, alpha=0.6)
    axes.plot([low, high], [low, high], color="0.3", linewidth=0.8)
    error = float((prediction - target).abs().mean())
    axes.set_title(f"{name}: MAE {with_unit(error, unit)}, {target.numel():,} molecules")
    axes.set_xlabel(f"true ({unit})")
    axes.set_ylabel(f"predicted ({unit})")
    _save(figure, path)


def write_summary(folder: str | os.PathLike[str], summary: Mapping[str, Any]) -> str:
    """Write ``summary.json`` and ``summary.md``.

    Args:
        folder: Where to.
        summary: As :class:`pyg_se3.training.callbacks.RunReport` makes it.

    Returns:
        The table in ``summary.md``.
    """
    table = summary_table(summary)
    write_text(Path(folder) / "summary.json", json.dumps(summary, indent=2) + "\n")
    write_text(Path(folder) / "summary.md", table + "\n")
    return table


def summary_table(summary: Mapping[str, Any]) -> str:
    """The summary as a Markdown table."""
    rows: list[tuple[str, str]] = []
    for name, result in summary["targets"].items():
        unit = result["unit"]
        rows.append((f"test MAE, {name}", with_unit(result["mae"], unit)))
        rows.append(("  of always predicting the mean", with_unit(result["mean_mae"], unit)))
    rows.append(("test molecules", f"{summary['test_molecules']:,}"))
    rows.append(("parameters", f"{summary['parameters']:,}"))
    if "train_seconds" in summary:
        rows.append(("time for training", duration(summary["train_seconds"])))
        rows.append(("steps", f"{summary['steps']:,}"))
    if summary.get("molecules_per_second"):
        rows.append(("training speed", f"{summary['molecules_per_second']:.0f} molecules/s"))
    for where, value in summary["peak_memory_mb"].items():
        rows.append((f"peak memory, {where}", f"{value:,.0f} MB"))
    rows.append(("device", str(summary["device"])))
    width = max(len(label) for label, _ in rows)
    values = max(len(value) for _, value in rows)
    lines = [f"| {'':<{width}} | {'':<{values}} |", f"|{'-' * (width + 2)}|{'-' * (values + 2)}|"]
    lines += [f"| {label:<{width}} | {value:<{values}} |" for label, value in rows]
    return "\n".join(lines)


def with_unit(value: float, unit: str) -> str:
    """A number with its unit; small energies in meV, as the field reports them."""
    if unit == "eV" and abs(value) < 1:
        return f"{1000 * value:.1f} meV"
    return f"{value:.4g} {unit}"


def _series(rows: Mapping[int, Mapping[str, float]], name: str) -> tuple[list[int], list[float]]:
    found = [(step, row[name]) for step, row in sorted(rows.items()) if name in row]
    return [step for step, _ in found], [value for _, value in found]


def _smooth(values: Sequence[float], share: float = 0.02) -> list[float]:
    keep = math.exp(-1 / max(1.0, share * len(values)))
    out, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(mean / weight)
    return out


def _figure(rows: int, **kwargs: Any) -> tuple[Any, Any]:
    # Not pyplot: it would choose a window system, and keep every figure in memory.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sharex = kwargs.pop("sharex", False)
    figure = Figure(layout="constrained", **kwargs)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, 1, squeeze=False, sharex=sharex)[:, 0]


def _save(figure: Any, path: str | os.PathLike[str]) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
