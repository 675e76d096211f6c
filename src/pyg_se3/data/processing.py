"""From raw QM9 to a :class:`MoleculeStore`: bonds or distance graphs, targets, checks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyg_se3.data.bonds import BondForm, perceive_bonds
from pyg_se3.data.graphs import complete_graph, radius_graph
from pyg_se3.data.readers import NUM_MOLECULES, RawMolecule, read_molecules
from pyg_se3.data.store import MoleculeStore, StoreBuilder
from pyg_se3.data.targets import TARGETS


def process_qm9pack(
    files: Sequence[Path],
    *,
    graph: str,
    bonds: BondForm,
    cutoff: float | None,
    complete: bool,
    progress: bool,
) -> MoleculeStore:
    """Build the store from CSV files in qm9pack's format.

    Args:
        files: CSV files.
        graph: ``"bonds"``, ``"radius"`` or ``"complete"``.
        bonds: Form of the bonds, if ``graph`` is ``"bonds"``.
        cutoff: Radius in Å, if ``graph`` is ``"radius"``.
        complete: Whether all of QM9 is expected.
        progress: Whether to show a progress bar.

    Returns:
        The store.

    Raises:
        ValueError: If a molecule cannot be understood, or molecules are missing.
    """
    builder = StoreBuilder()
    last = -1
    bar = tqdm(
        read_molecules(files),
        total=NUM_MOLECULES if complete else None,
        desc=f"QM9 ({bonds} bonds)" if graph == "bonds" else f"QM9 ({graph} graph)",
        unit=" molecules",
        disable=not progress,
        mininterval=0.5,
    )
    for raw in bar:
        if raw.idx <= last:
            raise ValueError(f"Index {raw.idx + 1} follows {last + 1}; rows must ascend")
        last = raw.idx
        edge_index, edge_type = _edges(raw, graph, bonds, cutoff)
        builder.add(
            torch.from_numpy(raw.z),
            torch.from_numpy(raw.pos),
            edge_index,
            edge_type,
            torch.from_numpy(raw.y),
            raw.idx,
            raw.smiles,
        )
    store = builder.build()
    if complete and len(store) != NUM_MOLECULES:
        raise ValueError(
            f"the raw data holds {len(store)} molecules instead of {NUM_MOLECULES}; reinstall it: "
            "pip install --force-reinstall qm9pack"
        )
    return store


def _edges(
    raw: RawMolecule, graph: str, bonds: BondForm, cutoff: float | None
) -> tuple[Tensor, Tensor | None]:
    if graph == "bonds":
        try:
            edge_index, types = perceive_bonds(raw.z, raw.pos, raw.smiles, bonds).directed()
        except ValueError as error:
            raise ValueError(f"molecule with Index {raw.idx + 1}: {error}") from error
        return torch.from_numpy(edge_index), torch.from_numpy(types)
    if graph == "radius":
        assert cutoff is not None
        return radius_graph(torch.from_numpy(raw.pos), cutoff), None
    return complete_graph(len(raw.z)), None


def process_pyg(root: Path, *, graph: str, cutoff: float | None) -> MoleculeStore:
    """Build the store from PyTorch Geometric's own ``QM9``, which is downloaded if need be.

    Differences to the qm9pack source: bonds are those of QM9's SDF, read unsanitised (Kekulé, with
    the SDF's known errors); targets have the float32 precision of that class; SMILES are not kept.

    Args:
        root: Root folder of PyG's data set.
        graph: ``"bonds"``, ``"radius"`` or ``"complete"``.
        cutoff: Radius in Å, if ``graph`` is ``"radius"``.

    Returns:
        The store.

    Raises:
        RuntimeError: If the data set can be neither found nor downloaded.
        ValueError: If its content does not look like QM9.
    """
    from torch_geometric.datasets import QM9 as PyGQM9

    try:
        dataset = PyGQM9(str(root))
    except OSError as error:  # URLError and HTTPError are OSErrors.
        raise RuntimeError(
            f"PyG's QM9 is not in {root} and cannot be downloaded ({error}); "
            "source='qm9pack' needs no download of its own"
        ) from error
    data, slices = dataset._data, dataset.slices
    if data.y.size(1) != len(TARGETS):
        raise ValueError(f"PyG's QM9 has {data.y.size(1)} targets instead of {len(TARGETS)}")
    builder = StoreBuilder()
    for i in range(len(dataset)):
        atoms = slice(int(slices["z"][i]), int(slices["z"][i + 1]))
        pos, z = data.pos[atoms], data.z[atoms]
        edge_type: Tensor | None = None
        if graph == "bonds":
            edges = slice(int(slices["edge_index"][i]), int(slices["edge_index"][i + 1]))
            edge_index = data.edge_index[:, edges]
            edge_type = data.edge_attr[edges].argmax(dim=1)
        elif graph == "radius":
            assert cutoff is not None
            edge_index = radius_graph(pos, cutoff)
        else:
            edge_index = complete_graph(z.numel())
        builder.add(z, pos, edge_index, edge_type, data.y[i], int(data.idx[i]))
    return builder.build()
