"""Gradients with respect to positions, also where geometry is delicate."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from pyg_se3 import KernelOptions
from pyg_se3.testing import random_rotations

# every edge lies on an axis, two of them on the poles of the edge frame
AXES = [[0, 0, 0], [0, 1.5, 0], [0, -1.2, 0], [1.1, 0, 0], [-1.3, 0, 0], [0, 0, 1.4], [0, 0, -1]]
SPOKES = [edge for i in range(1, 7) for edge in ((0, i), (i, 0))]


def energy(model, graph, flat):
    """Output as a function of the positions."""

    def function(pos):
        moved = graph.clone()
        moved.pos = pos
        return flat(model(moved))

    return function


@pytest.fixture
def jack(make_graph):
    return make_graph(AXES, SPOKES, seed=3)


@pytest.mark.parametrize("name", ["chain", "chiral", "jack"])
def test_gradcheck_by_positions(make_model, name, flat, request, kernel):
    graph = request.getfixturevalue(name)
    model = make_model(num_layers=1, kernel=KernelOptions(kernel=kernel)).double()
    pos = graph.pos.clone().requires_grad_()
    assert gradcheck(energy(model, graph, flat), pos, fast_mode=True)


@pytest.mark.parametrize("name", ["chain", "jack"])
def test_gradgradcheck_by_positions(make_model, name, flat, request, kernel):
    graph = request.getfixturevalue(name)
    model = make_model(num_layers=1, kernel=KernelOptions(kernel=kernel)).double()
    pos = graph.pos.clone().requires_grad_()
    assert gradgradcheck(energy(model, graph, flat), pos, fast_mode=True)


def test_forces_can_be_trained_on(make_model, chain, flat, kernel):
    """Parameter gradients of a loss on forces agree with the reference kernel's."""
    model = make_model().double()
    found = []
    for options in (KernelOptions(kernel=kernel), KernelOptions(kernel="reference")):
        model.set_kernel(options)
        pos = chain.pos.clone().requires_grad_()
        total = flat(energy(model, chain, flat)(pos))[:, 0].sum()
        (forces,) = torch.autograd.grad(-total, pos, create_graph=True)
        loss = forces.square().sum()
        found.append(torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True))
    scale = max(float(g.abs().max()) for g in found[1])
    for got, expected in zip(*found, strict=True):
        assert (got - expected).abs().max() <= 1e-10 * max(scale, 1)


def test_forces_sum_to_zero_and_turn_with_the_molecule(make_model, chiral, generator):
    model = make_model().double()
    rotation = random_rotations(1, generator=generator)[0]

    def forces(pos):
        moved = chiral.clone()
        moved.pos = pos.detach().clone().requires_grad_()
        output = model(moved)
        total = output.sum() if torch.is_tensor(output) else output[0].sum()
        return -torch.autograd.grad(total, moved.pos)[0]

    before = forces(chiral.pos)
    assert before.abs().max() > 1e-6
    torch.testing.assert_close(before.sum(0), torch.zeros_like(before[0]), rtol=0, atol=1e-10)
    torque = torch.linalg.cross(chiral.pos, before).sum(0)
    torch.testing.assert_close(torque, torch.zeros_like(torque), rtol=0, atol=1e-10)
    after = forces(chiral.pos @ rotation.T)
    torch.testing.assert_close(after, before @ rotation.T, rtol=0, atol=1e-10)


def test_detached_geometry_leaves_the_distance(make_model, make_graph, flat):
    """NVIDIA's gradients: along the edges only, and the same output."""
    pair = make_graph([[0, 0, 0], [0.6, 0.8, 1.0]], [(0, 1), (1, 0)])
    whole = make_model().double()
    detached = make_model(detach_geometry=True).double()
    detached.load_state_dict(whole.state_dict())
    gradients = []
    for model in (whole, detached):
        pos = pair.pos.clone().requires_grad_()
        output = energy(model, pair, flat)(pos)
        weights = torch.arange(1.0, output.numel() + 1, dtype=torch.float64).view_as(output)
        gradients.append(torch.autograd.grad((output * weights).sum(), pos)[0])
        torch.testing.assert_close(output, flat(whole(pair)), rtol=0, atol=1e-14)
    unit = pair.pos[1] / pair.pos[1].norm()
    across = gradients[1] - (gradients[1] @ unit)[:, None] * unit
    assert gradients[1].abs().max() > 1e-6
    assert across.abs().max() < 1e-12
