"""Force training: second derivatives of layers whose edge lengths need a gradient."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from pyg_se3 import KernelOptions, SE3TransformerPooled
from pyg_se3.fiber import Fiber
from pyg_se3.nn import SE3Attention, TFNConv
from pyg_se3.ops import AttentionShape
from pyg_se3.ops.attention_autograd import attention
from pyg_se3.ops.autograd_tools import wanted_gradients

EDGES = torch.tensor([(i, j) for i in range(5) for j in range(5) if i != j]).T

CONVOLUTIONS = [
    # fiber_in, fiber_out, fiber_edge, arguments
    ({0: 4, 1: 4, 2: 4}, {0: 4, 1: 4, 2: 4}, {}, {}),
    ({0: 2, 1: 3}, {0: 4, 2: 1}, {}, {"sharing": "pairwise"}),
    ({1: 2}, {0: 3, 1: 3, 3: 2}, {}, {"sharing": "output", "radial_layer_norm": False}),
    ({0: 3}, {0: 2, 1: 2}, {0: 2}, {"sharing": "input"}),
    ({0: 2, 2: 2}, {0: 4}, {}, {}),
    ({0: 2, 1: 2}, {0: 2, 1: 2}, {0: 1, 1: 1}, {}),
]


def _positions(nodes=5):
    """Generic positions; some edges lie on both poles of the polar axis."""
    pos = torch.randn(nodes, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pos[1] = pos[0] + torch.tensor([0.0, 1.5, 0.0])
    return pos


def _edge_attr(fiber_edge, edges):
    if not fiber_edge:
        return None
    generator = torch.Generator().manual_seed(2)
    return torch.randn(edges, Fiber(fiber_edge).dim, dtype=torch.float64, generator=generator)


def _force_step(layer, options, pos, edges, attr=None, dtype=torch.float64, first=("pos", "x")):
    """Output, first gradients with a graph, and gradients of a function of all of them."""
    layer = layer.to(dtype)
    (layer if isinstance(layer, TFNConv) else layer.to_key_value).kernel_options = options
    layer.zero_grad()
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(len(pos), layer.fiber_in.dim, dtype=torch.float64, generator=generator)
    leaves = {"pos": pos, "x": x}
    leaves = {n: t.to(dtype).clone().requires_grad_() for n, t in leaves.items()}
    parameters = dict(layer.named_parameters())
    y = layer(leaves["x"], edges, leaves["pos"], None if attr is None else attr.to(dtype))
    wanted = {n: t for n, t in (leaves | parameters).items() if n in first}
    gradients = torch.autograd.grad(
        y.sin().sum(), list(wanted.values()), create_graph=True, materialize_grads=True
    )
    (y.square().sum() + sum((g + 1).square().sum() for g in gradients)).backward()
    found = {"y": y} | {f"d {n}": g for n, g in zip(wanted, gradients, strict=True)}
    found |= {f"d2 {n}": t.grad for n, t in (leaves | parameters).items() if t.grad is not None}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


@pytest.mark.parametrize(("fiber_in", "fiber_out", "fiber_edge", "arguments"), CONVOLUTIONS)
@pytest.mark.parametrize("compress", [None, False, True])
def test_convolution(fiber_in, fiber_out, fiber_edge, arguments, compress, assert_agree, reference):
    torch.manual_seed(0)
    layer = TFNConv(fiber_in, fiber_out, fiber_edge=fiber_edge, hidden=6, **arguments)
    attr = _edge_attr(fiber_edge, EDGES.shape[1])
    options = KernelOptions(kernel="edge", compress=compress, chunk_size=7)
    got = _force_step(layer, options, _positions(), EDGES, attr)
    assert_agree(got, _force_step(layer, reference, _positions(), EDGES, attr))


@pytest.mark.parametrize(
    ("fiber_in", "fiber_out"),
    [
        ({0: 4, 1: 4}, {0: 8, 1: 8}),
        ({0: 3}, {0: 8, 1: 8, 2: 8}),
        ({0: 2, 1: 3}, {0: 4, 1: 8}),
    ],
)
@pytest.mark.parametrize("compress", [False, True])
def test_attention(fiber_in, fiber_out, compress, assert_agree, reference):
    torch.manual_seed(0)
    layer = SE3Attention(fiber_in, fiber_out, num_heads=2, hidden=6)
    options = KernelOptions(kernel="edge", compress=compress, chunk_size=7)
    got = _force_step(layer, options, _positions(), EDGES)
    assert_agree(got, _force_step(layer, reference, _positions(), EDGES))


@pytest.mark.parametrize("kind", [TFNConv, SE3Attention])
def test_zero_lengths_and_no_edges(kind, assert_agree, reference):
    torch.manual_seed(0)
    layer = kind({0: 8, 1: 8}, {0: 16, 1: 16}, hidden=5)
    pos = _positions()
    pos[4] = pos[3]
    loops = torch.tensor([[0, 1, 3, 4, 2], [0, 0, 4, 2, 3]])
    options = KernelOptions(kernel="edge")
    for edges in (loops, loops[:, :1], loops[:, :0]):
        got = _force_step(layer, options, pos, edges)
        assert_agree(got, _force_step(layer, reference, pos, edges))


def test_gradients_of_parameters_with_a_graph(assert_agree, reference):
    """Not what forces need, but possible: it runs on differentiable operations."""
    torch.manual_seed(0)
    layer = TFNConv({0: 2, 1: 2}, {0: 2, 1: 2}, hidden=5)
    first = ("pos", "weight.weights.1,1", "radial.0.0.weight")
    options = KernelOptions(kernel="edge")
    got = _force_step(layer, options, _positions(), EDGES, first=first)
    assert_agree(got, _force_step(layer, reference, _positions(), EDGES, first=first))


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("kind", [TFNConv, SE3Attention])
def test_compressed_to_float32(kind, trained, assert_agree, reference):
    """Edges in two shells: their activations have a low rank in float32."""
    torch.manual_seed(0)
    layer = kind({0: 8, 1: 8}, {0: 16, 1: 16, 2: 16}, hidden=32)
    for parameter in layer.parameters():
        parameter.requires_grad_(trained)
    generator = torch.Generator().manual_seed(4)
    directions = torch.randn(700, 3, dtype=torch.float64, generator=generator)
    lengths = torch.cat([torch.linspace(1.0, 1.05, 300), torch.linspace(1.4, 1.5, 400)])
    shell = lengths.double()[:, None] * torch.nn.functional.normalize(directions)
    pos = torch.cat([torch.zeros(1, 3, dtype=torch.float64), shell])
    edges = torch.stack([torch.arange(1, 701), torch.zeros(700, dtype=torch.long)])
    expected = _force_step(layer, reference, pos, edges)
    got = _force_step(layer, KernelOptions(kernel="edge"), pos, edges, dtype=torch.float32)
    plain = _force_step(layer, reference, pos, edges, dtype=torch.float32)
    for name, exact in expected.items():
        scale = exact.norm() + 1e-12
        error, usual = (got[name] - exact).norm() / scale, (plain[name] - exact).norm() / scale
        assert error <= 4 * usual + 4e-6, f"{name}: {error:.1e} instead of {usual:.1e}"


@pytest.mark.parametrize("arguments", [{}, {"radial_layer_norm": False}])
def test_gradgradcheck(arguments):
    torch.manual_seed(0)
    layer = SE3Attention({0: 2, 1: 2}, {0: 2, 1: 2}, num_heads=1, hidden=4, **arguments).double()
    layer.to_key_value.kernel_options = KernelOptions(kernel="edge")
    edges = EDGES[:, (EDGES < 3).all(0)]
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    pos = _positions(3).requires_grad_()
    assert gradcheck(lambda x, pos: layer(x, edges, pos), (x, pos))
    assert gradgradcheck(lambda x, pos: layer(x, edges, pos), (x, pos))


@pytest.mark.parametrize("alike", [True, False])
def test_attention_over_messages(alike):
    shape = AttentionShape(Fiber({0: 2, 1: 2}), Fiber({0: 2, 1: 2} if alike else {1: 4}), 2)
    fiber = shape.value + shape.key
    target = torch.tensor([0, 0, 2, 2, 2])
    messages = torch.randn(5, fiber.dim, dtype=torch.float64, requires_grad=True)
    query = torch.randn(3, shape.key.dim, dtype=torch.float64, requires_grad=True)

    def attend(messages, query):
        return attention(shape, messages, fiber, query, target, size=2)

    expected = shape.attend(messages, fiber, query, target)
    torch.testing.assert_close(attend(messages, query), expected, rtol=1e-12, atol=1e-12)
    assert gradcheck(attend, (messages, query))
    assert gradgradcheck(attend, (messages, query))


@pytest.mark.parametrize("detach_geometry", [False, True])
@pytest.mark.parametrize("memory", ["low", "default", "fast"])
def test_whole_models(memory, detach_geometry, assert_agree):
    torch.manual_seed(0)
    model = SE3TransformerPooled(
        {0: 2}, 2, 8, num_layers=2, num_heads=2, detach_geometry=detach_geometry
    ).double()
    x = torch.randn(5, 2, dtype=torch.float64)

    def force_step(options):
        model.set_kernel(options)
        model.zero_grad()
        pos = _positions().requires_grad_()
        energy = model(x, pos, EDGES).sum()
        (forces,) = torch.autograd.grad(-energy, pos, create_graph=True)
        (energy.square() + forces.square().sum()).backward()
        found = {"energy": energy, "forces": forces, "pos": pos.grad}
        found |= {n: p.grad for n, p in model.named_parameters()}
        return {name: tensor.detach().clone() for name, tensor in found.items()}

    got = force_step(KernelOptions(memory=memory, chunk_size=7))
    assert_agree(got, force_step(KernelOptions(kernel="reference")))


def test_autocast_keeps_close_to_float32():
    torch.manual_seed(0)
    layer = SE3Attention({0: 8, 1: 8}, {0: 16, 1: 16}, hidden=8)
    options = KernelOptions(kernel="edge")
    expected = _force_step(layer, options, _positions(), EDGES, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = _force_step(layer, options, _positions(), EDGES, dtype=torch.float32)
    for name in ("y", "d pos", "d2 pos"):
        assert (got[name] - expected[name]).norm() <= 0.1 * expected[name].norm(), name


@pytest.mark.parametrize("kind", [TFNConv, SE3Attention])
def test_third_derivatives_name_the_reference(kind):
    torch.manual_seed(0)
    layer = kind({0: 8, 1: 8}, {0: 16, 1: 16}, hidden=5).double()
    x, pos = torch.randn(5, 32, dtype=torch.float64), _positions().requires_grad_()
    for wanted in ([pos], [pos, *layer.parameters()]):
        y = layer(x, EDGES, pos)
        first = torch.autograd.grad(y.sin().sum(), wanted, create_graph=True)
        with pytest.raises(NotImplementedError, match="kernel='reference'"):
            torch.autograd.grad(first[0].sin().sum(), pos, create_graph=True)


def test_only_what_is_asked_for_is_wanted():
    class Product(torch.autograd.Function):
        asked = ()

        @staticmethod
        def forward(ctx, name, a, index, b):
            ctx.save_for_backward(a, b)
            return a * b

        @staticmethod
        def backward(ctx, gradient):
            Product.asked = wanted_gradients(ctx)
            a, b = ctx.saved_tensors
            return None, gradient * b, None, gradient * a

    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    for first, second in ((a, b), (a * 1, b * 1)):
        y = Product.apply("name", first, torch.arange(2), second).sum()
        torch.autograd.grad(y, a, retain_graph=True)
        assert Product.asked == [True, False, False]
        torch.autograd.grad(y, b, retain_graph=True)
        assert Product.asked == [False, False, True]
        y.backward()
        assert Product.asked == [True, False, True]
