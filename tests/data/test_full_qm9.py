"""The whole QM9, built from the installed wheel."""

from __future__ import annotations

import pytest
import torch

from pyg_se3.data import QM9, get_target
from pyg_se3.data.graphs import radius_graph

pytestmark = pytest.mark.data

# Mean and standard deviation over all molecules.
STATISTICS = {
    "mu": (2.6730, 1.5035),
    "alpha": (75.281, 8.174),
    "homo": (-6.5365, 0.5977),
    "lumo": (0.3220, 1.2749),
    "gap": (6.8585, 1.2842),
    "r2": (1189.4, 280.5),
    "zpve": (4.0569, 0.9017),
    "U0": (-11179.0, 1085.58),
    "U0_atom": (-76.116, 10.324),
    "G_atom": (-70.837, 9.498),
    "Cv": (31.620, 4.068),
}


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return QM9(tmp_path_factory.mktemp("full"), progress=False)


def test_counts(full):
    store = full.store
    assert len(full) == 130_831
    assert int(store.idx[0]) == 0 and int(store.idx[-1]) == 133_884
    assert (store.idx.diff() > 0).all()
    assert store.num_atoms.float().mean().item() == pytest.approx(18.03, abs=5e-3)
    assert int(store.num_atoms.max()) == 29
    assert store.num_edges.float().mean().item() == pytest.approx(37.31, abs=5e-3)
    shares = torch.bincount(store.edge_type.long(), minlength=4) / store.edge_type.numel()
    assert shares.tolist() == pytest.approx([0.928, 0.057, 0.015, 0.0], abs=1e-3)


def test_statistics(full):
    for name, (mean, std) in STATISTICS.items():
        assert full.mean(name) == pytest.approx(mean, rel=2e-4), name
        assert full.std(name) == pytest.approx(std, rel=2e-4), name
    y = full.y
    gap = y[:, get_target("lumo").index] - y[:, get_target("homo").index]
    assert (gap - y[:, get_target("gap").index]).abs().max() < 0.0028


def test_bonds_are_symmetric_connected_and_of_right_valence(full):
    store = full.store
    owner = torch.repeat_interleave(store.num_edges, output_size=store.edge_index.size(1))
    source, target = store.edge_index.long() + store.ptr[owner]
    n = store.z.numel()
    kind = store.edge_type.long()
    forward = (source * n + target) * 4 + kind
    backward = (target * n + source) * 4 + kind
    assert torch.equal(forward.sort().values, backward.sort().values)
    assert (source != target).all() and forward.unique().numel() == forward.numel()
    # Connected: the smallest label of the neighbours spreads over the whole molecule.
    label = torch.arange(n)
    for _ in range(29):
        label = label.scatter_reduce(0, target, label[source], "amin")
    first = torch.repeat_interleave(store.ptr[:-1], store.num_atoms)
    assert torch.equal(label, first)
    # Neutral molecules: formal charges, deduced from valences, cancel.
    valence = torch.zeros(n, dtype=torch.long).index_add_(0, target, kind + 1)
    normal = torch.tensor([0, 1, 0, 0, 0, 0, 4, 3, 2, 1])
    excess = valence - normal[store.z.long()]
    charge = torch.where(store.z == 6, -excess.abs(), excess)
    assert (excess[(store.z == 1) | (store.z == 9)] == 0).all()
    assert excess.min() >= -1 and excess.max() <= 1
    molecule = torch.repeat_interleave(store.num_atoms)
    total = torch.zeros(len(full), dtype=torch.long).index_add_(0, molecule, charge)
    assert (total == 0).all()
    # Charged molecules are rare.
    assert 0 < (charge != 0).sum() < 0.01 * n


def test_radius_graph_sizes(full):
    for cutoff, edges in {2.0: 47, 3.0: 148, 5.0: 281}.items():
        batch = full.batch(range(0, len(full), 200))
        found = radius_graph(batch.pos, cutoff, batch.batch).size(1) / batch.num_graphs
        assert found == pytest.approx(edges, rel=0.02)
