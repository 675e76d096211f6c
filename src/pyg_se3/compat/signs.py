"""Signs of Clebsch-Gordan coefficients: before e3nn 0.5 and since.

A checkpoint holds one radial coefficient per harmonics degree J. If the sign of the coupling
``Q^J_{lk}`` changes, the same function needs the opposite coefficient.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Literal, get_args

from pyg_se3.ops.plan import Pair, num_frequencies
from pyg_se3.so3 import clebsch_gordan

Convention = Literal["e3nn-0.3", "e3nn-0.5"]
"""``e3nn-0.3``: the signs of e3nn up to 0.4; ``e3nn-0.5``: those since, which this package uses."""

DEFAULT_CONVENTION: Convention = "e3nn-0.3"
"""What checkpoints of NVIDIA's code have: it pins e3nn 0.3.3."""


def check_convention(convention: str | None) -> Convention:
    """The convention itself, or the default for ``None``.

    Raises:
        ValueError: there is no such convention.
    """
    if convention is None:
        return DEFAULT_CONVENTION
    if convention not in get_args(Convention):
        raise ValueError(
            f"unknown cg_convention {convention!r}, expected one of {get_args(Convention)}"
        )
    return convention  # type: ignore[return-value]


@cache
def changed_sign(degree_j: int, degree_in: int, degree_out: int) -> bool:
    """Whether e3nn 0.5 changed the sign of the coupling of these three degrees.

    Before, the sign was a rule: for ascending degrees the middle component was positive or, where
    that vanishes, the first one that does not. The other orders followed by symmetry, then as now,
    so that all six orders of a triple changed together. The rule was compared with the table of
    e3nn 0.3.3 up to degree 8.
    """
    low, middle, high = sorted((degree_j, degree_in, degree_out))
    tensor = clebsch_gordan(low, middle, high).permute(2, 1, 0)
    deciding = tensor[low, middle, high].item()
    if abs(deciding) < 1e-10:
        flat = tensor.flatten()
        deciding = flat[flat.abs() > 1e-10][0].item()
    return deciding < 0


@cache
def pair_signs(pair: Pair, convention: Convention) -> tuple[float, ...]:
    """Factor of each radial coefficient of a pair, J ascending, between a convention and ours."""
    degree_in, degree_out = pair
    first = abs(degree_in - degree_out)
    return tuple(
        -1.0 if convention == "e3nn-0.3" and changed_sign(j, degree_in, degree_out) else 1.0
        for j in range(first, first + num_frequencies(pair))
    )


def depends_on_convention(pairs: list[Pair]) -> bool:
    """Whether a convolution of these degree pairs differs between the conventions."""
    return any(-1.0 in pair_signs(pair, "e3nn-0.3") for pair in pairs)


def warn_of_default(what: str) -> None:
    """Say that the convention was not chosen although it changes the numbers."""
    warnings.warn(
        f"{what} has degrees whose Clebsch-Gordan signs changed in e3nn 0.5, and cg_convention was "
        f"not given: taking {DEFAULT_CONVENTION!r}, which NVIDIA's requirements pin. Weights "
        "trained with e3nn 0.5 or later need cg_convention='e3nn-0.5'; state it either way to "
        "silence this warning",
        UserWarning,
        stacklevel=3,
    )
