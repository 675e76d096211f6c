"""All baselines are one function: same weights, same outputs and input gradients."""

import pytest
import torch
from benchmarks.baselines.layers import Graph
from benchmarks.baselines.nvidia import SE3Transformer, SE3TransformerPooled
from benchmarks.baselines.original import OriginalSE3Transformer, OriginalSE3TransformerPooled
from benchmarks.baselines.weights import copy_weights
from e3nn import o3


def random_graph(dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pos = torch.randn(9, 3, generator=generator, dtype=dtype)
    pairs = torch.randint(9, (2, 40), generator=generator)
    src, dst = pairs[:, pairs[0] != pairs[1]]
    batch = torch.tensor([0] * 4 + [1] * 5)
    return Graph(src, dst, pos[dst] - pos[src], 9, batch, 2)


def randomise(model):
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator).to(parameter)


POOLED = dict(
    fiber_in={0: 5}, fiber_edge={0: 3}, num_degrees=3, num_channels=8, num_layers=2, num_heads=2
)
MIXED = dict(
    fiber_in={0: 5, 1: 3},
    fiber_edge={0: 3, 1: 2},
    fiber_hidden={0: 8, 1: 4, 2: 4},
    fiber_out={0: 6, 1: 2},
    num_layers=2,
    num_heads=2,
)


def features(fiber, count, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        d: torch.randn(count, c, 2 * d + 1, generator=generator, dtype=dtype).requires_grad_()
        for d, c in fiber.items()
    }


def outputs_and_gradients(model, config, graph, dtype):
    nodes = features(config["fiber_in"], graph.num_nodes, dtype, 2)
    edges = features(config["fiber_edge"], len(graph.src), dtype, 3)
    out = model(graph, nodes, edges)
    out = torch.cat([y.flatten() for y in (out.values() if isinstance(out, dict) else [out])])
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(4), dtype=dtype)
    inputs = [*nodes.values(), *edges.values()]
    grads = torch.autograd.grad((out * probe).sum(), inputs)
    return [out.detach(), *grads]


def assert_same(actual, expected, tolerance):
    for a, b in zip(actual, expected, strict=True):
        assert b.abs().max() > 0
        assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("product", ["matmul", "broadcast"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    "execution", [dict(tensor_cores=True), dict(tensor_cores=False), dict(low_memory=True)]
)
def test_original_equals_nvidia(product, dtype, tolerance, execution):
    # Cast before copying: a factor of the 0,0 rows would round in float32.
    nvidia = SE3TransformerPooled(**POOLED, **execution).to(dtype)
    randomise(nvidia)
    original = OriginalSE3TransformerPooled(**POOLED, product=product).to(dtype)
    copy_weights(original, nvidia)
    graph = random_graph(dtype)
    expected = outputs_and_gradients(nvidia, POOLED, graph, dtype)
    actual = outputs_and_gradients(original, POOLED, graph, dtype)
    assert_same(actual, expected, tolerance)


def test_original_equals_nvidia_with_uneven_fibers_and_vector_edges():
    nvidia = SE3Transformer(**MIXED).double()
    randomise(nvidia)
    original = OriginalSE3Transformer(**MIXED).double()
    copy_weights(original, nvidia)
    graph = random_graph(torch.float64)
    expected = outputs_and_gradients(nvidia, MIXED, graph, torch.float64)
    actual = outputs_and_gradients(original, MIXED, graph, torch.float64)
    assert_same(actual, expected, 1e-11)


@pytest.mark.parametrize("execution", [dict(tensor_cores=False), dict(low_memory=True)])
def test_less_fused_nvidia_models_take_fully_fused_weights(execution):
    full = SE3TransformerPooled(**POOLED, tensor_cores=True).double()
    randomise(full)
    other = SE3TransformerPooled(**POOLED, **execution).double()
    copy_weights(other, full)
    graph = random_graph(torch.float64)
    expected = outputs_and_gradients(full, POOLED, graph, torch.float64)
    actual = outputs_and_gradients(other, POOLED, graph, torch.float64)
    assert_same(actual, expected, 1e-11)


def test_weights_do_not_go_from_pairwise_to_fused():
    pairwise = SE3TransformerPooled(**POOLED, low_memory=True)
    full = SE3TransformerPooled(**POOLED, tensor_cores=True)
    with pytest.raises(ValueError, match="'pair' into 'full'"):
        copy_weights(full, pairwise)


def test_equivariance():
    model = SE3Transformer(**MIXED).double()
    graph = random_graph(torch.float64)
    rotation = o3.rand_matrix(dtype=torch.float64)

    def rotate(x):  # degrees 0 and 1 only, on either side of the model
        return {d: y @ rotation.T if d else y for d, y in x.items()}

    nodes = features(MIXED["fiber_in"], 9, torch.float64, 2)
    edges = features(MIXED["fiber_edge"], len(graph.src), torch.float64, 3)
    turned = Graph(graph.src, graph.dst, graph.rel_pos @ rotation.T, 9)
    expected = rotate(model(graph, nodes, edges))
    actual = model(turned, rotate(nodes), rotate(edges))
    for d in expected:
        torch.testing.assert_close(actual[d], expected[d], rtol=1e-10, atol=1e-10)


def test_heads_that_do_not_divide_channels_are_refused():
    with pytest.raises(ValueError, match="3 heads do not divide 4 channels"):
        SE3TransformerPooled(**{**POOLED, "num_heads": 3})
