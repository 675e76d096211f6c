"""Models that find edge frames in a batch use them, if they are right."""

import warnings

import pytest
import torch
from torch_geometric.data import Data

from pyg_se3 import SE3TransformerPooled
from pyg_se3.models import inputs
from pyg_se3.so3 import EdgeGeometry, pack_frames
from pyg_se3.testing import random_graph


@pytest.fixture
def model():
    return SE3TransformerPooled({0: 3}, 3, 4, num_layers=2, num_heads=2, radial_hidden=8)


@pytest.fixture
def data(generator):
    graph = random_graph(9, 30, {0: 3}, dtype=torch.float32, generator=generator)
    found = Data(x=graph.x, pos=graph.pos, edge_index=graph.edge_index)
    source, target = found.edge_index
    geometry = EdgeGeometry.from_vectors(found.pos[target] - found.pos[source], 2)
    found.edge_frames = pack_frames(geometry)
    return found


def without(data):
    plain = data.clone()
    del plain.edge_frames
    return plain


def test_same_prediction_without_computing_frames(model, data, monkeypatch):
    expected = model(without(data))

    def refuse(*args, **kwargs):
        raise AssertionError("frames are computed")

    monkeypatch.setattr(
        inputs, "edge_geometry", lambda degree, edges, pos, given, _: given or refuse()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = model(data)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_moved_atoms_and_gradients_are_seen(model, data):
    data.pos = data.pos + 0.05 * torch.randn_like(data.pos)
    with pytest.warns(UserWarning, match="frames are not used: positions have moved"):
        found = model(data)
    torch.testing.assert_close(found, model(without(data)))
    data.pos = data.pos.requires_grad_()
    with pytest.warns(UserWarning, match="frames are not used: positions need a gradient"):
        model(data).sum().backward()
    assert data.pos.grad.abs().sum() > 0


def test_bfloat16_changes_little(model, data):
    expected = model(without(data))
    data.edge_frames = data.edge_frames.bfloat16()
    torch.testing.assert_close(model(data), expected, rtol=2e-2, atol=2e-2)


def test_frames_of_too_low_degree_are_refused(data):
    model = SE3TransformerPooled({0: 3}, 4, 4, num_layers=1, num_heads=2, radial_hidden=8)
    with pytest.raises(ValueError, match="precompute them for this model"):
        model(data)
