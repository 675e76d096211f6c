"""What all layers of one forward pass share about the edges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyg_se3.compat.se3_transformer.graph import as_graph, relative_positions
from pyg_se3.compat.se3_transformer.model.basis import Basis
from pyg_se3.fiber import Fiber
from pyg_se3.so3 import EdgeGeometry


@dataclass(frozen=True)
class EdgeContext:
    """Edges with their geometry and features.

    Attributes:
        source: source of every edge ``[E]``.
        target: target of every edge ``[E]``.
        num_nodes: number of nodes N.
        geometry: of the edges.
        invariants: input of the radial MLPs ``[E, C]``, the distance (or a function of it) last.
        higher: edge features of degree > 0, ``{l: [E, C_l, 2l+1]}``.
    """

    source: Tensor
    target: Tensor
    num_nodes: int
    geometry: EdgeGeometry
    invariants: Tensor
    higher: Mapping[int, Tensor]


def layer_context(
    graph: Any, edge_feats: Mapping[str, Tensor], basis: Basis | None, max_degree: int
) -> EdgeContext:
    """Context of a layer that is called on its own.

    Args:
        graph: of the edges.
        edge_feats: by degree ``{'l': [E, C, 2l+1]}``, degree 0 ending with the distance.
        basis: of :func:`~pyg_se3.compat.se3_transformer.model.basis.get_basis`, or ``None``.
        max_degree: of the layer, if the geometry must be made.
    """
    graph = as_graph(graph)
    source, target = graph.edges()
    if basis is None:
        geometry = EdgeGeometry.from_vectors(relative_positions(graph), max_degree)
        geometry = geometry.detach_directions()
    else:
        geometry = check_basis(basis).geometry
    invariants = edge_feats["0"].squeeze(-1)
    higher = {int(key): value for key, value in edge_feats.items() if key != "0"}
    return EdgeContext(source, target, graph.num_nodes(), geometry, invariants, higher)


def check_basis(basis: Any) -> Basis:
    """The basis itself.

    Raises:
        TypeError: it is not one of this package.
    """
    if isinstance(basis, Basis):
        return basis
    raise TypeError(
        f"basis is a {type(basis).__name__}; here it must come from "
        "pyg_se3.compat.se3_transformer.model.basis.get_basis, or be left out"
    )


def pack_features(fiber: Fiber, features: Mapping[str, Tensor], name: str) -> Tensor:
    """Packed form of features by degree ``{'l': [N, C_l, 2l+1]}``.

    Raises:
        ValueError: a degree is missing or of a wrong shape.
    """
    missing = [degree for degree in fiber if str(degree) not in features]
    if missing:
        raise ValueError(f"{name} lack degrees {missing}: got {sorted(features)}, expected {fiber}")
    return fiber.pack({degree: features[str(degree)] for degree in fiber})


def unpack_features(fiber: Fiber, packed: Tensor) -> dict[str, Tensor]:
    """Features by degree ``{'l': [N, C_l, 2l+1]}``, contiguous, of their packed form."""
    return {str(degree): block.contiguous() for degree, block in fiber.unpack(packed).items()}


def segment_counts(context: EdgeContext, like: Tensor) -> Tensor:
    """Number of edges that end at every node, ``[N, 1]`` of the type of ``like``."""
    counts = torch.bincount(context.target, minlength=context.num_nodes)
    return counts.to(like.dtype)[:, None]
