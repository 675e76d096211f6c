from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import pickle
import signal

import pytest
import torch
from rdkit import Chem
from rdkit.Chem import AllChem

from pyg_se3.data import (
    EpochSampler,
    FileSource,
    IteratorSource,
    MoleculeLoader,
    Molecules,
    MoleculesOnDisk,
    read_sdf,
)

SMILES = ["CCO", "c1ccccc1", "C#N", "O", "CF", "CC(=O)O"]
KINDS = [Molecules, MoleculesOnDisk]


def embedded(smiles):
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    return mol


@pytest.fixture(scope="module")
def sdf(tmp_path_factory):
    """Six molecules with an energy, a note that is no number, and a charge for some."""
    path = tmp_path_factory.mktemp("sdf") / "mine.sdf"
    with Chem.SDWriter(str(path)) as writer:
        for number, smiles in enumerate(SMILES):
            mol = embedded(smiles)
            mol.SetProp("_Name", smiles)
            mol.SetProp("energy", str(-1.5 * number))
            mol.SetProp("note", "mine")
            writer.write(mol)
    return path


def assert_same(one, two):
    assert set(one.keys()) == set(two.keys())
    for key in one.keys():
        assert torch.equal(torch.as_tensor(one[key]), torch.as_tensor(two[key])), key


def iterator(dataset, count=None, **kwargs):
    def molecules():
        for i in range(len(dataset) if count is None else count):
            yield dataset.get(i)

    names = [str(column) for column in range(dataset.y.size(1))]
    return IteratorSource(molecules, property_names=names, **{"version": "1"} | kwargs)


@pytest.mark.parametrize("kind", KINDS)
def test_same_batches_as_qm9(kind, mini, tmp_path):
    dataset = kind(tmp_path, iterator(mini), progress=False)
    rows = [3, 0, 63, 63, 8]
    assert len(dataset) == len(mini)
    assert_same(dataset.batch(rows, [2, 7]), mini.batch(rows, [2, 7]))
    assert_same(dataset[5], mini[5])
    part = torch.tensor([9, 4, 31])
    assert_same(dataset.subset(part).batch([2, 0]), mini[part].batch([2, 0]))
    assert_same(dataset.subset(part)[1], mini[part][1])
    assert torch.equal(dataset.y, mini.y.float().double())  # a Data has float32
    for name in ("num_atoms", "num_edges_per_molecule"):
        assert torch.equal(getattr(dataset.subset(part), name), getattr(mini[part], name))
    for one, two in zip(dataset.batch(rows).to_data_list(), rows, strict=True):
        assert_same(one, mini[two])


@pytest.mark.parametrize("kind", KINDS)
def test_sdf(kind, sdf, tmp_path):
    dataset = kind(tmp_path, FileSource(sdf), progress=False)
    assert dataset.property_names == ("energy",)
    assert dataset.y.squeeze(1).tolist() == [-1.5 * number for number in range(6)]
    assert [dataset.name(i) for i in range(6)] == SMILES
    for data, expected in zip(dataset, read_sdf(sdf), strict=True):
        for key in ("x", "pos", "z", "edge_index", "edge_attr"):
            assert torch.equal(data[key], expected[key])
    assert dataset.table.idx.tolist() == list(range(6))


@pytest.mark.parametrize("kind", KINDS)
def test_transform_is_applied(kind, sdf, tmp_path):
    def shift(data):
        data.pos = data.pos + 1.0
        return data

    plain = kind(tmp_path, FileSource(sdf), progress=False)
    moved = kind(tmp_path, FileSource(sdf), transform=shift, progress=False)
    (batch,) = MoleculeLoader(moved, 6)
    assert torch.allclose(batch.pos, plain.batch(range(6)).pos + 1.0)


def write_xyz(path, smiles, comment=""):
    block = Chem.MolToXYZBlock(embedded(smiles)).splitlines()
    block[1] = comment
    path.write_text("\n".join(block) + "\n")


def test_xyz_folder_with_a_table_of_targets(tmp_path):
    folder = tmp_path / "xyz"
    folder.mkdir()
    for name, smiles in zip("cab", ("C", "CCO", "O"), strict=True):
        write_xyz(folder / f"{name}.xyz", smiles)
    table = tmp_path / "targets.csv"
    table.write_text("name,gap,remark,Etot\nb,2.5,x,-7\nc,3.5,y,\na,1.5,z,-5\n")
    by_name = Molecules(tmp_path, FileSource(folder, csv=table, csv_key="name"), progress=False)
    assert by_name.property_names == ("gap", "Etot")
    assert [by_name.name(i) for i in range(3)] == ["a", "b", "c"]
    assert by_name.y[:, 0].tolist() == [1.5, 2.5, 3.5]
    assert by_name.y[:2, 1].tolist() == [-5.0, -7.0] and by_name.y[2, 1].isnan()
    in_order = Molecules(tmp_path, FileSource(folder, csv=table), progress=False)
    assert in_order.y[:, 0].tolist() == [2.5, 3.5, 1.5]
    table.write_text("gap\n1\n2\n")
    with pytest.raises(ValueError, match="fewer rows than there are molecules"):
        Molecules(tmp_path, FileSource(folder, csv=table), progress=False)
    table.write_text("gap\n1\n2\n3\n4\n")
    with pytest.raises(ValueError, match="more rows"):
        Molecules(tmp_path, FileSource(folder, csv=table), progress=False)
    table.write_text("name,gap\na,1\na,2\n")
    with pytest.raises(ValueError, match="'a' twice"):
        Molecules(tmp_path, FileSource(folder, csv=table, csv_key="name"), progress=False)
    with pytest.raises(ValueError, match="no column 'id'; it has name, gap"):
        FileSource(folder, csv=table, csv_key="id").property_names  # noqa: B018


def test_extended_xyz_of_several_frames_packed(tmp_path):
    parts = []
    for smiles, comment in (
        ("C[NH3+]", 'energy=-3.5 charge=1 label="a b"'),
        ("O", "Properties=species:S:1:pos:R:3:forces:R:3 energy=-2 charge=0"),
    ):
        write_xyz(tmp_path / "one.xyz", smiles, comment)
        parts.append((tmp_path / "one.xyz").read_text())
    path = tmp_path / "all.extxyz.gz"
    path.write_bytes(gzip.compress("".join(parts).encode()))
    dataset = Molecules(tmp_path, FileSource(path), progress=False)
    assert dataset.property_names == ("energy", "charge")
    assert dataset.y.tolist() == [[-3.5, 1.0], [-2.0, 0.0]]
    assert [dataset.name(0), dataset.name(1)] == ["all", "all:2"]
    assert dataset[0].edge_index.size(1) == 14


def test_graphs_and_elements(sdf, tmp_path):
    radius = Molecules(tmp_path, FileSource(sdf, graph="radius", cutoff=2.0), progress=False)
    assert radius.edge_dim == 0 and "edge_attr" not in radius[0]
    more = (1, 6, 7, 8, 9, 17)
    wide = MoleculesOnDisk(tmp_path, FileSource(sdf, elements=more), elements=more, progress=False)
    assert wide.node_dim == 7 and wide[0].x.size(1) == 7
    with pytest.raises(ValueError, match="molecule 5: atomic numbers.*9.*skip_invalid"):
        Molecules(tmp_path, FileSource(sdf, elements=(1, 6, 7, 8)), progress=False)


@pytest.mark.parametrize("kind", KINDS)
def test_invalid_molecules_stop_or_are_left_out(kind, sdf, tmp_path, capfd):
    text = sdf.read_text()
    parts = text.split("$$$$\n")
    broken = tmp_path / "broken.sdf"
    broken.write_text("$$$$\n".join([parts[0], "nonsense\n", *parts[1:]]))
    with pytest.raises(ValueError, match="molecule 2: cannot be read.*skip_invalid=true"):
        kind(tmp_path, FileSource(broken), progress=False)
    dataset = kind(tmp_path, FileSource(broken, skip_invalid=True), progress=False)
    assert dataset.table.idx.tolist() == [0, 2, 3, 4, 5, 6]
    assert "1 molecules were left out" in capfd.readouterr().err
    with pytest.raises(ValueError, match="no molecule that can be (used|read)"):
        only = tmp_path / "only.sdf"
        only.write_text("nonsense\n$$$$\n")
        kind(tmp_path, FileSource(only, skip_invalid=True), progress=False)


def test_single_atoms_among_bonded_molecules(tmp_path, mini):
    def molecules():
        yield mini.get(3)
        atom = mini.get(3)
        atom.z, atom.pos = atom.z[:1], atom.pos[:1]
        atom.edge_index, atom.edge_attr = atom.edge_index[:, :0], atom.edge_attr[:0]
        yield atom

    names = [str(column) for column in range(19)]
    made = [
        kind(tmp_path, IteratorSource(molecules, version="1", property_names=names), progress=False)
        for kind in KINDS
    ]
    for rows in ([1], [0, 1]):
        assert_same(made[0].batch(rows), made[1].batch(rows))
    assert_same(made[0][1], made[1][1])


@pytest.mark.parametrize("kind", KINDS)
def test_changed_files_and_versions_are_read_again(kind, sdf, tmp_path, mini):
    path = tmp_path / "a.sdf"
    path.write_text(sdf.read_text())
    first = kind(tmp_path, FileSource(path), progress=False)
    assert kind(tmp_path, FileSource(path), progress=False).path == first.path
    path.write_text("$$$$\n".join(sdf.read_text().split("$$$$\n")[:3]) + "$$$$\n")
    again = kind(tmp_path, FileSource(path), progress=False)
    assert again.path != first.path and len(again) == 3
    assert len(kind(tmp_path, iterator(mini, 5, version="2"), progress=False)) == 5
    assert len(kind(tmp_path, iterator(mini, 4, version="2"), progress=False)) == 5
    forced = kind(tmp_path, iterator(mini, 4, version="2"), progress=False, force_reload=True)
    assert len(forced) == 4


def _die_while_filling(root, molecules):
    def dying():
        yield from molecules[:40]
        os.kill(os.getpid(), signal.SIGKILL)

    names = [str(column) for column in range(19)]
    MoleculesOnDisk(root, IteratorSource(dying, version="1", property_names=names))


def test_a_killed_process_leaves_nothing_that_is_used(tmp_path, mini, capfd):
    worker = multiprocessing.get_context("fork").Process(
        target=_die_while_filling, args=(tmp_path, [mini.get(i) for i in range(64)])
    )
    worker.start()
    worker.join(120)
    assert worker.exitcode == -signal.SIGKILL
    (left,) = tmp_path.glob("molecules-*.building")
    assert (left / "sqlite.db").exists() and not left.with_suffix("").exists()
    dataset = MoleculesOnDisk(tmp_path, iterator(mini), progress=False)
    assert dataset.path == left.with_suffix("") and len(dataset) == 64
    assert "was left by a process that ended early" in capfd.readouterr().err
    assert not left.exists()


@pytest.mark.parametrize("damage", ["truncate", "remove", "manifest"])
def test_damage_on_disk_is_reported_and_repaired(damage, tmp_path, mini, capfd):
    first = MoleculesOnDisk(tmp_path, iterator(mini), progress=False)
    expected = first.batch([1, 5])
    first.close()
    database = first.path / "sqlite.db"
    if damage == "truncate":
        os.truncate(database, database.stat().st_size // 2)
    elif damage == "remove":
        (first.path / "y.bin").unlink()
    else:
        (first.path / "manifest.json").write_text("{")
    again = MoleculesOnDisk(tmp_path, iterator(mini), progress=False)
    assert "cannot be used" in capfd.readouterr().err
    assert_same(again.batch([1, 5]), expected)
    assert json.loads((again.path / "manifest.json").read_text())["molecules"] == 64


def test_workers_have_connections_of_their_own(tmp_path, mini):
    dataset = MoleculesOnDisk(tmp_path, iterator(mini), progress=False)
    sampler = EpochSampler(64, seed=3)
    expected = [batch.idx.tolist() for batch in MoleculeLoader(dataset, 10, sampler=sampler)]
    loader = MoleculeLoader(
        dataset, 10, sampler=sampler, num_workers=2, multiprocessing_context="fork"
    )
    assert [batch.idx.tolist() for batch in loader] == expected
    assert_same(pickle.loads(pickle.dumps(dataset)).batch([2]), dataset.batch([2]))


def _fill(root, sdf):
    assert len(MoleculesOnDisk(root, FileSource(sdf), progress=False)) == 6


def test_processes_do_not_fill_at_once(tmp_path, sdf):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fill, args=(tmp_path, sdf)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(list(tmp_path.glob("molecules-*/sqlite.db"))) == 1


def test_refused(tmp_path, sdf, mini):
    with pytest.raises(FileNotFoundError, match="none.sdf does not exist"):
        FileSource(tmp_path / "none.sdf")
    with pytest.raises(FileNotFoundError, match="holds no file of .sdf"):
        FileSource(tmp_path)
    (tmp_path / "a.mol2").write_text("")
    with pytest.raises(ValueError, match=r"a\.mol2: expected a file of \.sdf"):
        FileSource(tmp_path / "a.mol2")
    with pytest.raises(ValueError, match="needs a csv"):
        FileSource(sdf, csv_key="name")
    with pytest.raises(ValueError, match="needs a cutoff"):
        FileSource(sdf, graph="radius")
    dataset = MoleculesOnDisk(tmp_path, iterator(mini), progress=False)
    with pytest.raises(IndexError, match=r"0\.\.63"):
        dataset.batch([64])
    with pytest.raises(ValueError, match="at least one molecule"):
        dataset.batch([])
    with pytest.raises(ValueError, match="has 19 targets, expected 1"):
        Molecules(
            tmp_path,
            IteratorSource(lambda: [mini.get(0)], version="3", property_names=["a"]),
            progress=False,
        )
