"""From what users hand to a model to the packed tensors its layers share."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch_geometric.data import Data

from pyg_se3.fiber import Fiber
from pyg_se3.nn.edges import check_edge_attr, edge_geometry, plain_edge_index, similar_edges
from pyg_se3.so3 import EdgeGeometry, unpack_frames

Features = Tensor | Mapping[int, Tensor]
"""Packed features ``[N, fiber.dim]``, or by degree ``{l: [N, C_l, 2l+1]}``."""


@dataclass(frozen=True)
class Graph:
    """Checked and packed inputs, with the geometry that all layers share.

    Attributes:
        x: packed node features ``[N, fiber_in.dim]``.
        edge_index: ``[2, E]``, source and target.
        edge_attr: packed edge features ``[E, fiber_edge.dim]``, or ``None``.
        geometry: of the edges.
        batch: graph of every node ``[N]``.
        num_graphs: number of graphs B.
    """

    x: Tensor
    edge_index: Tensor
    edge_attr: Tensor | None
    geometry: EdgeGeometry
    batch: Tensor
    num_graphs: int

    def sorted_edges(self) -> Graph:
        """The same graph with its edges sorted by edge features, then distance.

        Nodes do not feel the order of edges; neighbours in this order have similar radial
        activations, which is what compression lives on.
        """
        edges = similar_edges(self.edge_index, self.edge_attr, self.geometry)
        return Graph(self.x, *edges, self.batch, self.num_graphs)


def read_graph(
    fiber_in: Fiber,
    fiber_edge: Fiber,
    max_degree: int,
    x: Features | Data,
    pos: Tensor | None,
    edge_index: Tensor | None,
    edge_attr: Features | None,
    batch: Tensor | None,
    num_graphs: int | None,
    geometry: EdgeGeometry | None,
) -> Graph:
    """Check and pack the inputs of a model.

    A ``Data`` may hold ``edge_frames`` of :func:`pyg_se3.so3.pack_frames`, which save computing
    the geometry; they are used only if they fit the positions and these need no gradient. Where its
    ``zero_length_edges`` is ``False``, no such edge is looked for (see :mod:`pyg_se3.data.loader`).

    Raises:
        ValueError: something is missing, of a wrong shape, or out of range.
        TypeError: a PyG ``Data`` together with tensors.
    """
    frames, may_vanish = None, True
    if isinstance(x, Data):
        given = {"pos": pos, "edge_index": edge_index, "edge_attr": edge_attr, "batch": batch}
        twice = [name for name, value in given.items() if value is not None]
        if twice:
            raise TypeError(f"{', '.join(twice)} given besides a Data object that holds them")
        data, x = x, x.x
        missing = [name for name in ("x", "edge_index") if getattr(data, name) is None]
        if missing:
            raise ValueError(f"Data lacks {', '.join(missing)}; it has {sorted(data.keys())}")
        pos = data.pos if geometry is None else None
        frames = data.get("edge_frames") if geometry is None else None
        may_vanish = data.get("zero_length_edges") is not False
        edge_index, batch = data.edge_index, data.batch
        edge_attr = data.edge_attr if fiber_edge else None
        num_graphs = data.num_graphs if batch is not None else 1
    if edge_index is None:
        raise ValueError("edge_index is missing, expected [2, E]")
    packed = _packed(fiber_in, x, "x")
    edge_index = plain_edge_index(edge_index, packed.shape[0])
    if pos is not None and pos.shape[0] != packed.shape[0]:
        raise ValueError(f"pos is of {pos.shape[0]} nodes, x of {packed.shape[0]}")
    if frames is not None and pos is not None:
        geometry = _stored_geometry(max_degree, edge_index, pos, frames, may_vanish)
        pos = pos if geometry is None else None
    geometry = edge_geometry(max_degree, edge_index, pos, geometry, may_vanish)
    if edge_attr is not None:
        edge_attr = _packed(fiber_edge, edge_attr, "edge_attr") if fiber_edge else edge_attr
        assert isinstance(edge_attr, Tensor)
    check_edge_attr(fiber_edge, edge_attr, edge_index.shape[1])
    if batch is None:
        batch, num_graphs = edge_index.new_zeros(packed.shape[0]), 1
    elif batch.shape != packed.shape[:1]:
        raise ValueError(f"batch has shape {list(batch.shape)}, expected [{packed.shape[0]}]")
    if num_graphs is None:
        num_graphs = int(batch.max()) + 1 if batch.numel() else 0
    return Graph(packed, edge_index, edge_attr, geometry, batch, num_graphs)


def _stored_geometry(
    max_degree: int, edge_index: Tensor, pos: Tensor, frames: Tensor, may_vanish: bool
) -> EdgeGeometry | None:
    """Geometry from the ``edge_frames`` of a ``Data``; ``None``, and a warning, if it is stale."""
    reason = "positions need a gradient"
    if not pos.requires_grad:
        source, target = edge_index
        vectors = pos[target] - pos[source]
        geometry = unpack_frames(vectors, frames, max_degree, may_vanish=may_vanish)
        if geometry is not None:
            return geometry
        reason = "positions have moved, or are of higher precision than the frames"
    warnings.warn(
        f"precomputed edge frames are not used: {reason}; the geometry is computed in every step",
        stacklevel=2,
    )
    return None


def _packed(fiber: Fiber, features: Features, name: str) -> Tensor:
    if isinstance(features, Mapping):
        return fiber.pack(features)
    if features.dim() == 1 and fiber.dim == 1:
        features = features[:, None]
    fiber.check(features, name)
    if not features.is_floating_point():
        raise ValueError(f"{name} has type {features.dtype}, expected floating point")
    return features
