"""Orders of molecules that depend only on seed and epoch, shared among ranks, resumable anywhere.

Both samplers derive from ``DistributedSampler``, so that Lightning recognises them, tells them the
epoch and does not wrap them in samplers of its own.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler


class EpochSampler(DistributedSampler):
    """Positions 0 … size-1, shuffled by (seed, epoch), every ``world_size``-th for this rank.

    All ranks walk through one common order, so one step of ``world_size`` ranks sees the same
    molecules as one step of a single process with ``world_size`` times the batch size.

    Args:
        size: Number of items.
        shuffle: Whether to shuffle.
        seed: Seed of the order.
        rank: This process.
        world_size: Number of processes.
        pad: Give all ranks the same number of items by repeating the first ones, which training
            needs. Without it every item comes exactly once over all ranks, which evaluation needs.

    Attributes:
        start: Items, counted over all ranks, that the next pass through the epoch leaves out.
    """

    def __init__(
        self,
        size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pad: bool = True,
    ) -> None:
        if size < 1:
            raise ValueError(f"a sampler needs at least one item, got size={size}")
        if not pad and size < world_size:
            raise ValueError(
                f"{size} molecules cannot be shared among {world_size} processes such that each "
                "has one; use fewer processes or a larger set"
            )
        super().__init__(
            range(size),  # type: ignore[arg-type]
            num_replicas=world_size,
            rank=rank,
            shuffle=shuffle,
            seed=seed,
        )
        self.size, self.world_size, self.pad = size, world_size, pad
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of ``epoch``; a new epoch begins at its start."""
        if epoch != self.epoch:
            self.start = 0
        self.epoch = epoch

    def order(self) -> Tensor:
        """The epoch's order of all items, before it is shared among ranks."""
        if not self.shuffle:
            return torch.arange(self.size)
        return _permutation(self.size, self.seed, self.epoch)

    def __iter__(self) -> Iterator[int]:
        order = self.order()
        if self.pad:
            missing = -self.size % self.world_size
            order = torch.cat([order, order.repeat(missing // self.size + 1)[:missing]])
        # Never all as Python numbers at once: of ten million those take half a gigabyte.
        for part in order[self.start + self.rank :: self.world_size].split(4096):
            yield from part.tolist()

    def num_repeated(self, done: int, count: int) -> int:
        """How many of this rank's next ``count`` items only pad the epoch; they are the last ones.

        Args:
            done: Items, counted over all ranks, that came before.
            count: Number of items.
        """
        start, step = done + self.rank, self.world_size
        return sum(p >= self.size for p in range(start, start + count * step, step))

    def __len__(self) -> int:
        """Items of this rank in a whole epoch, wherever the next pass starts."""
        if self.pad:
            return -(-self.size // self.world_size)
        return len(range(self.rank, self.size, self.world_size))


def even_batch_size(size: int, world_size: int, at_most: int) -> int:
    """Largest batch size with which all ranks have equally many batches of items shared once.

    Ranks then have ``size / world_size`` items, rounded down or up. FSDP needs equally many batches
    of all, as it gathers parameters in every step, also of evaluation.

    Args:
        size: Number of items.
        world_size: Number of processes.
        at_most: Largest batch size.

    Returns:
        ``at_most`` if there is no such size.
    """
    fewest, rest = divmod(size, world_size)
    if rest == 0:
        return at_most
    return next((b for b in range(at_most, 0, -1) if fewest % b), at_most)


class BalancedBatchSampler(DistributedSampler):
    """Batches whose total size (atoms or edges) is bounded and nearly equal.

    Molecules are dealt out, one at a time, each to the batch with the smallest total so far: first
    those of the largest size class (powers of two), in random order, then those of the next.
    With K batches, no total then exceeds ``S_c / K + s_c`` for the class c that came last into it,
    with S_c the sum of all sizes down to that class and s_c its largest. K is the smallest number
    for which this is at most ``max_size`` for every class, so batches are as full as can be
    promised. It does not change between epochs and is a multiple of the number of ranks: all ranks
    have equally many batches of nearly equal size, and memory is predictable.

    Use it as ``batch_sampler``; under DDP with ``Trainer(use_distributed_sampler=False)``.

    Args:
        sizes: Size of every molecule [M], e.g. its number of edges.
        max_size: Largest total size of a batch.
        shuffle: Whether to shuffle.
        seed: Seed of the order.
        rank: This process.
        world_size: Number of processes.

    Attributes:
        start: Batches, counted over all ranks, that the next pass through the epoch leaves out.
    """

    def __init__(
        self,
        sizes: Tensor,
        max_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if sizes.numel() == 0:
            raise ValueError("a sampler needs at least one molecule, got none")
        largest = int(sizes.max())
        if largest > max_size:
            raise ValueError(
                f"the largest molecule has size {largest}, more than a whole batch may have "
                f"(max_size={max_size})"
            )
        super().__init__(
            range(sizes.numel()),  # type: ignore[arg-type]
            num_replicas=world_size,
            rank=rank,
            shuffle=shuffle,
            seed=seed,
        )
        self.sizes, self.max_size = sizes.tolist(), max_size
        self.world_size = world_size
        # The exponent of the power of two below each size; empty molecules belong to the last.
        self._class = torch.frexp(sizes.clamp(min=1).double()).exponent
        count = _enough_batches(sizes, self._class, max_size)
        # One molecule per batch always fits, and there cannot be more batches than molecules.
        self.num_batches = min(count + -count % world_size, sizes.numel())
        if self.num_batches % world_size:
            raise ValueError(
                f"{sizes.numel()} molecules cannot be shared among {world_size} ranks in equally "
                "many batches; use fewer ranks or a larger max_size"
            )
        self.start = 0

    @property
    def sampler(self) -> BalancedBatchSampler:
        """This sampler: Lightning looks here for ``set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of ``epoch``; a new epoch begins at its start."""
        if epoch != self.epoch:
            self.start = 0
        self.epoch = epoch

    def batches(self) -> list[list[int]]:
        """All batches of the epoch, over all ranks."""
        order = torch.arange(len(self.sizes))
        if self.shuffle:
            order = _permutation(len(self.sizes), self.seed, self.epoch)
        order = order[self._class[order].argsort(descending=True, stable=True)]
        batches: list[list[int]] = [[] for _ in range(self.num_batches)]
        # Empty molecules (no edges) also count a little, so that every batch gets something.
        heap = [(0, 0, i) for i in range(self.num_batches)]
        for item in order.tolist():
            size, count, batch = heap[0]
            heapq.heapreplace(heap, (size + self.sizes[item], count + 1, batch))
            batches[batch].append(item)
        if self.shuffle:
            # Batches with the largest molecules would come first otherwise.
            places = _permutation(self.num_batches, self.seed, self.epoch).tolist()
            return [batches[place] for place in places]
        return batches

    def __iter__(self) -> Iterator[list[int]]:  # type: ignore[override]
        yield from self.batches()[self.start + self.rank :: self.world_size]

    def num_repeated(self, done: int, count: int) -> int:
        """No item is repeated."""
        return 0

    def __len__(self) -> int:
        """Batches of this rank in a whole epoch, wherever the next pass starts."""
        return self.num_batches // self.world_size


def _enough_batches(sizes: Tensor, classes: Tensor, max_size: int) -> int:
    """Smallest number of batches that keeps to ``max_size`` whatever the order inside a class."""
    enough, total, count = 1, 0, 0
    for kind in classes.unique().flip(0).tolist():
        members = sizes[classes == kind]
        total += int(members.sum())
        count += members.numel()
        room = max_size - int(members.max())
        # Either the bound holds, or every molecule so far has a batch of its own.
        needed = count if room == 0 else min(count, -(-total // room))
        enough = max(enough, needed)
    return enough


def _permutation(size: int, seed: int, epoch: int) -> Tensor:
    # Mixed rather than added: otherwise seed 1, epoch 0 would repeat seed 0, epoch 1.
    mixed: Any = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(mixed) >> 1)
    return torch.randperm(size, generator=generator)
