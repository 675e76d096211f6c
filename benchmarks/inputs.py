"""Inputs of the measurements: batches of real QM9 molecules, and dense random graphs."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

NUM_BOND_TYPES = 4


@dataclass(frozen=True)
class GraphBatch:
    """What every system is given; plain tensors.

    Attributes:
        x: Node features `[N, C]`.
        pos: Positions `[N, 3]`, Angstrom.
        edge_index: Source and target of every edge `[2, E]`.
        edge_attr: Invariant edge features `[E, C_e]`, without the length.
        batch: Graph of every node `[N]`.
        num_graphs: Number of graphs B.
        y: Targets `[B]`, standardised.
        source: Where the graphs come from, for the report.
    """

    x: Tensor
    pos: Tensor
    edge_index: Tensor
    edge_attr: Tensor
    batch: Tensor
    num_graphs: int
    y: Tensor
    source: str

    @property
    def rel_pos(self) -> Tensor:
        """`pos[target] - pos[source]`, `[E, 3]`."""
        return self.pos[self.edge_index[1]] - self.pos[self.edge_index[0]]

    def to(self, device: str | torch.device) -> GraphBatch:
        """The same batch on another device."""
        tensors = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **tensors)

    def describe(self) -> dict[str, int | str]:
        """Sizes and origin, for the report."""
        return {
            "graphs": self.num_graphs,
            "nodes": len(self.pos),
            "edges": self.edge_index.shape[1],
            "source": self.source,
        }

    def save(self, path: Path) -> None:
        """Write for `load`; every measured process reads the same file."""
        torch.save(dict(vars(self)), path)

    @classmethod
    def load(cls, path: Path) -> GraphBatch:
        """Read what `save` wrote."""
        content = torch.load(path, weights_only=True)
        return cls(**{field.name: content[field.name] for field in fields(cls)})


def qm9_batch(
    num_graphs: int, *, root: Path, raw_path: Path | None = None, seed: int = 0
) -> GraphBatch:
    """Random QM9 molecules with their bonds and standardised HOMO energies.

    Args:
        num_graphs: Number of molecules; more than there are repeats them.
        root: Folder of the processed data set; the first use makes it, in about a minute.
        raw_path: A file of part of QM9 in qm9pack's format, for tests.
        seed: Of the choice of molecules.
    """
    from pyg_se3.data import QM9, TARGET_NAMES

    data = QM9(root, raw_path=raw_path)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    repeats = -(-num_graphs // len(order))
    chosen = order.repeat(repeats)[:num_graphs]
    batch = data.batch(chosen, [TARGET_NAMES.index("homo")])
    y = batch.y[:, 0].float()
    name = "QM9" if raw_path is None else f"QM9, part ({raw_path.name})"
    return GraphBatch(
        x=batch.x.float(),
        pos=batch.pos.float(),
        edge_index=batch.edge_index,
        edge_attr=batch.edge_attr.float(),
        batch=batch.batch,
        num_graphs=num_graphs,
        y=(y - y.mean()) / y.std() if num_graphs > 1 else torch.zeros(1),
        source=f"{name}, {data.bonds} bonds" + (", repeated" if repeats > 1 else ""),
    )


def dense_batch(nodes: int, neighbours: int, *, seed: int = 0) -> GraphBatch:
    """One graph in which every node receives from `neighbours` random other nodes."""
    if neighbours >= nodes:
        raise ValueError(f"{neighbours} neighbours need more than {nodes} nodes")
    generator = torch.Generator().manual_seed(seed)
    pos = torch.randn(nodes, 3, generator=generator) * nodes ** (1 / 3)
    scores = torch.rand(nodes, nodes, generator=generator).fill_diagonal_(-1)
    src = scores.topk(neighbours, 1).indices.reshape(-1)
    dst = torch.arange(nodes).repeat_interleave(neighbours)
    kinds = torch.randint(NUM_BOND_TYPES, (len(src),), generator=generator)
    return GraphBatch(
        x=torch.randn(nodes, 1, generator=generator),
        pos=pos,
        edge_index=torch.stack([src, dst]),
        edge_attr=torch.nn.functional.one_hot(kinds, NUM_BOND_TYPES).float(),
        batch=torch.zeros(nodes, dtype=torch.long),
        num_graphs=1,
        y=torch.zeros(1),
        source=f"random graph, {nodes} nodes x {neighbours} neighbours",
    )
