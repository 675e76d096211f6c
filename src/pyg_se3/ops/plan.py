"""The problem a TFN convolution solves: degrees, channels, and which of them share a radial MLP."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, get_args

from torch import Tensor

from pyg_se3.fiber import Fiber

RadialSharing = Literal["full", "output", "input", "pairwise"]
Pair = tuple[int, int]
"""A degree pair, ``(degree_in, degree_out)``."""

PairWeights = Mapping[Pair, Tensor]
"""``{(l, k): [2 min(l, k) + 1, H, C_l, C_k]}``, J ascending along the first axis."""


def num_frequencies(pair: Pair) -> int:
    """Number of harmonics degrees J that couple a degree pair, ``2 min(l, k) + 1``."""
    return 2 * min(pair) + 1


@dataclass(frozen=True)
class RadialGroup:
    """Degree pairs whose radial weights come from one radial MLP: all of ``in`` x ``out``."""

    degrees_in: tuple[int, ...]
    degrees_out: tuple[int, ...]

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Pairs, output degrees outermost."""
        return tuple((i, o) for o in self.degrees_out for i in self.degrees_in)

    @property
    def max_order(self) -> int:
        """Largest ``|m|`` that the group couples."""
        return min(max(self.degrees_in), max(self.degrees_out))

    @property
    def name(self) -> str:
        """For example ``0123-0`` for a group of four input degrees and one output degree."""
        return "-".join("".join(map(str, d)) for d in (self.degrees_in, self.degrees_out))


@dataclass(frozen=True)
class TFNPlan:
    """A TFN convolution, frozen: what every kernel computes and how its weights are laid out.

    Attributes:
        fiber_in: fiber of the source nodes.
        fiber_out: fiber of the messages.
        groups: which degree pairs share a radial MLP; together they cover every pair once.
        hidden: width H of the radial activations.
        rectified: the radial activations come out of a ReLU, so that an activation of 0 has no
            gradient; kernels may then leave it out.
        code: all of this as text.
        group_of: the number of the group that a pair is in.
    """

    fiber_in: Fiber
    fiber_out: Fiber
    groups: tuple[RadialGroup, ...]
    hidden: int
    rectified: bool = True
    code: str = field(init=False, repr=False, compare=False)
    group_of: dict[Pair, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        group_of = {pair: i for i, group in enumerate(self.groups) for pair in group.pairs}
        object.__setattr__(self, "group_of", group_of)
        groups = [[group.degrees_in, group.degrees_out] for group in self.groups]
        fibers = list(self.fiber_in.items()), list(self.fiber_out.items())
        code = json.dumps([*fibers, groups, self.hidden, self.rectified])
        object.__setattr__(self, "code", code)

    @classmethod
    @cache
    def from_code(cls, code: str) -> TFNPlan:
        """The plan whose :attr:`code` this is."""
        fiber_in, fiber_out, groups, hidden, rectified = json.loads(code)
        made = tuple(RadialGroup(tuple(ins), tuple(outs)) for ins, outs in groups)
        return cls(Fiber(dict(fiber_in)), Fiber(dict(fiber_out)), made, hidden, rectified)

    @classmethod
    def create(
        cls,
        fiber_in: Fiber,
        fiber_out: Fiber,
        sharing: RadialSharing = "full",
        hidden: int = 32,
        rectified: bool = True,
    ) -> TFNPlan:
        """Plan of a convolution between two fibers.

        Args:
            fiber_in: fiber of the source nodes.
            fiber_out: fiber of the messages.
            sharing: one radial MLP for all pairs (``full``), one per output degree (``output``),
                per input degree (``input``) or per pair (``pairwise``).
            hidden: width H of the radial activations.
            rectified: whether the radial activations come out of a ReLU.

        Raises:
            ValueError: unknown sharing, an empty fiber or a width below 1.
        """
        if not fiber_in or not fiber_out:
            raise ValueError(
                f"a convolution needs degrees on both sides, got {fiber_in} -> {fiber_out}"
            )
        if hidden < 1:
            raise ValueError(f"the radial width must be at least 1, got {hidden}")
        ins, outs = fiber_in.degrees, fiber_out.degrees
        if sharing == "full":
            groups = [RadialGroup(ins, outs)]
        elif sharing == "output":
            groups = [RadialGroup(ins, (o,)) for o in outs]
        elif sharing == "input":
            groups = [RadialGroup((i,), outs) for i in ins]
        elif sharing == "pairwise":
            groups = [RadialGroup((i,), (o,)) for o in outs for i in ins]
        else:
            raise ValueError(
                f"unknown radial sharing {sharing!r}, expected one of {get_args(RadialSharing)}"
            )
        return cls(fiber_in, fiber_out, tuple(groups), hidden, rectified)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Every degree pair, group by group."""
        return tuple(pair for group in self.groups for pair in group.pairs)

    @property
    def max_order(self) -> int:
        """Largest ``|m|`` that the convolution couples."""
        return min(self.fiber_in.max_degree, self.fiber_out.max_degree)

    @property
    def max_degree(self) -> int:
        """Largest degree on either side."""
        return max(self.fiber_in.max_degree, self.fiber_out.max_degree)

    def weight_shape(self, pair: Pair) -> tuple[int, int, int, int]:
        """Shape ``(2 min(l, k) + 1, H, C_l, C_k)`` of a pair's weight."""
        degree_in, degree_out = pair
        return (
            num_frequencies(pair),
            self.hidden,
            self.fiber_in[degree_in],
            self.fiber_out[degree_out],
        )

    @property
    def num_weights(self) -> int:
        """Number of radial weights per hidden unit and edge, summed over pairs."""
        return sum(f * i * o for f, _, i, o in map(self.weight_shape, self.pairs))
