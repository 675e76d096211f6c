"""What layers ask of the edges, with errors that name what is wrong."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pyg_se3.fiber import Fiber
from pyg_se3.nn.linear import concatenate
from pyg_se3.ops import KernelOptions, TFNPlan, expands_radial, wants_similar_edges
from pyg_se3.ops.edge_runs import edge_kinds, similar_runs
from pyg_se3.ops.weights_form import PAIRED
from pyg_se3.so3 import EdgeGeometry

WORTH_SORTING = 512
"""Edges from which on sorting them takes less time than it saves."""


def plain_edge_index(edge_index: Tensor, num_nodes: int) -> Tensor:
    """The edge index as an ordinary tensor ``[2, E]``, checked.

    Indices are compared with the number of nodes on the CPU only and not in compiled models: on
    other devices that would wait for the device.

    Raises:
        ValueError: wrong shape or type, or an index without a node.
    """
    if hasattr(edge_index, "as_tensor"):  # torch_geometric.EdgeIndex
        edge_index = edge_index.as_tensor()
    if edge_index.dim() != 2 or edge_index.shape[0] != 2 or edge_index.dtype != torch.long:
        raise ValueError(
            f"edge_index has shape {list(edge_index.shape)} and type {edge_index.dtype}, "
            "expected [2, E] of torch.int64"
        )
    if _may_look(edge_index) and edge_index.numel():
        low, high = edge_index.aminmax()
        if low < 0 or high >= num_nodes:
            raise ValueError(
                f"edge_index has values from {int(low)} to {int(high)}, "
                f"expected 0 to {num_nodes - 1} for {num_nodes} nodes"
            )
    return edge_index


def _may_look(tensor: Tensor) -> bool:
    """Whether a decision may hang on the values of a tensor at no great cost."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def edge_geometry(
    max_degree: int,
    edge_index: Tensor,
    pos: Tensor | None,
    geometry: EdgeGeometry | None,
    may_vanish: bool = True,
) -> EdgeGeometry:
    """Given geometry, or that of the positions ``[N, 3]``, of which exactly one must be given.

    Args:
        max_degree: largest degree.
        edge_index: ``[2, E]``.
        pos: positions.
        geometry: of the edges.
        may_vanish: see :meth:`pyg_se3.so3.EdgeGeometry.from_vectors`.

    Raises:
        ValueError: none or both given, positions of a wrong shape or (on the CPU) not finite.
    """
    if (pos is None) == (geometry is None):
        raise ValueError(
            "give either pos or geometry, got " + ("neither" if pos is None else "both")
        )
    if geometry is not None:
        if geometry.num_edges != edge_index.shape[1]:
            raise ValueError(
                f"geometry is of {geometry.num_edges} edges, edge_index of {edge_index.shape[1]}"
            )
        return geometry
    assert pos is not None
    if pos.dim() != 2 or pos.shape[1] != 3:
        raise ValueError(f"pos has shape {list(pos.shape)}, expected [N, 3]")
    if _may_look(pos) and not bool(pos.isfinite().all()):
        first = int((~pos.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"pos is not finite: node {first} is at {pos[first].tolist()}")
    source, target = edge_index
    return EdgeGeometry.from_vectors(pos[target] - pos[source], max_degree, may_vanish=may_vanish)


def similar_edges(
    edge_index: Tensor, edge_attr: Tensor | None, geometry: EdgeGeometry
) -> tuple[Tensor, Tensor | None, EdgeGeometry]:
    """The same edges sorted by features, then length, for kernels that compress.

    On the CPU the geometry also says where runs of similar edges begin.
    """
    distance = geometry.distance.detach().double()
    kinds = edge_kinds(edge_attr, distance)
    order = (kinds * 1e4 + distance).argsort()
    geometry = geometry.permute(order)
    edge_attr = None if edge_attr is None else edge_attr[order]
    if _may_look(distance):
        runs = similar_runs(kinds[order].numpy(), distance[order].numpy())
        geometry = replace(geometry, runs=runs)
        geometry.shared[PAIRED] = _paired(edge_attr, geometry.distance)
    return edge_index[:, order], edge_attr, geometry


def _paired(*given: Tensor | None) -> bool:
    """Whether edges 2i and 2i + 1 have the same of everything, and it needs no gradient."""
    parts = [part for part in given if part is not None]
    return not any(part.requires_grad for part in parts) and all(
        torch.equal(part[0::2], part[1::2]) for part in parts
    )


def edges_for(
    plan: TFNPlan,
    options: KernelOptions,
    x: Tensor,
    edge_index: Tensor,
    edge_attr: Tensor | None,
    geometry: EdgeGeometry,
) -> tuple[Tensor, Tensor | None, EdgeGeometry]:
    """Edges in an order that suits a layer on features ``x``; a model has seen to that already."""
    num_edges = edge_index.shape[1]
    sort = geometry.runs is None and _may_look(edge_index) and num_edges >= WORTH_SORTING
    if expands_radial(geometry, options):
        options = replace(options, kernel="edge")
    if sort and wants_similar_edges(plan, x, num_edges, options):
        return similar_edges(edge_index, edge_attr, geometry)
    return edge_index, edge_attr, geometry


def radial_inputs(fiber_edge: Fiber, edge_attr: Tensor | None, geometry: EdgeGeometry) -> Tensor:
    """Invariants of every edge ``[E, C_0 + 1]``: edge features of degree 0, then the distance.

    Raises:
        ValueError: edge features missing, not expected, or of a wrong shape.
    """
    distance = geometry.distance[:, None]
    check_edge_attr(fiber_edge, edge_attr, geometry.num_edges)
    if edge_attr is None or 0 not in fiber_edge:
        return distance
    return torch.cat([edge_attr[:, : fiber_edge[0]].to(distance.dtype), distance], dim=1)


def check_edge_attr(fiber_edge: Fiber, edge_attr: Tensor | None, num_edges: int) -> None:
    """Raise a ``ValueError`` unless ``edge_attr`` is ``[E, fiber_edge.dim]``."""
    if edge_attr is None:
        if fiber_edge:
            raise ValueError(f"edge_attr is missing, expected [E, {fiber_edge.dim}]")
        return
    if not fiber_edge:
        if edge_attr.numel():
            raise ValueError(
                f"edge_attr of shape {list(edge_attr.shape)} was given to a layer without edge "
                "features; state them as fiber_edge={0: ...}"
            )
        return
    if edge_attr.shape != (num_edges, fiber_edge.dim):
        raise ValueError(
            f"edge_attr has shape {list(edge_attr.shape)}, "
            f"expected [{num_edges}, {fiber_edge.dim}] for {fiber_edge}"
        )


def source_features(
    fiber: Fiber, fiber_edge: Fiber, x: Tensor, source: Tensor, edge_attr: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What every edge convolves: features, and the row of them that belongs to each edge.

    Without edge features of degree > 0 these are the nodes' features and the source nodes; with
    them, a row per edge: the source's channels, then the edge's.
    """
    higher = Fiber({d: c for d, c in fiber_edge.items() if d > 0}).restricted_to(fiber)
    if not higher:
        return x, source
    assert edge_attr is not None
    blocks = dict(zip(fiber_edge, edge_attr.split(fiber_edge.sizes, 1), strict=True))
    along = torch.cat([blocks[degree] for degree in higher], dim=1)
    joined = concatenate(fiber, higher, x[source], along.to(x.dtype))
    return joined, torch.arange(source.numel(), device=source.device)
