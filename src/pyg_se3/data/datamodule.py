"""What all data modules share: split, loaders, statistics of the targets, precomputed geometry."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal, get_args

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import FSDPStrategy
from torch import Tensor
from torch_geometric.data import Data

from pyg_se3.data.dataset import MoleculeDataset
from pyg_se3.data.geometry import GeometryCache, GeometryDtype
from pyg_se3.data.loader import MoleculeLoader
from pyg_se3.data.samplers import BalancedBatchSampler, EpochSampler, even_batch_size
from pyg_se3.data.splits import Split, make_split

Transform = Callable[[Data], Data]
"""What PyG calls a transform."""

Precompute = Literal["ram", "disk"]
"""Where precomputed edge frames are kept."""


class MoleculeDataModule(pl.LightningDataModule):
    """A data set of molecules with split, loaders and statistics that standardise its targets.

    Batches carry ``y`` [B, T] of the chosen targets, raw, in their units; whoever trains
    standardises with :attr:`target_mean` and :attr:`target_std`.

    Subclasses implement :meth:`make_dataset` and :meth:`find_columns`, and call
    ``save_hyperparameters`` themselves.

    Args:
        root: Folder of the processed data.
        target_names: Names of the T targets.
        target_units: Their units.
        batch_size: Training molecules per batch and process.
        eval_batch_size: The same for validation and test; ``batch_size`` if None.
        split: ``"nvidia"``, or three fractions or counts for training, validation and test.
        split_seed: Seed of a split by fractions or counts.
        seed: Seed of the training order.
        num_workers: Worker processes per loader; collation is so fast that 0 is usually best.
        pin_memory: Pin batches; if None, when CUDA is available.
        limit_train: Use only so many training molecules (the first of the split).
        limit_val: Use only so many validation molecules.
        limit_test: Use only so many test molecules.
        standardize: Whether mean and standard deviation are those of the training molecules;
            otherwise 0 and 1.
        drop_last: Drop the last, smaller training batch.
        max_edges_per_batch: Bound the edges of training batches instead of counting molecules;
            ``batch_size`` is then not used for training.
        max_atoms_per_batch: The same for atoms.
        train_transform: Applied to every training molecule whenever it is used, e.g. to augment.
        precompute_geometry: Compute all edge frames once and keep them in ``"ram"``, or in a
            memory-mapped file on ``"disk"``; None computes them in every step. Training with
            ``train_transform``, which may move atoms, does without.
        geometry_dtype: Type in which they are kept, ``"float32"`` or ``"bfloat16"``.
        geometry_max_degree: Degree up to which; that of the model in training if None.
        progress: Show progress bars while processing.

    Raises:
        ValueError: If options are unknown or contradict each other.
    """

    def __init__(
        self,
        *,
        root: str,
        target_names: list[str],
        target_units: list[str],
        batch_size: int,
        eval_batch_size: int | None,
        split: str | list[int] | list[float],
        split_seed: int,
        seed: int,
        num_workers: int,
        pin_memory: bool | None,
        limit_train: int | None,
        limit_val: int | None,
        limit_test: int | None,
        standardize: bool,
        drop_last: bool,
        max_edges_per_batch: int | None,
        max_atoms_per_batch: int | None,
        train_transform: Transform | None,
        precompute_geometry: Precompute | None,
        geometry_dtype: GeometryDtype,
        geometry_max_degree: int | None,
        progress: bool,
    ) -> None:
        super().__init__()
        self.root, self.target_names, self.target_units = root, target_names, target_units
        for name, value in {
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "limit_train": limit_train,
            "limit_val": limit_val,
            "limit_test": limit_test,
            "max_edges_per_batch": max_edges_per_batch,
            "max_atoms_per_batch": max_atoms_per_batch,
            "geometry_max_degree": geometry_max_degree,
        }.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if num_workers < 0:
            raise ValueError(f"num_workers must not be negative, got {num_workers}")
        if max_edges_per_batch is not None and max_atoms_per_batch is not None:
            raise ValueError("give max_edges_per_batch or max_atoms_per_batch, not both")
        if isinstance(split, str) and split != "nvidia":
            make_split(1, split)  # Raises with the valid names.
        for name, choice, kinds in (
            ("precompute_geometry", precompute_geometry, (None, *get_args(Precompute))),
            ("geometry_dtype", geometry_dtype, get_args(GeometryDtype)),
        ):
            if choice not in kinds:
                raise ValueError(f"{name}={choice!r} is unknown; expected one of {kinds}")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self.seed, self.drop_last, self.progress = seed, drop_last, progress
        self.standardize = standardize
        self.max_edges_per_batch = max_edges_per_batch
        self.max_atoms_per_batch = max_atoms_per_batch
        self.train_transform = train_transform
        self.precompute_geometry = precompute_geometry
        self.geometry_dtype, self.geometry_max_degree = geometry_dtype, geometry_max_degree
        self._split_spec, self._split_seed = split, split_seed
        self._limits = {"train": limit_train, "val": limit_val, "test": limit_test}
        self._dataset: MoleculeDataset | None = None
        self._columns: list[int] = []
        self._split: Split | None = None
        self._mean: Tensor | None = None
        self._std: Tensor | None = None
        self._geometry: GeometryCache | None = None

    @abstractmethod
    def make_dataset(self) -> MoleculeDataset:
        """The whole data set, processed if need be."""

    @abstractmethod
    def find_columns(self, dataset: MoleculeDataset) -> list[int]:
        """Columns of the targets in the data set's ``y``."""

    def usable(self, dataset: MoleculeDataset, columns: list[int]) -> Tensor:
        """Positions of the molecules to be split into three sets; all by default."""
        return torch.arange(len(dataset))

    def prepare_data(self) -> None:
        """Process the data if need be (Lightning calls this in one process per node)."""
        self.make_dataset()

    def setup(self, stage: str | None = None) -> None:
        """Load the data, split it and compute the training statistics.

        Args:
            stage: Not used: the statistics need the training molecules in every stage.

        Raises:
            ValueError: If a set is empty, or a target is constant over the training molecules.
        """
        if self._dataset is not None:
            return
        dataset = self.make_dataset()
        columns = self.find_columns(dataset)
        rows = self.usable(dataset, columns)
        full = make_split(rows.numel(), self._split_spec, self._split_seed)
        split = Split(**{k: rows[part[: self._limits[k]]] for k, part in full.parts().items()})
        self._mean, self._std = self._statistics(dataset.table.y[split.train][:, columns])
        self._dataset, self._columns, self._split = dataset, columns, split

    def _statistics(self, y: Tensor) -> tuple[Tensor, Tensor]:
        if not self.standardize:
            return torch.zeros(y.size(1)), torch.ones(y.size(1))
        mean = y.mean(dim=0)
        # With Bessel's correction; a single molecule has no deviation.
        std = y.std(dim=0) if y.size(0) > 1 else torch.zeros_like(mean)
        for name, value, scale in zip(self.target_names, std.tolist(), mean.tolist(), strict=True):
            if value <= 1e-12 * max(1.0, abs(scale)):
                raise ValueError(
                    f"target {name!r} does not vary over the {y.size(0)} training "
                    "molecules and cannot be standardised; use more training molecules, another "
                    "target, or standardize=False"
                )
        return mean.float(), std.float()

    @property
    def dataset(self) -> MoleculeDataset:
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
        self._ready(self._dataset)
        return self._columns

    @property
    def num_targets(self) -> int:
        """Number of targets T."""
        return len(self.target_names)

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
    def train_set(self) -> MoleculeDataset:
        """Training molecules."""
        return self.dataset.subset(self.split.train)

    @property
    def val_set(self) -> MoleculeDataset:
        """Validation molecules."""
        return self.dataset.subset(self.split.val)

    @property
    def test_set(self) -> MoleculeDataset:
        """Test molecules."""
        return self.dataset.subset(self.split.test)

    def test_names(self, idx: Tensor) -> list[str]:
        """What people call test molecules.

        Args:
            idx: Their identifiers [M].
        """
        test = self.test_set
        known = test.table.idx[test.positions()].tolist()
        place = {number: position for position, number in enumerate(known)}
        return [test.name(place[number]) for number in idx.tolist()]

    @property
    def split_fingerprint(self) -> str:
        """Hash that tells whether another run has the same molecules in the same sets."""
        return self.split.fingerprint()

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
            "split": self.split_fingerprint,
            "mean": self.target_mean.tolist(),
            "std": self.target_std.tolist(),
        }

    def train_dataloader(self) -> MoleculeLoader:
        """Shuffled training batches, the order given by seed and epoch alone."""
        dataset, geometry = self.train_set, None
        if self.train_transform is not None:
            dataset.transform = self.train_transform
            if self.precompute_geometry is not None:
                self._tell("not used for training: train_transform may move atoms")
        else:
            geometry = self._edge_frames()
        rank, world_size = self._rank()
        bound = self.max_edges_per_batch or self.max_atoms_per_batch
        if bound is None:
            sampler = EpochSampler(len(dataset), seed=self.seed, rank=rank, world_size=world_size)
            return self._loader(
                dataset,
                geometry,
                batch_size=self.batch_size,
                sampler=sampler,
                drop_last=self.drop_last,
            )
        self._check_balanced(world_size)
        sizes = dataset.num_edges_per_molecule if self.max_edges_per_batch else dataset.num_atoms
        balanced = BalancedBatchSampler(
            sizes, bound, seed=self.seed, rank=rank, world_size=world_size
        )
        return self._loader(dataset, geometry, batch_sampler=balanced)

    def val_dataloader(self) -> MoleculeLoader:
        """Validation batches; over all ranks every molecule comes exactly once."""
        return self._eval_loader(self.val_set)

    def test_dataloader(self) -> MoleculeLoader:
        """Test batches; over all ranks every molecule comes exactly once."""
        return self._eval_loader(self.test_set)

    def predict_dataloader(self) -> MoleculeLoader:
        """Test batches, for predictions."""
        return self._eval_loader(self.test_set)

    def _eval_loader(self, dataset: MoleculeDataset) -> MoleculeLoader:
        rank, world_size = self._rank()
        sampler = EpochSampler(
            len(dataset), shuffle=False, rank=rank, world_size=world_size, pad=False
        )
        batch_size = even_batch_size(len(dataset), world_size, self.eval_batch_size)
        self._check_even(len(dataset), world_size, batch_size)
        return self._loader(dataset, self._edge_frames(), batch_size=batch_size, sampler=sampler)

    def _loader(
        self, dataset: MoleculeDataset, geometry: GeometryCache | None, **kwargs: Any
    ) -> MoleculeLoader:
        return MoleculeLoader(
            dataset,
            columns=self.columns,
            geometry=geometry,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.pin_memory,
            **kwargs,
        )

    def _edge_frames(self) -> GeometryCache | None:
        """Edge frames of the whole data set, computed when first needed; None if not wanted."""
        if self.precompute_geometry is None:
            return None
        if self._geometry is None:
            degree = self._model_degree()
            if degree == 0:
                self._tell("none needed: the model has features of degree 0 only")
                self.precompute_geometry = None
                return None
            self._geometry = GeometryCache(
                self.dataset,
                degree,
                self.geometry_dtype,
                folder=self.root if self.precompute_geometry == "disk" else None,
                progress=self.progress,
            )
        return self._geometry

    def _model_degree(self) -> int:
        if self.geometry_max_degree is not None:
            return self.geometry_max_degree
        module = None if self.trainer is None else self.trainer.lightning_module
        degree = getattr(getattr(module, "net", module), "max_degree", None)
        if degree is None:
            raise ValueError(
                "precompute_geometry needs geometry_max_degree here: no model with a max_degree "
                "is being trained"
            )
        return degree

    def _tell(self, message: str) -> None:
        if self._rank()[0] == 0:
            print(f"precomputed geometry: {message}", file=sys.stderr, flush=True)

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

    def _check_even(self, size: int, world_size: int, batch_size: int) -> None:
        if self.trainer is None or not isinstance(self.trainer.strategy, FSDPStrategy):
            return
        fewest, rest = divmod(size, world_size)
        if rest and fewest % batch_size == 0:
            raise ValueError(
                f"with FSDP, {world_size} processes need equally many batches, which "
                f"eval_batch_size={self.eval_batch_size} cannot give them for {size} molecules; "
                "use a larger one"
            )

    def _ready(self, value: Any) -> Any:
        if value is None:
            raise RuntimeError(f"{type(self).__name__} is not set up yet: call setup() first")
        return value
