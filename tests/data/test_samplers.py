from __future__ import annotations

from itertools import chain, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler

from pyg_se3.data import BalancedBatchSampler, EpochSampler
from pyg_se3.data.samplers import even_batch_size


def ranks(world_size, **kwargs):
    return [EpochSampler(rank=r, world_size=world_size, **kwargs) for r in range(world_size)]


@given(st.integers(1, 60), st.integers(1, 5), st.booleans())
def test_evaluation_counts_every_item_once(size, world_size, shuffle):
    samplers = ranks(world_size, size=size, shuffle=shuffle, pad=False)
    parts = [list(s) for s in samplers]
    assert sorted(chain(*parts)) == list(range(size))
    assert [len(p) for p in parts] == [len(s) for s in samplers]


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 20))
def test_even_batch_size_is_the_largest_that_gives_ranks_equally_many_batches(
    size, world_size, at_most
):
    size += world_size
    lengths = [len(s) for s in ranks(world_size, size=size, shuffle=False, pad=False)]

    def even(batch_size):
        return len({-(-length // batch_size) for length in lengths}) == 1

    fitting = [b for b in range(1, at_most + 1) if even(b)]
    assert even_batch_size(size, world_size, at_most) == max(fitting, default=at_most)


@given(st.integers(1, 60), st.integers(1, 5))
def test_training_ranks_are_equally_long(size, world_size):
    samplers = ranks(world_size, size=size)
    parts = [list(s) for s in samplers]
    assert len({len(p) for p in parts}) == 1
    assert len(parts[0]) == len(samplers[0])
    assert set(chain(*parts)) == set(range(size))
    assert sum(map(len, parts)) - size < world_size


def test_ranks_together_see_what_one_process_sees():
    one = list(EpochSampler(40, seed=3))
    two = [list(s) for s in ranks(2, size=40, seed=3)]
    for step in range(5):
        both = two[0][4 * step : 4 * step + 4] + two[1][4 * step : 4 * step + 4]
        assert sorted(both) == sorted(one[8 * step : 8 * step + 8])


def test_order_depends_on_seed_and_epoch_only():
    first = EpochSampler(50, seed=1)
    torch.manual_seed(0)
    order = list(first)
    torch.manual_seed(1)
    assert list(first) == order == list(EpochSampler(50, seed=1))
    first.set_epoch(1)
    assert list(first) != order
    # Seed 2, epoch 0 is not seed 1, epoch 1.
    assert list(first) != list(EpochSampler(50, seed=2))
    first.set_epoch(0)
    assert list(first) == order


@given(st.integers(2, 40), st.integers(1, 4), st.integers(0, 40))
def test_start_leaves_out_what_was_done(size, world_size, start):
    for sampler in ranks(world_size, size=size, seed=2):
        whole = list(sampler)
        done = min(start // world_size, len(whole))
        sampler.start = done * world_size
        assert list(sampler) == whole[done:]
        assert len(sampler) == len(whole)
        sampler.set_epoch(0)
        assert sampler.start == done * world_size
        sampler.set_epoch(1)
        assert sampler.start == 0


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 30), min_size=8, max_size=80),
    st.integers(31, 200),
    st.integers(1, 3),
    st.integers(0, 3),
)
def test_balanced(sizes, max_size, world_size, epoch):
    try:
        samplers = [
            BalancedBatchSampler(torch.tensor(sizes), max_size, rank=r, world_size=world_size)
            for r in range(world_size)
        ]
    except ValueError as error:
        # More batches than molecules would be needed.
        assert "cannot be shared" in str(error) and world_size > 1
        return
    parts = []
    for sampler in samplers:
        sampler.set_epoch(epoch)
        parts.append(list(sampler))
        assert len(parts[-1]) == len(sampler)
    for batch in chain(*parts):
        assert batch
        assert sum(sizes[i] for i in batch) <= max_size
    assert sorted(chain(*chain(*parts))) == list(range(len(sizes)))
    assert len({len(part) for part in parts}) == 1


def test_balanced_is_balanced_and_resumes():
    sizes = torch.randint(10, 40, (500,), generator=torch.Generator().manual_seed(0))
    sampler = BalancedBatchSampler(sizes, 1000, seed=1)
    batches = list(sampler)
    totals = torch.tensor([int(sizes[b].sum()) for b in batches])
    assert totals.max() - totals.min() <= 40
    assert totals.min() > 930
    sampler.start = 5
    assert list(sampler) == batches[5:]
    sampler.set_epoch(1)
    assert list(sampler) != batches and len(list(sampler)) == len(batches)
    assert sampler.sampler is sampler


def test_balanced_with_a_few_huge_molecules():
    # One molecule nearly as large as a batch must not make all batches nearly empty.
    sizes = torch.cat([torch.randint(10, 40, (500,)), torch.tensor([950, 1000])])
    sampler = BalancedBatchSampler(sizes, 1000, seed=1)
    least = -(-int(sizes.sum()) // 1000)
    assert least <= sampler.num_batches <= least + 2
    assert max(int(sizes[batch].sum()) for batch in sampler) <= 1000


def test_ranks_have_equal_work_in_every_step():
    sizes = torch.randint(10, 200, (700,), generator=torch.Generator().manual_seed(0))
    parts = [list(BalancedBatchSampler(sizes, 2000, rank=r, world_size=3)) for r in range(3)]
    for step in zip(*parts, strict=True):
        totals = [int(sizes[batch].sum()) for batch in step]
        assert max(totals) - min(totals) <= 32


def test_balanced_batches_mix_anew_in_every_epoch():
    sizes = torch.randint(10, 40, (500,), generator=torch.Generator().manual_seed(0))
    sampler = BalancedBatchSampler(sizes, 1000, seed=1)
    partners = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        partners.append({frozenset(pair) for batch in sampler for pair in pairwise(batch)})
    assert len(partners[0] & partners[1]) < 0.05 * len(partners[0])


def test_lightning_recognises_them():
    assert isinstance(EpochSampler(3), DistributedSampler)
    assert isinstance(BalancedBatchSampler(torch.ones(3, dtype=torch.long), 2), DistributedSampler)


def test_refused():
    with pytest.raises(ValueError, match="size=0"):
        EpochSampler(0)
    with pytest.raises(ValueError, match="largest molecule has size 9"):
        BalancedBatchSampler(torch.tensor([3, 9]), 8)
    with pytest.raises(ValueError, match="got none"):
        BalancedBatchSampler(torch.tensor([]), 8)
    with pytest.raises(ValueError, match="3 ranks"):
        BalancedBatchSampler(torch.tensor([4, 4]), 8, world_size=3)
