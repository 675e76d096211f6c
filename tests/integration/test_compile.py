"""torch.compile takes whole models, forward and backward, and one graph serves all sizes."""

import pytest
import torch

from pyg_se3 import KernelOptions, SE3TransformerPooled
from pyg_se3.so3 import EdgeGeometry


def graph(nodes, edges, seed):
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(nodes, (edges,), generator=generator)
    target = (source + torch.randint(1, nodes, (edges,), generator=generator)) % nodes
    return {
        "x": torch.randn(nodes, 2, generator=generator),
        "pos": torch.randn(nodes, 3, generator=generator),
        "edge_index": torch.stack([source, target]),
        "edge_attr": torch.randn(edges, 1, generator=generator),
        "batch": torch.arange(nodes) // (nodes // 3 + 1),
        "num_graphs": 3,
    }


def gradients(model, call, inputs):
    model.zero_grad()
    inputs["pos"].requires_grad_()
    output = call(**inputs)
    output.square().sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    found["pos"], inputs["pos"].grad = inputs["pos"].grad, None
    return output.detach(), found


@pytest.fixture(scope="module", params=["edge", "source"])
def models(request):
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = SE3TransformerPooled(
        {0: 2},
        2,
        4,
        fiber_edge={0: 1},
        num_layers=1,
        num_heads=2,
        kernel=KernelOptions(kernel=request.param),
    )
    torch._dynamo.utils.counters.clear()
    return model, torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")


def test_same_numbers_from_one_graph_for_all_sizes(models):
    model, compiled = models
    for number, (nodes, edges) in enumerate([(10, 40), (12, 55), (9, 31)]):
        inputs = graph(nodes, edges, number)
        output, expected = gradients(model, model, inputs)
        got_output, got = gradients(model, compiled, inputs)
        torch.testing.assert_close(got_output, output)
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, atol=1e-5, rtol=1e-4, msg=name)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_edges_of_zero_length_are_refused(models):
    inputs = graph(10, 40, 0)
    inputs["edge_index"][1, 3] = inputs["edge_index"][0, 3]
    with pytest.raises(ValueError, match="compiled models do not take edges of zero length"):
        models[1](**inputs)


def test_so_are_those_of_geometry_made_before(models):
    inputs = graph(10, 40, 0)
    inputs["edge_index"][1, 3] = inputs["edge_index"][0, 3]
    source, target = inputs["edge_index"]
    pos = inputs.pop("pos")
    geometry = EdgeGeometry.from_vectors(pos[target] - pos[source], models[0].max_degree)
    with pytest.raises(ValueError, match="compiled models do not take edges of zero length"):
        models[1](**inputs, geometry=geometry)
