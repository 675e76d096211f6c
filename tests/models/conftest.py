"""Small models and graphs for them."""

import pytest
import torch

from pyg_se3 import TFN, SE3Transformer, SE3TransformerPooled
from pyg_se3.testing import random_graph

FIBER_IN, FIBER_EDGE = {0: 3, 1: 1}, {0: 2, 1: 1}
MODELS = {
    "transformer": (
        SE3Transformer,
        {
            "fiber_in": FIBER_IN,
            "fiber_hidden": {0: 4, 1: 4, 2: 4},
            "fiber_out": {0: 2, 1: 1},
            "fiber_edge": FIBER_EDGE,
            "num_layers": 2,
            "num_heads": 2,
            "radial_hidden": 8,
        },
    ),
    "pooled": (
        SE3TransformerPooled,
        {
            "fiber_in": FIBER_IN,
            "num_degrees": 2,
            "num_channels": 4,
            "output_dim": 3,
            "fiber_edge": FIBER_EDGE,
            "num_layers": 2,
            "num_heads": 2,
            "radial_hidden": 8,
        },
    ),
    "tfn": (
        TFN,
        {
            "fiber_in": FIBER_IN,
            "fiber_hidden": {0: 4, 1: 3},
            "fiber_out": {0: 2, 1: 1},
            "fiber_edge": FIBER_EDGE,
            "num_layers": 2,
            "radial_hidden": 8,
        },
    ),
}


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def recipe(request):
    """A model class and its arguments."""
    return request.param


@pytest.fixture
def model(recipe):
    kind, arguments = recipe
    return kind(**arguments).double()


@pytest.fixture
def graph():
    generator = torch.Generator().manual_seed(11)
    return random_graph(7, 20, FIBER_IN, fiber_edge=FIBER_EDGE, generator=generator)
