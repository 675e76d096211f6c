"""Edge frames as one plain tensor, computed once and stored with a data set."""

from __future__ import annotations

import torch
from torch import Tensor

from pyg_se3.so3.edge_frame import EdgeGeometry, lengths_and_directions

_TOLERANCE = {torch.bfloat16: 4e-3, torch.float32: 1e-5, torch.float64: 1e-12}
"""Twice the rounding of a direction in a type (bfloat16), or well above it."""


def frame_width(max_degree: int) -> int:
    """Numbers per edge in :func:`pack_frames`; degree 0 needs none."""
    return sum((2 * degree + 1) ** 2 for degree in range(1, max_degree + 1))


def pack_frames(geometry: EdgeGeometry) -> Tensor:
    """The Wigner-D matrices of degrees 1 to L, flattened, behind one another.

    Args:
        geometry: of E edges.

    Returns:
        ``[E, frame_width(L)]``.
    """
    return torch.cat([matrix.flatten(1) for matrix in geometry.wigner[1:]], dim=1)


def unpack_frames(
    vectors: Tensor, frames: Tensor, max_degree: int, *, may_vanish: bool = True
) -> EdgeGeometry | None:
    """Geometry from stored frames, if they belong to these edges.

    The middle column of D_1 is the direction of the edge, so a look at it tells whether the
    positions are still those that the frames were computed of.

    Args:
        vectors: target minus source position ``[E, 3]``.
        frames: of :func:`pack_frames`, ``[E, K]``, possibly of a lower precision.
        max_degree: largest degree wanted; frames may reach further.
        may_vanish: look for edges of zero length.

    Returns:
        The geometry in the type of ``vectors``, or ``None`` if an edge has another direction than
        its frame, to within the precision of ``frames``.

    Raises:
        ValueError: ``frames`` has too few columns, rows for other edges, or an unknown type.
    """
    sizes = [(2 * degree + 1) ** 2 for degree in range(1, max_degree + 1)]
    if frames.dim() != 2 or frames.shape[0] != vectors.shape[0] or frames.shape[1] < sum(sizes):
        raise ValueError(
            f"edge frames have shape {list(frames.shape)}, expected [{vectors.shape[0]}, "
            f"{sum(sizes)}] or more columns for degrees up to {max_degree}; precompute them for "
            "this model"
        )
    if frames.dtype not in _TOLERANCE:
        raise ValueError(f"edge frames have type {frames.dtype}, expected one of {[*_TOLERANCE]}")
    distance, directions, undirected = lengths_and_directions(vectors, may_vanish)
    if undirected is not None:
        directions = directions.index_fill(0, undirected, 0.0)
    tolerance = _TOLERANCE[frames.dtype]
    frames = frames[:, : sum(sizes)].to(vectors.dtype)
    if max_degree and not bool(((frames[:, 1:9:3] - directions).abs() < tolerance).all()):
        return None
    blocks = frames.split(sizes, dim=1) if sizes else ()
    wigner = [frames.new_ones(frames.shape[0], 1, 1)]
    for degree, block in enumerate(blocks, start=1):
        wigner.append(block.unflatten(1, (2 * degree + 1, 2 * degree + 1)))
    return EdgeGeometry(vectors, distance, tuple(wigner), undirected)
