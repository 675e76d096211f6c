from __future__ import annotations

import io

import pytest
import torch
from rdkit import Chem
from rdkit.Chem import AllChem

from pyg_se3.data import MoleculesDataModule

SMILES = ["CCO", "CC", "C#N", "O", "CF", "CC=O", "CN", "CO", "C", "N", "CCC", "C=C"]


@pytest.fixture(scope="module")
def sdf(tmp_path_factory):
    path = tmp_path_factory.mktemp("sdf") / "mine.sdf"
    with Chem.SDWriter(str(path)) as writer:
        for number, smiles in enumerate(SMILES):
            mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
            AllChem.EmbedMolecule(mol, randomSeed=1)
            mol.SetProp("energy", str(-1.5 * number))
            if number != 4:
                mol.SetProp("dipole", str(0.1 * number))
            writer.write(mol)
    return path


@pytest.fixture
def make(sdf, tmp_path):
    def make(**kwargs):
        options = {"target": "energy", "progress": False, "batch_size": 4} | kwargs
        return MoleculesDataModule(str(sdf), root=str(tmp_path / "root"), **options)

    return make


def test_same_in_memory_and_on_disk(make):
    ram, disk = make(unit="eV"), make(unit="eV", on_disk=True)
    for dm in (ram, disk):
        dm.prepare_data()
        dm.setup("fit")
    assert ram.describe() == disk.describe()
    assert (ram.num_train, ram.num_val, ram.num_test) == (10, 1, 1)
    assert (ram.target_names, ram.target_units) == (["energy"], ["eV"])
    assert (ram.fiber_in, ram.fiber_edge) == ({0: 6}, {0: 4}) == (disk.fiber_in, disk.fiber_edge)
    pairs = zip(ram.train_dataloader(), disk.train_dataloader(), strict=True)
    for one, two in pairs:
        assert set(one.keys()) == set(two.keys())
        for key in ("x", "pos", "edge_index", "edge_attr", "y", "idx", "batch"):
            assert torch.equal(one[key], two[key])
    y = ram.dataset.y[ram.split.train, 0]
    assert ram.target_mean.item() == pytest.approx(y.mean().item())


def test_molecules_without_a_value(make, capfd):
    dm = make(target=["energy", "dipole"])
    with pytest.raises(ValueError, match="1 of 12 molecules lack.*the first is molecule 5"):
        dm.setup()
    dm = make(target=["energy", "dipole"], skip_invalid=True)
    dm.setup()
    assert "1 of 12 molecules lack a value" in capfd.readouterr().err
    seen = torch.cat([part for part in dm.split.parts().values()]).tolist()
    assert sorted(seen) == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]


def test_checkpoint_options_and_changed_files(make, sdf, tmp_path):
    dm = make(split=[8, 2, 2])
    dm.setup()
    stream = io.BytesIO()
    torch.save(dict(dm.hparams), stream)
    stream.seek(0)
    options = torch.load(stream, weights_only=True)
    again = MoleculesDataModule(**options)
    again.setup()
    assert again.describe() == dm.describe()
    # Another file of as many molecules is split alike, but is another data set.
    changed = tmp_path / "changed.sdf"
    changed.write_text(sdf.read_text().replace("-1.5", "-1.25"))
    other = MoleculesDataModule(**(options | {"path": str(changed)}))
    other.setup()
    assert other.split.fingerprint() == dm.split.fingerprint()
    assert other.split_fingerprint != dm.split_fingerprint


@pytest.mark.parametrize("on_disk", [False, True])
def test_bounded_batches(make, on_disk):
    dm = make(max_edges_per_batch=40, on_disk=on_disk)
    dm.setup()
    batches = list(dm.train_dataloader())
    assert max(batch.num_edges for batch in batches) <= 40
    assert sum(batch.num_graphs for batch in batches) == dm.num_train


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": []}, "one or several different targets"),
        ({"target": ["energy", "energy"]}, "different targets"),
        ({"target": ["energy", "dipole"], "unit": ["eV"]}, "1 units were given for 2 targets"),
        ({"elements": ["H", "Xx"]}, "unknown element"),
        ({"elements": ["H", "H"]}, "different elements"),
        ({"graph": "radius"}, "needs a cutoff"),
        ({"split": "random"}, "expected 'nvidia' or three fractions"),
    ],
)
def test_bad_options_are_found_at_once(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_unknown_target_is_found_before_all_is_read(make, monkeypatch):
    import pyg_se3.data.own_datamodule as module

    def refuse(*args, **kwargs):
        raise AssertionError("molecules are read")

    monkeypatch.setattr(module, "Molecules", refuse)
    with pytest.raises(ValueError, match="'enrgy' is not among.*energy, dipole.*mean 'energy'"):
        make(target="enrgy").prepare_data()


def test_elements_that_are_not_listed(make):
    with pytest.raises(ValueError, match=r"molecule 3: atomic numbers \[7\]"):
        make(elements=["H", "C", "O", "F"]).prepare_data()
