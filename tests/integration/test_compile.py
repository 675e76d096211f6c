"""torch.compile and torch.export take whole models, and one graph serves all sizes."""

import pytest
import torch

from pyg_se3 import KernelOptions, SE3TransformerPooled
from pyg_se3.so3 import EdgeGeometry

KERNELS = ["auto", "edge", "source", "weights", "reference"]
SIZES = [(10, 40), (30, 300), (9, 31)]  # (nodes, edges), on both sides of what `auto` decides by


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


def make(kernel, memory="default"):
    torch.manual_seed(0)
    options = KernelOptions(kernel=kernel, memory=memory)
    return SE3TransformerPooled(
        {0: 2}, 2, 4, fiber_edge={0: 1}, num_layers=1, num_heads=2, kernel=options
    )


def compiled(model):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")


def assert_one_graph():
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize(
    "kernel, memory",
    [*((kernel, "default") for kernel in KERNELS), ("auto", "low"), ("auto", "fast")],
)
def test_same_gradients_from_one_graph_for_all_sizes(kernel, memory):
    model = make(kernel, memory)
    call = compiled(model)
    for number, (nodes, edges) in enumerate(SIZES):
        inputs = graph(nodes, edges, number)
        output, expected = gradients(model, model, inputs)
        got_output, got = gradients(model, call, inputs)
        torch.testing.assert_close(got_output, output)
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, atol=1e-5, rtol=1e-4, msg=name)
    assert_one_graph()


@pytest.mark.parametrize(
    "kernel, mode",
    [*((kernel, torch.no_grad) for kernel in KERNELS), ("auto", torch.inference_mode)],
)
def test_same_predictions_without_gradients(kernel, mode):
    model = make(kernel)
    call = compiled(model)
    with mode():
        for number, (nodes, edges) in enumerate(SIZES):
            inputs = graph(nodes, edges, number)
            torch.testing.assert_close(call(**inputs), model(**inputs))
    assert_one_graph()


@pytest.mark.parametrize("kernel", ["auto", "weights"])
def test_edges_of_zero_length_are_refused(kernel):
    inputs = graph(10, 40, 0)
    inputs["edge_index"][1, 3] = inputs["edge_index"][0, 3]
    with pytest.raises(ValueError, match="compiled models do not take edges of zero length"):
        compiled(make(kernel))(**inputs)


@pytest.mark.parametrize("kernel", KERNELS)
def test_but_geometry_made_before_may_have_some(kernel):
    model = make(kernel)
    inputs = graph(10, 40, 0)
    inputs["edge_index"][1, 3] = inputs["edge_index"][0, 3]
    source, target = inputs["edge_index"]
    pos = inputs.pop("pos")
    inputs["geometry"] = EdgeGeometry.from_vectors(pos[target] - pos[source], model.max_degree)
    with torch.no_grad():
        torch.testing.assert_close(compiled(model)(**inputs), model(**inputs))


class ThreeGraphs(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, pos, edge_index, edge_attr, batch):
        return self.model(x, pos, edge_index, edge_attr, batch, num_graphs=3)


@pytest.mark.parametrize("kernel", KERNELS)
def test_export(kernel, tmp_path):
    model = ThreeGraphs(make(kernel).eval())
    nodes, edges = torch.export.Dim("nodes", min=2), torch.export.Dim("edges", min=2)
    shapes = {
        "x": {0: nodes}, "pos": {0: nodes}, "edge_index": {1: edges}, "edge_attr": {0: edges},
        "batch": {0: nodes},
    }  # fmt: skip

    def inputs(number):
        return {k: v for k, v in graph(*SIZES[number], number).items() if k != "num_graphs"}

    program = torch.export.export(model, (), inputs(0), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        for number in range(len(SIZES)):
            torch.testing.assert_close(loaded(**inputs(number)), model(**inputs(number)))
