from __future__ import annotations

import io

import pytest
import torch

from pyg_se3.data import QM9DataModule


@pytest.fixture
def make(mini_root, mini_path):
    def make(**kwargs):
        options = {"split": [0.7, 0.15, 0.15], "progress": False} | kwargs
        return QM9DataModule(str(mini_root), raw_path=str(mini_path), **options)

    return make


def test_statistics_are_those_of_the_training_molecules(make):
    dm = make(target=["gap", "U0"])
    dm.prepare_data()
    dm.setup("fit")
    y = dm.dataset.y[dm.split.train][:, [4, 7]]
    assert torch.allclose(dm.target_mean.double(), y.mean(0), rtol=1e-6)
    assert torch.allclose(dm.target_std.double(), y.std(0), rtol=1e-6)
    seen = torch.cat([batch.y for batch in dm.train_dataloader()])
    assert torch.allclose(seen.mean(0), dm.target_mean, rtol=1e-5)
    assert not torch.allclose(dm.dataset.y[:, 4].mean().float(), dm.target_mean[0], rtol=1e-5)
    assert (dm.target_names, dm.target_units) == (["gap", "U0"], ["eV"] * 2)
    assert make(target=["gap", "mu"]).target_units == ["eV", "D"]


def test_sets(make):
    dm = make(batch_size=10, eval_batch_size=3)
    dm.setup()
    assert (dm.num_train, dm.num_val, dm.num_test) == (45, 9, 10)
    parts = [
        torch.cat([batch.idx for batch in loader]).tolist()
        for loader in (dm.train_dataloader(), dm.val_dataloader(), dm.test_dataloader())
    ]
    assert sorted(sum(parts, [])) == dm.dataset.store.idx.tolist()
    assert [batch.num_graphs for batch in dm.val_dataloader()] == [3, 3, 3]
    batch = next(iter(dm.train_dataloader()))
    assert batch.y.shape == (10, 1) and batch.x.size(1) == 6 and batch.edge_attr.size(1) == 4
    assert (dm.fiber_in, dm.fiber_edge) == ({0: 6}, {0: 4})
    assert dm.fiber_in[0] == dm.node_dim and dm.fiber_edge[0] == dm.edge_dim


def test_split_does_not_follow_the_training_seed(make):
    one, two, other = make(seed=1), make(seed=2), make(split_seed=1)
    for dm in (one, two, other):
        dm.setup()
    assert one.split.fingerprint() == two.split.fingerprint() != other.split.fingerprint()
    first = [next(iter(dm.train_dataloader())).idx.tolist() for dm in (one, two)]
    assert first[0] != first[1]


def test_limits(make):
    full, dm = make(), make(limit_train=20, limit_val=2, limit_test=3)
    full.setup()
    dm.setup()
    assert (dm.num_train, dm.num_val, dm.num_test) == (20, 2, 3)
    assert torch.equal(dm.split.train, full.split.train[:20])
    y = dm.dataset.y[dm.split.train][:, 2]
    assert dm.target_mean.item() == pytest.approx(y.mean().item())


def test_radius_graph_has_no_edge_features(make):
    dm = make(graph="radius", cutoff=3.0)
    dm.setup()
    assert dm.fiber_edge == {} and dm.edge_dim == 0
    assert "edge_attr" not in next(iter(dm.train_dataloader()))


def test_standardize_off(make):
    dm = make(standardize=False, limit_train=1)
    dm.setup()
    assert dm.target_mean.tolist() == [0.0] and dm.target_std.tolist() == [1.0]


def test_constant_target_says_what_to_do(make):
    with pytest.raises(ValueError, match="'homo' does not vary over the 1 training.*standardize"):
        make(limit_train=1).setup()


def test_constant_column(tmp_path, mini_path):
    lines = mini_path.read_text().splitlines()
    place = lines[0].split(",").index("HOMO_au") - len(lines[0].split(","))
    rows = [line.split(",") for line in lines[1:]]
    for row in rows:
        row[place] = "-0.25"
    raw = tmp_path / "raw.csv"
    raw.write_text("\n".join([lines[0]] + [",".join(row) for row in rows]))
    dm = QM9DataModule(
        str(tmp_path), raw_path=str(raw), split=[0.6, 0.2, 0.2], target="homo", progress=False
    )
    with pytest.raises(ValueError, match="'homo' does not vary over the 38 training"):
        dm.setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "homo-lumo"}, "unknown QM9 target"),
        ({"target": []}, "no target"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"limit_val": 0}, "limit_val must be at least 1"),
        ({"num_workers": -1}, "num_workers"),
        ({"split": "cormorant"}, "expected 'nvidia'"),
        ({"max_edges_per_batch": 9, "max_atoms_per_batch": 9}, "not both"),
    ],
)
def test_bad_options_are_found_at_once(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_small_data_with_nvidias_split(make):
    with pytest.raises(ValueError, match=r"split=\[0\.8, 0\.1, 0\.1\]"):
        make(split="nvidia").setup()


def test_before_setup(make):
    with pytest.raises(RuntimeError, match="call setup"):
        make().target_mean  # noqa: B018


def test_hyperparameters_load_safely(make):
    dm = make(target=["gap", "mu"], batch_size=7)
    stream = io.BytesIO()
    torch.save(dict(dm.hparams), stream)
    stream.seek(0)
    options = torch.load(stream, weights_only=True)
    assert options["batch_size"] == 7
    again = QM9DataModule(**options)
    again.setup()
    dm.setup()
    assert again.describe() == dm.describe()
    assert dm.describe()["targets"] == ["gap", "mu"]


def test_bounded_batches(make):
    for options, attribute in (
        ({"max_edges_per_batch": 300}, "num_edges"),
        ({"max_atoms_per_batch": 150}, "num_nodes"),
    ):
        dm = make(**options)
        dm.setup()
        batches = list(dm.train_dataloader())
        assert max(getattr(batch, attribute) for batch in batches) <= next(iter(options.values()))
        assert sum(batch.num_graphs for batch in batches) == dm.num_train
