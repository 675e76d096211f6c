from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyg_se3.data import Split, make_split


def test_nvidia_is_torchs_random_split():
    n = 130_831
    test = int(0.1 * n)
    sizes = [100_000, n - 100_000 - test, test]
    generator = torch.Generator().manual_seed(0)
    expected = torch.utils.data.random_split(range(n), sizes, generator=generator)
    split = make_split(n, "nvidia")
    assert [len(part) for part in split.parts().values()] == [100_000, 17_748, 13_083]
    for part, other in zip(split.parts().values(), expected, strict=True):
        assert part.tolist() == other.indices


@given(
    st.integers(20, 500),
    st.tuples(st.floats(0.1, 0.8), st.floats(0.1, 0.5), st.floats(0.1, 0.5)),
    st.integers(0, 100),
)
def test_fractions(n, fractions, seed):
    total = sum(fractions)
    fractions = [f / total for f in fractions]
    split = make_split(n, fractions, seed)
    together = torch.cat(list(split.parts().values()))
    assert sorted(together.tolist()) == list(range(n))
    for part, fraction in zip(split.parts().values(), fractions, strict=True):
        assert abs(part.numel() - fraction * n) <= 1


def test_counts_and_seed():
    split = make_split(100, [50, 20, 10], seed=1)
    assert [p.numel() for p in split.parts().values()] == [50, 20, 10]
    assert split.fingerprint() == make_split(100, [50, 20, 10], seed=1).fingerprint()
    assert split.fingerprint() != make_split(100, [50, 20, 10], seed=2).fingerprint()
    assert make_split(100, split) is split


@pytest.mark.parametrize(
    ("n", "split", "message"),
    [
        (64, "nvidia", r"the data set has 64.*split=\[0.8, 0.1, 0.1\]"),
        (64, "random", "expected 'nvidia'"),
        (64, [0.8, 0.1], "three sizes"),
        (64, [0.8, 0.1, 0.2], "more than 1"),
        (64, [60, 4, 1], "do not fit"),
        (64, [60, 4, 0], "test set is empty.*larger data set"),
        (9, [0.9, 0.01, 0.09], "val set is empty"),
        (64, [0.8, 10, 10], "three fractions"),
        (64, [0.8, -0.1, 0.1], "three fractions"),
    ],
)
def test_bad_splits(n, split, message):
    with pytest.raises(ValueError, match=message):
        make_split(n, split)


def test_overlap_is_refused():
    part = torch.arange(3)
    with pytest.raises(ValueError, match="disjoint"):
        Split(part, part + 2, part + 9)
    with pytest.raises(ValueError, match="index 5"):
        make_split(4, Split(torch.tensor([0]), torch.tensor([1]), torch.tensor([5])))
