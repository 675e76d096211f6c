from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Batch

from pyg_se3.data import MoleculeStore, StoreBuilder


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 63), min_size=1, max_size=20))
def test_gather_is_pygs_collation(mini, indices):
    fast = mini.batch(indices)
    slow = Batch.from_data_list([mini[i] for i in indices])
    assert set(fast.keys()) == set(slow.keys())
    for key in slow.keys():
        assert fast[key].dtype == slow[key].dtype
        assert torch.equal(fast[key], slow[key]), key
    assert fast.num_graphs == slow.num_graphs == len(indices)
    for one, other in zip(fast.to_data_list(), slow.to_data_list(), strict=True):
        assert set(one.keys()) == set(other.keys())
        assert all(torch.equal(one[key], other[key]) for key in other.keys())
    assert fast.validate()


def test_batch_behaves_like_one(mini):
    batch = mini.batch([3, 1, 2])
    assert type(batch) is type(Batch.from_data_list([mini[0]]))
    assert batch.to("cpu").num_graphs == 3
    assert batch.num_nodes == int(batch.ptr[-1])
    assert batch[1].idx.tolist() == mini[1].idx.tolist()
    assert batch.clone().num_graphs == 3


def test_columns(mini):
    assert torch.equal(mini.batch([5, 0], [4, 2]).y, mini.batch([5, 0]).y[:, [4, 2]])
    assert mini.store.item(5, [4]).y.shape == (1, 1)


def test_items_do_not_share_memory_with_the_store(mini):
    before = mini[0].pos.clone()
    data = mini[0]
    data.pos += 1
    data.idx += 1
    mini.batch([0]).pos.zero_()
    assert torch.equal(mini[0].pos, before)
    assert mini[0].idx.item() == 0


@pytest.mark.parametrize("indices", [[64], [-1]])
def test_out_of_range(mini, indices):
    with pytest.raises(IndexError, match=r"0\.\.63"):
        mini.batch(indices)


def test_empty_batch(mini):
    with pytest.raises(ValueError, match="at least one"):
        mini.batch([])


def test_edges_without_type_and_single_atoms():
    builder = StoreBuilder()
    empty = torch.zeros(2, 0, dtype=torch.long)
    builder.add(torch.tensor([8]), torch.zeros(1, 3), empty, None, torch.ones(2), 7)
    builder.add(
        torch.tensor([1, 9]), torch.ones(2, 3), torch.tensor([[0], [1]]), None, torch.ones(2), 9
    )
    store = builder.build()
    batch = store.gather([1, 0])
    assert store.edge_dim == 0
    assert "edge_attr" not in batch
    assert batch.edge_index.tolist() == [[0], [1]]
    assert batch.idx.tolist() == [9, 7]
    assert batch.to_data_list()[1].edge_index.shape == (2, 0)


def test_builder_refuses():
    with pytest.raises(ValueError, match="no molecule"):
        StoreBuilder().build()
    builder = StoreBuilder()
    empty = torch.zeros(2, 0, dtype=torch.long)
    builder.add(torch.tensor([17]), torch.zeros(1, 3), empty, None, torch.ones(1), 0)
    with pytest.raises(ValueError, match=r"\[17\] have no feature"):
        builder.build()


def test_inconsistent_tensors_are_refused(mini):
    tensors = mini.store.tensors()
    with pytest.raises(ValueError, match="idx describes 63"):
        MoleculeStore.from_tensors(tensors | {"idx": tensors["idx"][1:]})
    with pytest.raises(ValueError, match="atoms"):
        MoleculeStore.from_tensors(tensors | {"z": tensors["z"][1:]})
