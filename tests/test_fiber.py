"""Fibers: what they accept, and the packed form."""

import pytest
import torch
from e3nn import o3
from hypothesis import given
from hypothesis import strategies as st

from pyg_se3 import Fiber

fibers = st.dictionaries(st.integers(0, 6), st.integers(1, 5), min_size=1, max_size=4).map(Fiber)


def test_is_sorted_by_degree_and_drops_empty_degrees():
    fiber = Fiber({2: 3, 0: 5, 1: 0})
    assert fiber.degrees == (0, 2)
    assert fiber.channels == (5, 3)
    assert list(fiber.items()) == [(0, 5), (2, 3)]
    assert 1 not in fiber and 2 in fiber
    assert fiber[2] == 3 and fiber.get(1, 0) == 0
    assert fiber.dim == 5 + 3 * 5
    assert fiber.sizes == (5, 15)
    assert fiber.max_degree == 2
    assert not fiber.is_uniform


def test_equality_hash_and_repr():
    assert Fiber({1: 2, 0: 3}) == Fiber({0: 3, 1: 2})
    assert hash(Fiber({1: 2, 0: 3})) == hash(Fiber({0: 3, 1: 2}))
    assert Fiber({0: 3}) != Fiber({0: 4})
    fiber = Fiber({2: 4, 0: 1})
    assert eval(repr(fiber), {"Fiber": Fiber}) == fiber
    assert Fiber(fiber) == fiber


def test_create_add_restrict_and_copy():
    assert Fiber.create(3, 8) == Fiber({0: 8, 1: 8, 2: 8})
    assert Fiber.create(3, 8).is_uniform
    assert Fiber({0: 1, 1: 2}) + Fiber({1: 3, 4: 1}) == Fiber({0: 1, 1: 5, 4: 1})
    assert Fiber({0: 1, 1: 2}).restricted_to({1: 9}) == Fiber({1: 2})
    copy = Fiber({0: 1}).to_dict()
    copy[0] = 5
    assert Fiber({0: 1})[0] == 1 and type(copy) is dict


def test_empty_fiber():
    assert not Fiber({})
    assert Fiber({}).max_degree == -1
    assert Fiber({}).dim == 0


def test_cannot_be_changed():
    fiber = Fiber({0: 1})
    with pytest.raises(TypeError):
        fiber[0] = 2
    with pytest.raises(AttributeError):
        fiber.extra = 1


@pytest.mark.parametrize("channels", [{-1: 2}, {0: -2}])
def test_negative_numbers_are_refused(channels):
    with pytest.raises(ValueError, match="degrees >= 0 and channels >= 0"):
        Fiber(channels)


@pytest.mark.parametrize("channels", [{0.0: 2}, {0: 2.5}, {"0": 2}, {0: True}, [(0, 2)], 3])
def test_other_than_integers_are_refused(channels):
    with pytest.raises(TypeError, match="expects"):
        Fiber(channels)


@pytest.mark.parametrize("arguments", [(0, 4), (2, 0)])
def test_create_needs_a_degree_and_a_channel(arguments):
    with pytest.raises(ValueError, match="at least one"):
        Fiber.create(*arguments)


def test_irreps_round_trip():
    fiber = Fiber({0: 16, 1: 8, 3: 2})
    assert fiber.to_irreps() == o3.Irreps("16x0e+8x1o+2x3o")
    assert Fiber.from_irreps(fiber.to_irreps()) == fiber
    assert Fiber.from_irreps("4x0e+2x0o+3x1e+1x1o") == Fiber({0: 6, 1: 4})


@given(fiber=fibers, rows=st.integers(0, 4))
def test_unpack_and_pack_are_inverse(fiber, rows):
    packed = torch.randn(rows, fiber.dim)
    features = fiber.unpack(packed)
    assert {d: f.shape for d, f in features.items()} == {
        d: (rows, c, 2 * d + 1) for d, c in fiber.items()
    }
    assert torch.equal(fiber.pack(features), packed)


def test_packed_layout_has_components_first_and_channels_contiguous():
    fiber = Fiber({0: 2, 1: 2})
    packed = torch.arange(8.0)[None]
    features = fiber.unpack(packed)
    assert features[0].tolist() == [[[0.0], [1.0]]]
    # channel 0 holds x, y, z at every second place
    assert features[1].tolist() == [[[2.0, 4.0, 6.0], [3.0, 5.0, 7.0]]]
    assert fiber.split(packed)[1].tolist() == [[[2.0, 3.0], [4.0, 5.0], [6.0, 7.0]]]
    assert features[1].data_ptr() == packed[:, 2:].data_ptr()


def test_degree_zero_alone_is_an_ordinary_tensor():
    x = torch.randn(5, 3)
    assert torch.equal(Fiber({0: 3}).pack({0: x[:, :, None]}), x)


def test_pack_names_what_does_not_fit():
    fiber = Fiber({0: 2, 1: 1})
    with pytest.raises(ValueError, match=r"degrees \[0\]"):
        fiber.pack({0: torch.zeros(3, 2, 1)})
    with pytest.raises(ValueError, match=r"degree 1 have shape \[3, 2, 3\], expected \[N, 1, 3\]"):
        fiber.pack({0: torch.zeros(3, 2, 1), 1: torch.zeros(3, 2, 3)})
    with pytest.raises(ValueError, match=r"shape \[3, 4\], expected \[N, 5\]"):
        fiber.unpack(torch.zeros(3, 4))
