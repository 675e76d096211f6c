"""Bonds of molecules that are known by a SMILES string and a geometry.

QM9 gives both, but no bond list. Three methods are tried in turn, and every result is verified
against the geometry:

1. ``smiles``: heavy atoms of the SMILES are the heavy atoms of the geometry, in order; each
   hydrogen belongs to the nearest heavy atom.
2. ``match``: the heavy atoms come in another order. The heavy-atom graph is then the M shortest
   pairs (M is the number of bonds in the SMILES), and a graph isomorphism gives the order.
3. ``geometry``: the molecule is another one than its SMILES says; RDKit's ``DetermineBonds``.

Verification: lengths in units of the sum of covalent radii; the longest bond must be shorter than
the shortest distance that is not a bond. No fixed threshold separates the two over the whole data
set (strained cages), but within every single molecule they do separate. Bonds must also be
plausible in themselves, and SMILES and geometry must have the same composition.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds

BondForm = Literal["kekule", "aromatic"]
"""Kekulé structure (single, double, triple), or aromatic bonds as a type of their own."""

_TYPE_INDEX = {
    Chem.BondType.SINGLE: 0,
    Chem.BondType.DOUBLE: 1,
    Chem.BondType.TRIPLE: 2,
    Chem.BondType.AROMATIC: 3,
}
_BOND_ORDER = (1.0, 2.0, 3.0, 1.5)
_MAX_MATCHES = 10_000
# Bonds of QM9 are 0.78 to 1.29 times the sum of the covalent radii.
_PLAUSIBLE = (0.65, 1.4)
_RADII = np.array(
    [0.0] + [Chem.GetPeriodicTable().GetRcovalent(number) for number in range(1, 119)]
)


@dataclass(frozen=True)
class Bonds:
    """Bonds of one molecule.

    Attributes:
        pairs: Atom pairs (i, j), each bond once, [M, 2] int64.
        types: Index into :data:`pyg_se3.data.features.BOND_TYPES`, [M] uint8.
        method: How they were found: ``"smiles"``, ``"match"``, ``"geometry"`` or ``"mol"``.
    """

    pairs: np.ndarray
    types: np.ndarray
    method: str

    def directed(self) -> tuple[np.ndarray, np.ndarray]:
        """Both directions of every bond, sorted by source and then target atom.

        Returns:
            ``edge_index`` [2, 2M] int64 and bond types [2M] uint8.
        """
        source = np.concatenate([self.pairs[:, 0], self.pairs[:, 1]])
        target = np.concatenate([self.pairs[:, 1], self.pairs[:, 0]])
        order = np.lexsort((target, source))
        return np.stack([source[order], target[order]]), np.tile(self.types, 2)[order]


def check_bond_form(bonds: str) -> None:
    """Refuse an unknown bond form.

    Raises:
        ValueError: If ``bonds`` is neither ``"kekule"`` nor ``"aromatic"``.
    """
    if bonds not in get_args(BondForm):
        raise ValueError(f"bonds={bonds!r} is unknown; expected one of {get_args(BondForm)}")


def perceive_bonds(
    z: np.ndarray, pos: np.ndarray, smiles: str, bonds: BondForm = "kekule"
) -> Bonds:
    """Find the bonds of a molecule from its SMILES and its geometry.

    Args:
        z: Atomic numbers [N], hydrogens included.
        pos: Coordinates [N, 3] in Å.
        smiles: SMILES of the molecule.
        bonds: ``"kekule"`` or ``"aromatic"``.

    Returns:
        The bonds, verified against the geometry.

    Raises:
        ValueError: If ``smiles`` cannot be read, has another composition than the geometry, or no
            method gives bonds that fit the geometry.
    """
    check_bond_form(bonds)
    z = np.asarray(z, dtype=np.int64)
    pos = np.asarray(pos, dtype=np.float64)
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
        if mol is None:
            raise ValueError(f"RDKit cannot read the SMILES {smiles!r}")
        if bonds == "kekule":
            Chem.Kekulize(mol, clearAromaticFlags=True)
        _check_composition(mol, z, smiles)
        ratio = _length_ratios(z, pos)
        for method in (_from_order, _from_match):
            found = method(mol, z, pos, ratio)
            if found is not None and _fits(ratio, found.pairs):
                return found
        found = _from_geometry(z, pos, bonds)
        # Stretched molecules fall apart here, with few bonds that fit well.
        fragments = len(Chem.GetMolFrags(mol))
        if (
            found is not None
            and _fits(ratio, found.pairs)
            and _num_fragments(len(z), found.pairs) == fragments
        ):
            return found
    raise ValueError(
        f"no bonds found for SMILES {smiles!r} that fit its geometry of {len(z)} atoms: bonds must "
        "be of plausible length and all shorter than the shortest non-bond"
    )


def _check_composition(mol: Chem.Mol, z: np.ndarray, smiles: str) -> None:
    numbers = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    numbers += [1] * sum(atom.GetTotalNumHs() for atom in mol.GetAtoms())
    if sorted(numbers) != sorted(z.tolist()):
        raise ValueError(
            f"SMILES {smiles!r} and geometry are different molecules: atomic numbers "
            f"{sorted(numbers)} and {sorted(z.tolist())}"
        )


def _fits(ratio: np.ndarray, pairs: np.ndarray) -> bool:
    if not is_separated(ratio, pairs):
        return False
    lengths = ratio[pairs[:, 0], pairs[:, 1]]
    return bool(((lengths > _PLAUSIBLE[0]) & (lengths < _PLAUSIBLE[1])).all())


def _num_fragments(num_atoms: int, pairs: np.ndarray) -> int:
    label = np.arange(num_atoms)
    for i, j in pairs:
        label[label == label[i]] = label[j]
    return len(np.unique(label))


def is_separated(ratio: np.ndarray, pairs: np.ndarray) -> bool:
    """Whether every bond is shorter than every non-bond, in units of covalent radii.

    Args:
        ratio: Distances over sums of covalent radii [N, N], infinite on the diagonal.
        pairs: Bonds [M, 2].

    Returns:
        True if they separate.
    """
    if len(pairs) == 0:
        return len(ratio) == 1
    rest = ratio.copy()
    rest[pairs[:, 0], pairs[:, 1]] = np.inf
    rest[pairs[:, 1], pairs[:, 0]] = np.inf
    return bool(ratio[pairs[:, 0], pairs[:, 1]].max() < rest.min())


def _length_ratios(z: np.ndarray, pos: np.ndarray) -> np.ndarray:
    """Distances over sums of covalent radii [N, N], infinite on the diagonal."""
    delta = pos[:, None] - pos[None]
    radii = _RADII[z]
    ratio = np.sqrt((delta * delta).sum(-1)) / (radii[:, None] + radii[None])
    np.fill_diagonal(ratio, np.inf)
    return ratio


def _hydrogen_parents(z: np.ndarray, pos: np.ndarray) -> tuple[np.ndarray, ...]:
    """Heavy atoms, hydrogens and the nearest heavy atom of each hydrogen (as its rank)."""
    heavy = np.flatnonzero(z != 1)
    hydrogens = np.flatnonzero(z == 1)
    if len(heavy) == 0 or len(hydrogens) == 0:
        return heavy, hydrogens, np.zeros(0, dtype=np.int64)
    delta = pos[hydrogens][:, None] - pos[heavy][None]
    return heavy, hydrogens, (delta * delta).sum(-1).argmin(1)


def _assemble(
    mol: Chem.Mol,
    place: np.ndarray,
    heavy: np.ndarray,
    hydrogens: np.ndarray,
    parents: np.ndarray,
    method: str,
) -> Bonds:
    """Bonds when atom k of the SMILES is heavy atom ``place[k]``."""
    pairs = [
        (heavy[place[bond.GetBeginAtomIdx()]], heavy[place[bond.GetEndAtomIdx()]])
        for bond in mol.GetBonds()
    ]
    types = [_TYPE_INDEX[bond.GetBondType()] for bond in mol.GetBonds()]
    pairs += list(zip(heavy[parents], hydrogens, strict=True))
    types += [0] * len(hydrogens)
    return Bonds(
        np.array(pairs, dtype=np.int64).reshape(-1, 2), np.array(types, dtype=np.uint8), method
    )


def _from_order(mol: Chem.Mol, z: np.ndarray, pos: np.ndarray, ratio: np.ndarray) -> Bonds | None:
    heavy, hydrogens, parents = _hydrogen_parents(z, pos)
    if [atom.GetAtomicNum() for atom in mol.GetAtoms()] != z[heavy].tolist():
        return None
    wanted = [atom.GetTotalNumHs() for atom in mol.GetAtoms()]
    if np.bincount(parents, minlength=len(heavy)).tolist() != wanted:
        return None
    return _assemble(mol, np.arange(len(heavy)), heavy, hydrogens, parents, "smiles")


def _skeleton(numbers: list[int], pairs: list[tuple[int, int]]) -> Chem.Mol:
    """Elements and connections only, so that bond orders play no part in a match."""
    mol = Chem.RWMol()
    for number in numbers:
        mol.AddAtom(Chem.Atom(number))
    for i, j in pairs:
        mol.AddBond(int(i), int(j), Chem.BondType.SINGLE)
    return mol.GetMol()


def _from_match(mol: Chem.Mol, z: np.ndarray, pos: np.ndarray, ratio: np.ndarray) -> Bonds | None:
    heavy, hydrogens, parents = _hydrogen_parents(z, pos)
    numbers = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    if sorted(numbers) != sorted(z[heavy].tolist()):
        return None
    # All bonds are shorter than all non-bonds, hence the bonds are the shortest pairs.
    upper = np.triu_indices(len(heavy), k=1)
    lengths = ratio[np.ix_(heavy, heavy)][upper]
    shortest = np.argsort(lengths, kind="stable")[: mol.GetNumBonds()]
    target = _skeleton(
        z[heavy].tolist(), list(zip(upper[0][shortest], upper[1][shortest], strict=True))
    )
    query = _skeleton(
        numbers, [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()]
    )
    counts = np.bincount(parents, minlength=len(heavy))
    wanted = np.array([atom.GetTotalNumHs() for atom in mol.GetAtoms()])
    best: tuple[float, Bonds] | None = None
    for match in target.GetSubstructMatches(query, uniquify=False, maxMatches=_MAX_MATCHES):
        place = np.array(match)
        if (counts[place] != wanted).any():
            continue
        found = _assemble(mol, place, heavy, hydrogens, parents, "match")
        # Several matches may fit; multiple bonds belong on the shorter pairs.
        order = np.array([_BOND_ORDER[t] for t in found.types])
        score = float((order * ratio[found.pairs[:, 0], found.pairs[:, 1]]).sum())
        if best is None or score < best[0]:
            best = (score, found)
    return None if best is None else best[1]


def _from_geometry(
    z: np.ndarray, pos: np.ndarray, bonds: BondForm, charge: int = 0
) -> Bonds | None:
    mol = Chem.RWMol()
    conformer = Chem.Conformer(len(z))
    for index, number in enumerate(z.tolist()):
        mol.AddAtom(Chem.Atom(number))
        conformer.SetAtomPosition(index, [float(value) for value in pos[index]])
    mol.AddConformer(conformer)
    try:
        rdDetermineBonds.DetermineBonds(mol, charge=charge, allowChargedFragments=True)
        Chem.SanitizeMol(mol)
    except (ValueError, RuntimeError):
        return None
    return replace(bonds_of_mol(mol, bonds), method="geometry")


def bonds_from_geometry(
    z: np.ndarray, pos: np.ndarray, bonds: BondForm = "kekule", charge: int = 0
) -> Bonds:
    """Find the bonds of a molecule from its geometry alone (RDKit's ``DetermineBonds``).

    Less safe than :func:`perceive_bonds`: distances alone give false bonds in strained cages.

    Args:
        z: Atomic numbers [N], hydrogens included.
        pos: Coordinates [N, 3] in Å.
        bonds: ``"kekule"`` or ``"aromatic"``.
        charge: Total charge.

    Returns:
        The bonds.

    Raises:
        ValueError: If RDKit finds none that fit the valences and the charge.
    """
    check_bond_form(bonds)
    with rdBase.BlockLogs():
        found = _from_geometry(z, pos, bonds, charge)
    if found is None:
        raise ValueError(
            f"RDKit finds no bonds for this geometry of {len(z)} atoms with charge {charge}; check "
            "charge and units (Å), give bonds through data_from_mol, or use a radius graph"
        )
    return found


def bonds_of_mol(mol: Chem.Mol, bonds: BondForm = "kekule") -> Bonds:
    """Bonds of a sanitised RDKit molecule.

    Args:
        mol: The molecule; it is not changed.
        bonds: ``"kekule"`` or ``"aromatic"``.

    Returns:
        The bonds.

    Raises:
        ValueError: If a bond is neither single, double, triple nor aromatic.
    """
    check_bond_form(bonds)
    if bonds == "kekule":
        mol = Chem.Mol(mol)
        Chem.Kekulize(mol, clearAromaticFlags=True)
    pairs = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()]
    kinds = [bond.GetBondType() for bond in mol.GetBonds()]
    strange = sorted({str(kind) for kind in kinds if kind not in _TYPE_INDEX})
    if strange:
        raise ValueError(f"bond types {strange} have no feature; expected single to aromatic")
    types = [_TYPE_INDEX[kind] for kind in kinds]
    return Bonds(
        np.array(pairs, dtype=np.int64).reshape(-1, 2), np.array(types, dtype=np.uint8), "mol"
    )
