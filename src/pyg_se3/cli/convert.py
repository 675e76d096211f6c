"""``pyg-se3 convert``: checkpoints of NVIDIA's code to files of this package, and back."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, get_args

from pyg_se3.compat import convert
from pyg_se3.compat.signs import Convention


def parser() -> argparse.ArgumentParser:
    """Command line of the conversion."""
    result = argparse.ArgumentParser(
        prog="pyg-se3 convert",
        description="Convert a checkpoint, say what was recognised, and check the result.",
    )
    result.add_argument("source", type=Path, help="file to read")
    result.add_argument("target", type=Path, help="file to write")
    result.add_argument("--to", choices=("native", "nvidia"), help="format; by default the other")
    result.add_argument(
        "--config",
        help="constructor arguments that the file does not tell, as JSON or a JSON file, "
        'for example \'{"num_heads": 8, "pooling": "max"}\'',
    )
    result.add_argument(
        "--cg-convention",
        choices=get_args(Convention),
        help="Clebsch-Gordan signs that an NVIDIA file was trained with (default: e3nn-0.3)",
    )
    result.add_argument(
        "--write-convention",
        choices=get_args(Convention),
        help="signs of the NVIDIA file to write (default: e3nn-0.3)",
    )
    result.add_argument(
        "--pairwise", action="store_true", help="give every degree pair a radial MLP of its own"
    )
    result.add_argument("--prefix", help="keep only the parameters under this prefix")
    result.add_argument("--entry", help="key of the checkpoint that holds the state dict")
    result.add_argument("--overwrite", action="store_true", help="replace the target if it exists")
    return result


def main(argv: list[str] | None = None) -> None:
    """Convert and report.

    Args:
        argv: Arguments; those of the process if None.
    """
    arguments = parser().parse_args(argv)
    try:
        conversion = convert(
            arguments.source,
            arguments.target,
            _config(arguments.config),
            to=arguments.to,
            cg_convention=arguments.cg_convention,
            write_convention=arguments.write_convention,
            pairwise=arguments.pairwise,
            prefix=arguments.prefix,
            entry=arguments.entry,
            overwrite=arguments.overwrite,
        )
    except (OSError, ValueError, TypeError) as error:
        sys.exit(f"error: {error}")
    print("\n".join(conversion.lines()))


def _config(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    path = Path(text)
    if not text.lstrip().startswith("{"):
        text = path.read_text()
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--config is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"--config is a {type(config).__name__}, expected a JSON object")
    return config


if __name__ == "__main__":
    main()
