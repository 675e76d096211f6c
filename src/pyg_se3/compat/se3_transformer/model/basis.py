"""NVIDIA's precomputed basis: here the geometry of the edges, the tensors only when asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from pyg_se3.compat.signs import Convention, pair_signs
from pyg_se3.so3 import EdgeGeometry, clebsch_gordan, spherical_harmonics


class Basis:
    """Geometry of the edges, handed to layers where NVIDIA hands a dictionary of tensors.

    ``basis['l,k']`` gives NVIDIA's tensor ``[E, 2l+1, 2 min(l,k) + 1, 2k+1]``; nothing here needs
    it.

    Args:
        geometry: of the edges.
        cg_convention: signs of the tensors by key.
    """

    def __init__(self, geometry: EdgeGeometry, cg_convention: Convention = "e3nn-0.3") -> None:
        self.geometry, self.cg_convention = geometry, cg_convention

    def __getitem__(self, key: str) -> Tensor:
        parts = key.split(",")
        if len(parts) != 2 or not all(part.isdigit() for part in parts):
            raise KeyError(f"{key!r}: the basis has keys 'degree_in,degree_out' only")
        degree_in, degree_out = int(parts[0]), int(parts[1])
        vectors = self.geometry.vectors
        harmonics = spherical_harmonics(degree_in + degree_out, vectors)
        first = abs(degree_in - degree_out)
        signs = pair_signs((degree_in, degree_out), self.cg_convention)
        return torch.stack(
            [
                sign
                * torch.einsum(
                    "em,klm->elk",
                    harmonics[first + f],
                    clebsch_gordan(first + f, degree_in, degree_out).to(vectors),
                )
                for f, sign in enumerate(signs)
            ],
            dim=2,
        )


def get_basis(
    relative_pos: Tensor,
    max_degree: int = 4,
    compute_gradients: bool = False,
    use_pad_trick: bool = False,
    amp: bool = False,
    cg_convention: Convention = "e3nn-0.3",
) -> Basis:
    """The geometry of edges, to be computed once and given to a model's ``basis``.

    Args:
        relative_pos: ``[E, 3]``.
        max_degree: largest degree of any feature.
        compute_gradients: let gradients reach ``relative_pos`` through directions, too.
        use_pad_trick: accepted as NVIDIA's; nothing here is padded.
        amp: accepted as NVIDIA's; the geometry stays in full precision.
        cg_convention: signs of the tensors, should someone look at them.
    """
    del use_pad_trick, amp  # they change NVIDIA's memory layout only
    if relative_pos.dtype in (torch.float16, torch.bfloat16):
        relative_pos = relative_pos.float()
    geometry = EdgeGeometry.from_vectors(relative_pos, max_degree)
    return Basis(geometry if compute_gradients else geometry.detach_directions(), cg_convention)
