"""Training, validation and test sets: NVIDIA's, or one's own by fractions or counts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

NVIDIA_TRAIN = 100_000
"""Training molecules of NVIDIA's recipe."""

NVIDIA_TEST_FRACTION = 0.1
"""Share of test molecules of NVIDIA's recipe."""


@dataclass(frozen=True)
class Split:
    """Indices of three disjoint, non-empty sets.

    Attributes:
        train: Training indices [n_train] int64.
        val: Validation indices [n_val] int64.
        test: Test indices [n_test] int64.
    """

    train: Tensor
    val: Tensor
    test: Tensor

    def __post_init__(self) -> None:
        for name, part in self.parts().items():
            if part.numel() == 0:
                raise ValueError(
                    f"the {name} set is empty; use a larger data set or give sizes that leave "
                    "molecules for every set, e.g. split=[0.8, 0.1, 0.1]"
                )
        everything = torch.cat(list(self.parts().values()))
        if everything.unique().numel() != everything.numel():
            raise ValueError("the sets of a split must be disjoint, but they share molecules")

    def parts(self) -> dict[str, Tensor]:
        """The three sets by name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def fingerprint(self) -> str:
        """Hash of the three sets; equal exactly if the splits are equal (order included)."""
        digest = hashlib.sha256()
        for name, part in self.parts().items():
            digest.update(f"{name} {part.numel()}\n".encode())
            digest.update(part.to(torch.int64).contiguous().numpy().astype("<i8").tobytes())
        return digest.hexdigest()[:16]


def make_split(
    num_molecules: int, split: str | Sequence[float] | Sequence[int] | Split, seed: int = 0
) -> Split:
    """Split a data set.

    Args:
        num_molecules: Size of the data set.
        split: ``"nvidia"``; three fractions (floats) or three counts (integers) for training,
            validation and test; or a ready :class:`Split`.
        seed: Seed of a split by fractions or counts. NVIDIA's is always seeded 0.

    Returns:
        The split.

    Raises:
        ValueError: If the split is unknown, does not fit the data set or leaves a set empty.
    """
    if isinstance(split, Split):
        largest = max(int(part.max()) for part in split.parts().values())
        if largest >= num_molecules:
            raise ValueError(f"the split has index {largest}, the data set {num_molecules} items")
        return split
    if isinstance(split, str):
        if split != "nvidia":
            raise ValueError(
                f"split={split!r} is unknown; expected 'nvidia' or three fractions or counts"
            )
        return nvidia_split(num_molecules)
    return random_split(num_molecules, split, seed)


def nvidia_split(num_molecules: int) -> Split:
    """NVIDIA's split: 100,000 training molecules, 10 % test, the rest validation.

    The same molecules as ``torch.utils.data.random_split`` chooses with a generator seeded 0.

    Args:
        num_molecules: Size of the data set.

    Returns:
        The split.

    Raises:
        ValueError: If the data set is too small for it.
    """
    num_test = int(NVIDIA_TEST_FRACTION * num_molecules)
    num_val = num_molecules - NVIDIA_TRAIN - num_test
    if num_val < 1:
        raise ValueError(
            f"NVIDIA's split needs more than {NVIDIA_TRAIN} training molecules and 10 % test "
            f"molecules, the data set has {num_molecules}; give fractions or counts instead, e.g. "
            "split=[0.8, 0.1, 0.1]"
        )
    return _cut(num_molecules, [NVIDIA_TRAIN, num_val, num_test], seed=0)


def random_split(num_molecules: int, sizes: Sequence[float] | Sequence[int], seed: int) -> Split:
    """A random split of given sizes.

    Args:
        num_molecules: Size of the data set.
        sizes: Three fractions in (0, 1) that add up to at most 1, or three counts.
        seed: Seed of the permutation.

    Returns:
        The split; molecules beyond the sizes are left out.

    Raises:
        ValueError: If the sizes do not fit.
    """
    sizes = list(sizes)
    if len(sizes) != 3:
        raise ValueError(f"a split needs three sizes (train, validation, test), got {sizes}")
    if all(isinstance(size, int) and not isinstance(size, bool) for size in sizes):
        counts = [int(size) for size in sizes]
        if min(counts) < 0 or sum(counts) > num_molecules:
            raise ValueError(f"counts {counts} do not fit a data set of {num_molecules} molecules")
    elif all(isinstance(size, float) and 0 <= size <= 1 for size in sizes):
        if sum(sizes) > 1 + 1e-9:
            raise ValueError(f"fractions {sizes} add up to {sum(sizes):g}, more than 1")
        # Rounding the cumulated sizes never loses a molecule when the fractions add up to 1.
        bounds = [0] + [round(sum(sizes[: i + 1]) * num_molecules) for i in range(3)]
        counts = [end - start for start, end in pairwise(bounds)]
    else:
        raise ValueError(f"sizes must be three fractions (floats) or three integers, got {sizes}")
    return _cut(num_molecules, counts, seed)


def _cut(num_molecules: int, counts: Sequence[int], seed: int) -> Split:
    order = torch.randperm(num_molecules, generator=torch.Generator().manual_seed(seed))
    train, val, test = order[: sum(counts)].split(list(counts))
    return Split(train, val, test)
