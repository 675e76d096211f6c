"""One's own molecules for Lightning."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rdkit import Chem
from torch import Tensor

from pyg_se3.data.bonds import BondForm
from pyg_se3.data.datamodule import MoleculeDataModule, Precompute, Transform
from pyg_se3.data.dataset import MoleculeDataset
from pyg_se3.data.geometry import GeometryDtype
from pyg_se3.data.molecules import GraphKind, check_graph
from pyg_se3.data.on_disk import MoleculesOnDisk
from pyg_se3.data.own import Molecules, tell
from pyg_se3.data.sources import FileSource


class MoleculesDataModule(MoleculeDataModule):
    """Molecules from SDF or XYZ files, with targets in them or in a CSV file.

    Args:
        path: A file, several, or a folder of them; see :class:`pyg_se3.data.FileSource`.
        target: Name of a property that is to be learned, or a list of names.
        unit: Its unit, or a list of units.
        root: Folder of the processed data.
        on_disk: Keep the molecules in a database on disk instead of in memory.
        csv: Table of targets.
        csv_key: Column of ``csv`` with the molecules' names; rows in order if None.
        elements: Elements that occur, as symbols or atomic numbers. Those of QM9 let models
            trained on QM9 be used.
        skip_invalid: Leave out molecules that cannot be read or lack a target, instead of
            stopping.
        batch_size: This and the other options without comment: see :class:`MoleculeDataModule`.
        eval_batch_size: Molecules per batch of validation and test; ``batch_size`` if None.
        split: Three fractions or counts for training, validation and test.
        split_seed: Seed of the split.
        seed: Seed of the training order.
        num_workers: Worker processes per loader.
        pin_memory: Pin batches; if None, when CUDA is available.
        bonds: ``"kekule"`` or ``"aromatic"``.
        graph: ``"bonds"``, ``"radius"`` or ``"complete"``.
        cutoff: Radius in Å, for ``graph="radius"``.
        charge: Total charge of XYZ molecules that do not state theirs.
        limit_train: Use only so many training molecules (the first of the split).
        limit_val: Use only so many validation molecules.
        limit_test: Use only so many test molecules.
        standardize: Whether to standardise by the training molecules.
        drop_last: Drop the last, smaller training batch.
        max_edges_per_batch: Bound the edges of training batches instead of counting molecules.
        max_atoms_per_batch: The same for atoms.
        train_transform: Applied to every training molecule whenever it is used.
        precompute_geometry: Keep all edge frames in ``"ram"`` or on ``"disk"``.
        geometry_dtype: ``"float32"`` or ``"bfloat16"``.
        geometry_max_degree: Degree up to which; that of the model in training if None.
        progress: Show progress bars while processing.

    Raises:
        ValueError: If options are unknown or contradict each other.
    """

    def __init__(
        self,
        path: str | list[str],
        target: str | list[str],
        unit: str | list[str] = "units",
        root: str = "data/molecules",
        on_disk: bool = False,
        csv: str | None = None,
        csv_key: str | None = None,
        elements: list[str] | list[int] = ["H", "C", "N", "O", "F"],  # noqa: B006
        skip_invalid: bool = False,
        batch_size: int = 240,
        eval_batch_size: int | None = None,
        split: str | list[int] | list[float] = [0.8, 0.1, 0.1],  # noqa: B006
        split_seed: int = 0,
        seed: int = 0,
        num_workers: int = 0,
        pin_memory: bool | None = None,
        bonds: BondForm = "kekule",
        graph: GraphKind = "bonds",
        cutoff: float | None = None,
        charge: int = 0,
        limit_train: int | None = None,
        limit_val: int | None = None,
        limit_test: int | None = None,
        standardize: bool = True,
        drop_last: bool = False,
        max_edges_per_batch: int | None = None,
        max_atoms_per_batch: int | None = None,
        train_transform: Transform | None = None,
        precompute_geometry: Precompute | None = None,
        geometry_dtype: GeometryDtype = "float32",
        geometry_max_degree: int | None = None,
        progress: bool = True,
    ) -> None:
        path = path if isinstance(path, str) else [str(one) for one in path]
        target = target if isinstance(target, str) else list(target)
        unit = unit if isinstance(unit, str) else list(unit)
        split = split if isinstance(split, str) else list(split)
        elements = list(elements)  # type: ignore[assignment]
        root = str(Path(root))
        names = [target] if isinstance(target, str) else target
        if not names or len(set(names)) != len(names):
            raise ValueError(f"expected one or several different targets, got {names}")
        units = [unit] * len(names) if isinstance(unit, str) else unit
        if len(units) != len(names):
            raise ValueError(f"{len(units)} units were given for {len(names)} targets")
        # Known early; the files are opened later, when they are read.
        check_graph(graph, bonds, cutoff)
        self._numbers = _atomic_numbers(elements)
        super().__init__(
            root=root,
            target_names=names,
            target_units=units,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            split=split,
            split_seed=split_seed,
            seed=seed,
            num_workers=num_workers,
            pin_memory=pin_memory,
            limit_train=limit_train,
            limit_val=limit_val,
            limit_test=limit_test,
            standardize=standardize,
            drop_last=drop_last,
            max_edges_per_batch=max_edges_per_batch,
            max_atoms_per_batch=max_atoms_per_batch,
            train_transform=train_transform,
            precompute_geometry=precompute_geometry,
            geometry_dtype=geometry_dtype,
            geometry_max_degree=geometry_max_degree,
            progress=progress,
        )
        self.on_disk, self.skip_invalid = on_disk, skip_invalid
        self._path = path
        self._options: dict[str, Any] = {
            "csv": csv,
            "csv_key": csv_key,
            "graph": graph,
            "bonds": bonds,
            "cutoff": cutoff,
            "charge": charge,
            "elements": self._numbers,
            "skip_invalid": skip_invalid,
        }
        # Plain values only: checkpoints must load with weights_only.
        self.save_hyperparameters(ignore=["train_transform"], logger=False)

    def make_dataset(self) -> MoleculeDataset:
        """The molecules of all files, read if need be.

        Raises:
            ValueError: If a target is not among the properties, or a molecule cannot be used.
        """
        source = FileSource(self._path, **self._options)
        # Before all molecules are read, which may take long.
        self._find(source.property_names)
        kind = MoleculesOnDisk if self.on_disk else Molecules
        return kind(self.root, source, elements=self._numbers, progress=self.progress)

    def find_columns(self, dataset: MoleculeDataset) -> list[int]:
        """Columns of the targets in ``y``."""
        return self._find(dataset.property_names)  # type: ignore[attr-defined]

    def _find(self, known: Sequence[str]) -> list[int]:
        for name in self.target_names:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise ValueError(
                    f"target {name!r} is not among the numbers that the first molecule has: "
                    f"{', '.join(known) or 'none'}.{hint}"
                )
        return [known.index(name) for name in self.target_names]

    def usable(self, dataset: MoleculeDataset, columns: list[int]) -> Tensor:
        """Molecules that have all targets.

        Raises:
            ValueError: If some have not, unless ``skip_invalid``.
        """
        has_all = torch.isfinite(dataset.table.y[:, columns]).all(dim=1)
        lacking = dataset.table.idx[~has_all]
        if lacking.numel():
            message = (
                f"{lacking.numel():,} of {len(dataset):,} molecules lack a value of "
                f"{', '.join(self.target_names)} (the first is molecule {int(lacking[0]) + 1})"
            )
            if not self.skip_invalid:
                raise ValueError(f"{message}; skip_invalid=true leaves such molecules out")
            if self._rank()[0] == 0:
                tell(f"{message}; they are left out")
        return has_all.nonzero().squeeze(-1)

    @property
    def split_fingerprint(self) -> str:
        """Hash of the sets and of what is in them, as files may have changed."""
        table, digest = self.dataset.table, hashlib.sha256(self.split.fingerprint().encode())
        for numbers in (table.idx, table.num_atoms, table.num_edges, table.y[:, self.columns]):
            digest.update(numbers.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def _atomic_numbers(elements: Sequence[str] | Sequence[int]) -> tuple[int, ...]:
    table = Chem.GetPeriodicTable()
    try:
        numbers = [e if isinstance(e, int) else table.GetAtomicNumber(e) for e in elements]
    except RuntimeError as error:
        raise ValueError(f"elements={list(elements)} names an unknown element") from error
    if not numbers or len(set(numbers)) != len(numbers) or min(numbers) < 1 or max(numbers) > 118:
        raise ValueError(f"expected different elements, got {list(elements)}")
    return tuple(numbers)
