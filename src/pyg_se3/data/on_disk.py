"""One's own molecules in a database on disk, for data sets larger than memory."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data, OnDiskDataset, SQLiteDatabase

from pyg_se3.data import cache
from pyg_se3.data.dataset import MoleculeDataset
from pyg_se3.data.features import EDGE_DIM
from pyg_se3.data.own import checked_molecules, edge_types, source_spec, tell
from pyg_se3.data.sources import MoleculeSource
from pyg_se3.data.store import MoleculeStore, StoreBuilder
from pyg_se3.data.targets import ELEMENTS

D = TypeVar("D", bound=Data)

# One row of the database; sizes are known from the number of bytes.
_SCHEMA = {
    "z": {"dtype": torch.uint8, "size": (-1,)},
    "pos": {"dtype": torch.float32, "size": (-1, 3)},
    "edge_index": {"dtype": torch.int16, "size": (2, -1)},
    "edge_type": {"dtype": torch.uint8, "size": (-1,)},
    "name": str,
}
_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class _DiskTable:
    """Numbers of all molecules, mapped from files into memory."""

    y: Tensor
    idx: Tensor
    num_atoms: Tensor
    num_edges: Tensor


class MoleculesOnDisk(MoleculeDataset, OnDiskDataset):
    """One's own molecules in PyG's SQLite database, for data sets larger than memory.

    The same molecules, features and batches as :class:`pyg_se3.data.Molecules`. Both filling it
    and reading batches need memory for a few thousand molecules only; targets and sizes of all
    molecules lie beside the database and are mapped into memory.

    It is filled in a folder of its own, which gets its name when it is complete: what a killed
    process leaves behind is never taken for a data set, and removed when it is filled again.

    Args:
        root: Folder of the processed data.
        source: Where the molecules come from.
        elements: Atomic numbers with a one-hot column in ``x``.
        transform: Applied to every ``Data`` when it is accessed.
        force_reload: Fill it again even if a good one is there.
        progress: Show a progress bar while filling it.

    Raises:
        ValueError: If a molecule cannot be used, or there is none.
    """

    def __init__(
        self,
        root: str | Path,
        source: MoleculeSource,
        *,
        elements: Sequence[int] = ELEMENTS,
        transform: Callable[[Data], Data] | None = None,
        force_reload: bool = False,
        progress: bool = True,
    ) -> None:
        self.elements = tuple(elements)
        self.property_names = source.property_names
        self.spec = source_spec(source, elements)
        self.path = cache.data_path(Path(root), "molecules", self.spec).with_suffix("")
        self._db: Any
        self._inherited: list[Any] = []
        self._owner = os.getpid()
        super().__init__(os.fspath(root), transform, schema=_SCHEMA, log=progress)
        self._prepare(source, force_reload, progress)
        manifest = json.loads((self.path / "manifest.json").read_text(encoding="utf-8"))
        self._numel: int = manifest["molecules"]
        self._edge_dim = EDGE_DIM if manifest["edge_types"] else 0
        self._table = self._map_table()

    @property
    def processed_dir(self) -> str:
        """Folder of the database."""
        return str(self.path)

    @property
    def db(self) -> SQLiteDatabase:
        """The database, with a connection of this process's own."""
        if self._db is not None and self._owner != os.getpid():
            # SQLite forbids to use, and even to close, a connection that came through a fork.
            self._inherited.append(self._db)
            self._db = None
        if self._db is None:
            self._db = _open(self.path)
            self._owner = os.getpid()
        return self._db

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_db": None, "_inherited": [], "_table": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._table = self._map_table()

    def __copy__(self) -> MoleculesOnDisk:
        # A subset shares the connection; pickling, which __getstate__ serves, opens a new one.
        chosen = object.__new__(type(self))
        chosen.__dict__.update(self.__dict__)
        return chosen

    def len(self) -> int:
        """Number of molecules in the whole data set."""
        return self._numel

    def get(self, idx: int) -> Data:
        """Molecule at position ``idx`` of the whole data set, before ``transform``."""
        return self._with_edge_attr(self._read(torch.tensor([int(idx)])).item(0))

    @property
    def table(self) -> _DiskTable:
        """Targets and sizes of all molecules."""
        return self._table

    def gather(self, rows: Tensor, columns: Sequence[int] | Tensor | None = None) -> Batch:
        """A batch of molecules by their positions in the database."""
        return self._with_edge_attr(self._read(rows).gather(torch.arange(rows.numel()), columns))

    def name(self, index: int) -> str:
        """Name of an item in its file."""
        return self._read(self.positions([index])).smiles(0)

    @property
    def node_dim(self) -> int:
        """Width of ``x``."""
        return len(self.elements) + 1

    @property
    def edge_dim(self) -> int:
        """Width of ``edge_attr``; 0 where there is none."""
        return self._edge_dim

    def _with_edge_attr(self, data: D) -> D:
        # A store of atoms without any bond cannot know that there are bonds elsewhere.
        if self._edge_dim and "edge_attr" not in data:
            data.edge_attr = torch.zeros(0, self._edge_dim)
        return data

    def _read(self, rows: Tensor) -> MoleculeStore:
        if rows.numel() == 0:
            raise ValueError("a batch needs at least one molecule, got none")
        if int(rows.min()) < 0 or int(rows.max()) >= self._numel:
            raise IndexError(f"indices must lie in 0..{self._numel - 1}, got {rows.tolist()}")
        builder = StoreBuilder(self.elements)
        y, idx = self._table.y[rows], self._table.idx[rows].tolist()
        found = self.db.multi_get(rows.tolist())
        for row, targets, number in zip(found, y, idx, strict=True):
            kind = row["edge_type"] if self._edge_dim else None
            builder.add(row["z"], row["pos"], row["edge_index"], kind, targets, number, row["name"])
        return builder.build()

    def _map_table(self) -> _DiskTable:
        count, width = self._numel, len(self.property_names)
        sizes = _mapped(self.path / "sizes.bin", (count, 2), torch.int64)
        return _DiskTable(
            _mapped(self.path / "y.bin", (count, width), torch.float64),
            _mapped(self.path / "idx.bin", (count,), torch.int64),
            sizes[:, 0],
            sizes[:, 1],
        )

    def _prepare(self, source: MoleculeSource, force: bool, progress: bool) -> None:
        if not force and self._problem() is None:
            return
        with cache.locked(self.path, waiting=lambda: tell("waiting for another process")):
            problem = self._problem()
            if problem is None and not force:
                return
            building = self.path.with_suffix(".building")
            if building.exists():
                tell(f"{building} was left by a process that ended early; it is filled again")
                shutil.rmtree(building)
            if self.path.exists():
                if problem is not None:
                    tell(f"{self.path} cannot be used: {problem}; it is filled again")
                shutil.rmtree(self.path)
            building.mkdir(parents=True)
            _fill(building, source, self.elements, self.spec, progress)
            os.replace(building, self.path)

    def _problem(self) -> str | None:
        """Why the data on disk cannot be used, or None."""
        try:
            manifest = json.loads((self.path / "manifest.json").read_text(encoding="utf-8"))
            for name, size in manifest["bytes"].items():
                found = (self.path / name).stat().st_size
                if found != size:
                    return f"{name} has {found} bytes instead of {size}"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"it is not complete ({error})"
        return None


def _open(folder: Path) -> SQLiteDatabase:
    return SQLiteDatabase(str(folder / "sqlite.db"), name="molecules", schema=dict(_SCHEMA))


def _fill(
    folder: Path,
    source: MoleculeSource,
    elements: Sequence[int],
    spec: dict[str, Any],
    progress: bool,
) -> None:
    """Write all molecules and the manifest, holding a few megabytes of them at a time."""
    database = _open(folder)
    count, pending, pending_bytes, typed = 0, [], 0, False
    with (
        open(folder / "y.bin", "wb") as y,
        open(folder / "idx.bin", "wb") as idx,
        open(folder / "sizes.bin", "wb") as sizes,
    ):
        for data in checked_molecules(source, elements, progress):
            if count == 0:
                typed = "edge_attr" in data
            row = {
                "z": data.z.to(torch.uint8),
                "pos": data.pos.float().contiguous(),
                "edge_index": data.edge_index.to(torch.int16).contiguous(),
                "edge_type": edge_types(data) if typed else torch.zeros(0, dtype=torch.uint8),
                "name": data.name,
            }
            y.write(data.y.numpy().tobytes())
            idx.write(torch.tensor([int(data.idx)]).numpy().tobytes())
            sizes.write(torch.tensor([data.z.numel(), data.edge_index.size(1)]).numpy().tobytes())
            pending.append(row)
            pending_bytes += 13 * data.z.numel() + 5 * data.edge_index.size(1) + 1000
            count += 1
            if pending_bytes > _CHUNK_BYTES:
                database.multi_insert(range(count - len(pending), count), pending)
                pending, pending_bytes = [], 0
    if pending:
        database.multi_insert(range(count - len(pending), count), pending)
    database.close()
    files = sorted(path for path in folder.iterdir() if path.suffix in (".bin", ".db"))
    manifest = {
        "spec": spec,
        "molecules": count,
        "edge_types": typed,
        "bytes": {path.name: path.stat().st_size for path in files},
    }
    summary = folder / "manifest.json"
    summary.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for path in [*files, summary]:
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())


def _mapped(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    size = torch.Size(shape).numel()
    if size == 0:
        return torch.zeros(shape, dtype=dtype)
    return torch.from_file(str(path), shared=False, size=size, dtype=dtype).view(shape)
