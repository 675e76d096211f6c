"""What every data set of molecules offers to loaders, samplers and data modules."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data, Dataset

from pyg_se3.data.rows import Rows

Self = TypeVar("Self", bound="MoleculeDataset")


class MoleculeTable(Protocol):
    """Numbers of all molecules, known without reading any of them."""

    @property
    def y(self) -> Tensor:
        """Targets [M, T] float64."""

    @property
    def idx(self) -> Tensor:
        """Identifiers [M] int64."""

    @property
    def num_atoms(self) -> Tensor:
        """Atoms per molecule [M]."""

    @property
    def num_edges(self) -> Tensor:
        """Directed edges per molecule [M]."""


class MoleculeDataset(Dataset):
    """A PyG data set that collates whole batches at once, and knows targets and sizes beforehand.

    Subclasses offer ``len``, ``get``, :attr:`table`, :meth:`gather`, :meth:`name`,
    :attr:`node_dim` and :attr:`edge_dim`, and set ``spec``, plain values that determine what they
    hold.
    """

    spec: dict[str, Any]

    @property
    @abstractmethod
    def table(self) -> MoleculeTable:
        """Targets and sizes of all molecules."""

    @abstractmethod
    def gather(self, rows: Tensor, columns: Sequence[int] | Tensor | None = None) -> Batch:
        """A batch of molecules by their positions in the storage; no ``transform`` is applied.

        Args:
            rows: Positions [B].
            columns: Columns of ``y`` to give; all if None.
        """

    @abstractmethod
    def name(self, index: int) -> str:
        """What people call an item; may be empty."""

    @property
    @abstractmethod
    def node_dim(self) -> int:
        """Width of ``x``."""

    @property
    @abstractmethod
    def edge_dim(self) -> int:
        """Width of ``edge_attr``; 0 where there is none."""

    def __getitems__(self, indices: Sequence[int]) -> Sequence[Data]:
        """Molecules for one batch, not yet touched; PyTorch's loaders call this."""
        return Rows(self, indices)

    def batch(
        self, indices: Sequence[int] | Tensor, columns: Sequence[int] | Tensor | None = None
    ) -> Batch:
        """Collate molecules straight from the storage; ``transform`` is not applied.

        Args:
            indices: Positions in this (sub)set [B].
            columns: Columns of ``y`` to give; all if None.

        Returns:
            PyG ``Batch``.
        """
        return self.gather(self.positions(indices), columns)

    def positions(self, indices: Sequence[int] | Tensor | None = None) -> Tensor:
        """Positions in the storage of items of this (sub)set; of all items if None."""
        own: Any = self._indices
        if own is None:
            if indices is None:
                return torch.arange(len(self))
            return torch.as_tensor(indices, dtype=torch.long)
        if indices is None:
            return torch.as_tensor(own, dtype=torch.long)
        if isinstance(own, Tensor):
            return own[torch.as_tensor(indices, dtype=torch.long)]
        return torch.tensor([int(own[int(i)]) for i in indices])

    def subset(self: Self, indices: Tensor) -> Self:
        """Some molecules; unlike ``dataset[indices]`` it keeps no Python number for each.

        Args:
            indices: Positions in this (sub)set [M] int64.
        """
        chosen = copy.copy(self)
        rows: Any = self.positions(indices)
        chosen._indices = rows
        return chosen

    @property
    def y(self) -> Tensor:
        """Targets of this (sub)set [M, T] float64."""
        return self.table.y if self._indices is None else self.table.y[self.positions()]

    @property
    def num_atoms(self) -> Tensor:
        """Atoms per molecule of this (sub)set [M]."""
        return self.table.num_atoms[self.positions()]

    @property
    def num_edges_per_molecule(self) -> Tensor:
        """Directed edges per molecule of this (sub)set [M]."""
        return self.table.num_edges[self.positions()]
