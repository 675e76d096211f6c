"""NVIDIA's Fiber, which iterates by ascending channels, not by degree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyg_se3.fiber import Fiber as NativeFiber


class FiberEl(NamedTuple):
    """A degree and its number of channels."""

    degree: int
    channels: int


class Fiber(dict):
    """Degree to channels with NVIDIA's habits.

    It iterates over pairs (degree, channels) by ascending channels, equal ones in the order given;
    this fixes the order in which layers create their parameters. A degree that is not there has 0
    channels.

    Args:
        structure: mapping degree -> channels, or pairs of degree and channels.
    """

    def __init__(self, structure: Mapping[int, int] | Iterable[tuple[int, int]]) -> None:
        items = structure.items() if isinstance(structure, Mapping) else structure
        pairs = [FiberEl(int(degree), int(channels)) for degree, channels in items]
        self.structure = sorted(pairs, key=lambda pair: pair.channels)
        super().__init__({pair.degree: pair.channels for pair in self.structure})

    @staticmethod
    def create(num_degrees: int, num_channels: int) -> Fiber:
        """Degrees ``0 .. num_degrees - 1`` with equally many channels."""
        return Fiber([(degree, num_channels) for degree in range(num_degrees)])

    @staticmethod
    def from_features(feats: Mapping[str, Tensor]) -> Fiber:
        """The fiber of features by degree, ``{'l': [N, C, 2l+1]}``.

        Raises:
            ValueError: a feature has another shape.
        """
        structure = {}
        for key, value in feats.items():
            if value.dim() != 3 or value.shape[-1] != 2 * int(key) + 1:
                raise ValueError(
                    f"features of degree {key} have shape {list(value.shape)}, "
                    f"expected [N, C, {2 * int(key) + 1}]"
                )
            structure[int(key)] = value.shape[1]
        return Fiber(structure)

    @property
    def degrees(self) -> list[int]:
        """Degrees, ascending."""
        return sorted(pair.degree for pair in self.structure)

    @property
    def channels(self) -> list[int]:
        """Channels by ascending degree."""
        return [self[degree] for degree in self.degrees]

    @property
    def num_features(self) -> int:
        """Sum of ``C_l (2l+1)``."""
        return sum(pair.channels * (2 * pair.degree + 1) for pair in self.structure)

    @property
    def native(self) -> NativeFiber:
        """The same as a fiber of this package."""
        return NativeFiber(dict(self.structure))

    def __getitem__(self, degree: int) -> int:
        return self.get(degree, 0)

    def __iter__(self) -> Iterator[FiberEl]:  # type: ignore[override]
        return iter(self.structure)

    def __mul__(self, other: Fiber | int) -> Any:
        """All pairs of elements with another fiber, or the channels times a number."""
        if isinstance(other, Fiber):
            return product(self.structure, other.structure)
        return Fiber({pair.degree: pair.channels * other for pair in self.structure})

    def __add__(self, other: Fiber | int) -> Fiber:
        """This fiber's degrees with the other's channels, or a number, added."""
        if isinstance(other, Fiber):
            return Fiber({p.degree: p.channels + other[p.degree] for p in self.structure})
        return Fiber({p.degree: p.channels + other for p in self.structure})

    def __repr__(self) -> str:
        return str(self.structure)

    def __reduce__(self) -> tuple[type, tuple]:
        return type(self), ([tuple(pair) for pair in self.structure],)

    @staticmethod
    def combine_max(f1: Fiber, f2: Fiber) -> Fiber:
        """The larger number of channels of every degree."""
        channels = dict(f1.structure)
        for degree, count in f2.structure:
            channels[degree] = max(channels.get(degree, 0), count)
        return Fiber(list(channels.items()))

    @staticmethod
    def combine_selectively(f1: Fiber, f2: Fiber) -> Fiber:
        """The sum of channels for the degrees of ``f1``."""
        return Fiber([(degree, count + f2[degree]) for degree, count in f1.structure])

    def to_attention_heads(self, tensors: Mapping[str, Tensor], num_heads: int) -> Tensor:
        """``{'l': [N, C, 2l+1]}`` as ``[N, heads, features per head]``."""
        parts = [
            tensors[str(degree)].reshape(tensors[str(degree)].shape[0], num_heads, -1)
            for degree in self.degrees
        ]
        return torch.cat(parts, dim=-1)


def as_fiber(fiber: Any) -> Fiber:
    """A :class:`Fiber` of a fiber, a mapping, or pairs (``None`` is the empty one)."""
    if isinstance(fiber, Fiber):
        return fiber
    return Fiber({} if fiber is None else fiber)
