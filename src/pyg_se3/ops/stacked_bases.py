"""Weights that fit the bases of many blocks, by one product with the packed weights for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from pyg_se3.ops.compression import RadialBasis


def pad_columns(rows: Tensor, multiple: int) -> Tensor:
    """Add columns of zeros up to the next multiple."""
    missing = -rows.shape[1] % multiple
    return pad(rows, (0, missing)) if missing else rows


@dataclass(frozen=True)
class StackedBases:
    """Bases of several blocks of edges for the activations of one radial MLP.

    Attributes:
        bases: of the blocks; either all of them are the activations themselves, or none is.
        hidden: number H of radial activations.
        multiple: what the columns C of weights are padded to a multiple of, with zeros.
    """

    bases: Sequence[RadialBasis]
    hidden: int
    multiple: int = 1

    def weights(self, packed: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """For each basis the rows ``[rank * K, C]`` of a packed weight ``[H * K, C]`` that fit."""
        if self.bases[0].is_identity:
            return [pad_columns(packed.to(dtype), self.multiple)] * len(self.bases)
        rows = torch.cat([basis.rows(self.hidden) for basis in self.bases])
        fitting = (rows @ packed.view(self.hidden, -1)).to(dtype)
        parts = fitting.split([basis.rank for basis in self.bases])
        return [pad_columns(part.view(-1, packed.shape[1]), self.multiple) for part in parts]

    def padded_rows(self) -> Tensor:
        """``[sum w, H]``: the rows of every basis, zero for columns that make no messages."""
        return torch.cat(
            [
                pad(basis.rows(self.hidden), (0, 0, 0, basis.width - basis.rank))
                for basis in self.bases
            ]
        )


@dataclass
class ProductSums:
    """Products of outer products and message gradients, the weights' gradient by columns.

    Attributes:
        stack: the bases.
        packed: packed weight ``[H * K, C]``.
        total: its gradient, added to; ``None`` if it is not wanted.
    """

    stack: StackedBases
    packed: Tensor
    total: Tensor | None
    _room: Tensor = field(init=False)
    _parts: list[Tensor] = field(init=False)
    _filled: set[int] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        bases, columns = self.stack.bases, self.packed.shape[1]
        if bases[0].is_identity:
            self._room = self.packed.new_zeros(0) if self.total is None else self.total
            self._parts = [self._room] * len(bases)
            self._filled = set(range(len(bases)))
        else:
            widths = [basis.width for basis in bases]
            size = self.packed.numel() // self.stack.hidden
            self._room = self.packed.new_empty(sum(widths), size)
            self._parts = [part.view(-1, columns) for part in self._room.split(widths)]

    def add(self, index: int, outer: Tensor, gradient: Tensor) -> None:
        """Add ``outer^T gradient``, ``[w * K, C]``, of some edges of a block.

        The gradient may have more columns, which are padding.
        """
        part = self._parts[index]
        if outer.dtype != part.dtype or gradient.shape[1] != part.shape[1]:
            product = (outer.T @ gradient)[:, : part.shape[1]]
            part.copy_(product) if index not in self._filled else part.add_(product)
        elif index in self._filled:
            part.addmm_(outer.T, gradient)
        else:
            torch.mm(outer.T, gradient, out=part)
        self._filled.add(index)

    def add_weight_gradient(self) -> None:
        """Add the sums to the gradient of the packed weight."""
        assert self.total is not None
        if not self.stack.bases[0].is_identity:
            rows = self.stack.padded_rows().T
            self.total.view(self.stack.hidden, -1).addmm_(rows, self._room)

    def activation_gradient(self) -> Tensor:
        """``[sum w, H]``: a basis times its rows of this is the projected gradient of g."""
        return self._room @ self.packed.view(self.stack.hidden, -1).T
