"""Raw rows of QM9 as the ``qm9pack`` wheel carries them.

The wheel (MIT licence, 1.0.3) holds three CSV files with geometries and properties, but no bonds.
Only the files are used; the package itself is never imported, because that needs
``pkg_resources``, which recent setuptools no longer provide.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyg_se3.data.targets import ELEMENTS, TARGETS

QM9PACK_VERSION = "1.0.3"
"""Version of qm9pack that the numbers in the documentation were checked with."""

NUM_MOLECULES = 130_831
"""Characterised molecules of QM9."""

_FILES = ("qm9_part1.csv", "qm9_part2.csv", "qm9_part3.csv")
_SYMBOLS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
_BRACKETS = str.maketrans("", "", "[]")
_BASE_COLUMNS = ("Index", "SMILES", "N_atoms", "Elements", "XYZ_Ang")
COLUMNS: tuple[str, ...] = _BASE_COLUMNS + tuple(dict.fromkeys(t.column for t in TARGETS))
"""Columns of the CSV files that are read."""


@dataclass(frozen=True)
class RawMolecule:
    """One molecule as read.

    Attributes:
        idx: QM9's index minus one, which is PyTorch Geometric's ``idx``.
        smiles: SMILES string.
        z: Atomic numbers [N] int64.
        pos: Coordinates [N, 3] float64 in Å.
        y: The 19 targets [19] float64.
    """

    idx: int
    smiles: str
    z: np.ndarray
    pos: np.ndarray
    y: np.ndarray


def qm9pack_files() -> tuple[Path, ...]:
    """Paths of the CSV files of the installed ``qm9pack``.

    Raises:
        ModuleNotFoundError: If qm9pack is not installed; the message says how to install it.
        FileNotFoundError: If one of its files is missing.
    """
    spec = importlib.util.find_spec("qm9pack")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "QM9's raw data comes with the package qm9pack, which is not installed: "
            f"pip install qm9pack=={QM9PACK_VERSION} (104 MB), or use source='pyg'"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    return _existing([folder / name for name in _FILES])


def raw_files(raw_path: str | Path | Sequence[str | Path]) -> tuple[Path, ...]:
    """Resolve files, or the CSV files of a folder, in qm9pack's format.

    Raises:
        FileNotFoundError: If a file is missing or a folder holds no CSV file.
    """
    if isinstance(raw_path, (str, Path)):
        path = Path(raw_path)
        if path.is_dir():
            found = sorted(path.glob("qm9_part*.csv")) or sorted(path.glob("*.csv"))
            if not found:
                raise FileNotFoundError(f"{path} holds no CSV file in qm9pack's format")
            return tuple(found)
        return _existing([path])
    return _existing([Path(path) for path in raw_path])


def qm9pack_identity() -> str:
    """Name and version of the raw data; of the supported version where qm9pack is missing."""
    try:
        version = importlib.metadata.version("qm9pack")
    except importlib.metadata.PackageNotFoundError:
        version = QM9PACK_VERSION
    return f"qm9pack {version}"


def files_identity(files: Sequence[Path]) -> str:
    """Checksum over the content of files."""
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return f"sha256 {digest.hexdigest()}"


def read_molecules(files: Sequence[Path]) -> Iterator[RawMolecule]:
    """Read molecules from CSV files in qm9pack's format.

    Args:
        files: Paths, in the order to be read.

    Yields:
        One molecule per row.

    Raises:
        ValueError: If a column is missing or a row cannot be understood; names file and line.
    """
    for path in files:
        with open(path, newline="", encoding="utf-8") as stream:
            reader = csv.reader(stream)
            header = next(reader, [])
            missing = [name for name in COLUMNS if name not in header]
            if missing:
                raise ValueError(f"{path}: columns {missing} are missing; found {header}")
            places = {name: header.index(name) for name in COLUMNS}
            for row in reader:
                try:
                    yield _parse({name: row[place] for name, place in places.items()})
                except (ValueError, KeyError, IndexError) as error:
                    raise ValueError(
                        f"{path}, line {reader.line_num}: cannot be read ({error}); the file may "
                        "be truncated"
                    ) from error


def _parse(row: dict[str, str]) -> RawMolecule:
    z = np.array([_SYMBOLS[symbol] for symbol in re.findall("[A-Z][a-z]?", row["Elements"])])
    # Tokens such as "0." are not JSON, hence no json.loads.
    numbers = row["XYZ_Ang"].translate(_BRACKETS).split(",")
    pos = np.array(numbers, dtype=np.float64).reshape(-1, 3)
    if not len(z) == len(pos) == int(row["N_atoms"]):
        raise ValueError(f"{len(z)} elements, {len(pos)} positions, N_atoms={row['N_atoms']}")
    y = target_values({t.column: float(row[t.column]) for t in TARGETS}, z)
    if not (np.isfinite(y).all() and np.isfinite(pos).all()):
        raise ValueError("a value is not finite")
    return RawMolecule(int(row["Index"]) - 1, row["SMILES"], z, pos, y)


def target_values(columns: dict[str, float], z: np.ndarray) -> np.ndarray:
    """The 19 targets from raw columns and composition.

    Args:
        columns: Value by column name, in the units of the source.
        z: Atomic numbers [N].

    Returns:
        [19] float64 in the units of :data:`pyg_se3.data.targets.TARGETS`.
    """
    counts = [int((z == number).sum()) for number in ELEMENTS]
    values = np.empty(len(TARGETS))
    for target in TARGETS:
        value = columns[target.column] * target.factor
        if target.subtract and target.atomref is not None:
            value -= sum(n * e for n, e in zip(counts, target.atomref, strict=True))
        values[target.index] = value
    return values


def _existing(paths: Sequence[Path]) -> tuple[Path, ...]:
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"raw data file {path} does not exist")
    return tuple(paths)
