"""A rotation per edge that makes the geometry of a convolution trivial.

In a frame whose polar axis points along the edge, spherical harmonics have only their m = 0
component, so a tensor-field convolution couples components of equal ``|m|`` only. What remains of
an edge's geometry is its length and the Wigner-D matrices of that rotation.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, library

from pyg_se3.autocast import no_autocast
from pyg_se3.so3.clebsch_gordan import clebsch_gordan
from pyg_se3.so3.constants import traceable_constant

ZERO_LENGTH = 1e-12
"""Edges shorter than this (in the unit of the positions) have no direction."""


def polar_rotation(directions: Tensor) -> Tensor:
    r"""Rotations that take the polar axis y to given directions, smooth at every direction.

    Two charts, one per hemisphere: with :math:`s = \mathrm{sign}(n_y)` and :math:`K` the
    cross-product matrix of :math:`s\,\hat y \times n`,
    :math:`R = (I + K + K^2 / (1 + s n_y))\,\mathrm{diag}(1, s, s)`. The free angle about the edge
    differs between the charts; convolutions do not depend on it.

    Args:
        directions: unit vectors ``[E, 3]``.

    Returns:
        ``[E, 3, 3]`` with ``R @ (0, 1, 0) = directions``.
    """
    x, y, z = directions.unbind(-1)
    sign = torch.where(y >= 0, 1.0, -1.0).to(directions.dtype)
    a, b = sign * z, -sign * x  # K's axis is (a, 0, b)
    scale = 1 / (1 + sign * y)
    # Columns of I + K + scale K^2, the last two times the hemisphere's sign.
    first = torch.stack([1 - scale * b * b, b, scale * a * b], -1)
    second = torch.stack([-b, 1 - scale * (a * a + b * b), a], -1) * sign[:, None]
    third = torch.stack([scale * a * b, -a, 1 - scale * a * a], -1) * sign[:, None]
    return torch.stack([first, second, third], -1)


@traceable_constant(lambda degree: (9 * (2 * degree - 1) ** 2, (2 * degree + 1) ** 2))
def _step_up(degree: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Constant that projects ``R x D_{l-1}``, flattened, to ``D_l``: ``[9 (2l-1)^2, (2l+1)^2]``."""
    projection = clebsch_gordan(degree, 1, degree - 1)  # [2l-1, 3, 2l+1]
    projection = projection / projection[..., 0].norm()
    outer = torch.einsum("jia,lkb->ikjlab", projection, projection)
    size = 2 * degree - 1
    return outer.reshape(9 * size * size, (size + 2) ** 2).to(device=device, dtype=dtype)


def wigner_d(rotations: Tensor, max_degree: int) -> list[Tensor]:
    """Wigner-D matrices of rotations, ``D_l`` from ``R x D_{l-1}`` by a Clebsch-Gordan product.

    Args:
        rotations: ``[E, 3, 3]``.
        max_degree: largest degree.

    Returns:
        ``[E, 2l+1, 2l+1]`` for each degree, in e3nn's convention (``D_1`` is the rotation itself).
    """
    edges = rotations.shape[0]
    matrices = [rotations.new_ones(edges, 1, 1)]
    if max_degree >= 1:
        matrices.append(rotations)
    with no_autocast(rotations.device.type):  # geometry keeps its precision
        for degree in range(2, max_degree + 1):
            size = (2 * degree - 1) ** 2
            previous = matrices[-1].reshape(edges, 1, size)
            product = (rotations.reshape(edges, 9, 1) * previous).reshape(edges, 9 * size)
            step = _step_up(degree, rotations.dtype, rotations.device)
            matrices.append((product @ step).view(edges, 2 * degree + 1, 2 * degree + 1))
    return matrices


def any_vanish(vectors: Tensor) -> bool:
    """Whether an edge has zero length, from vectors ``[E, 3]``; waits for other devices."""
    return bool(_vanish(vectors.square().sum(-1)).any())


def _vanish(squared: Tensor) -> Tensor:
    return squared < ZERO_LENGTH**2


def lengths_and_directions(
    vectors: Tensor, may_vanish: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Lengths and directions of edges; the direction of an edge of zero length is the pole.

    Args:
        vectors: ``[E, 3]``.
        may_vanish: look for edges of zero length.

    Returns:
        lengths ``[E]``, unit vectors ``[E, 3]``, and the indices of the edges of zero length, or
        ``None`` if there is none.

    Raises:
        ValueError: there is one and the caller is compiled.
    """
    squared = vectors.square().sum(-1)
    if may_vanish and torch.compiler.is_compiling():
        squared = _without_vanishing(squared)
    elif may_vanish:
        vanishes = _vanish(squared)
        if bool(vanishes.any()):
            # keep 0/0 and the infinite slope of sqrt at 0 out of values and gradients
            safe = torch.where(vanishes, torch.ones_like(squared), squared).sqrt()
            distance = torch.where(vanishes, torch.zeros_like(safe), safe)
            pole = vectors.new_tensor([0.0, 1.0, 0.0])
            directions = torch.where(vanishes[:, None], pole, vectors / safe[:, None])
            return distance, directions, vanishes.nonzero().squeeze(-1)
    distance = squared.sqrt()
    return distance, vectors / distance[:, None], None


@library.custom_op("pyg_se3::without_vanishing", mutates_args=())
def _without_vanishing(squared: Tensor) -> Tensor:
    if bool(_vanish(squared).any()):
        raise ValueError(
            "compiled models do not take edges of zero length; remove self-loops and "
            "coinciding nodes, or do not compile"
        )
    return squared.clone()


_without_vanishing.register_fake(torch.empty_like)
_without_vanishing.register_autograd(lambda ctx, gradient: gradient)


@dataclass(frozen=True)
class EdgeGeometry:
    """What a convolution needs to know of every edge; computed once, shared by all layers.

    Attributes:
        vectors: ``[E, 3]``, target position minus source position, in the unit of the positions.
        distance: ``[E]``.
        wigner: per degree ``[E, 2l+1, 2l+1]``, the Wigner-D matrices of :func:`polar_rotation`;
            zero for degrees above 0 where an edge has no direction.
        undirected: indices of the edges of zero length, or ``None`` if there is none.
        runs: ``0, .., E``, where runs of similar edges begin and end, for kernels to make use of;
            empty if edges are sorted, but not divided, ``None`` if they are in any order.
        shared: what kernels derived from this geometry, kept for other layers; without gradient.
    """

    vectors: Tensor
    distance: Tensor
    wigner: tuple[Tensor, ...]
    undirected: Tensor | None = None
    runs: tuple[int, ...] | None = None
    shared: dict[Hashable, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    @classmethod
    def from_vectors(
        cls, vectors: Tensor, max_degree: int, *, may_vanish: bool = True
    ) -> EdgeGeometry:
        """Geometry of edges from their vectors.

        Args:
            vectors: ``[E, 3]``, target minus source. Gradients flow through them.
            max_degree: largest degree of any feature on either side of a convolution.
            may_vanish: look for edges of zero length. On a GPU this waits for the device; switch
                it off where such edges cannot occur.

        Raises:
            ValueError: ``vectors`` is not ``[E, 3]`` of floating point.
        """
        if vectors.dim() != 2 or vectors.shape[1] != 3 or not vectors.is_floating_point():
            raise ValueError(
                f"edge vectors have shape {list(vectors.shape)} and type {vectors.dtype}, "
                "expected floating point of shape [E, 3]"
            )
        distance, directions, undirected = lengths_and_directions(vectors, may_vanish)
        wigner = wigner_d(polar_rotation(directions), max_degree)
        if undirected is not None:
            keep = torch.ones_like(distance).index_fill(0, undirected, 0.0)[:, None, None]
            wigner = [wigner[0], *(matrix * keep for matrix in wigner[1:])]
        return cls(vectors, distance, tuple(wigner), undirected)

    @property
    def num_edges(self) -> int:
        """Number of edges E."""
        return self.distance.shape[0]

    @property
    def max_degree(self) -> int:
        """Largest degree for which there is a Wigner-D matrix."""
        return len(self.wigner) - 1

    @property
    def requires_grad(self) -> bool:
        """Whether positions get a gradient through this geometry."""
        return self.vectors.requires_grad

    def detach(self) -> EdgeGeometry:
        """The same numbers without gradient."""
        return self._map(Tensor.detach)

    def detach_directions(self) -> EdgeGeometry:
        """The same numbers; only the distance keeps its gradient."""
        detached = replace(
            self,
            vectors=self.vectors.detach(),
            wigner=tuple(matrix.detach() for matrix in self.wigner),
        )
        detached.shared.update(self.shared)
        return detached

    def to(self, *args: object, **kwargs: object) -> EdgeGeometry:
        """Convert as ``Tensor.to`` does; indices keep their type."""
        moved = self._map(lambda tensor: tensor.to(*args, **kwargs))  # type: ignore[call-overload]
        if self.undirected is None:
            return moved
        return replace(moved, undirected=self.undirected.to(device=moved.distance.device))

    def permute(self, order: Tensor) -> EdgeGeometry:
        """The geometry of the edges taken in the given order, ``order`` a permutation ``[E]``."""
        moved = replace(self._map(lambda tensor: tensor[order]), runs=None)
        if self.undirected is None:
            return moved
        position = torch.empty_like(order)
        position[order] = torch.arange(order.numel(), device=order.device)
        return replace(moved, undirected=position[self.undirected])

    def _map(self, function: Callable[[Tensor], Tensor]) -> EdgeGeometry:
        return replace(
            self,
            vectors=function(self.vectors),
            distance=function(self.distance),
            wigner=tuple(function(matrix) for matrix in self.wigner),
        )
