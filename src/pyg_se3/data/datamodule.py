"""QM9 for Lightning: loaders, split, and training statistics of the targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from pyg_se3.data.bonds import BondForm
from pyg_se3.data.loader import MoleculeLoader
from pyg_se3.data.qm9 import QM9, GraphKind, Source
from pyg_se3.data.samplers import BalancedBatchSampler, EpochSampler
from pyg_se3.data.splits import Split, make_split
from pyg_se3.data.targets import Target, get_targets


class QM9DataModule(pl.LightningDataModule):
    """QM9 with split, loaders and the statistics that standardise its targets.

    Batches carry ``y`` [B, T] of the chosen targets, raw, in their units; whoever trains
    standardises with :attr:`target_mean` and :attr:`target_std`.

    Args:
        root: Folder of the processed data.
        target: Name of a target (see :data:`pyg_se3.data.TARGET_NAMES`), or a list of names.
        batch_size: Training molecules per batch and process.
        eval_batch_size: The same for validation and test; ``batch_size`` if None.
        split: ``"nvidia"``, or three fractions or counts for training, validation and test.
        split_seed: Seed of a split by fractions or counts.
        seed: Seed of the training order.
        num_workers: Worker processes per loader; collation is so fast that 0 is usually best.
        pin_memory: Pin batches; if None, when CUDA is available.
        source: ``"qm9pack"`` or ``"pyg"``.
        bonds: ``"kekule"`` or ``"aromatic"``.
        graph: ``"bonds"``, ``"radius"`` or ``"complete"``.
        cutoff: Radius in Å, for ``graph="radius"``.
        raw_path: Raw data elsewhere, see :class:`QM9`.
        limit_train: Use only so many training molecules (the first of the split).
        limit_val: Use only so many validation molecules.
        limit_test: Use only so many test molecules.
        standardize: Whether mean and standard deviation are those of the training molecules;
            otherwise 0 and 1.
        drop_last: Drop the last, smaller training batch.
        max_edges_per_batch: Bound the edges of training batches instead of counting molecules;
            ``batch_size`` is then not used for training.
        max_atoms_per_batch: The same for atoms.
        mmap: Map the processed file into memory instead of reading it.
        progress: Show a progress bar while processing.

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
        progress: bool = True,
    ) -> None:
        super().__init__()
        names = target if isinstance(target, str) else list(target)
        # Known early, so that a typing error is not found after a minute of processing.
        self.targets: tuple[Target, ...] = get_targets(names)
        for name, value in {
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "limit_train": limit_train,
            "limit_val": limit_val,
            "limit_test": limit_test,
            "max_edges_per_batch": max_edges_per_batch,
            "max_atoms_per_batch": max_atoms_per_batch,
        }.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if num_workers < 0:
            raise ValueError(f"num_workers must not be negative, got {num_workers}")
        if max_edges_per_batch is not None and max_atoms_per_batch is not None:
            raise ValueError("give max_edges_per_batch or max_atoms_per_batch, not both")
        if isinstance(split, str) and split != "nvidia":
            make_split(1, split)  # Raises with the valid names.
        split = split if isinstance(split, str) else list(split)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self.seed, self.drop_last = seed, drop_last
        self.standardize = standardize
        self.max_edges_per_batch = max_edges_per_batch
        self.max_atoms_per_batch = max_atoms_per_batch
        self._split_spec, self._split_seed = split, split_seed
        self._limits = {"train": limit_train, "val": limit_val, "test": limit_test}
        self._dataset_args: dict[str, Any] = {
            "root": str(Path(root)),
            "source": source,
            "bonds": bonds,
            "graph": graph,
            "cutoff": cutoff,
            "raw_path": raw_path,
            "mmap": mmap,
            "progress": progress,
        }
        self._dataset: QM9 | None = None
        self._split: Split | None = None
        self._mean: Tensor | None = None
        self._std: Tensor | None = None
        root, target = str(Path(root)), names
        # Plain values only: checkpoints must load with weights_only.
        self.save_hyperparameters(logger=False)

    def prepare_data(self) -> None:
        """Process the data if need be (Lightning calls this in one process per node)."""
        QM9(**self._dataset_args)

    def setup(self, stage: str | None = None) -> None:
        """Load the data, split it and compute the training statistics.

        Args:
            stage: Not used: the statistics need the training molecules in every stage.

        Raises:
            ValueError: If a set is empty, or a target is constant over the training molecules.
        """
        if self._dataset is not None:
            return
        dataset = QM9(**self._dataset_args)
        full = make_split(len(dataset), self._split_spec, self._split_seed)
        split = Split(**{k: part[: self._limits[k]] for k, part in full.parts().items()})
        y = dataset.store.y[split.train][:, self.columns]
        self._mean, self._std = self._statistics(y)
        self._dataset, self._split = dataset, split

    def _statistics(self, y: Tensor) -> tuple[Tensor, Tensor]:
        if not self.standardize:
            return torch.zeros(y.size(1)), torch.ones(y.size(1))
        mean = y.mean(dim=0)
        # With Bessel's correction; a single molecule has no deviation.
        std = y.std(dim=0) if y.size(0) > 1 else torch.zeros_like(mean)
        for target, value, scale in zip(self.targets, std.tolist(), mean.tolist(), strict=True):
            if value <= 1e-12 * max(1.0, abs(scale)):
                raise ValueError(
                    f"target {target.name!r} does not vary over the {y.size(0)} training "
                    "molecules and cannot be standardised; use more training molecules, another "
                    "target, or standardize=False"
                )
        return mean.float(), std.float()

    @property
    def dataset(self) -> QM9:
        """The whole data set."""
        return self._ready(self._dataset)

    @property
    def split(self) -> Split:
        """Indices of the three sets, limits applied."""
        return self._ready(self._split)

    @property
    def target_mean(self) -> Tensor:
        """Mean of every target over the training molecules [T]."""
        return self._ready(self._mean)

    @property
    def target_std(self) -> Tensor:
        """Standard deviation of every target over the training molecules [T]."""
        return self._ready(self._std)

    @property
    def columns(self) -> list[int]:
        """Columns of the targets in the data set's ``y``."""
        return [target.index for target in self.targets]

    @property
    def num_targets(self) -> int:
        """Number of targets T."""
        return len(self.targets)

    @property
    def target_names(self) -> list[str]:
        """Names of the targets."""
        return [target.name for target in self.targets]

    @property
    def target_units(self) -> list[str]:
        """Units of the targets."""
        return [target.unit for target in self.targets]

    @property
    def target_unit(self) -> str:
        """The common unit of the targets, or ``"mixed"``."""
        units = set(self.target_units)
        return units.pop() if len(units) == 1 else "mixed"

    @property
    def node_dim(self) -> int:
        """Width of ``x``."""
        return self.dataset.node_dim

    @property
    def edge_dim(self) -> int:
        """Width of ``edge_attr``; 0 for graphs without bonds."""
        return self.dataset.edge_dim

    @property
    def fiber_in(self) -> dict[int, int]:
        """Degrees and channels of ``x``."""
        return {0: self.node_dim}

    @property
    def fiber_edge(self) -> dict[int, int]:
        """Degrees and channels of ``edge_attr``; empty for graphs without bonds."""
        return {0: self.edge_dim} if self.edge_dim else {}

    @property
    def num_train(self) -> int:
        """Training molecules."""
        return self.split.train.numel()

    @property
    def num_val(self) -> int:
        """Validation molecules."""
        return self.split.val.numel()

    @property
    def num_test(self) -> int:
        """Test molecules."""
        return self.split.test.numel()

    @property
    def train_set(self) -> QM9:
        """Training molecules."""
        return self.dataset[self.split.train]

    @property
    def val_set(self) -> QM9:
        """Validation molecules."""
        return self.dataset[self.split.val]

    @property
    def test_set(self) -> QM9:
        """Test molecules."""
        return self.dataset[self.split.test]

    def describe(self) -> dict[str, Any]:
        """What a run was trained on, as plain values for a report or a checkpoint."""
        return {
            "dataset": dict(self.dataset.spec),
            "molecules": len(self.dataset),
            "targets": self.target_names,
            "units": self.target_units,
            "train": self.num_train,
            "val": self.num_val,
            "test": self.num_test,
            "split": self.split.fingerprint(),
            "mean": self.target_mean.tolist(),
            "std": self.target_std.tolist(),
        }

    def train_dataloader(self) -> MoleculeLoader:
        """Shuffled training batches, the order given by seed and epoch alone."""
        dataset = self.train_set
        rank, world_size = self._rank()
        bound = self.max_edges_per_batch or self.max_atoms_per_batch
        if bound is None:
            sampler = EpochSampler(len(dataset), seed=self.seed, rank=rank, world_size=world_size)
            return self._loader(
                dataset, batch_size=self.batch_size, sampler=sampler, drop_last=self.drop_last
            )
        self._check_balanced(world_size)
        sizes = dataset.num_edges_per_molecule if self.max_edges_per_batch else dataset.num_atoms
        balanced = BalancedBatchSampler(
            sizes, bound, seed=self.seed, rank=rank, world_size=world_size
        )
        return self._loader(dataset, batch_sampler=balanced)

    def val_dataloader(self) -> MoleculeLoader:
        """Validation batches; over all ranks every molecule comes exactly once."""
        return self._eval_loader(self.val_set)

    def test_dataloader(self) -> MoleculeLoader:
        """Test batches; over all ranks every molecule comes exactly once."""
        return self._eval_loader(self.test_set)

    def predict_dataloader(self) -> MoleculeLoader:
        """Test batches, for predictions."""
        return self._eval_loader(self.test_set)

    def _eval_loader(self, dataset: QM9) -> MoleculeLoader:
        rank, world_size = self._rank()
        sampler = EpochSampler(
            len(dataset), shuffle=False, rank=rank, world_size=world_size, pad=False
        )
        return self._loader(dataset, batch_size=self.eval_batch_size, sampler=sampler)

    def _loader(self, dataset: QM9, **kwargs: Any) -> MoleculeLoader:
        return MoleculeLoader(
            dataset,
            columns=self.columns,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.pin_memory,
            **kwargs,
        )

    def _rank(self) -> tuple[int, int]:
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def _check_balanced(self, world_size: int) -> None:
        if world_size == 1 or self.trainer is None:
            return
        if self.trainer._accelerator_connector.use_distributed_sampler:
            raise ValueError(
                "batches bounded by edges or atoms under several processes need "
                "Trainer(use_distributed_sampler=False)"
            )

    def _ready(self, value: Any) -> Any:
        if value is None:
            raise RuntimeError("QM9DataModule is not set up yet: call setup() first")
        return value
