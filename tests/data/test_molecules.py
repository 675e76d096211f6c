from __future__ import annotations

import pytest
import torch
from rdkit import Chem
from rdkit.Chem import AllChem

from pyg_se3.data import data_from_arrays, data_from_mol, read_sdf, read_xyz


@pytest.fixture
def ethanol():
    mol = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    AllChem.EmbedMolecule(mol, randomSeed=0)
    return mol


def test_same_as_the_data_set(mini):
    for i in (0, 1, 2, 8, 10):
        data = mini[i]
        again = data_from_arrays(data.z, data.pos)
        for key in ("x", "pos", "z", "edge_index", "edge_attr"):
            assert torch.equal(again[key], data[key])


def test_mol_sdf_and_xyz_agree(tmp_path, ethanol):
    data = data_from_mol(ethanol)
    assert data.validate() and data.edge_index.size(1) == 16
    with Chem.SDWriter(str(tmp_path / "a.sdf")) as writer:
        writer.write(ethanol)
        writer.write(ethanol)
    (tmp_path / "a.xyz").write_text(Chem.MolToXYZBlock(ethanol))
    found = [*read_sdf(tmp_path / "a.sdf"), read_xyz(tmp_path / "a.xyz")]
    assert len(found) == 3
    for other in found:
        assert torch.allclose(other.pos, data.pos, atol=1e-3)
        for key in ("x", "z", "edge_index", "edge_attr"):
            assert torch.equal(other[key], data[key])


def test_graphs(ethanol):
    data = data_from_mol(ethanol)
    complete = data_from_arrays(data.z, data.pos, graph="complete")
    assert complete.edge_index.size(1) == 72 and "edge_attr" not in complete
    assert data_from_arrays(data.z, data.pos, graph="radius", cutoff=1.2).edge_index.size(1) > 8


def test_charged():
    mol = Chem.AddHs(Chem.MolFromSmiles("C[NH3+]"))
    AllChem.EmbedMolecule(mol, randomSeed=0)
    data = data_from_mol(mol)
    assert torch.equal(data_from_arrays(data.z, data.pos, charge=1).edge_index, data.edge_index)


def test_refused(tmp_path, ethanol):
    with pytest.raises(ValueError, match="no 3D conformer"):
        data_from_mol(Chem.MolFromSmiles("CCO"))
    with pytest.raises(ValueError, match="implicit"):
        data_from_mol(Chem.RemoveHs(ethanol))
    with pytest.raises(ValueError, match=r"\[17\] have no feature"):
        data_from_arrays([17, 1], torch.rand(2, 3))
    with pytest.raises(ValueError, match="not finite"):
        data_from_arrays([8], torch.full((1, 3), float("inf")))
    with pytest.raises(ValueError, match=r"expected z \[N\]"):
        data_from_arrays([8, 1], torch.rand(3, 3))
    with pytest.raises(ValueError, match="needs a cutoff"):
        data_from_arrays([8], torch.rand(1, 3), graph="radius")
    with pytest.raises(ValueError, match="graph='knn'"):
        data_from_arrays([8], torch.rand(1, 3), graph="knn")
    with pytest.raises(FileNotFoundError):
        read_sdf(tmp_path / "none.sdf")
    (tmp_path / "bad.xyz").write_text("3\n\nO 0 0 0\nH 0 0\n")
    with pytest.raises(ValueError, match="not a complete XYZ"):
        read_xyz(tmp_path / "bad.xyz")
    (tmp_path / "bad.sdf").write_text("nonsense\n$$$$\n")
    with pytest.raises(ValueError, match="molecule 1: cannot be read"):
        read_sdf(tmp_path / "bad.sdf")
