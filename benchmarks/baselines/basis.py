"""Equivariant bases of every degree pair, materialised per edge, and their fused forms.

`basis(l, k)[e, a, f, c] = sum_m Y_J(r_e)[m] Q_J[c, a, m]` with J = |l - k| + f: component a of the
input degree l, frequency f, component c of the output degree k (Weiler et al. 2018, eq. 7).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import torch
from e3nn import o3
from torch import Tensor

BasisKey = tuple[str, int, int]
Bases = dict[BasisKey, Tensor]


def pair_key(degree_in: int, degree_out: int) -> BasisKey:
    """Basis of one degree pair, [E, 2l+1, F, 2k+1]."""
    return ("pair", degree_in, degree_out)


def out_key(degree_out: int) -> BasisKey:
    """All input degrees to one output degree, [E, (L+1)^2, F, 2k+1]."""
    return ("out", degree_out, degree_out)


def in_key(degree_in: int) -> BasisKey:
    """One input degree to all output degrees, [E, 2l+1, F, (L+1)^2]."""
    return ("in", degree_in, degree_in)


FULL_KEY: BasisKey = ("full", -1, -1)
"""All input degrees to all output degrees, [E, (L+1)^2, F, (L+1)^2]."""


def dim(degree: int) -> int:
    """Number of components of a degree."""
    return 2 * degree + 1


def num_frequencies(degree_in: int, degree_out: int) -> int:
    """Number of radial coefficients of a degree pair."""
    return 2 * min(degree_in, degree_out) + 1


@lru_cache(maxsize=1024)
def _coupling(degree_in: int, degree_out: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Clebsch-Gordan coefficients of a pair, [sum_J (2J+1), (2l+1) F (2k+1)], one block per J."""
    low, high = abs(degree_in - degree_out), degree_in + degree_out
    rows = sum(dim(j) for j in range(low, high + 1))
    table = torch.zeros(rows, dim(degree_in), high - low + 1, dim(degree_out), dtype=torch.float64)
    row = 0
    for f, j in enumerate(range(low, high + 1)):
        table[row : row + dim(j), :, f] = o3.wigner_3j(
            j, degree_in, degree_out, dtype=torch.float64
        )
        row += dim(j)
    return table.reshape(rows, -1).to(dtype=dtype, device=device)


def _pair(harmonics: Tensor, degree_in: int, degree_out: int) -> Tensor:
    low, high = abs(degree_in - degree_out), degree_in + degree_out
    coupling = _coupling(degree_in, degree_out, harmonics.dtype, harmonics.device)
    flat = harmonics[:, low**2 : (high + 1) ** 2] @ coupling
    return flat.view(len(harmonics), dim(degree_in), high - low + 1, dim(degree_out))


@torch.no_grad()
def compute_bases(
    rel_pos: Tensor,
    keys: Iterable[BasisKey],
    max_degree: int,
    *,
    pad: bool = False,
) -> Bases:
    """The bases that a model asks for, once per forward pass, without gradient.

    Args:
        rel_pos: Edge vectors `pos[target] - pos[source]`, `[E, 3]`.
        keys: Which bases to make.
        max_degree: Largest degree L of the model; the fused forms run over 0..L.
        pad: Append a zero component to every odd output dimension except in the forms over all
            output degrees, so that half-precision matrix units see even sizes.

    Returns:
        One tensor per key; under autocast in autocast's type.
    """
    harmonics = o3.spherical_harmonics(
        list(range(2 * max_degree + 1)), rel_pos, normalize=True, normalization="integral"
    )
    pairs: Bases = {}

    def pair(degree_in: int, degree_out: int) -> Tensor:
        key = pair_key(degree_in, degree_out)
        if key not in pairs:
            pairs[key] = _pair(harmonics, degree_in, degree_out)
        return pairs[key]

    degrees = range(max_degree + 1)
    bases: Bases = {}
    for key in dict.fromkeys(keys):
        kind, degree, degree_out = key
        if kind == "pair":
            basis = pair(degree, degree_out)
        elif kind == "out":
            basis = _fuse([pair(d, degree) for d in degrees], degrees, [degree])
        elif kind == "in":
            basis = _fuse([pair(degree, d) for d in degrees], [degree], degrees)
        else:
            basis = _fuse([pair(i, o) for o in degrees for i in degrees], degrees, degrees)
        if pad and kind in ("pair", "out"):
            basis = torch.nn.functional.pad(basis, (0, 1))
        bases[key] = basis
    if torch.is_autocast_enabled(rel_pos.device.type):
        dtype = torch.get_autocast_dtype(rel_pos.device.type)
        bases = {key: basis.to(dtype) for key, basis in bases.items()}
    return bases


def _fuse(pairs: list[Tensor], ins: Iterable[int], outs: Iterable[int]) -> Tensor:
    """Slot pair bases (output degree outer, input degree inner) into one mostly empty tensor."""
    ins, outs = list(ins), list(outs)
    frequencies = sum(num_frequencies(i, o) for o in outs for i in ins)
    fused = pairs[0].new_zeros(len(pairs[0]), sum(map(dim, ins)), frequencies, sum(map(dim, outs)))
    row = f = column = 0
    remaining = iter(pairs)
    for degree_out in outs:
        row = 0
        for degree_in in ins:
            n = num_frequencies(degree_in, degree_out)
            fused[:, row : row + dim(degree_in), f : f + n, column : column + dim(degree_out)] = (
                next(remaining)
            )
            row, f = row + dim(degree_in), f + n
        column += dim(degree_out)
    return fused
