"""Where one's own molecules come from: files, or any iterator."""

from __future__ import annotations

import csv
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rdkit import rdBase
from torch_geometric.data import Data

from pyg_se3.data.bonds import BondForm
from pyg_se3.data.molecule_files import Record, molecule_paths, read_records
from pyg_se3.data.molecules import GraphKind, check_graph, data_from_record
from pyg_se3.data.targets import ELEMENTS

Advance = Callable[[int], object]


class MoleculeSource(ABC):
    """Molecules that can be read one after the other, again whenever data must be made anew.

    Attributes:
        unit: What the size and the progress are counted in.
    """

    unit: str

    @property
    @abstractmethod
    def property_names(self) -> tuple[str, ...]:
        """Names of the columns of ``y``."""

    @property
    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Plain values that determine the molecules; processed data of other values is not used."""

    @property
    def size(self) -> int | None:
        """How much there is in :attr:`unit`, or None if that is not known."""
        return None

    @abstractmethod
    def molecules(self, advance: Advance = lambda _: None) -> Iterator[Data]:
        """Read the molecules.

        Args:
            advance: Called with the progress that each molecule makes, in :attr:`unit`.

        Yields:
            ``Data`` with ``z`` [N], ``pos`` [N, 3] Å, ``edge_index`` [2, E], ``edge_attr`` [E, 4]
            (bonds; for all molecules or none), ``y`` [1, T] float64, ``idx`` and ``name``.
        """


class FileSource(MoleculeSource):
    """SDF and XYZ files, with targets in them or in a CSV file.

    Every number among the properties of the first molecule is a column of ``y``: data fields of
    SDF, ``key=value`` pairs in comments of extended XYZ, columns of the CSV file. Where another
    molecule lacks one, it is NaN.

    Args:
        path: A file, several files, or a folder of them.
        csv: Table of targets, with a header. Its rows are those of the molecules, in order, unless
            ``csv_key`` is given.
        csv_key: Column of ``csv`` with the molecules' names: titles of SDF entries, names of XYZ
            files without suffix.
        graph: ``"bonds"``, ``"radius"`` or ``"complete"``. Bonds of SDF are those in the file,
            bonds of XYZ are found by RDKit.
        bonds: ``"kekule"`` or ``"aromatic"``.
        cutoff: Radius in Å, for ``graph="radius"``.
        charge: Total charge of XYZ molecules that do not state theirs (``charge=1``).
        elements: Atomic numbers with a one-hot feature.
        skip_invalid: Leave out molecules that cannot be used, instead of stopping at the first.

    Attributes:
        num_skipped: Molecules left out when they were last read.
        skipped: Why the first five of them were.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If options are unknown or contradict each other.
    """

    unit = "B"

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        *,
        csv: str | Path | None = None,
        csv_key: str | None = None,
        graph: GraphKind = "bonds",
        bonds: BondForm = "kekule",
        cutoff: float | None = None,
        charge: int = 0,
        elements: Sequence[int] = ELEMENTS,
        skip_invalid: bool = False,
    ) -> None:
        check_graph(graph, bonds, cutoff)
        if csv_key is not None and csv is None:
            raise ValueError(f"csv_key={csv_key!r} needs a csv")
        self.paths = molecule_paths(path)
        self.csv, self.csv_key = None if csv is None else Path(csv), csv_key
        if self.csv is not None and not self.csv.is_file():
            raise FileNotFoundError(f"{self.csv} does not exist")
        self.elements, self.skip_invalid = tuple(elements), skip_invalid
        self.graph, self.bonds, self.cutoff, self.charge = graph, bonds, cutoff, charge
        self.skipped: list[str] = []
        self.num_skipped = 0

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.paths)

    @property
    def spec(self) -> dict[str, Any]:
        """Names, sizes and times of the files, and the options."""
        files = [*self.paths, *([] if self.csv is None else [self.csv])]
        stats = [(path.name, path.stat()) for path in files]
        return {
            "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
            "csv": self.csv is not None,
            "csv_key": self.csv_key,
            "graph": self.graph,
            "bonds": self.bonds,
            "cutoff": self.cutoff,
            "charge": self.charge,
            "skip_invalid": self.skip_invalid,
            "rdkit": rdBase.rdkitVersion,
        }

    @cached_property
    def property_names(self) -> tuple[str, ...]:
        """Names of the properties that are numbers for the first molecule."""
        readable = (r for r in self._records() if r.mol is not None or r.z is not None)
        first = next(readable, None)
        if first is None:
            raise ValueError(f"{self.paths[0]} holds no molecule that can be read")
        values = dict(first.properties)
        if self.csv is not None:
            row = next(_rows(self.csv, self.csv_key), None)
            if row is None:
                raise ValueError(f"{self.csv} holds no row")
            values |= {key: value for key, value in row.items() if key != self.csv_key}
        return tuple(key for key, value in values.items() if not math.isnan(_number(value)))

    def molecules(self, advance: Advance = lambda _: None) -> Iterator[Data]:
        """Read the molecules; see :class:`MoleculeSource`.

        Raises:
            ValueError: If a molecule cannot be used (unless ``skip_invalid``), or the CSV file
                does not fit the molecules.
        """
        names, table = self.property_names, self._table()
        self.skipped, self.num_skipped = [], 0
        number = -1
        for number, record in enumerate(self._records(advance)):
            values = record.properties | dict(table(number, record.name))
            try:
                data = data_from_record(
                    record,
                    graph=self.graph,
                    bonds=self.bonds,
                    cutoff=self.cutoff,
                    charge=self.charge,
                    elements=self.elements,
                )
            except ValueError as error:
                self._skip(error)
                continue
            data.y = torch.tensor([[_number(values.get(n, "")) for n in names]]).double()
            data.idx = number
            yield data
        table(number + 1, None)

    def _records(self, advance: Advance = lambda _: None) -> Iterator[Record]:
        for path in self.paths:
            try:
                yield from read_records(path, advance)
            except ValueError as error:
                self._skip(error)

    def _skip(self, error: ValueError) -> None:
        if not self.skip_invalid:
            raise ValueError(f"{error}; skip_invalid=true leaves such molecules out") from error
        self.num_skipped += 1
        if len(self.skipped) < 5:
            self.skipped.append(str(error))

    def _table(self) -> Callable[[int, str | None], Mapping[str, str]]:
        """Rows of the CSV file by position and name; called with None after the last molecule."""
        if self.csv is None:
            return lambda number, name: {}
        path, key = self.csv, self.csv_key
        rows = _rows(path, key)
        if key is not None:
            by_name: dict[str, Mapping[str, str]] = {}
            for row in rows:
                if row[key] in by_name:
                    raise ValueError(f"{path} has {row[key]!r} twice in column {key!r}")
                by_name[row[key]] = row
            return lambda number, name: {} if name is None else by_name.get(name, {})

        def in_order(number: int, name: str | None) -> Mapping[str, str]:
            row = next(rows, None)
            if (row is None) != (name is None):
                count = "fewer" if row is None else "more"
                raise ValueError(
                    f"{path} has {count} rows than there are molecules (at molecule {number + 1}); "
                    "without csv_key its rows must be those of the molecules, in order"
                )
            return row or {}

        return in_order


class IteratorSource(MoleculeSource):
    """Molecules that a program makes.

    Args:
        molecules: Called for a fresh iterator over what :meth:`MoleculeSource.molecules` yields;
            ``idx`` and ``name`` may be missing, ``y`` may be [T].
        version: Names what the iterator gives; change it when that changes.
        property_names: Names of the columns of ``y``.
        count: Number of molecules, for the progress bar.
    """

    unit = " molecules"

    def __init__(
        self,
        molecules: Callable[[], Iterable[Data]],
        *,
        version: str,
        property_names: Sequence[str],
        count: int | None = None,
    ) -> None:
        self._molecules, self._count = molecules, count
        self._names, self._version = tuple(property_names), version

    @property
    def property_names(self) -> tuple[str, ...]:
        """Names of the columns of ``y``."""
        return self._names

    @property
    def spec(self) -> dict[str, Any]:
        """The version."""
        return {"version": self._version}

    @property
    def size(self) -> int | None:
        """Number of molecules, if known."""
        return self._count

    def molecules(self, advance: Advance = lambda _: None) -> Iterator[Data]:
        """Molecules of a fresh iterator."""
        for number, data in enumerate(self._molecules()):
            y = torch.as_tensor(data.y).double().reshape(1, -1)
            if y.size(1) != len(self._names):
                raise ValueError(
                    f"molecule {number} has {y.size(1)} targets, expected {len(self._names)} "
                    f"({', '.join(self._names)})"
                )
            data.y = y
            if "idx" not in data:
                data.idx = number
            if "name" not in data:
                data.name = ""
            yield data
            advance(1)


def _rows(path: Path, key: str | None) -> Iterator[dict[str, str]]:
    with open(path, newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream, restval="")
        columns = reader.fieldnames or []
        if key is not None and key not in columns:
            raise ValueError(f"{path} has no column {key!r}; it has {', '.join(columns)}")
        for row in reader:
            yield {name: row[name] for name in columns}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
