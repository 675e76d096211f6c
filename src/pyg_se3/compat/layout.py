"""NVIDIA's layouts of the radial weights, and their form by degree pair.

One convolution has one radial MLP in all (``full``), one per output or input degree, or one per
degree pair. The last linear map of an MLP has the rows ``(o * C_in + i) * F + f``, where the
frequencies f of its pairs follow each other, J ascending within a pair.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyg_se3.compat.signs import Convention, pair_signs
from pyg_se3.ops.plan import Pair, RadialSharing, num_frequencies

CONSTANT_HARMONIC = math.sqrt(4 * math.pi)
"""One over ``Y_0``: a pairwise convolution from degree 0 to degree 0 leaves ``Y_0`` out."""


@dataclass(frozen=True)
class Piece:
    """One radial MLP of a convolution.

    Attributes:
        key: its name within the convolution: ``conv``, ``conv_out.1``, ``conv_in.1``, ``conv.0,1``.
        pairs: its degree pairs in the order of their frequencies.
    """

    key: str
    pairs: tuple[Pair, ...]

    @property
    def frequencies(self) -> int:
        """Number of radial coefficients per channel pair."""
        return sum(num_frequencies(pair) for pair in self.pairs)

    @property
    def is_constant(self) -> bool:
        """Whether it is the pairwise convolution from degree 0 to degree 0."""
        return self.key == "conv.0,0"


def pieces(
    layout: RadialSharing, degrees_in: Sequence[int], degrees_out: Sequence[int]
) -> list[Piece]:
    """The radial MLPs of a convolution, in the order in which degrees are given."""
    ins, outs = sorted(degrees_in), sorted(degrees_out)
    if layout == "full":
        return [Piece("conv", tuple((i, o) for o in outs for i in ins))]
    if layout == "output":
        return [Piece(f"conv_out.{o}", tuple((i, o) for i in ins)) for o in degrees_out]
    if layout == "input":
        return [Piece(f"conv_in.{i}", tuple((i, o) for o in outs)) for i in degrees_in]
    return [Piece(f"conv.{i},{o}", ((i, o),)) for i in degrees_in for o in degrees_out]


def best_layout(
    channels_in: Mapping[int, int],
    channels_out: Mapping[int, int],
    max_degree: int,
    fuse_level: int,
) -> RadialSharing:
    """The layout that NVIDIA's convolution takes for a fuse level.

    Args:
        channels_in: channels by degree, those of edge features of degree > 0 included.
        channels_out: channels by degree.
        max_degree: of all features of the model.
        fuse_level: 2 full, 1 partial, 0 none.
    """
    every = set(range(max_degree + 1))
    even_in = len(set(channels_in.values())) == 1 and set(channels_in) == every
    even_out = len(set(channels_out.values())) == 1 and set(channels_out) == every
    if fuse_level >= 2 and even_in and even_out:
        return "full"
    if fuse_level >= 1 and even_in:
        return "output"
    if fuse_level >= 1 and even_out:
        return "input"
    return "pairwise"


def split_rows(
    weight: Tensor,
    piece: Piece,
    channels_in: int,
    channels_out: int,
    convention: Convention,
) -> dict[Pair, Tensor]:
    """NVIDIA's last linear map of a radial MLP by degree pair, differentiable.

    Args:
        weight: ``[C_out * C_in * F, H]``.
        piece: the MLP it belongs to.
        channels_in: C_in, the same for all input degrees of the piece.
        channels_out: C_out.
        convention: its Clebsch-Gordan signs.

    Returns:
        ``{(l, k): [2 min(l, k) + 1, H, C_in, C_out]}`` in this package's convention.
    """
    rows = weight.view(channels_out, channels_in, piece.frequencies, weight.shape[1])
    blocks = rows.permute(2, 3, 1, 0).split([num_frequencies(pair) for pair in piece.pairs])
    return {
        pair: _scale(block, piece, pair, convention, inverse=False)
        for pair, block in zip(piece.pairs, blocks, strict=True)
    }


def join_rows(weights: Mapping[Pair, Tensor], piece: Piece, convention: Convention) -> Tensor:
    """Inverse of :func:`split_rows`."""
    blocks = [_scale(weights[pair], piece, pair, convention, inverse=True) for pair in piece.pairs]
    stacked = torch.cat(blocks)  # [F, H, C_in, C_out]
    return stacked.permute(3, 2, 0, 1).flatten(0, 2).contiguous()


def _scale(
    block: Tensor, piece: Piece, pair: Pair, convention: Convention, inverse: bool
) -> Tensor:
    if piece.is_constant:
        return block / CONSTANT_HARMONIC if inverse else block * CONSTANT_HARMONIC
    signs = pair_signs(pair, convention)
    if -1.0 not in signs:
        return block
    return block * block.new_tensor(signs)[:, None, None, None]
