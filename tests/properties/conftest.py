"""Small models, and graphs that are like molecules."""

import itertools

import pytest
import torch
from torch_geometric.data import Data

from pyg_se3 import TFN, SE3Transformer, SE3TransformerPooled

CHANNELS = 3  # of degree 0 on every node


def transformer(**options):
    arguments = {"num_layers": 2, "num_heads": 2, "radial_hidden": 8, **options}
    return SE3Transformer(
        {0: CHANNELS}, {0: 4, 1: 4, 2: 4}, {0: 2, 1: 2}, fiber_edge={0: 1}, **arguments
    )


def pooled(**options):
    arguments = {"num_layers": 2, "num_heads": 2, "radial_hidden": 8, **options}
    return SE3TransformerPooled({0: CHANNELS}, 3, 4, fiber_edge={0: 1}, **arguments)


def tfn(**options):
    arguments = {"num_layers": 2, "radial_hidden": 8, **options}
    return TFN({0: CHANNELS}, {0: 4, 1: 3, 2: 2}, {0: 2, 1: 2}, fiber_edge={0: 1}, **arguments)


MAKERS = {"transformer": transformer, "pooled": pooled, "tfn": tfn}


@pytest.fixture(scope="session", params=MAKERS.values(), ids=MAKERS)
def make_model(request):
    return request.param


@pytest.fixture(scope="session")
def output_fiber(make_model):
    return {0: 1} if make_model is pooled else {0: 2, 1: 2}


def _graph(pos, edges, seed=0, dtype=torch.float64):
    """Graph of positions and edges; node and edge features are random, the same both ways."""
    generator = torch.Generator().manual_seed(seed)
    pos = torch.as_tensor(pos, dtype=dtype).view(-1, 3)
    x = torch.randn(pos.shape[0], CHANNELS, dtype=torch.float64, generator=generator)
    index = torch.tensor(edges, dtype=torch.long).view(-1, 2).T.contiguous()
    bond = torch.randn(1000, generator=generator, dtype=torch.float64)
    kinds = bond[index.sum(0) % 1000][:, None]
    return Data(x=x.to(dtype), pos=pos, edge_index=index, edge_attr=kinds.to(dtype))


@pytest.fixture(scope="session")
def make_graph():
    return _graph


def _both_ways(pairs):
    return [edge for i, j in pairs for edge in ((i, j), (j, i))]


@pytest.fixture(scope="session")
def chiral():
    """A carbon with four different neighbours, all atoms joined to all; Angstrom."""
    pos = [[0, 0, 0], [0.63, 0.63, 0.63], [0.8, -0.8, -0.8], [-1.0, 1.0, -1.0], [-1.1, -1.1, 1.1]]
    return _graph(pos, _both_ways(itertools.combinations(range(5), 2)), seed=1)


@pytest.fixture(scope="session")
def chain():
    """A bent chain of six atoms, bonds only."""
    pos = [[0, 0, 0], [1.4, 0.2, 0], [2.0, 1.5, 0.3], [3.3, 1.4, 1.0], [4.0, 2.6, 0.8]]
    pos += [[5.2, 2.4, 1.7]]
    return _graph(pos, _both_ways([(i, i + 1) for i in range(5)]), seed=2)
