"""Invariant atom and bond features of NVIDIA's QM9 recipe."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyg_se3.data.targets import ELEMENTS

BOND_TYPES: tuple[str, ...] = ("single", "double", "triple", "aromatic")
"""Bond types in the order of the columns of ``edge_attr`` [E, 4]."""

NODE_DIM = len(ELEMENTS) + 1
"""Width of ``x``: one-hot element and atomic number."""

EDGE_DIM = len(BOND_TYPES)
"""Width of ``edge_attr``: one-hot bond type."""


def atom_table(elements: Sequence[int] = ELEMENTS) -> Tensor:
    """Features by atomic number, so that ``table[z]`` is ``x``.

    Args:
        elements: Atomic numbers with a one-hot column each.

    Returns:
        [max(elements) + 1, len(elements) + 1]: one-hot element, then the atomic number. Rows of
        other elements are NaN, so that a missing check cannot pass unnoticed.
    """
    table = torch.full((max(elements) + 1, len(elements) + 1), float("nan"))
    for column, number in enumerate(elements):
        table[number] = 0.0
        table[number, column] = 1.0
        table[number, -1] = float(number)
    return table


def check_elements(z: Tensor, elements: Sequence[int] = ELEMENTS) -> None:
    """Refuse atoms that the features cannot express.

    Args:
        z: Atomic numbers [N].
        elements: Atomic numbers that are allowed.

    Raises:
        ValueError: If ``z`` holds another element.
    """
    found = set(torch.unique(z).tolist())
    unknown = sorted(found - set(elements))
    if unknown:
        raise ValueError(f"atomic numbers {unknown} have no feature; expected {list(elements)}")


def atom_features(z: Tensor, elements: Sequence[int] = ELEMENTS) -> Tensor:
    """One-hot element and atomic number of every atom.

    Args:
        z: Atomic numbers [N].
        elements: Atomic numbers with a one-hot column each.

    Returns:
        ``x`` [N, len(elements) + 1].

    Raises:
        ValueError: If ``z`` holds another element.
    """
    check_elements(z, elements)
    return atom_table(elements)[z.long()]
