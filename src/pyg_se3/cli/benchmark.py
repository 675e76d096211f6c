"""``pyg-se3 benchmark``: speed and memory on this machine, against other formulations."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import pyg_se3

BENCHMARKS = {
    "qm9": ("qm9_step", "throughput and peak memory on QM9, every formulation (the default)"),
    "kernels": ("kernels", "whole model and lone layers against NVIDIA's formulation"),
    "scaling": ("scaling", "time and memory over batch size, degree, channels and neighbours"),
    "roofline": ("roofline", "operations and bytes of a step against the machine's limits"),
    "protein": ("protein", "the SE(3) blocks of RFdiffusion"),
    "precision": ("precision", "error of each precision against float64"),
    "geometry": ("geometry_cache", "what stored edge frames save and cost"),
    "constants": ("kernel_constants", "the factors by which kernels are chosen"),
    "table": ("readme", "a README's performance section from measured results"),
}


def package() -> str:
    """Name of the benchmarks' package: inside an installed pyg_se3, else beside ``src``.

    Raises:
        FileNotFoundError: If it is in neither place.
    """
    inside = f"{pyg_se3.__name__}.benchmarks"
    if importlib.util.find_spec(inside) is not None:
        return inside
    here = Path(pyg_se3.__file__).parent
    checkout = here.parents[1]
    if not (checkout / "benchmarks" / "worker.py").is_file():
        raise FileNotFoundError(f"there is no benchmarks folder in {here} or {checkout}")
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    return "benchmarks"


def usage() -> str:
    """Help text."""
    width = max(map(len, BENCHMARKS))
    lines = ["usage: pyg-se3 benchmark [NAME] [OPTIONS]", ""]
    lines += [f"  {name:<{width}}  {text}" for name, (_, text) in BENCHMARKS.items()]
    lines += ["", "`pyg-se3 benchmark NAME --help` lists the options of a benchmark."]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run a benchmark.

    Args:
        argv: Arguments; those of the process if None.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments and arguments[0] in ("-h", "--help"):
        print(usage())
        return
    name = "qm9" if not arguments or arguments[0].startswith("-") else arguments.pop(0)
    if name not in BENCHMARKS:
        sys.exit(f"pyg-se3 benchmark: unknown benchmark {name!r}\n\n{usage()}")
    module = importlib.import_module(f"{package()}.{BENCHMARKS[name][0]}")
    sys.exit(module.main(arguments))


if __name__ == "__main__":
    main()
