from __future__ import annotations

import builtins

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyg_se3.data import complete_graph, farthest_points, graphs, knn_graph, radius_graph


def brute(pos, batch, keep):
    edges = []
    for i in range(len(pos)):
        for j in range(len(pos)):
            if i != j and batch[i] == batch[j] and keep(i, j):
                edges.append((j, i))
    return torch.tensor(edges).reshape(-1, 2).t()


@st.composite
def clouds(draw):
    sizes = draw(st.lists(st.integers(1, 7), min_size=1, max_size=5))
    seed = draw(st.integers(0, 2**16))
    pos = torch.randn(sum(sizes), 3, generator=torch.Generator().manual_seed(seed)) * 2
    batch = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return pos, batch


@settings(max_examples=40, deadline=None)
@given(clouds(), st.floats(0.5, 5.0))
def test_radius(cloud, cutoff):
    pos, batch = cloud
    expected = brute(pos, batch, lambda i, j: (pos[i] - pos[j]).norm() <= cutoff)
    assert torch.equal(radius_graph(pos, cutoff, batch), expected)


@settings(max_examples=40, deadline=None)
@given(clouds(), st.integers(1, 8))
def test_knn(cloud, k):
    pos, batch = cloud
    edge_index = knn_graph(pos, k, batch)
    sizes = torch.bincount(batch)
    assert torch.equal(
        torch.bincount(edge_index[1], minlength=len(pos)), (sizes - 1).clamp(max=k)[batch]
    )
    assert (batch[edge_index[0]] == batch[edge_index[1]]).all()
    for i in range(len(pos)):
        sources = edge_index[0][edge_index[1] == i]
        others = [
            j for j in range(len(pos)) if j != i and batch[j] == batch[i] and j not in sources
        ]
        if len(sources) and others:
            nearest_left_out = (pos[others] - pos[i]).norm(dim=1).min()
            assert (pos[sources] - pos[i]).norm(dim=1).max() <= nearest_left_out + 1e-6


def test_dense_and_torch_cluster_agree(monkeypatch):
    pytest.importorskip("torch_cluster", reason="needs the extra accel (`make accel`)")
    pos = torch.randn(120, 3, generator=torch.Generator().manual_seed(0))
    batch = torch.arange(3).repeat_interleave(40)
    dense = radius_graph(pos, 1.3, batch), knn_graph(pos, 6, batch)
    limited = radius_graph(pos, 1.3, batch, max_num_neighbors=4)
    # A cube of side 0.1: everybody has more neighbours than torch_cluster's default limit of 32.
    crowd = torch.rand(80, 3, generator=torch.Generator().manual_seed(1)) * 0.1
    monkeypatch.setattr(graphs, "DENSE_LIMIT", 10)
    assert torch.equal(radius_graph(pos, 1.3, batch), dense[0])
    assert torch.equal(knn_graph(pos, 6, batch), dense[1])
    assert torch.equal(radius_graph(pos, 1.3, batch, max_num_neighbors=4), limited)
    assert radius_graph(crowd, 1.0).size(1) == 80 * 79


def test_complete():
    assert complete_graph(3).tolist() == [[1, 2, 0, 2, 0, 1], [0, 0, 1, 1, 2, 2]]
    assert complete_graph(1).shape == complete_graph(0).shape == (2, 0)


def test_farthest_points_spread():
    pytest.importorskip("torch_cluster", reason="needs the extra accel (`make accel`)")
    # Three tight clusters: three samples must come from three clusters.
    centre = torch.tensor([[0.0, 0, 0], [10, 0, 0], [0, 10, 0]])
    pos = (centre[:, None] + 0.01 * torch.rand(3, 10, 3)).reshape(-1, 3)
    chosen = farthest_points(pos, 0.1)
    assert sorted((chosen // 10).tolist()) == [0, 1, 2]


def test_missing_torch_cluster_names_the_command(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "torch_cluster":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"make accel.*pip install pyg-se3\[accel\]"):
        farthest_points(torch.zeros(3, 3), 0.5)
    monkeypatch.setattr(graphs, "DENSE_LIMIT", 2)
    with pytest.raises(ModuleNotFoundError, match="radius graphs.*make accel"):
        radius_graph(torch.zeros(3, 3), 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: radius_graph(torch.zeros(4, 2), 1.0), r"pos must be \[N, 3\], got \[4, 2\]"),
        (lambda: radius_graph(torch.zeros(4, 3), 0.0), "cutoff must be positive"),
        (lambda: radius_graph(torch.full((4, 3), float("nan")), 1.0), "not finite"),
        (lambda: knn_graph(torch.zeros(4, 3), 0), "k must be at least 1"),
        (lambda: knn_graph(torch.zeros(2, 3), 1, torch.tensor([1, 0])), "ascending"),
        (lambda: knn_graph(torch.zeros(2, 3), 1, torch.tensor([0])), r"batch must be \[2\]"),
        (lambda: complete_graph(-1), "negative"),
        (lambda: farthest_points(torch.zeros(4, 3), 0.0), "ratio"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_no_nodes():
    assert radius_graph(torch.zeros(0, 3), 1.0).shape == (2, 0)
    assert knn_graph(torch.zeros(0, 3), 3).shape == (2, 0)
