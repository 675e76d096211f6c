"""QM9 for Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyg_se3.data.bonds import BondForm
from pyg_se3.data.datamodule import MoleculeDataModule, Precompute, Transform
from pyg_se3.data.dataset import MoleculeDataset
from pyg_se3.data.geometry import GeometryDtype
from pyg_se3.data.molecules import GraphKind
from pyg_se3.data.qm9 import QM9, Source
from pyg_se3.data.targets import Target, get_targets


class QM9DataModule(MoleculeDataModule):
    """QM9 with split, loaders and the statistics that standardise its targets.

    Args:
        root: Folder of the processed data.
        target: Name of a target (see :data:`pyg_se3.data.TARGET_NAMES`), or a list of names.
        batch_size: This and the other options without comment: see :class:`MoleculeDataModule`.
        eval_batch_size: Molecules per batch of validation and test; ``batch_size`` if None.
        split: ``"nvidia"``, or three fractions or counts for training, validation and test.
        split_seed: Seed of a split by fractions or counts.
        seed: Seed of the training order.
        num_workers: Worker processes per loader.
        pin_memory: Pin batches; if None, when CUDA is available.
        source: ``"qm9pack"`` or ``"pyg"``.
        bonds: ``"kekule"`` or ``"aromatic"``.
        graph: ``"bonds"``, ``"radius"`` or ``"complete"``.
        cutoff: Radius in Å, for ``graph="radius"``.
        raw_path: Raw data elsewhere, see :class:`QM9`.
        limit_train: Use only so many training molecules (the first of the split).
        limit_val: Use only so many validation molecules.
        limit_test: Use only so many test molecules.
        standardize: Whether to standardise by the training molecules.
        drop_last: Drop the last, smaller training batch.
        max_edges_per_batch: Bound the edges of training batches instead of counting molecules.
        max_atoms_per_batch: The same for atoms.
        mmap: Map the processed file into memory instead of reading it.
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
        root: str = "data/qm9",
        target: str | list[str] = "homo",
        batch_size: int = 240,
        eval_batch_size: int | None = None,
        split: str | list[int] | list[float] = "nvidia",
        split_seed: int = 0,
        seed: int = 0,
        num_workers: int = 0,
        pin_memory: bool | None = None,
        source: Source = "qm9pack",
        bonds: BondForm = "kekule",
        graph: GraphKind = "bonds",
        cutoff: float | None = None,
        raw_path: str | None = None,
        limit_train: int | None = None,
        limit_val: int | None = None,
        limit_test: int | None = None,
        standardize: bool = True,
        drop_last: bool = False,
        max_edges_per_batch: int | None = None,
        max_atoms_per_batch: int | None = None,
        mmap: bool = False,
        train_transform: Transform | None = None,
        precompute_geometry: Precompute | None = None,
        geometry_dtype: GeometryDtype = "float32",
        geometry_max_degree: int | None = None,
        progress: bool = True,
    ) -> None:
        target = target if isinstance(target, str) else list(target)
        split = split if isinstance(split, str) else list(split)
        root = str(Path(root))
        # Known early, so that a typing error is not found after a minute of processing.
        self.targets: tuple[Target, ...] = get_targets(target)
        super().__init__(
            root=root,
            target_names=[found.name for found in self.targets],
            target_units=[found.unit for found in self.targets],
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
        self._options: dict[str, Any] = {
            "source": source,
            "bonds": bonds,
            "graph": graph,
            "cutoff": cutoff,
            "raw_path": raw_path,
            "mmap": mmap,
        }
        # Plain values only: checkpoints must load with weights_only.
        self.save_hyperparameters(ignore=["train_transform"], logger=False)

    def make_dataset(self) -> MoleculeDataset:
        """QM9, processed if need be."""
        return QM9(self.root, progress=self.progress, **self._options)

    def find_columns(self, dataset: MoleculeDataset) -> list[int]:
        """Columns of the targets in ``y``."""
        return [target.index for target in self.targets]
