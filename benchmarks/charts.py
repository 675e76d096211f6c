"""Charts as PNG, written whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyg_se3.training.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS, OTHERS = "tab:green", "tab:gray"


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        label: Of what.
        value: Its length; None if there is nothing to show but the note.
        note: Text at its end.
        ours: Whether to draw it in the colour of this package.
    """

    label: str
    value: float | None
    note: str
    ours: bool


@dataclass(frozen=True)
class Panel:
    """Bars of one quantity."""

    title: str
    axis: str
    bars: Sequence[Bar]


@dataclass(frozen=True)
class Curve:
    """Values of one system; None where there is none."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]


@dataclass(frozen=True)
class Plot:
    """Curves over one quantity, both axes logarithmic, and marks with a text each at some x."""

    title: str
    x_axis: str
    y_axis: str
    curves: Sequence[Curve]
    marks: Sequence[tuple[float, str]] = ()


def bar_chart(path: Path, rows: Sequence[Sequence[Panel]], title: str) -> None:
    """Panels of horizontal bars on logarithmic axes; the first bar of a panel is at the top."""
    pyplot = _pyplot()
    heights = [0.9 + 0.36 * max(len(panel.bars) for panel in row) for row in rows]
    columns = len(rows[0])
    figure, axes = pyplot.subplots(
        len(rows),
        columns,
        figsize=(6.8 * columns, sum(heights) + 0.8),
        squeeze=False,
        height_ratios=heights,
    )
    for row, line in zip(axes, rows, strict=True):
        for position, (axis, panel) in enumerate(zip(row, line, strict=True)):
            known = [bar.value for bar in panel.bars if bar.value]
            low, high = (min(known) / 2, max(known)) if known else (0.5, 1.0)
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter("")
            axis.set_xlim(low, high * (high / low) ** 0.55)  # room for the notes
            names = [bar.label for bar in panel.bars]
            widths = [bar.value or low for bar in panel.bars]
            colours = [OURS if bar.ours else OTHERS for bar in panel.bars]
            drawn = axis.barh(range(len(names)), widths, color=colours)
            axis.bar_label(drawn, [bar.note for bar in panel.bars], padding=4, fontsize=9)
            axis.set_yticks(range(len(names)), names if position == 0 else [""] * len(names))
            axis.invert_yaxis()
            axis.set_title(panel.title, fontsize=11)
            axis.set_xlabel(panel.axis)
            axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path, title)


def curve_chart(path: Path, rows: Sequence[Sequence[Plot]], title: str) -> None:
    """Panels of curves on logarithmic axes; a label has the same colour everywhere."""
    pyplot = _pyplot()
    columns = max(map(len, rows))
    figure, axes = pyplot.subplots(
        len(rows), columns, figsize=(4.6 * columns, 3.9 * len(rows)), squeeze=False
    )
    labels = list(dict.fromkeys(c.label for row in rows for plot in row for c in plot.curves))
    lines = {}
    for row, line in zip(axes, rows, strict=True):
        for axis, plot in zip(row, line, strict=True):
            for curve in plot.curves:
                known = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if y]
                if known:
                    colour = f"C{labels.index(curve.label)}"
                    (lines[curve.label],) = axis.plot(
                        *zip(*known, strict=True), marker="o", markersize=4, color=colour
                    )
            ticks = sorted({x for curve in plot.curves for x in curve.x})
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_xticks(ticks, [f"{x:g}" for x in ticks], minor=False)
            axis.set_xticks([], minor=True)
            axis.margins(x=0.1, y=0.45 if plot.marks else 0.05)
            for x, text in plot.marks:
                axis.annotate(
                    text, (x, 0.98), xycoords=("data", "axes fraction"), ha="center", va="top",
                    fontsize=7, rotation=90,
                )  # fmt: skip
            axis.set_title(plot.title, fontsize=10)
            axis.set_xlabel(plot.x_axis)
            axis.set_ylabel(plot.y_axis)
            axis.grid(alpha=0.3)
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=len(lines))
    _save(figure, path, title)


def _pyplot():  # noqa: ANN202 - a module
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Figure, path: Path, title: str) -> None:
    from matplotlib import pyplot

    figure.suptitle(title, fontsize=11)
    figure.set_layout_engine("constrained")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
    pyplot.close(figure)
