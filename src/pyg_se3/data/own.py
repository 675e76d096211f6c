"""One's own molecules as a data set in memory, and what it shares with the one on disk."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from tqdm.auto import tqdm

from pyg_se3.data import cache
from pyg_se3.data.dataset import MoleculeDataset
from pyg_se3.data.features import check_elements
from pyg_se3.data.sources import FileSource, MoleculeSource
from pyg_se3.data.store import MoleculeStore, StoreBuilder
from pyg_se3.data.targets import ELEMENTS

# A change of any of these files may change the processed data.
_CODE = (
    "bonds.py", "features.py", "graphs.py", "molecule_files.py", "molecules.py", "on_disk.py",
    "own.py", "sources.py", "store.py",
)  # fmt: skip


class Molecules(MoleculeDataset):
    """One's own molecules in memory, with the features of :class:`pyg_se3.data.QM9`.

    They are read once, from any :class:`MoleculeSource`, into one file under ``root``, whose name
    carries a hash of the source, the options and the code.

    Args:
        root: Folder of the processed files.
        source: Where the molecules come from.
        elements: Atomic numbers with a one-hot column in ``x``.
        transform: Applied to every ``Data`` when it is accessed.
        mmap: Map the processed file into memory instead of reading it.
        force_reload: Read the source again even if a good file is there.
        progress: Show a progress bar while reading.

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
        mmap: bool = False,
        force_reload: bool = False,
        progress: bool = True,
    ) -> None:
        super().__init__(os.fspath(root), transform)
        self.property_names = source.property_names
        self.spec = source_spec(source, elements)
        self.path = cache.data_path(Path(root), "molecules", self.spec)
        tensors = cache.load_or_make(
            self.path,
            self.spec,
            lambda: _build(source, elements, progress).tensors(),
            mmap=mmap,
            force=force_reload,
            tell=tell,
        )
        self.store = MoleculeStore.from_tensors(dict(tensors), tuple(elements))

    def len(self) -> int:
        """Number of molecules in the whole data set."""
        return len(self.store)

    def get(self, idx: int) -> Data:
        """Molecule at position ``idx`` of the whole data set, before ``transform``."""
        return self.store.item(int(idx))

    @property
    def table(self) -> MoleculeStore:
        """Targets and sizes of all molecules."""
        return self.store

    def gather(self, rows: Tensor, columns: Sequence[int] | Tensor | None = None) -> Batch:
        """A batch of molecules by their positions in the storage."""
        return self.store.gather(rows, columns)

    def name(self, index: int) -> str:
        """Name of an item in its file."""
        return self.store.smiles(int(self.positions([index])[0]))

    @property
    def node_dim(self) -> int:
        """Width of ``x``."""
        return self.store.node_dim

    @property
    def edge_dim(self) -> int:
        """Width of ``edge_attr``; 0 where there is none."""
        return self.store.edge_dim


def _build(source: MoleculeSource, elements: Sequence[int], progress: bool) -> MoleculeStore:
    builder = StoreBuilder(elements)
    for data in checked_molecules(source, elements, progress):
        kind = edge_types(data) if "edge_attr" in data else None
        builder.add(data.z, data.pos, data.edge_index, kind, data.y, int(data.idx), data.name)
    return builder.build()


def checked_molecules(
    source: MoleculeSource, elements: Sequence[int], progress: bool
) -> Iterator[Data]:
    """Molecules of a source, with a progress bar, each checked to fit the first.

    Raises:
        ValueError: If a molecule cannot be stored, or there is none.
    """
    typed: bool | None = None
    with tqdm(
        total=source.size,
        unit=source.unit,
        unit_scale=source.unit == "B",
        desc="molecules",
        disable=not progress,
        mininterval=0.5,
    ) as bar:
        for count, data in enumerate(source.molecules(bar.update), start=1):
            check_elements(data.z, elements)
            if data.z.numel() > 2**15:
                raise ValueError(f"a molecule has {data.z.numel()} atoms; at most {2**15} fit")
            if not bool(torch.isfinite(data.pos).all()):
                raise ValueError(f"molecule {int(data.idx)} has positions that are not finite")
            if typed not in (None, "edge_attr" in data):
                raise ValueError("either all molecules have bonds (edge_attr) or none has")
            typed = "edge_attr" in data
            # The storage keeps names in ASCII.
            data.name = data.name.encode("ascii", "backslashreplace").decode()
            bar.set_postfix_str(f"{count:,} molecules", refresh=False)
            yield data
    if typed is None:
        raise ValueError("the source gives no molecule that can be used")
    if isinstance(source, FileSource) and source.num_skipped:
        shown = "".join(f"\n  {message}" for message in source.skipped[:5])
        more = "" if source.num_skipped <= 5 else "\n  ..."
        tell(f"{source.num_skipped:,} molecules were left out:{shown}{more}")


def edge_types(data: Data) -> Tensor:
    """Bond types [E] uint8 from one-hot ``edge_attr``."""
    return data.edge_attr.argmax(dim=1).to(torch.uint8)


def source_spec(source: MoleculeSource, elements: Sequence[int]) -> dict[str, Any]:
    """Plain values that determine processed data, its file's name with them."""
    return {
        "source": source.spec,
        "properties": list(source.property_names),
        "elements": list(elements),
        "code": cache.code_fingerprint("pyg_se3.data", _CODE),
    }


def tell(message: str) -> None:
    """Say something to whoever waits for the data."""
    print(f"molecules: {message}", file=sys.stderr, flush=True)
