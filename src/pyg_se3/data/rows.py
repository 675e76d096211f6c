"""Molecules chosen for a batch but not yet read, so that a collate function can gather them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch_geometric.data import Data

if TYPE_CHECKING:
    from pyg_se3.data.dataset import MoleculeDataset


class Rows(Sequence[Data]):
    """Some items of a data set, as a sequence of ``Data`` that are made on access.

    Any collate function can treat it as a list; :class:`pyg_se3.data.loader.Collate` recognises it
    and gathers the whole batch at once.

    Args:
        dataset: The data set.
        indices: Positions in it.
    """

    def __init__(self, dataset: MoleculeDataset, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        """Item ``index`` as ``Data``, or a slice as another ``Rows``."""
        if isinstance(index, slice):
            return Rows(self.dataset, self.indices[index])
        return self.dataset[int(self.indices[index])]

    def __iter__(self) -> Iterator[Data]:
        for index in self.indices:
            yield self.dataset[int(index)]
