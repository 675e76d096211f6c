"""Many molecules in a few concatenated tensors, and batches gathered straight from them.

Atoms of all molecules lie behind each other; ``ptr`` says where a molecule begins. A batch is a
few index operations on these tensors, whatever its size, instead of a Python loop over ``Data``
objects. Features are looked up from atomic numbers and bond types, so that the file stays small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from pyg_se3.data.features import EDGE_DIM, atom_table, check_elements
from pyg_se3.data.targets import ELEMENTS


@dataclass(frozen=True)
class MoleculeStore:
    """Concatenated molecules.

    Attributes:
        z: Atomic numbers of all molecules [N] uint8.
        pos: Coordinates in Å [N, 3] float32.
        ptr: First atom of every molecule, then N, [M + 1] int64.
        edge_index: Edges j -> i, numbered within their molecule, [2, E] of a small integer type.
        edge_ptr: First edge of every molecule, then E, [M + 1] int64.
        edge_type: Bond types [E] uint8, or empty where edges have no type.
        y: Targets [M, T] float64.
        idx: Identifier of every molecule [M] int64.
        text: SMILES strings behind each other [S] uint8.
        text_ptr: First character of every molecule, then S, [M + 1] int64.
        elements: Atomic numbers with a one-hot feature.
    """

    z: Tensor
    pos: Tensor
    ptr: Tensor
    edge_index: Tensor
    edge_ptr: Tensor
    edge_type: Tensor
    y: Tensor
    idx: Tensor
    text: Tensor
    text_ptr: Tensor
    elements: tuple[int, ...] = ELEMENTS

    def __post_init__(self) -> None:
        num = self.ptr.numel() - 1
        counts = {
            "edge_ptr": self.edge_ptr.numel() - 1,
            "y": self.y.size(0),
            "idx": self.idx.numel(),
            "text_ptr": self.text_ptr.numel() - 1,
        }
        for name, count in counts.items():
            if count != num:
                raise ValueError(f"{name} describes {count} molecules, ptr describes {num}")
        atoms, edges = int(self.ptr[-1]), int(self.edge_ptr[-1])
        if not atoms == self.z.numel() == self.pos.size(0):
            raise ValueError(f"ptr ends at {atoms} atoms, z has {self.z.numel()}")
        if edges != self.edge_index.size(1):
            raise ValueError(f"edge_ptr ends at {edges}, edge_index has {self.edge_index.size(1)}")
        if self.edge_type.numel() not in (0, edges):
            raise ValueError(f"edge_type has {self.edge_type.numel()} entries for {edges} edges")
        object.__setattr__(self, "_atom_table", atom_table(self.elements))
        object.__setattr__(self, "_edge_table", torch.eye(EDGE_DIM))

    def __len__(self) -> int:
        return self.ptr.numel() - 1

    @property
    def node_dim(self) -> int:
        """Width of ``x``."""
        return len(self.elements) + 1

    @property
    def edge_dim(self) -> int:
        """Width of ``edge_attr``; 0 where edges have no type."""
        return EDGE_DIM if self.edge_type.numel() else 0

    @property
    def num_atoms(self) -> Tensor:
        """Atoms per molecule [M]."""
        return self.ptr.diff()

    @property
    def num_edges(self) -> Tensor:
        """Directed edges per molecule [M]."""
        return self.edge_ptr.diff()

    def smiles(self, index: int) -> str:
        """SMILES of one molecule."""
        start, end = int(self.text_ptr[index]), int(self.text_ptr[index + 1])
        return bytes(self.text[start:end].tolist()).decode("ascii")

    def item(self, index: int, columns: Sequence[int] | Tensor | None = None) -> Data:
        """One molecule.

        Args:
            index: Position in the store.
            columns: Columns of ``y`` to give; all if None.

        Returns:
            ``Data`` with ``x`` [N, node_dim], ``pos`` [N, 3] Å, ``z`` [N], ``edge_index`` [2, E],
            ``edge_attr`` [E, 4] (if edges have types), ``y`` [1, T], ``idx`` [1].
        """
        atoms = slice(int(self.ptr[index]), int(self.ptr[index + 1]))
        edges = slice(int(self.edge_ptr[index]), int(self.edge_ptr[index + 1]))
        z = self.z[atoms].long()
        data = Data(
            x=self._atom_table[z],  # type: ignore[attr-defined]
            edge_index=self.edge_index[:, edges].long(),
            pos=self.pos[atoms].clone(),
            z=z,
            y=self._select_y(torch.tensor([index]), columns),
            idx=self.idx[index : index + 1].clone(),
        )
        if self.edge_dim:
            data.edge_attr = self._edge_table[self.edge_type[edges].long()]  # type: ignore[attr-defined]
        return data

    def gather(
        self, index: Sequence[int] | Tensor, columns: Sequence[int] | Tensor | None = None
    ) -> Batch:
        """A batch of molecules, equal to ``Batch.from_data_list`` of the single ones.

        Args:
            index: Positions in the store [B], in any order.
            columns: Columns of ``y`` to give; all if None.

        Returns:
            PyG ``Batch`` with ``batch`` [N], ``ptr`` [B + 1] and what :meth:`item` gives.

        Raises:
            ValueError: If ``index`` is empty.
            IndexError: If ``index`` is out of range.
        """
        rows = torch.as_tensor(index, dtype=torch.long)
        if rows.numel() == 0:
            raise ValueError("a batch needs at least one molecule, got none")
        if int(rows.min()) < 0 or int(rows.max()) >= len(self):
            raise IndexError(f"indices must lie in 0..{len(self) - 1}, got {rows.tolist()}")
        ptr, batch, atoms = _ranges(self.ptr, rows)
        edge_slices, edge_batch, edges = _ranges(self.edge_ptr, rows)
        z = self.z[atoms].long()
        edge_index = self.edge_index[:, edges].long()
        edge_index += ptr[edge_batch]
        out = Batch(
            x=self._atom_table[z],  # type: ignore[attr-defined]
            edge_index=edge_index,
            pos=self.pos[atoms],
            z=z,
            y=self._select_y(rows, columns),
            idx=self.idx[rows],
        )
        if self.edge_dim:
            out.edge_attr = self._edge_table[self.edge_type[edges].long()]  # type: ignore[attr-defined]
        out.batch = batch
        out.ptr = ptr
        # What Batch.from_data_list would leave behind: to_data_list and indexing need it.
        one_each, none = torch.arange(rows.numel() + 1), torch.zeros_like(rows)
        out._num_graphs = rows.numel()
        out._slice_dict = {
            "x": ptr, "edge_index": edge_slices, "pos": ptr, "z": ptr, "y": one_each,
            "idx": one_each,
        }  # fmt: skip
        out._inc_dict = dict.fromkeys(out._slice_dict, none) | {"edge_index": ptr[:-1]}
        if self.edge_dim:
            out._slice_dict["edge_attr"] = edge_slices
            out._inc_dict["edge_attr"] = none
        return out

    def _select_y(self, rows: Tensor, columns: Sequence[int] | Tensor | None) -> Tensor:
        y = self.y[rows]
        if columns is not None:
            y = y[:, torch.as_tensor(columns, dtype=torch.long)]
        return y.float()

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, as :meth:`from_tensors` takes them."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "elements"}

    @classmethod
    def from_tensors(
        cls, tensors: dict[str, Tensor], elements: tuple[int, ...] = ELEMENTS
    ) -> MoleculeStore:
        """Rebuild a store from :meth:`tensors`."""
        return cls(**tensors, elements=elements)


class StoreBuilder:
    """Collects molecules one by one into a :class:`MoleculeStore`."""

    def __init__(self, elements: Sequence[int] = ELEMENTS) -> None:
        self.elements = tuple(elements)
        self._parts: dict[str, list[Tensor]] = {
            name: [] for name in ("z", "pos", "edge_index", "edge_type", "y")
        }
        self._idx: list[int] = []
        self._text: list[bytes] = []
        self._counts: list[tuple[int, int]] = []

    def add(
        self,
        z: Tensor,
        pos: Tensor,
        edge_index: Tensor,
        edge_type: Tensor | None,
        y: Tensor,
        idx: int,
        smiles: str = "",
    ) -> None:
        """Append a molecule.

        Args:
            z: Atomic numbers [N].
            pos: Coordinates [N, 3] in Å.
            edge_index: Edges [2, E].
            edge_type: Bond types [E], or None for edges without type (the same for all molecules).
            y: Targets [T].
            idx: Identifier.
            smiles: SMILES string, may be empty.
        """
        parts = self._parts
        parts["z"].append(z.to(torch.uint8))
        parts["pos"].append(pos.float())
        # 16 bit hold the atom numbers of any molecule here; narrowed further at the end.
        if z.numel() > 2**15:
            raise ValueError(f"a molecule has {z.numel()} atoms; at most {2**15} are supported")
        parts["edge_index"].append(edge_index.to(torch.int16))
        if edge_type is not None:
            parts["edge_type"].append(edge_type.to(torch.uint8))
        parts["y"].append(y.double().view(1, -1))
        self._idx.append(idx)
        self._text.append(smiles.encode("ascii"))
        self._counts.append((z.numel(), edge_index.size(1)))

    def build(self) -> MoleculeStore:
        """The store.

        Raises:
            ValueError: If no molecule was added, or only some have edge types.
        """
        if not self._counts:
            raise ValueError("no molecule was added")
        parts = self._parts
        if len(parts["edge_type"]) not in (0, len(self._counts)):
            raise ValueError("either all molecules have edge types or none has")
        counts = torch.tensor(self._counts)
        edge_index = torch.cat(parts["edge_index"], dim=1)
        if int(counts[:, 0].max()) <= 256:
            edge_index = edge_index.to(torch.uint8)
        z = torch.cat(parts["z"])
        check_elements(z, self.elements)
        return MoleculeStore(
            z=z,
            pos=torch.cat(parts["pos"]),
            ptr=_pointer(counts[:, 0]),
            edge_index=edge_index.contiguous(),
            edge_ptr=_pointer(counts[:, 1]),
            edge_type=torch.cat(parts["edge_type"])
            if parts["edge_type"]
            else torch.zeros(0, dtype=torch.uint8),
            y=torch.cat(parts["y"]),
            idx=torch.tensor(self._idx),
            text=torch.tensor(list(b"".join(self._text)), dtype=torch.uint8),
            text_ptr=_pointer(torch.tensor([len(text) for text in self._text])),
            elements=self.elements,
        )


def _pointer(counts: Tensor) -> Tensor:
    """[M] counts to [M + 1] offsets."""
    pointer = torch.zeros(counts.numel() + 1, dtype=torch.long)
    torch.cumsum(counts, dim=0, out=pointer[1:])
    return pointer


def _ranges(pointer: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets [B + 1], owner of every element, and its place in the concatenated storage."""
    start = pointer[rows]
    counts = pointer[rows + 1] - start
    offsets = _pointer(counts)
    total = int(offsets[-1])
    owner = torch.repeat_interleave(counts, output_size=total)
    return offsets, owner, torch.arange(total) + (start - offsets[:-1])[owner]
