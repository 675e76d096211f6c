from __future__ import annotations

import importlib.util
import pickle

import pytest
import torch
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.loader import DataLoader

from pyg_se3.data import QM9
from pyg_se3.data.readers import qm9pack_files, read_molecules


def test_first_molecule_is_methane(mini):
    data = mini[0]
    assert isinstance(data, Data)
    assert data.x.tolist() == [[0, 1, 0, 0, 0, 6]] + [[1, 0, 0, 0, 0, 1]] * 4
    assert data.z.tolist() == [6, 1, 1, 1, 1]
    assert data.edge_index.tolist() == [[0, 0, 0, 0, 1, 2, 3, 4], [1, 2, 3, 4, 0, 0, 0, 0]]
    assert data.edge_attr.tolist() == [[1, 0, 0, 0]] * 8
    assert data.y.shape == (1, 19) and data.y.dtype == torch.float32
    assert data.idx.tolist() == [0]
    assert mini.smiles(0) == "C"
    # Values of PyG's QM9: HOMO -0.3877 Ha, U0_atom.
    assert data.y[0, 2].item() == pytest.approx(-0.3877 * 27.211386246, rel=1e-6)
    assert data.y[0, 12].item() == pytest.approx(-17.1722, abs=1e-3)
    lengths = (data.pos[data.edge_index[0]] - data.pos[data.edge_index[1]]).norm(dim=1)
    assert torch.allclose(lengths, torch.full((8,), 1.0919), atol=1e-3)


def test_everything_is_finite_and_indices_ascend(mini):
    batch = mini.batch(range(64))
    assert all(torch.isfinite(batch[key]).all() for key in ("x", "pos", "y", "edge_attr"))
    assert (mini.store.idx.diff() > 0).all()
    assert (batch.edge_attr.sum(1) == 1).all()
    assert (batch.x[:, :5].sum(1) == 1).all()
    assert torch.equal(batch.x[:, 5].long(), batch.z)


def test_graph_kinds(mini_root, mini_path, mini):
    radius = QM9(mini_root, raw_path=mini_path, graph="radius", cutoff=2.5, progress=False)
    complete = QM9(mini_root, raw_path=mini_path, graph="complete", progress=False)
    for i in range(64):
        n = mini[i].num_nodes
        assert complete[i].edge_index.size(1) == n * (n - 1)
        assert "edge_attr" not in complete[i]
        pos, (source, target) = radius[i].pos, radius[i].edge_index
        assert ((pos[source] - pos[target]).norm(dim=1) <= 2.5 + 1e-5).all()
        # All bonds of these molecules are shorter than 2.5 Å.
        bonds = set(map(tuple, mini[i].edge_index.t().tolist()))
        assert bonds <= set(zip(source.tolist(), target.tolist(), strict=True))
    assert radius.edge_dim == 0 and mini.edge_dim == 4


def test_subsets(mini):
    subset = mini[torch.tensor([5, 3, 9])]
    assert len(subset) == 3
    assert torch.equal(subset.y, mini.y[[5, 3, 9]])
    assert torch.equal(subset.batch([2, 0]).idx, mini.batch([9, 5]).idx)
    assert subset.smiles(1) == mini.smiles(3)
    assert torch.equal(subset.num_atoms, mini.num_atoms[[5, 3, 9]])
    assert subset.mean("gap") == pytest.approx(mini.y[[5, 3, 9], 4].mean().item())
    assert subset.std("gap") == pytest.approx(mini.y[[5, 3, 9], 4].std().item())
    assert len(mini[:10][2:4]) == 2


def test_works_with_pygs_own_loader_and_transform(mini_root, mini_path, mini):
    batch = next(iter(DataLoader(mini, batch_size=7)))
    assert torch.equal(batch.pos, mini.batch(range(7)).pos)

    def mark(data):
        data.mark = torch.tensor([1])
        return data

    marked = QM9(mini_root, raw_path=mini_path, transform=mark, progress=False)
    assert next(iter(DataLoader(marked, batch_size=3))).mark.tolist() == [1, 1, 1]


def test_pickles(mini):
    again = pickle.loads(pickle.dumps(mini))
    assert torch.equal(again[7].pos, mini[7].pos)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "web"}, "source='web'.*qm9pack.*pyg"),
        ({"graph": "knn"}, "graph='knn'.*bonds.*radius.*complete"),
        ({"bonds": "single"}, "bonds='single'.*kekule.*aromatic"),
        ({"graph": "radius"}, "needs a cutoff"),
        ({"graph": "radius", "cutoff": -1.0}, "must be positive"),
        ({"cutoff": 3.0}, "for graph='radius' only"),
        ({"source": "pyg", "bonds": "aromatic"}, "Kekulé bonds only"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        QM9(tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_option_without_effect_warns(tmp_path, mini_path):
    with pytest.warns(UserWarning, match="no effect"):
        QM9(tmp_path, raw_path=mini_path, bonds="aromatic", graph="complete", progress=False)


def test_missing_qm9pack_says_how_to_install(tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "qm9pack" else real(name, *a)
    )
    with pytest.raises(ModuleNotFoundError, match="pip install qm9pack"):
        qm9pack_files()


def test_bad_raw_files(tmp_path, mini_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.csv"):
        QM9(tmp_path / "a", raw_path=tmp_path / "nothing.csv")
    lines = mini_path.read_text().splitlines()
    cut = tmp_path / "cut.csv"
    cut.write_text("\n".join(lines[:5])[:-200])
    with pytest.raises(ValueError, match=r"cut\.csv, line 5.*truncated"):
        list(read_molecules([cut]))
    cut.write_text(lines[0].replace("SMILES", "Smiles") + "\n" + lines[1])
    with pytest.raises(ValueError, match=r"columns \['SMILES'\] are missing"):
        list(read_molecules([cut]))
    cut.write_text("\n".join([lines[0], lines[2], lines[1]]))
    with pytest.raises(ValueError, match="rows must ascend"):
        QM9(tmp_path / "a", raw_path=cut, progress=False)
    swapped = lines[1].replace("1,C,5", "1,N,5", 1)
    cut.write_text("\n".join([lines[0], swapped]))
    with pytest.raises(ValueError, match="molecule with Index 1: SMILES 'N'.*different molecules"):
        QM9(tmp_path / "a", raw_path=cut, progress=False)
    assert not list((tmp_path / "a").glob("*.pt"))


def test_pyg_source(tmp_path, mini):
    """A small stand-in for what PyG's QM9 leaves on disk; the real one cannot be fetched here."""
    root = tmp_path / "pyg"
    (root / "raw").mkdir(parents=True)
    (root / "processed").mkdir()
    for name in ("gdb9.sdf", "gdb9.sdf.csv", "uncharacterized.txt", "qm9_v3.pt"):
        (root / "raw" / name).touch()
    items = []
    for i in range(10):
        data = mini[i].clone()
        data.x = torch.cat([data.x, torch.zeros(data.num_nodes, 5)], dim=1)
        data.smiles, data.name, data.idx = mini.smiles(i), f"gdb_{i}", int(data.idx)
        items.append(data)
    InMemoryDataset.save(items, str(root / "processed" / "data_v3.pt"))
    for dataset in (QM9(tmp_path, source="pyg"), QM9(tmp_path / "b", source="pyg", raw_path=root)):
        assert len(dataset) == 10
        for i in range(10):
            for key in ("x", "pos", "z", "edge_index", "edge_attr", "y", "idx"):
                assert torch.equal(dataset[i][key], mini[i][key]), key
    radius = QM9(tmp_path, source="pyg", graph="radius", cutoff=2.0)
    assert "edge_attr" not in radius[3]


def test_pyg_source_without_network(tmp_path, monkeypatch):
    from torch_geometric.datasets import QM9 as PyGQM9

    def refused(self):
        raise OSError("no route to host")

    monkeypatch.setattr(PyGQM9, "download", refused)
    with pytest.raises(RuntimeError, match="cannot be downloaded.*source='qm9pack'"):
        QM9(tmp_path, source="pyg")
