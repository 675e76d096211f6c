"""The type of an equivariant feature: how many channels it has of each degree."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


class Fiber(Mapping[int, int]):
    """Immutable map from degree to number of channels, sorted by degree.

    A feature of degree ``l`` transforms under a rotation by the Wigner-D matrix of order ``2l+1``;
    its components follow e3nn's order, so degree 1 is ``(x, y, z)``.

    Layers exchange *packed* features: one tensor ``[N, fiber.dim]`` that holds, by ascending
    degree, one block ``[2l+1, C_l]`` per degree, flattened with the channels contiguous. Features
    of degree 0 alone are therefore an ordinary ``[N, C]`` tensor. :meth:`pack` and :meth:`unpack`
    convert from and to the form by degree, ``{l: [N, C_l, 2l+1]}``.

    Args:
        channels: number of channels by degree; degrees with 0 channels are left out.

    Raises:
        ValueError: a degree is negative or a number of channels is not positive.
        TypeError: ``channels`` is not a mapping of integers.
    """

    __slots__ = ("_channels", "_dim", "_sizes")

    def __init__(self, channels: Mapping[int, int]) -> None:
        if not isinstance(channels, Mapping):
            raise TypeError(
                "Fiber expects a mapping degree -> channels such as {0: 16, 1: 8}, "
                f"got {channels!r}"
            )
        checked: dict[int, int] = {}
        for degree, count in channels.items():
            if not _is_integer(degree) or not _is_integer(count):
                raise TypeError(
                    f"Fiber expects integer degrees and channels, got {degree!r}: {count!r}"
                )
            if int(degree) < 0 or int(count) < 0:
                raise ValueError(
                    "Fiber expects degrees >= 0 and channels >= 0, "
                    f"got degree {degree} with {count} channels"
                )
            if int(count):
                checked[int(degree)] = int(count)
        self._channels = dict(sorted(checked.items()))
        self._sizes = tuple(c * (2 * d + 1) for d, c in self._channels.items())
        self._dim = sum(self._sizes)

    @classmethod
    def create(cls, num_degrees: int, num_channels: int) -> Fiber:
        """Fiber of degrees ``0 .. num_degrees - 1`` with the same number of channels each."""
        if num_degrees < 1 or num_channels < 1:
            raise ValueError(
                "Fiber.create expects at least one degree and one channel, "
                f"got num_degrees={num_degrees}, num_channels={num_channels}"
            )
        return cls({degree: num_channels for degree in range(num_degrees)})

    @classmethod
    def from_irreps(cls, irreps: Any) -> Fiber:
        """Fiber of e3nn ``Irreps`` (or their string), for example ``"16x0e+8x1o"``.

        The parity is dropped: this package is equivariant to rotations, not to reflections.
        """
        from e3nn.o3 import Irreps

        channels: dict[int, int] = {}
        for multiplicity, irrep in Irreps(irreps):
            channels[irrep.l] = channels.get(irrep.l, 0) + multiplicity
        return cls(channels)

    def to_irreps(self) -> Any:
        """e3nn ``Irreps`` of this fiber with the parity of spherical harmonics, ``(-1)^l``."""
        from e3nn.o3 import Irreps

        return Irreps([(c, (degree, (-1) ** degree)) for degree, c in self.items()])

    def to_dict(self) -> dict[int, int]:
        """A plain, mutable copy."""
        return dict(self._channels)

    def items(self) -> ItemsView[int, int]:
        """Degrees with their channels, ascending."""
        return self._channels.items()

    def __getitem__(self, degree: int) -> int:
        return self._channels[degree]

    def __iter__(self) -> Iterator[int]:
        return iter(self._channels)

    def __len__(self) -> int:
        return len(self._channels)

    def __hash__(self) -> int:
        return hash(tuple(self._channels.items()))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Fiber):
            return self._channels == other._channels
        return NotImplemented

    def __repr__(self) -> str:
        return "Fiber({" + ", ".join(f"{d}: {c}" for d, c in self.items()) + "})"

    def __add__(self, other: Fiber) -> Fiber:
        """Fiber of the features concatenated along their channels."""
        return Fiber({d: self.get(d, 0) + other.get(d, 0) for d in {*self, *other}})

    def restricted_to(self, degrees: Mapping[int, int]) -> Fiber:
        """This fiber without the degrees that ``degrees`` lacks."""
        return Fiber({d: c for d, c in self.items() if d in degrees})

    @property
    def degrees(self) -> tuple[int, ...]:
        """Degrees in ascending order."""
        return tuple(self._channels)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels by ascending degree."""
        return tuple(self._channels.values())

    @property
    def max_degree(self) -> int:
        """Largest degree; -1 for the empty fiber."""
        return max(self._channels, default=-1)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Width ``C_l (2l+1)`` of each degree's block in the packed form."""
        return self._sizes

    @property
    def dim(self) -> int:
        """Width of the packed form, the sum of ``C_l (2l+1)``."""
        return self._dim

    @property
    def is_uniform(self) -> bool:
        """Whether every degree has the same number of channels."""
        return len(set(self.channels)) <= 1

    def split(self, packed: Tensor) -> dict[int, Tensor]:
        """Views of a packed tensor by degree, components first.

        Args:
            packed: ``[N, dim]``.

        Returns:
            ``{l: [N, 2l+1, C_l]}``.
        """
        lead = packed.shape[:-1]
        if len(self._sizes) == 1:
            blocks: tuple[Tensor, ...] = (packed,)
        else:
            blocks = packed.split(self._sizes, dim=-1)
        return {
            degree: block.view(*lead, 2 * degree + 1, channels)
            for (degree, channels), block in zip(self._channels.items(), blocks, strict=True)
        }

    def unpack(self, packed: Tensor) -> dict[int, Tensor]:
        """Features by degree.

        Args:
            packed: ``[N, dim]``.

        Returns:
            ``{l: [N, C_l, 2l+1]}``, views of ``packed``.

        Raises:
            ValueError: the last dimension is not ``dim``.
        """
        self.check(packed)
        return {degree: block.transpose(-1, -2) for degree, block in self.split(packed).items()}

    def pack(self, features: Mapping[int, Tensor]) -> Tensor:
        """Packed form of features by degree.

        Args:
            features: ``{l: [N, C_l, 2l+1]}`` with exactly this fiber's degrees.

        Returns:
            ``[N, dim]``.

        Raises:
            ValueError: degrees or shapes differ from this fiber's.
        """
        if set(features) != set(self._channels):
            raise ValueError(
                f"features of degrees {sorted(features)} were given where {self} was expected"
            )
        blocks = []
        for degree, channels in self.items():
            feature = features[degree]
            if feature.dim() != 3 or feature.shape[1:] != (channels, 2 * degree + 1):
                raise ValueError(
                    f"features of degree {degree} have shape {list(feature.shape)}, "
                    f"expected [N, {channels}, {2 * degree + 1}]"
                )
            blocks.append(feature.transpose(1, 2).flatten(1))
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)

    def check(self, packed: Tensor, name: str = "features") -> None:
        """Raise a ``ValueError`` unless ``packed`` is ``[N, dim]``."""
        if packed.dim() != 2 or packed.shape[1] != self.dim:
            raise ValueError(
                f"{name} have shape {list(packed.shape)}, expected [N, {self.dim}] for {self}"
            )


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
