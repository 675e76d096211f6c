"""QM9 as a PyTorch Geometric data set, from the qm9pack wheel or from PyG's own class."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch_geometric
from rdkit import rdBase
from torch import Tensor
from torch_geometric.data import Batch, Data

from pyg_se3.data import cache
from pyg_se3.data.bonds import BondForm
from pyg_se3.data.dataset import MoleculeDataset
from pyg_se3.data.molecules import GraphKind, check_graph
from pyg_se3.data.processing import process_pyg, process_qm9pack
from pyg_se3.data.readers import files_identity, qm9pack_files, qm9pack_identity, raw_files
from pyg_se3.data.store import MoleculeStore
from pyg_se3.data.targets import ELEMENTS, get_target

Source = Literal["qm9pack", "pyg"]
"""Where the raw data comes from."""

# A change of any of these files may change the processed data.
_CODE = (
    "bonds.py", "features.py", "graphs.py", "processing.py", "readers.py", "store.py", "targets.py",
)  # fmt: skip


class QM9(MoleculeDataset):
    """QM9: 130,831 molecules with 19 targets, as ``Data`` objects for SE(3)-Transformers.

    Each item has ``x`` [N, 6] (one-hot H, C, N, O, F and the atomic number), ``pos`` [N, 3] in Å,
    ``z`` [N], ``edge_index`` [2, E] (source, target), ``edge_attr`` [E, 4] (one-hot single, double,
    triple, aromatic; only for ``graph="bonds"``), ``y`` [1, 19] in the units of
    :data:`pyg_se3.data.targets.TARGETS` and ``idx`` [1] (QM9's index minus one).

    The data is processed once (about a minute) into one file under ``root``, whose name carries a
    hash of the options, the source's version and the code that made it; damaged files are
    detected by their checksum and rebuilt.

    Args:
        root: Folder of the processed files.
        source: ``"qm9pack"`` (the PyPI wheel) or ``"pyg"`` (PyG's ``QM9``, downloaded to
            ``root/pyg``; its bonds are those of QM9's SDF, Kekulé and unsanitised).
        bonds: ``"kekule"`` or ``"aromatic"`` bond types, for ``graph="bonds"``.
        graph: ``"bonds"``, ``"radius"`` (pairs within ``cutoff``) or ``"complete"`` (all pairs).
        cutoff: Radius in Å, for ``graph="radius"`` only.
        raw_path: Raw data elsewhere: CSV file(s) or a folder of them in qm9pack's format, which
            may hold any part of QM9; for ``source="pyg"`` the root folder of PyG's data set.
        transform: Applied to every ``Data`` when it is accessed.
        mmap: Map the processed file into memory instead of reading it, for machines short of RAM.
        force_reload: Process again even if a good file is there.
        progress: Show a progress bar while processing.

    Raises:
        ValueError: If options are unknown or contradict each other.
        ModuleNotFoundError: If qm9pack is needed and missing.
    """

    def __init__(
        self,
        root: str | Path = "data/qm9",
        source: Source = "qm9pack",
        bonds: BondForm = "kekule",
        graph: GraphKind = "bonds",
        cutoff: float | None = None,
        *,
        raw_path: str | Path | Sequence[str | Path] | None = None,
        transform: Callable[[Data], Data] | None = None,
        mmap: bool = False,
        force_reload: bool = False,
        progress: bool = True,
    ) -> None:
        _check_options(source, bonds, graph, cutoff, raw_path)
        self.source, self.bonds, self.graph, self.cutoff = source, bonds, graph, cutoff
        self.raw_path = raw_path
        super().__init__(os.fspath(root), transform)
        self.spec = self._spec()
        self.path = cache.data_path(Path(root), "qm9", self.spec)
        self.store = self._prepare(mmap, force_reload, progress)

    def len(self) -> int:
        """Number of molecules in the whole data set."""
        return len(self.store)

    def get(self, idx: int) -> Data:
        """Molecule at position ``idx`` of the whole data set, before ``transform``."""
        return self.store.item(idx)

    @property
    def table(self) -> MoleculeStore:
        """Targets and sizes of all molecules."""
        return self.store

    def gather(self, rows: Tensor, columns: Sequence[int] | Tensor | None = None) -> Batch:
        """A batch of molecules by their positions in the storage."""
        return self.store.gather(rows, columns)

    def smiles(self, index: int) -> str:
        """SMILES of an item (empty for ``source="pyg"``)."""
        return self.store.smiles(int(self.positions([index])[0]))

    def name(self, index: int) -> str:
        """Its SMILES."""
        return self.smiles(index)

    def mean(self, target: str | int) -> float:
        """Mean of a target over this (sub)set."""
        return float(self.y[:, get_target(target).index].mean())

    def std(self, target: str | int) -> float:
        """Standard deviation of a target over this (sub)set (with Bessel's correction)."""
        return float(self.y[:, get_target(target).index].std())

    def atomref(self, target: str | int) -> Tensor | None:
        """Energies of the free atoms by atomic number, as PyG gives them.

        Args:
            target: Target name or index.

        Returns:
            [100, 1] eV, zero for elements outside QM9, or None for targets without references and
            for atomization energies, which have them subtracted already.
        """
        found = get_target(target)
        if found.atomref is None or found.subtract:
            return None
        out = torch.zeros(100, 1)
        out[list(ELEMENTS), 0] = torch.tensor(found.atomref)
        return out

    @property
    def node_dim(self) -> int:
        """Width of ``x``."""
        return self.store.node_dim

    @property
    def edge_dim(self) -> int:
        """Width of ``edge_attr``; 0 where there is none."""
        return self.store.edge_dim

    def _spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = {
            "source": self.source,
            "graph": self.graph,
            "code": cache.code_fingerprint("pyg_se3.data", _CODE),
        }
        if self.graph == "radius":
            spec["cutoff"] = float(self.cutoff or 0.0)
        if self.source == "pyg":
            spec["raw"] = f"torch_geometric {torch_geometric.__version__}"
            if self.raw_path is not None:
                spec["raw"] += f" in {Path(str(self.raw_path)).resolve()}"
        else:
            spec["raw"] = (
                qm9pack_identity()
                if self.raw_path is None
                else files_identity(raw_files(self.raw_path))
            )
        if self.graph == "bonds":
            spec["bonds"] = self.bonds
            if self.source == "qm9pack":
                spec["rdkit"] = rdBase.rdkitVersion
        return spec

    def _prepare(self, mmap: bool, force: bool, progress: bool) -> MoleculeStore:
        tensors = cache.load_or_make(
            self.path,
            self.spec,
            lambda: self._process(progress).tensors(),
            mmap=mmap,
            force=force,
            tell=_tell,
        )
        return MoleculeStore.from_tensors(dict(tensors))

    def _process(self, progress: bool) -> MoleculeStore:
        if self.source == "pyg":
            root = Path(self.root) / "pyg" if self.raw_path is None else Path(str(self.raw_path))
            return process_pyg(root, graph=self.graph, cutoff=self.cutoff)
        files = qm9pack_files() if self.raw_path is None else raw_files(self.raw_path)
        return process_qm9pack(
            files,
            graph=self.graph,
            bonds=self.bonds,
            cutoff=self.cutoff,
            complete=self.raw_path is None,
            progress=progress,
        )


def _check_options(
    source: str, bonds: str, graph: str, cutoff: float | None, raw_path: object
) -> None:
    if source not in get_args(Source):
        raise ValueError(f"source={source!r} is unknown; expected one of {get_args(Source)}")
    check_graph(graph, bonds, cutoff)
    if bonds == "aromatic" and graph == "bonds" and source == "pyg":
        raise ValueError(
            "source='pyg' has Kekulé bonds only (its SDF is read unsanitised); use "
            "bonds='kekule', or source='qm9pack' for aromatic bonds"
        )
    if source == "pyg" and raw_path is not None and not isinstance(raw_path, (str, Path)):
        raise ValueError("raw_path must be one folder for source='pyg'")


def _tell(message: str) -> None:
    print(f"QM9: {message}", file=sys.stderr, flush=True)
