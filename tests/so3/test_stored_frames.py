"""Edge frames stored as one tensor give the same geometry, or none."""

import pytest
import torch

from pyg_se3.so3 import EdgeGeometry, frame_width, pack_frames, unpack_frames


@pytest.fixture
def vectors(generator):
    random = torch.randn(20, 3, generator=generator)
    return torch.cat([random, torch.tensor([[0.0, 2.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 0.0]])])


def test_width():
    assert [frame_width(degree) for degree in range(4)] == [0, 9, 34, 83]


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_same_geometry(vectors, degree):
    expected = EdgeGeometry.from_vectors(vectors, 3)
    found = unpack_frames(vectors, pack_frames(expected), degree)
    assert len(found.wigner) == degree + 1
    for one, two in zip(found.wigner, expected.wigner, strict=False):
        assert torch.equal(one, two)
    assert torch.equal(found.distance, expected.distance)
    assert torch.equal(found.undirected, expected.undirected)


def test_bfloat16_is_rounded_and_not_more(vectors):
    expected = EdgeGeometry.from_vectors(vectors, 3)
    found = unpack_frames(vectors, pack_frames(expected).bfloat16(), 3)
    for one, two in zip(found.wigner, expected.wigner, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, two, rtol=0, atol=2**-8)
    assert torch.equal(found.distance, expected.distance)


@pytest.mark.parametrize(
    ("dtype", "angle"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)], ids=str
)
def test_frames_of_other_edges_are_not_used(vectors, dtype, angle):
    frames = pack_frames(EdgeGeometry.from_vectors(vectors, 2)).to(dtype)
    moved = vectors.clone()
    moved[3] += angle * moved[3].norm() * torch.linalg.cross(moved[3], moved[4]).sign()
    assert unpack_frames(vectors, frames, 2) is not None
    assert unpack_frames(moved, frames, 2) is None
    gone = vectors.clone()
    gone[3] = 0.0
    assert unpack_frames(gone, frames, 2) is None
    # A longer edge of the same direction has the same frame.
    assert unpack_frames(2 * vectors, frames, 2) is not None


def test_frames_are_not_taken_for_more_precise_than_they_are(vectors):
    frames = pack_frames(EdgeGeometry.from_vectors(vectors, 2))
    assert unpack_frames(vectors.double(), frames.double(), 2) is None


def test_refused(vectors):
    frames = pack_frames(EdgeGeometry.from_vectors(vectors, 2))
    with pytest.raises(ValueError, match=r"\[23, 34\], expected \[23, 83\].*up to 3"):
        unpack_frames(vectors, frames, 3)
    with pytest.raises(ValueError, match=r"expected \[22, 34\]"):
        unpack_frames(vectors[:-1], frames, 2)
    with pytest.raises(ValueError, match="torch.float16"):
        unpack_frames(vectors, frames.half(), 2)
