"""One's own molecules as ``Data`` with the features that models trained on QM9 expect."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from rdkit import Chem
from torch import Tensor
from torch_geometric.data import Data

from pyg_se3.data.bonds import BondForm, bonds_from_geometry, bonds_of_mol, check_bond_form
from pyg_se3.data.features import EDGE_DIM, atom_features
from pyg_se3.data.graphs import complete_graph, radius_graph
from pyg_se3.data.molecule_files import Record, read_records
from pyg_se3.data.targets import ELEMENTS

GraphKind = Literal["bonds", "radius", "complete"]
"""What becomes an edge."""


def check_graph(graph: str, bonds: str, cutoff: float | None) -> None:
    """Refuse options of the graph that are unknown or contradict each other.

    Args:
        graph: ``"bonds"``, ``"radius"`` or ``"complete"``.
        bonds: ``"kekule"`` or ``"aromatic"``.
        cutoff: Radius in Å, for ``graph="radius"`` only.

    Raises:
        ValueError: If they are not valid.
    """
    if graph not in get_args(GraphKind):
        raise ValueError(f"graph={graph!r} is unknown; expected one of {get_args(GraphKind)}")
    check_bond_form(bonds)
    if graph == "radius":
        if cutoff is None:
            raise ValueError("graph='radius' needs a cutoff in Å, e.g. cutoff=5.0")
        if not cutoff > 0:
            raise ValueError(f"cutoff must be positive, got {cutoff}")
    elif cutoff is not None:
        raise ValueError(f"cutoff={cutoff} has a meaning for graph='radius' only, got {graph!r}")
    if bonds == "aromatic" and graph != "bonds":
        warnings.warn(f"bonds='aromatic' has no effect with graph={graph!r}", stacklevel=4)


def data_from_arrays(
    z: Tensor | np.ndarray | Sequence[int],
    pos: Tensor | np.ndarray,
    *,
    graph: str = "bonds",
    bonds: BondForm = "kekule",
    cutoff: float | None = None,
    charge: int = 0,
    elements: Sequence[int] = ELEMENTS,
) -> Data:
    """A molecule from atomic numbers and positions.

    Args:
        z: Atomic numbers [N], hydrogens included.
        pos: Positions [N, 3] in Å.
        graph: ``"bonds"`` (perceived from the geometry), ``"radius"`` or ``"complete"``.
        bonds: ``"kekule"`` or ``"aromatic"``.
        cutoff: Radius in Å, for ``graph="radius"``.
        charge: Total charge, which decides the bond orders.
        elements: Elements with a one-hot feature; those a model was trained with.

    Returns:
        ``Data`` with ``x``, ``pos``, ``z``, ``edge_index`` and, for bonds, ``edge_attr``.

    Raises:
        ValueError: If the arrays do not fit, hold values that are not finite or other elements,
            or no bonds fit the geometry.
    """
    numbers = torch.as_tensor(np.asarray(z)).long()
    # Checked in full precision: bonds and cutoffs are decided on the coordinates as given.
    xyz = torch.as_tensor(np.asarray(pos)).double()
    if numbers.dim() != 1 or xyz.shape != (numbers.numel(), 3):
        raise ValueError(f"expected z [N] and pos [N, 3], got {list(numbers.shape)} and "
                         f"{list(xyz.shape)}")  # fmt: skip
    if not bool(torch.isfinite(xyz).all()):
        raise ValueError("pos holds values that are not finite")
    data = Data(x=atom_features(numbers, elements), pos=xyz.float(), z=numbers)
    if graph == "bonds":
        check_bond_form(bonds)
        edge_index, types = bonds_from_geometry(
            numbers.numpy(), xyz.numpy(), bonds, charge
        ).directed()
        data.edge_index = torch.from_numpy(edge_index)
        data.edge_attr = torch.eye(EDGE_DIM)[torch.from_numpy(types).long()]
    elif graph == "radius":
        if cutoff is None:
            raise ValueError("graph='radius' needs a cutoff in Å")
        data.edge_index = radius_graph(xyz, cutoff)
    elif graph == "complete":
        data.edge_index = complete_graph(numbers.numel())
    else:
        raise ValueError(f"graph={graph!r} is unknown; expected 'bonds', 'radius' or 'complete'")
    return data


def data_from_mol(
    mol: Chem.Mol,
    *,
    bonds: BondForm = "kekule",
    conformer: int = -1,
    elements: Sequence[int] = ELEMENTS,
) -> Data:
    """A molecule from RDKit, with its own bonds.

    Args:
        mol: Molecule with explicit hydrogens and a 3D conformer.
        bonds: ``"kekule"`` or ``"aromatic"``.
        conformer: Id of the conformer; -1 is the first.
        elements: Elements with a one-hot feature.

    Returns:
        ``Data`` with ``x``, ``pos`` (Å), ``z``, ``edge_index`` and ``edge_attr``.

    Raises:
        ValueError: If there is no 3D conformer, hydrogens are implicit or elements unknown.
    """
    if mol.GetNumConformers() == 0 or not mol.GetConformer(conformer).Is3D():
        raise ValueError("the molecule has no 3D conformer; e.g. embed it with RDKit's AllChem")
    if any(atom.GetTotalNumHs() for atom in mol.GetAtoms()):
        raise ValueError("hydrogens are implicit; add them with Chem.AddHs(mol, addCoords=True)")
    z = torch.tensor([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    pos = torch.from_numpy(np.array(mol.GetConformer(conformer).GetPositions())).float()
    edge_index, types = bonds_of_mol(mol, bonds).directed()
    return Data(
        x=atom_features(z, elements),
        pos=pos,
        z=z,
        edge_index=torch.from_numpy(edge_index),
        edge_attr=torch.eye(EDGE_DIM)[torch.from_numpy(types).long()],
    )


def read_sdf(
    path: str | Path, *, bonds: BondForm = "kekule", elements: Sequence[int] = ELEMENTS
) -> list[Data]:
    """All molecules of an SDF file.

    Args:
        path: The file; hydrogens must be explicit and coordinates 3D.
        bonds: ``"kekule"`` or ``"aromatic"``.
        elements: Elements with a one-hot feature.

    Returns:
        One ``Data`` per molecule, see :func:`data_from_mol`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a molecule cannot be read or used; names its position in the file.
    """
    return [
        data_from_record(record, bonds=bonds, elements=elements)
        for record in read_records(_existing(path), kind="sdf")
    ]


def read_xyz(
    path: str | Path,
    *,
    graph: str = "bonds",
    bonds: BondForm = "kekule",
    cutoff: float | None = None,
    charge: int = 0,
    elements: Sequence[int] = ELEMENTS,
) -> Data:
    """The first molecule of an XYZ file (coordinates in Å).

    Args:
        path: The file.
        graph: See :func:`data_from_arrays`.
        bonds: ``"kekule"`` or ``"aromatic"``.
        cutoff: Radius in Å, for ``graph="radius"``.
        charge: Total charge.
        elements: Elements with a one-hot feature.

    Returns:
        See :func:`data_from_arrays`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not in XYZ format.
    """
    record = next(read_records(_existing(path), kind="xyz"), None)
    if record is None:
        raise ValueError(f"{path} is not a complete XYZ file (it is empty)")
    return data_from_record(
        record, graph=graph, bonds=bonds, cutoff=cutoff, charge=charge, elements=elements
    )


def data_from_record(
    record: Record,
    *,
    graph: str = "bonds",
    bonds: BondForm = "kekule",
    cutoff: float | None = None,
    charge: int = 0,
    elements: Sequence[int] = ELEMENTS,
) -> Data:
    """A molecule from an entry of an SDF or XYZ file.

    Args:
        record: The entry.
        graph: See :func:`data_from_arrays`; bonds of an SDF entry are its own.
        bonds: ``"kekule"`` or ``"aromatic"``.
        cutoff: Radius in Å, for ``graph="radius"``.
        charge: Total charge of XYZ entries without a ``charge`` of their own.
        elements: Elements with a one-hot feature.

    Returns:
        See :func:`data_from_arrays`, and ``name``.

    Raises:
        ValueError: If the entry cannot be used; names its place.
    """
    mol, z, pos = record.mol, record.z, record.pos
    try:
        if mol is not None:
            data = data_from_mol(mol, bonds=bonds, elements=elements)
            z, pos = data.z.numpy(), np.array(mol.GetConformer().GetPositions())
        elif z is None:
            raise ValueError("cannot be read by RDKit")
        if mol is None or graph != "bonds":
            assert z is not None and pos is not None
            data = data_from_arrays(
                z,
                pos,
                graph=graph,
                bonds=bonds,
                cutoff=cutoff,
                charge=int(record.properties.get("charge", charge)),
                elements=elements,
            )
    except ValueError as error:
        raise ValueError(f"{record.place}: {error}") from error
    data.name = record.name
    return data


def _existing(path: str | Path) -> Path:
    found = Path(path)
    if not found.is_file():
        raise FileNotFoundError(f"{found} does not exist")
    return found
