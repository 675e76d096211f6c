"""Molecules from SDF and XYZ files, one after the other, however large the files are."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, cast

import numpy as np
from rdkit import Chem, rdBase

SUFFIXES = (".sdf", ".sd", ".xyz", ".extxyz")
"""Formats that are read, also with ``.gz`` appended."""

_ASSIGNMENT = re.compile(r"""([^\s=]+)=("[^"]*"|'[^']*'|\S+)""")


@dataclass(frozen=True)
class Record:
    """One molecule as a file has it.

    Attributes:
        place: File and position in it, for messages.
        name: Title of an SDF entry; for XYZ the file's name, with ``:2`` and so on from the second
            frame.
        mol: RDKit molecule of an SDF entry; None for XYZ, or if RDKit cannot read the entry.
        z: Atomic numbers of an XYZ frame [N].
        pos: Its coordinates [N, 3] in Å.
        properties: Data fields of the SDF entry, or ``key=value`` pairs of the XYZ comment.
    """

    place: str
    name: str
    mol: Chem.Mol | None = None
    z: np.ndarray | None = None
    pos: np.ndarray | None = None
    properties: dict[str, str] = field(default_factory=dict)


def molecule_paths(path: str | Path | Sequence[str | Path]) -> tuple[Path, ...]:
    """Resolve files, or the molecule files of a folder, sorted by name.

    Raises:
        FileNotFoundError: If a file is missing or a folder holds no molecule file.
        ValueError: If a file is of another format.
    """
    if isinstance(path, (str, Path)):
        folder = Path(path)
        if folder.is_dir():
            found = sorted(p for p in folder.iterdir() if _suffix(p) in SUFFIXES)
            if not found:
                raise FileNotFoundError(f"{folder} holds no file of {', '.join(SUFFIXES)}")
            return tuple(found)
        path = [path]
    paths = tuple(Path(p) for p in path)
    if not paths:
        raise ValueError("no file of molecules given")
    for one in paths:
        if not one.is_file():
            raise FileNotFoundError(f"{one} does not exist")
        if _suffix(one) not in SUFFIXES:
            raise ValueError(
                f"{one}: expected a file of {', '.join(SUFFIXES)} (.gz too), or a folder of them"
            )
    return paths


def read_records(
    path: Path,
    advance: Callable[[int], object] = lambda _: None,
    kind: Literal["sdf", "xyz"] | None = None,
) -> Iterator[Record]:
    """Read the molecules of a file; only one is in memory at a time.

    Args:
        path: SDF or XYZ file, possibly with ``.gz``.
        advance: Called with the number of bytes of the file that each molecule took.
        kind: Format of the file; as its name says if None.

    Yields:
        One record per molecule.

    Raises:
        ValueError: If an XYZ file is not complete.
    """
    kind = kind or ("sdf" if _suffix(path) in (".sdf", ".sd") else "xyz")
    read = _read_sdf if kind == "sdf" else _read_xyz
    with open(path, "rb") as raw:
        unpacked = gzip.open(raw) if path.suffix == ".gz" else raw
        done = 0
        for record in read(path, cast(BinaryIO, unpacked)):
            yield record
            now = raw.tell()
            advance(now - done)
            done = now
        advance(path.stat().st_size - done)


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix.lower() if path.suffix == ".gz" else path.suffix.lower()


def _read_sdf(path: Path, stream: BinaryIO) -> Iterator[Record]:
    # Cut into entries here: after a broken one, RDKit's own reader may swallow the next.
    supplier = Chem.SDMolSupplier()
    for number, entry in enumerate(_sdf_entries(stream), start=1):
        with rdBase.BlockLogs():
            supplier.SetData(entry, removeHs=False)
            mol = next(supplier, None)
        place = f"{path}: molecule {number}"
        if mol is None:
            yield Record(place, "")
            continue
        name = mol.GetProp("_Name") if mol.HasProp("_Name") else ""
        properties = {key: mol.GetProp(key) for key in mol.GetPropNames()}
        yield Record(place, name.strip(), mol, properties=properties)


def _sdf_entries(stream: BinaryIO) -> Iterator[str]:
    lines: list[bytes] = []
    for line in stream:
        lines.append(line)
        if line.startswith(b"$$$$"):
            yield b"".join(lines).decode("utf-8", "replace")
            lines = []
    rest = b"".join(lines).decode("utf-8", "replace")
    if rest.strip():
        yield rest


def _read_xyz(path: Path, stream: BinaryIO) -> Iterator[Record]:
    stem = Path(path.stem).stem if path.suffix == ".gz" else path.stem
    number = 0
    while line := stream.readline():
        if not line.strip():
            continue
        number += 1
        try:
            count = int(line)
            comment = stream.readline().decode("utf-8")
            rows = [stream.readline().decode("utf-8").split() for _ in range(count)]
            z, pos = _atoms(rows)
        except (IndexError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{path} is not a complete XYZ file (molecule {number}: {error})"
            ) from error
        properties = {key: value.strip("\"'") for key, value in _ASSIGNMENT.findall(comment)}
        layout = properties.pop("Properties", "species:S:1:pos:R:3")
        if not layout.startswith("species:S:1:pos:R:3"):
            raise ValueError(
                f"{path}: molecule {number} has columns {layout!r}; expected element and position "
                "first (species:S:1:pos:R:3)"
            )
        name = stem if number == 1 else f"{stem}:{number}"
        yield Record(f"{path}: molecule {number}", name, None, z, pos, properties)


def _atoms(rows: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    table = Chem.GetPeriodicTable()
    z = [int(row[0]) if row[0].isdigit() else table.GetAtomicNumber(row[0]) for row in rows]
    pos = np.array([[float(value) for value in row[1:4]] for row in rows])
    if pos.shape != (len(rows), 3) or min(z, default=0) < 1:
        raise ValueError("atoms need an element and three coordinates")
    return np.array(z), pos
