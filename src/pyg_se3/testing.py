"""Random rotations and graphs, and a check of equivariance: for tests, yours included."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch_geometric.data import Data

from pyg_se3.fiber import Fiber
from pyg_se3.so3 import wigner_d

Output = Tensor | Mapping[int, Tensor]
"""Packed features ``[N, fiber.dim]``, or by degree ``{l: [N, C_l, 2l+1]}``."""

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}
"""Error that equivariance may have, relative to the largest output or 1, by precision."""


def random_rotations(
    count: int, *, dtype: torch.dtype = torch.float64, generator: torch.Generator | None = None
) -> Tensor:
    """Rotations uniform over SO(3), from normal quaternions.

    Args:
        count: how many.
        dtype: of the result; the matrices are made in float64.
        generator: source of the random numbers.

    Returns:
        ``[count, 3, 3]`` with determinant 1.
    """
    q = torch.randn(count, 4, dtype=torch.float64, generator=generator)
    w, x, y, z = (q / q.norm(dim=1, keepdim=True)).unbind(1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
    ]
    return torch.stack(rows, 1).to(dtype)


def random_graph(
    num_nodes: int,
    num_edges: int,
    fiber_in: Mapping[int, int],
    *,
    fiber_edge: Mapping[int, int] | None = None,
    dtype: torch.dtype = torch.float64,
    generator: torch.Generator | None = None,
) -> Data:
    """A graph with random positions, features and edges; no edge joins a node to itself.

    Args:
        num_nodes: number of nodes N, at least 2 if there are edges.
        num_edges: number of edges E, drawn with replacement, so pairs may occur twice.
        fiber_in: fiber of the node features.
        fiber_edge: fiber of the edge features.
        dtype: of features and positions.
        generator: source of the random numbers.

    Returns:
        ``Data(x [N, fiber_in.dim], pos [N, 3], edge_index [2, E])`` and, with ``fiber_edge``,
        ``edge_attr [E, fiber_edge.dim]``; features are packed.

    Raises:
        ValueError: edges without two nodes to join.
    """
    if num_edges and num_nodes < 2:
        raise ValueError(f"{num_edges} edges need at least 2 nodes, got {num_nodes}")

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)

    source = torch.randint(max(num_nodes, 1), (num_edges,), generator=generator)
    shift = torch.randint(1, max(num_nodes, 2), (num_edges,), generator=generator)
    graph = Data(
        x=normal(num_nodes, Fiber(fiber_in).dim),
        pos=normal(num_nodes, 3),
        edge_index=torch.stack([source, (source + shift) % max(num_nodes, 1)]),
    )
    if fiber_edge:
        graph.edge_attr = normal(num_edges, Fiber(fiber_edge).dim)
    return graph


def rotate_features(fiber: Mapping[int, int], packed: Tensor, rotation: Tensor) -> Tensor:
    """Packed features turned by a rotation: every degree l by its Wigner-D matrix.

    Args:
        fiber: fiber of the features.
        packed: ``[N, fiber.dim]``.
        rotation: ``[3, 3]``.

    Returns:
        ``[N, fiber.dim]``.
    """
    fiber = Fiber(fiber)
    if not fiber:
        return packed
    matrices = wigner_d(rotation[None].double(), fiber.max_degree)
    blocks = fiber.unpack(packed)
    return fiber.pack(
        {degree: block @ matrices[degree][0].T.to(block) for degree, block in blocks.items()}
    )


def rotate_graph(
    graph: Data,
    rotation: Tensor,
    translation: Tensor,
    fiber_in: Mapping[int, int],
    fiber_edge: Mapping[int, int] | None = None,
) -> Data:
    """The graph with positions, node features and edge features turned, then moved.

    Args:
        graph: with packed ``x`` and, if there is a ``fiber_edge``, packed ``edge_attr``.
        rotation: ``[3, 3]``.
        translation: ``[3]``, in the unit of the positions.
        fiber_in: fiber of ``graph.x``.
        fiber_edge: fiber of ``graph.edge_attr``.
    """
    turned = graph.clone()
    turned.x = rotate_features(fiber_in, graph.x, rotation)
    turned.pos = graph.pos @ rotation.T.to(graph.pos) + translation.to(graph.pos)
    if fiber_edge:
        turned.edge_attr = rotate_features(fiber_edge, graph.edge_attr, rotation)
    return turned


def assert_equivariant(
    function: Callable[[Data], Output],
    graph: Data,
    fiber_in: Mapping[int, int],
    fiber_out: Mapping[int, int],
    *,
    fiber_edge: Mapping[int, int] | None = None,
    tolerance: float | None = None,
    generator: torch.Generator | None = None,
) -> float:
    """Check ``f(R graph + t) = R f(graph)`` for one random rotation R and translation t.

    A model is such a function as it is; a layer becomes one by a lambda, for example
    ``lambda g: conv(g.x, g.edge_index, g.pos)``.

    Args:
        function: from a graph to packed features or features by degree.
        graph: as :func:`random_graph` makes it.
        fiber_in: fiber of ``graph.x``.
        fiber_out: fiber of what the function returns.
        fiber_edge: fiber of ``graph.edge_attr``.
        tolerance: allowed error, relative to the largest output or 1, whichever is larger; 1e-10
            in float64 and 1e-5 in float32 if left out.
        generator: source of the random numbers.

    Returns:
        the relative error.

    Raises:
        AssertionError: the error is above the tolerance, or the output is not finite.
    """
    fiber_out = Fiber(fiber_out)
    rotation = random_rotations(1, generator=generator)[0]
    translation = torch.randn(3, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        expected = rotate_features(fiber_out, _packed(fiber_out, function(graph)), rotation)
        turned = rotate_graph(graph, rotation, translation, fiber_in, fiber_edge)
        got = _packed(fiber_out, function(turned))
    if tolerance is None:
        tolerance = TOLERANCES[graph.pos.dtype]
    if not bool(expected.isfinite().all()):
        raise AssertionError("the output is not finite")
    if expected.numel() == 0:
        return 0.0
    error = float((got - expected).abs().max() / expected.abs().max().clamp(min=1.0))
    if not error <= tolerance:
        raise AssertionError(f"not equivariant: relative error {error:.2e} > {tolerance:.0e}")
    return error


def _packed(fiber: Fiber, output: Output) -> Tensor:
    if isinstance(output, Mapping):
        return fiber.pack(output)
    fiber.check(output, "the output")
    return output
