"""The README's performance section, made from measured results.

    pyg-se3 benchmark table benchmarks/results/DATE-MACHINE-kernels.json          # print it
    pyg-se3 benchmark table RESULTS.json [...] --into README.md                   # put it in place

Results are those of the QM9 figure and of the kernels' table. With `--into`, what stands between
the markers is replaced; nothing else is touched.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pyg_se3.training.files import write_text

from . import kernels, qm9_step, report
from .common import Result
from .kernel_table import summary
from .systems import ModelSpec

BEGIN, END = "<!-- performance: begin -->", "<!-- performance: end -->"


def section(path: Path) -> str:
    """The part that a file of results gives.

    Raises:
        ValueError: It is of a benchmark that the README does not show.
    """
    kind, machine, results = report.read_results(path)
    if kind == kernels.KIND:
        lines = [
            "Against NVIDIA's formulation at the best of its fuse levels and low-memory mode, and "
            "fully fused; full QM9 model unless the row says otherwise. Minima, medians in "
            "brackets.",
            "",
            summary(results),
        ]
    elif kind == qm9_step.KIND:
        lines = _qm9(results)
    else:
        raise ValueError(f"{path} has results of kind {kind!r}, expected 'kernels' or 'qm9'")
    lines += ["", f"{report.machine_line(machine)} Measured by `{_command(kind)}`: {path.name}."]
    return "\n".join(lines)


def _command(kind: str) -> str:
    return {kernels.KIND: "make bench-kernels", qm9_step.KIND: "make bench"}[kind]


def _qm9(results: list[Result]) -> list[str]:
    spec = ModelSpec(**results[0].job.spec)
    lines = [
        f"QM9, {spec.num_layers} layers, {spec.num_degrees} degrees, {spec.num_channels} channels. "
        "Ratios are against the best of NVIDIA's formulation in float32 (bold).",
    ]
    for (size, mode), group in qm9_step.grouped(results).items():
        lines += ["", f"{mode.capitalize()}, batch {size}:", "", qm9_step.group_table(group)]
    return lines


def replace(text: str, content: str) -> str:
    """The text with new content between the markers.

    Raises:
        ValueError: The markers are not there once each, in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"expected the lines {BEGIN!r} and {END!r} once each, in this order")
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}\n{content}\n{END}{tail}"


def main(arguments: list[str] | None = None) -> int:
    """Print the section, or put it into a file."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="pyg-se3 benchmark table", description=__doc__.splitlines()[0]
    )
    parser.add_argument("results", nargs="+", type=Path, help="JSON files of results")
    parser.add_argument("--into", type=Path, help="file with the markers")
    options = parser.parse_args(arguments)
    try:
        content = "\n\n".join(section(path) for path in options.results)
        if options.into is None:
            print(content)
        else:
            write_text(options.into, replace(options.into.read_text(encoding="utf-8"), content))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
