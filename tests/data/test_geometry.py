from __future__ import annotations

import pickle

import pytest
import torch

from pyg_se3.data import EpochSampler, GeometryCache, MoleculeLoader, QM9DataModule
from pyg_se3.so3 import EdgeGeometry, pack_frames


def frames_of(batch, degree):
    source, target = batch.edge_index
    return pack_frames(EdgeGeometry.from_vectors(batch.pos[target] - batch.pos[source], degree))


@pytest.mark.parametrize("where", ["ram", "disk"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_frames_are_those_of_the_batch(where, dtype, mini, tmp_path):
    folder = tmp_path if where == "disk" else None
    found = GeometryCache(mini, 2, dtype, folder=folder, progress=False)
    rows = torch.tensor([5, 63, 0, 0, 17])
    for geometry in (found, pickle.loads(pickle.dumps(found))):
        batch = geometry.attach(mini.gather(rows), rows)
        assert torch.equal(batch.edge_frames, frames_of(batch, 2).to(getattr(torch, dtype)))
        for data, row in zip(batch.to_data_list(), rows.tolist(), strict=True):
            assert torch.equal(data.edge_frames, frames_of(mini[row], 2).to(data.edge_frames.dtype))
    assert found.bytes_per_edge == 34 * (4 if dtype == "float32" else 2)
    assert len(list(tmp_path.iterdir())) == (3 if where == "disk" else 0)  # data, manifest, lock


def test_file_is_made_once_and_again_if_damaged(mini, tmp_path, capfd, monkeypatch):
    passes = []
    real = mini.store.gather

    def counting(*args):
        passes.append(args)
        return real(*args)

    monkeypatch.setattr(type(mini), "gather", lambda self, *args: counting(*args))
    first = GeometryCache(mini, 2, folder=tmp_path, progress=False)
    expected = first.frames.clone()
    assert len(passes) == 1
    assert GeometryCache(mini, 2, folder=tmp_path, progress=False).path == first.path
    assert len(passes) == 1
    for other in (
        GeometryCache(mini, 1, folder=tmp_path, progress=False),
        GeometryCache(mini, 2, "bfloat16", folder=tmp_path, progress=False),
    ):
        assert other.path != first.path
    content = bytearray(first.path.read_bytes())
    content[1000] ^= 0xFF
    first.path.write_bytes(bytes(content))
    again = GeometryCache(mini, 2, folder=tmp_path, progress=False)
    assert "checksum is wrong" in capfd.readouterr().err
    assert torch.equal(again.frames, expected)


def test_loader_gives_them_with_subsets_and_workers(mini, tmp_path):
    geometry = GeometryCache(mini, 2, folder=tmp_path, progress=False)
    part = mini.subset(torch.arange(40, 60))
    for workers in (0, 1):
        loader = MoleculeLoader(
            part, 7, sampler=EpochSampler(20), geometry=geometry, num_workers=workers
        )
        for batch in loader:
            assert torch.equal(batch.edge_frames, frames_of(batch, 2))


@pytest.fixture
def make(mini_root, mini_path):
    def make(**kwargs):
        return QM9DataModule(
            str(mini_root), raw_path=str(mini_path), split=[0.7, 0.15, 0.15], progress=False,
            geometry_max_degree=2, **kwargs,
        )  # fmt: skip

    return make


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_data_module(where, make):
    dm = make(precompute_geometry=where)
    dm.setup()
    for loader in (dm.train_dataloader(), dm.val_dataloader(), dm.test_dataloader()):
        for batch in loader:
            assert torch.equal(batch.edge_frames, frames_of(batch, 2))
    plain = make()
    plain.setup()
    assert "edge_frames" not in next(iter(plain.train_dataloader()))


def test_off_for_training_where_atoms_move(make, capfd):
    def move(data):
        data.pos = data.pos + 1.0
        return data

    dm = make(precompute_geometry="ram", train_transform=move)
    dm.setup()
    batch = next(iter(dm.train_dataloader()))
    assert "train_transform may move atoms" in capfd.readouterr().err
    assert "edge_frames" not in batch
    rows = torch.tensor([dm.dataset.store.idx.tolist().index(i) for i in batch.idx.tolist()])
    assert torch.allclose(batch.pos, dm.dataset.gather(rows).pos + 1.0)
    assert "edge_frames" in next(iter(dm.val_dataloader()))
    assert "train_transform" not in dm.hparams


def test_refused(make, mini, mini_root, mini_path):
    with pytest.raises(ValueError, match="precompute_geometry='gpu'"):
        make(precompute_geometry="gpu")
    with pytest.raises(ValueError, match="geometry_dtype='float16'"):
        make(geometry_dtype="float16")
    with pytest.raises(ValueError, match="degree 0 needs no edge frames"):
        GeometryCache(mini, 0)
    with pytest.raises(ValueError, match="whole data set"):
        GeometryCache(mini.subset(torch.arange(3)), 1)
    dm = QM9DataModule(
        str(mini_root), raw_path=str(mini_path), split=[0.7, 0.15, 0.15], progress=False,
        precompute_geometry="ram",
    )  # fmt: skip
    dm.setup()
    with pytest.raises(ValueError, match="needs geometry_max_degree"):
        dm.train_dataloader()
