"""A PyG loader that gathers batches from concatenated storage and resumes in mid-epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

from pyg_se3.data.geometry import GeometryCache
from pyg_se3.data.rows import Rows
from pyg_se3.data.samplers import BalancedBatchSampler, EpochSampler
from pyg_se3.so3 import any_vanish


class Collate:
    """Make a ``Batch``: gathered in one go for :class:`Rows`, with PyG's collation otherwise.

    ``batch.zero_length_edges`` says whether there are any, so that models need not look for them
    where that waits for a device. Whoever moves positions of a batch so that two nodes may come
    to coincide deletes it.

    Args:
        columns: Columns of ``y`` to give; all if None.
        geometry: Edge frames of the data set, for batches gathered in one go.
    """

    def __init__(
        self, columns: Sequence[int] | None = None, geometry: GeometryCache | None = None
    ) -> None:
        self.columns = None if columns is None else list(columns)
        self.geometry = geometry

    def __call__(self, items: Sequence[Data]) -> Batch:
        """A batch of ``items``."""
        batch = self._collate(items)
        if "pos" in batch and "edge_index" in batch:
            source, target = batch.edge_index
            batch.zero_length_edges = any_vanish(batch.pos[target] - batch.pos[source])
        return batch

    def _collate(self, items: Sequence[Data]) -> Batch:
        if isinstance(items, Rows):
            dataset, rows = items.dataset, items.dataset.positions(items.indices)
            if dataset.transform is None:
                batch = dataset.gather(rows, self.columns)
                return batch if self.geometry is None else self.geometry.attach(batch, rows)
            # One reading for all of them, which matters on disk.
            items = [dataset.transform(data) for data in dataset.gather(rows).to_data_list()]
        batch = Batch.from_data_list(list(items))
        if self.columns is not None:
            batch.y = batch.y[:, self.columns]
        return batch


class MoleculeLoader(DataLoader):
    """``torch_geometric.loader.DataLoader`` with fast collation and a resumable position.

    ``state_dict`` gives the position inside the epoch, which Lightning stores in checkpoints and
    hands back: a resumed run continues with the batch after the last one that was trained on.
    The position counts molecules (or balanced batches), not steps.

    The last ``num_repeated`` molecules of a batch are there only because every process must have a
    batch; other processes have them, too.

    Args:
        dataset: A :class:`pyg_se3.data.QM9`, or any sequence of ``Data``.
        batch_size: Molecules per batch.
        columns: Columns of ``y`` to give; all if None.
        geometry: Edge frames of the data set, which then come along as ``edge_frames``.
        **kwargs: Arguments of ``torch.utils.data.DataLoader``.
    """

    def __init__(
        self,
        dataset: Dataset | Sequence[Data],
        batch_size: int = 1,
        *,
        columns: Sequence[int] | None = None,
        geometry: GeometryCache | None = None,
        **kwargs: Any,
    ) -> None:
        # A generator of its own keeps the loader from drawing from the global random state.
        if kwargs.get("generator") is None:
            kwargs["generator"] = torch.Generator().manual_seed(0)
        super().__init__(dataset, batch_size, **kwargs)
        self.columns = columns
        self.collate_fn = Collate(columns, geometry)
        self._position: tuple[int, int] | None = None

    def _resumable(self) -> tuple[EpochSampler | BalancedBatchSampler, int] | None:
        """The sampler with a position, and by how much one batch advances it."""
        if isinstance(self.batch_sampler, BalancedBatchSampler):
            return self.batch_sampler, self.batch_sampler.world_size
        if isinstance(self.sampler, EpochSampler) and self.batch_size is not None:
            return self.sampler, self.batch_size * self.sampler.world_size
        return None

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        resumable = self._resumable()
        if resumable is None:
            yield from super().__iter__()
            return
        sampler, advance = resumable
        epoch, done = sampler.epoch, sampler.start
        for batch in super().__iter__():
            batch.num_repeated = sampler.num_repeated(done, batch.num_graphs)
            done += advance
            self._position = (epoch, done)
            yield batch
        sampler.start = 0

    def state_dict(self) -> dict[str, int]:
        """Epoch and position inside it; empty for samplers without a position."""
        resumable = self._resumable()
        if resumable is None:
            return {}
        sampler, _ = resumable
        position = (sampler.epoch, sampler.start)
        if self._position is not None and self._position[0] == sampler.epoch:
            position = self._position
        return {"epoch": position[0], "start": position[1]}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue where :meth:`state_dict` was taken.

        Raises:
            ValueError: If the state is not one of this loader.
        """
        resumable = self._resumable()
        if resumable is None:
            if state_dict:
                raise ValueError(f"this loader's sampler has no position, got {state_dict}")
            return
        if set(state_dict) != {"epoch", "start"}:
            raise ValueError(f"expected a state with 'epoch' and 'start', got {state_dict}")
        sampler, _ = resumable
        sampler.set_epoch(state_dict["epoch"])
        sampler.start = state_dict["start"]
        self._position = (state_dict["epoch"], state_dict["start"])
