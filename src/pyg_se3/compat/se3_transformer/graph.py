"""The little of a DGL graph that SE(3)-Transformer code touches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data


class Graph:
    """A directed graph, or several as one, with named tensors on nodes and edges.

    Args:
        edge_index: source and target of every edge ``[2, E]``.
        num_nodes: number of nodes N.
        rel_pos: ``[E, 3]``, position of the target minus that of the source in NVIDIA's convention;
            kept as ``edata['rel_pos']`` and never recomputed or negated.
        batch: graph of every node ``[N]``, ascending; one graph if left out.

    Raises:
        ValueError: wrong shapes, or a node index out of range.
    """

    def __init__(
        self,
        edge_index: Tensor,
        num_nodes: int,
        rel_pos: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> None:
        if edge_index.dim() != 2 or edge_index.shape[0] != 2:
            raise ValueError(f"edge_index has shape {list(edge_index.shape)}, expected [2, E]")
        edge_index = edge_index.long()
        if edge_index.device.type == "cpu" and edge_index.numel():
            low, high = edge_index.aminmax()
            if low < 0 or high >= num_nodes:
                raise ValueError(
                    f"edge_index has values from {int(low)} to {int(high)}, "
                    f"expected 0 to {num_nodes - 1} for {num_nodes} nodes"
                )
        if rel_pos is not None and rel_pos.shape != (edge_index.shape[1], 3):
            raise ValueError(
                f"rel_pos has shape {list(rel_pos.shape)}, expected [{edge_index.shape[1]}, 3]"
            )
        if batch is not None and batch.shape != (num_nodes,):
            raise ValueError(f"batch has shape {list(batch.shape)}, expected [{num_nodes}]")
        self.edge_index = edge_index
        self.batch = batch
        self.ndata: dict[str, Tensor] = {}
        self.edata: dict[str, Tensor] = {}
        self._num_nodes = int(num_nodes)
        if rel_pos is not None:
            self.edata["rel_pos"] = rel_pos

    @classmethod
    def from_data(cls, data: Data) -> Graph:
        """Graph of a PyG ``Data`` or ``Batch``.

        Its ``rel_pos`` ``[E, 3]`` is taken as it is if it has one, else made from ``pos``.

        Raises:
            ValueError: neither ``rel_pos`` nor ``pos`` is there, or no ``edge_index``.
        """
        if data.edge_index is None:
            raise ValueError(f"Data lacks edge_index; it has {sorted(data.keys())}")
        rel_pos = getattr(data, "rel_pos", None)
        if rel_pos is None:
            if data.pos is None:
                raise ValueError(f"Data needs rel_pos or pos; it has {sorted(data.keys())}")
            source, target = data.edge_index
            rel_pos = data.pos[target] - data.pos[source]
        return cls(data.edge_index, data.num_nodes, rel_pos, data.batch)

    def edges(self) -> tuple[Tensor, Tensor]:
        """Sources and targets, ``[E]`` each."""
        return self.edge_index[0], self.edge_index[1]

    def num_nodes(self) -> int:
        """Number of nodes N."""
        return self._num_nodes

    def num_edges(self) -> int:
        """Number of edges E."""
        return self.edge_index.shape[1]

    number_of_nodes = num_nodes
    number_of_edges = num_edges

    def in_degrees(self) -> Tensor:
        """Number of edges that end at every node ``[N]``."""
        return torch.bincount(self.edge_index[1], minlength=self._num_nodes)

    def out_degrees(self) -> Tensor:
        """Number of edges that start at every node ``[N]``."""
        return torch.bincount(self.edge_index[0], minlength=self._num_nodes)

    @property
    def batch_size(self) -> int:
        """Number of graphs B."""
        if self.batch is None:
            return 1
        return int(self.batch.max()) + 1 if self.batch.numel() else 0

    def batch_num_nodes(self) -> Tensor:
        """Number of nodes of every graph ``[B]``."""
        if self.batch is None:
            return torch.tensor([self._num_nodes], device=self.device)
        return torch.bincount(self.batch)

    def batch_num_edges(self) -> Tensor:
        """Number of edges of every graph ``[B]``."""
        if self.batch is None:
            return torch.tensor([self.num_edges()], device=self.device)
        return torch.bincount(self.batch[self.edge_index[1]], minlength=self.batch_size)

    @property
    def device(self) -> torch.device:
        """Where the edges are."""
        return self.edge_index.device

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> Graph:
        """The same graph on another device, with all tensors on nodes and edges."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, non_blocking=non_blocking)

        moved = object.__new__(type(self))
        moved.edge_index = move(self.edge_index)
        moved.batch = None if self.batch is None else move(self.batch)
        moved.ndata = {name: move(value) for name, value in self.ndata.items()}
        moved.edata = {name: move(value) for name, value in self.edata.items()}
        moved._num_nodes = self._num_nodes
        return moved

    def cpu(self) -> Graph:
        """The same graph on the CPU."""
        return self.to("cpu")

    def __repr__(self) -> str:
        return (
            f"Graph(num_nodes={self._num_nodes}, num_edges={self.num_edges()}, "
            f"ndata={sorted(self.ndata)}, edata={sorted(self.edata)})"
        )


def batch_graphs(graphs: Sequence[Graph]) -> Graph:
    """Several graphs as one; tensors on nodes and edges that all of them have are joined.

    Raises:
        ValueError: no graph given.
    """
    if not graphs:
        raise ValueError("batch expects at least one graph, got none")
    edges, batch, first, count = [], [], 0, 0
    for graph in graphs:
        edges.append(graph.edge_index + first)
        inner = graph.batch
        if inner is None:
            inner = graph.edge_index.new_zeros(graph.num_nodes())
        batch.append(inner + count)
        first, count = first + graph.num_nodes(), count + graph.batch_size
    joined = Graph(torch.cat(edges, dim=1), first, batch=torch.cat(batch))
    for name in set.intersection(*(set(graph.ndata) for graph in graphs)):
        joined.ndata[name] = torch.cat([graph.ndata[name] for graph in graphs])
    for name in set.intersection(*(set(graph.edata) for graph in graphs)):
        joined.edata[name] = torch.cat([graph.edata[name] for graph in graphs])
    return joined


def as_graph(graph: Any) -> Graph:
    """A :class:`Graph` of what was given: one already, a PyG ``Data``, or a real DGL graph.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(graph, Graph):
        return graph
    if isinstance(graph, Data):
        return Graph.from_data(graph)
    if all(hasattr(graph, name) for name in ("edges", "edata", "num_nodes", "batch_num_nodes")):
        counts = graph.batch_num_nodes()
        batch = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        copy = Graph(torch.stack(graph.edges()), graph.num_nodes(), batch=batch)
        copy.edata.update(graph.edata)
        copy.ndata.update(graph.ndata)
        return copy
    raise TypeError(
        f"expected a Graph, a torch_geometric Data or a DGL graph, got {type(graph).__name__}"
    )


def relative_positions(graph: Graph) -> Tensor:
    """``edata['rel_pos']`` ``[E, 3]``, in float32 at least.

    Raises:
        ValueError: it is not there.
    """
    if "rel_pos" not in graph.edata:
        raise ValueError(
            "the graph has no edata['rel_pos'] [E, 3] (position of the target minus that of the "
            f"source); it has {sorted(graph.edata)}"
        )
    rel_pos = graph.edata["rel_pos"]
    return rel_pos.float() if rel_pos.dtype in (torch.float16, torch.bfloat16) else rel_pos
