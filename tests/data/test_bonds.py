from __future__ import annotations

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem

from pyg_se3.data import perceive_bonds
from pyg_se3.data.bonds import bonds_from_geometry, bonds_of_mol, is_separated
from pyg_se3.data.readers import read_molecules

ORDERS = np.array([1, 2, 3])
# Formal charge by element and valence; other valences do not occur.
CHARGE = {1: {1: 0}, 6: {4: 0, 3: -1}, 7: {3: 0, 4: 1, 2: -1}, 8: {2: 0, 1: -1}, 9: {1: 0}}
# Index in QM9 (counted from 1) of the molecules that plain reading of the SMILES gets wrong.
MATCH = {23, 24, 486, 52466, 59818, 133487}
GEOMETRY = {133857, 133859}


@pytest.fixture(scope="module")
def molecules(mini_path):
    return {raw.idx + 1: raw for raw in read_molecules([mini_path])}


@pytest.fixture(scope="module")
def kekule(molecules):
    return {k: perceive_bonds(raw.z, raw.pos, raw.smiles) for k, raw in molecules.items()}


def as_set(bonds):
    return {
        (min(i, j), max(i, j), int(t))
        for (i, j), t in zip(bonds.pairs.tolist(), bonds.types.tolist(), strict=True)
    }


def test_methods(kekule):
    assert {k for k, b in kekule.items() if b.method == "match"} == MATCH
    assert {k for k, b in kekule.items() if b.method == "geometry"} == GEOMETRY


def test_known_molecules(kekule):
    assert as_set(kekule[1]) == {(0, 1, 0), (0, 2, 0), (0, 3, 0), (0, 4, 0)} - {(0, 0, 0)}
    assert as_set(kekule[3]) == {(0, 1, 0), (0, 2, 0)}
    # Hydrogen cyanide: C, N, H.
    assert as_set(kekule[5]) == {(0, 1, 2), (0, 2, 0)}
    # Diacetylene, stored with both terminal carbons last: one chain H-C#C-C#C-H.
    chain = kekule[23]
    assert sorted(chain.types.tolist()) == [0, 0, 0, 2, 2]
    assert np.bincount(chain.pairs.ravel()).tolist() == [2, 2, 2, 2, 1, 1]


def test_valence_and_connectivity(molecules, kekule):
    for k, raw in molecules.items():
        bonds = kekule[k]
        valence = np.zeros(len(raw.z), dtype=int)
        np.add.at(valence, bonds.pairs.ravel(), np.repeat(ORDERS[bonds.types], 2))
        charges = [CHARGE[n][v] for n, v in zip(raw.z.tolist(), valence.tolist(), strict=True)]
        assert sum(charges) == 0, raw.smiles
        if any(charges):
            # Nitro groups are written N(=O)=O in the source.
            assert "+" in raw.smiles or "N(=O)=O" in raw.smiles or "O=N(=O)" in raw.smiles
        reached, todo = {0}, [0]
        neighbours = {i: set() for i in range(len(raw.z))}
        for i, j in bonds.pairs.tolist():
            neighbours[i].add(j)
            neighbours[j].add(i)
        while todo:
            for j in neighbours[todo.pop()] - reached:
                reached.add(j)
                todo.append(j)
        assert len(reached) == len(raw.z)


def test_directed_is_symmetric_and_sorted(kekule):
    for bonds in kekule.values():
        (source, target), types = bonds.directed()
        edges = list(zip(source.tolist(), target.tolist(), types.tolist(), strict=True))
        assert edges == sorted(edges)
        assert {(j, i, t) for i, j, t in edges} == set(edges)


def test_aromatic_form_has_the_same_pairs(molecules, kekule):
    aromatic = 0
    for k, raw in molecules.items():
        found = perceive_bonds(raw.z, raw.pos, raw.smiles, "aromatic")
        assert {b[:2] for b in as_set(found)} == {b[:2] for b in as_set(kekule[k])}
        assert 3 not in kekule[k].types
        changed = found.types == 3
        aromatic += changed.sum()
        same = {b for b in as_set(found) if b[2] != 3}
        assert same <= as_set(kekule[k])
    assert aromatic > 20


def test_permuted_atoms_give_the_permuted_bonds(molecules, kekule):
    generator = np.random.default_rng(0)
    for k in [9, 486, 24, 59818, 133487]:
        raw = molecules[k]
        perm = generator.permutation(len(raw.z))
        inverse = np.argsort(perm)
        found = perceive_bonds(raw.z[perm], raw.pos[perm], raw.smiles)
        expected = {
            (min(inverse[i], inverse[j]), max(inverse[i], inverse[j]))
            for i, j, _ in as_set(kekule[k])
        }
        assert {b[:2] for b in as_set(found)} == expected
        assert sorted(found.types.tolist()) == sorted(kekule[k].types.tolist())


def test_wrong_geometry_is_refused(molecules):
    raw = molecules[9]
    for factor in (0.7, 1.5):
        with pytest.raises(ValueError, match="no bonds found"):
            perceive_bonds(raw.z, raw.pos * factor, raw.smiles)
    with pytest.raises(ValueError, match="different molecules"):
        perceive_bonds(raw.z, raw.pos, "C#CCC")
    with pytest.raises(ValueError, match="cannot read the SMILES"):
        perceive_bonds(raw.z, raw.pos, "C(C")
    with pytest.raises(ValueError, match="expected one of"):
        perceive_bonds(raw.z, raw.pos, raw.smiles, "single")


def test_separation():
    ratio = np.array([[np.inf, 1.0, 2.0], [1.0, np.inf, 1.1], [2.0, 1.1, np.inf]])
    assert is_separated(ratio, np.array([[0, 1], [1, 2]]))
    assert not is_separated(ratio, np.array([[0, 1], [0, 2]]))
    assert is_separated(np.array([[np.inf]]), np.zeros((0, 2), dtype=int))


def test_benzene_from_geometry_and_from_mol():
    mol = Chem.AddHs(Chem.MolFromSmiles("c1ccccc1"))
    AllChem.EmbedMolecule(mol, randomSeed=0)
    z = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    pos = mol.GetConformer().GetPositions()
    for found in (bonds_of_mol(mol, "aromatic"), bonds_from_geometry(z, pos, "aromatic")):
        assert np.bincount(found.types, minlength=4).tolist() == [6, 0, 0, 6]
    assert np.bincount(bonds_of_mol(mol).types, minlength=4).tolist() == [9, 3, 0, 0]
    with pytest.raises(ValueError, match="charge 3"):
        bonds_from_geometry(z, pos, charge=3)
