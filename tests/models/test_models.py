"""What all models have: configuration, kernels that can be exchanged, ways to call them."""

import copy
import inspect
import json
import math

import pytest
import torch
from torch_geometric.data import Batch, Data

from pyg_se3 import TFN, Fiber, KernelOptions, SE3Transformer, SE3TransformerPooled
from pyg_se3.so3 import EdgeGeometry

FIBER_IN, FIBER_EDGE = {0: 3, 1: 1}, {0: 2, 1: 1}


def gradients(model, graph, flat):
    model.zero_grad()
    flat(model(graph)).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_config_builds_the_same_model(model, graph, flat):
    again = type(model)(**model.config).double()
    assert again.config == model.config
    again.load_state_dict(model.state_dict())
    assert torch.equal(flat(again(graph)), flat(model(graph)))


def test_config_is_plain_data(model):
    """JSON turns the degrees into strings; everything else survives as it is."""
    text = json.dumps(model.config)
    assert "kernel" not in model.config and "KernelOptions" not in text

    def degrees(value):
        if isinstance(value, dict):
            return {int(k) if k.isdigit() else k: degrees(v) for k, v in value.items()}
        return value

    assert degrees(json.loads(text)) == model.config


def test_config_holds_every_argument_but_the_kernel(recipe):
    kind, arguments = recipe
    names = set(inspect.signature(kind.__init__).parameters) - {"self", "kernel"}
    assert set(kind(**arguments).config) == names


def test_state_dict_does_not_depend_on_the_kernel(recipe, kernel):
    kind, arguments = recipe
    expected = kind(**arguments, kernel=KernelOptions(kernel="reference")).state_dict()
    got = kind(**arguments, kernel=KernelOptions(kernel=kernel, memory="low")).state_dict()
    assert {n: p.shape for n, p in got.items()} == {n: p.shape for n, p in expected.items()}


def test_kernels_agree(model, graph, flat, kernel):
    model.set_kernel(KernelOptions(kernel="reference"))
    output, expected = flat(model(graph)), gradients(model, graph, flat)
    model.set_kernel(KernelOptions(kernel=kernel))
    torch.testing.assert_close(flat(model(graph)), output, rtol=0, atol=1e-10)
    for name, gradient in gradients(model, graph, flat).items():
        error = (gradient - expected[name]).abs().max() / expected[name].abs().max().clamp(min=1)
        assert error <= 1e-10, name


def test_kernels_agree_in_float32_training(recipe, graph, flat, kernel):
    """Compression of the radial activations, with their derivatives sketched, included."""
    kind, arguments = recipe
    model = kind(**arguments)
    exact = copy.deepcopy(model).double()
    exact.set_kernel(KernelOptions(kernel="reference"))
    expected = gradients(exact, graph, flat)
    model.set_kernel(KernelOptions(kernel=kernel, compress=True))
    single = Data(**{k: v.float() if v.is_floating_point() else v for k, v in graph})
    output = flat(model(single)).double()
    torch.testing.assert_close(output, flat(exact(graph)), rtol=0, atol=1e-4)
    scale = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in gradients(model, single, flat).items():
        assert (gradient - expected[name]).abs().max() <= 1e-4 * scale, name


def test_set_kernel_reaches_every_convolution(model):
    options = KernelOptions(kernel="reference", chunk_size=7)
    model.set_kernel(options)
    found = [m.kernel_options for m in model.modules() if hasattr(m, "kernel_options")]
    assert len(found) >= 3 and all(o is options for o in found)


def test_low_memory_gives_the_same_gradients(model, graph, flat):
    model.train()
    expected = gradients(model, graph, flat)
    output = flat(model(graph))
    model.set_kernel(KernelOptions(memory="low"))
    assert torch.equal(flat(model(graph)), output)
    for name, gradient in gradients(model, graph, flat).items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-12, msg=name)


def test_every_parameter_gets_a_gradient(model, graph, flat):
    assert all(bool(g.any()) for g in gradients(model, graph, flat).values())
    assert model.num_parameters == sum(p.numel() for p in model.parameters())


def test_tensors_by_degree_and_data_are_the_same_call(model, graph, flat):
    expected = flat(model(graph))
    packed = model(graph.x, graph.pos, graph.edge_index, graph.edge_attr)
    x = Fiber(FIBER_IN).unpack(graph.x)
    edge_attr = Fiber(FIBER_EDGE).unpack(graph.edge_attr)
    by_degree = model(x, graph.pos, graph.edge_index, edge_attr)
    source, target = graph.edge_index
    geometry = EdgeGeometry.from_vectors(graph.pos[target] - graph.pos[source], model.max_degree)
    given = model(graph.x, None, graph.edge_index, graph.edge_attr, geometry=geometry)
    for other in (packed, by_degree, given):
        torch.testing.assert_close(flat(other), expected, rtol=0, atol=1e-14)


def test_the_input_is_left_alone(model, graph):
    before = graph.clone()
    model(graph)
    assert before.keys() == graph.keys()
    for name, value in before:
        assert torch.equal(graph[name], value), name


def test_reset_parameters_draws_anew(model, graph, flat):
    before = flat(model(graph)).detach()
    model.reset_parameters()
    assert not torch.allclose(flat(model(graph)), before)


def test_output_by_degree(graph):
    model = SE3Transformer(
        FIBER_IN, {0: 4, 1: 4}, {0: 2, 2: 3}, fiber_edge=FIBER_EDGE, num_layers=1, num_heads=2
    ).double()
    assert {d: tuple(f.shape) for d, f in model(graph).items()} == {0: (7, 2, 1), 2: (7, 3, 5)}
    one = SE3Transformer(**{**model.config, "return_degree": 2}).double()
    one.load_state_dict(model.state_dict())
    assert torch.equal(one(graph), model(graph)[2])
    pooled = SE3Transformer(**{**model.config, "pooling": "sum"}).double()
    pooled.load_state_dict(model.state_dict())
    torch.testing.assert_close(pooled(graph)[2], model(graph)[2].sum(0, keepdim=True))


def test_maximum_pools_one_degree_of_several(graph):
    arguments = {"fiber_hidden": {0: 4, 1: 4}, "fiber_out": {0: 2, 1: 1}, "num_layers": 1}
    arguments |= {"fiber_in": FIBER_IN, "fiber_edge": FIBER_EDGE, "num_heads": 2}
    model = SE3Transformer(**arguments, pooling="max", return_degree=0).double()
    assert model(graph).shape == (1, 2, 1)
    with pytest.raises(ValueError, match="equivariant for degree 0 only"):
        SE3Transformer(**arguments, pooling="max")


def test_number_of_graphs_may_be_said(graph):
    model = SE3TransformerPooled(FIBER_IN, 2, 4, num_layers=1, num_heads=2).double()
    batch = torch.zeros(7, dtype=torch.long)
    out = model(graph.x, graph.pos, graph.edge_index, batch=batch, num_graphs=3)
    assert out.shape == (3, 1)
    assert out.isfinite().all()


def test_data_with_edge_features_that_the_model_does_not_use(graph):
    model = TFN(FIBER_IN, {0: 2}, {0: 1}, num_layers=1).double()
    assert model(graph)[0].shape == (7, 1, 1)


def test_one_radial_sharing_per_layer(graph):
    sharing = ["pairwise", "output", "full"]
    model = SE3Transformer(
        FIBER_IN, {0: 4, 1: 4}, {0: 2}, fiber_edge=FIBER_EDGE, num_layers=2, num_heads=2,
        radial_sharing=sharing,
    ).double()  # fmt: skip
    assert model.config["radial_sharing"] == sharing
    groups = [len(b.to_key_value.plan.groups) for b in model.blocks] + [len(model.last.plan.groups)]
    assert groups == [4, 2, 1]
    assert model(graph)[0].shape == (7, 2, 1)


def test_precision_of_features_follows_positions(graph):
    model = TFN({0: 3}, {0: 2, 1: 2}, {0: 1}, num_layers=1)
    x, pos = torch.randn(7, 3, dtype=torch.float64), graph.pos.float()
    assert model(x, pos, graph.edge_index)[0].dtype == torch.float32


@pytest.mark.parametrize(
    "options, message",
    [
        ({"return_degree": 3}, "return_degree=3 is not in fiber_out"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
        ({"num_heads": 3}, "num_heads=3"),
        ({"channels_div": 3}, "channels_div=3"),
        ({"radial_sharing": "half"}, "unknown radial sharing 'half'"),
        ({"radial_sharing": ["full"]}, "lists 1 levels, expected one or 2"),
        ({"pooling": "median"}, "unknown pooling 'median'"),
        ({"radial_hidden": 0}, "width must be at least 1"),
    ],
)
def test_bad_architectures_are_named(options, message):
    arguments = {"num_layers": 1, "num_heads": 2, **options}
    with pytest.raises(ValueError, match=message):
        SE3Transformer({0: 3}, {0: 4, 1: 4}, {0: 1}, **arguments)


def test_unknown_arguments_are_refused(recipe):
    kind, arguments = recipe
    with pytest.raises(TypeError, match="num_hedas"):
        kind(**arguments, num_hedas=2)


BAD_INPUT = [
    ({"x": torch.zeros(7, 5)}, ValueError, r"x have shape \[7, 5\], expected \[N, 6\]"),
    ({"x": torch.zeros(7, 6, dtype=torch.long)}, ValueError, "expected floating point"),
    ({"x": {0: torch.zeros(7, 3, 1)}}, ValueError, r"degrees \[0\] were given"),
    ({"edge_index": None}, ValueError, "edge_index is missing"),
    ({"edge_index": torch.tensor([[0], [7]])}, ValueError, "values from 0 to 7, expected 0 to 6"),
    ({"pos": None}, ValueError, "neither"),
    ({"pos": torch.zeros(6, 3)}, ValueError, "pos is of 6 nodes, x of 7"),
    ({"pos": torch.full((7, 3), math.nan)}, ValueError, "pos is not finite"),
    ({"pos": torch.rand(7, 3).to(torch.bfloat16)}, ValueError, "geometry have type torch.bfloat16"),
    ({"edge_attr": None}, ValueError, "edge_attr is missing"),
    ({"edge_attr": torch.zeros(19, 5)}, ValueError, r"\[19, 5\], expected \[20, 5\]"),
    ({"batch": torch.zeros(6, dtype=torch.long)}, ValueError, r"batch has shape \[6\]"),
]


@pytest.mark.parametrize("change, error, message", BAD_INPUT)
def test_bad_input_is_named(model, graph, change, error, message):
    arguments = {name: value for name, value in graph}
    with pytest.raises(error, match=message):
        model(**{**arguments, **change})


def test_weights_in_16_bits_are_refused(model, graph):
    low = copy.deepcopy(model).to(torch.bfloat16)
    with pytest.raises(ValueError, match="run the model under torch.autocast"):
        low(graph)


def test_geometry_must_reach_the_models_degree(model, graph):
    source, target = graph.edge_index
    low = EdgeGeometry.from_vectors(graph.pos[target] - graph.pos[source], 0)
    with pytest.raises(ValueError, match="geometry has degrees up to 0"):
        model(graph.x, None, graph.edge_index, graph.edge_attr, geometry=low)
    few = EdgeGeometry.from_vectors(graph.pos[:3], model.max_degree)
    with pytest.raises(ValueError, match="geometry is of 3 edges, edge_index of 20"):
        model(graph.x, None, graph.edge_index, graph.edge_attr, geometry=few)


def test_data_lacking_something_or_given_twice(model, graph):
    with pytest.raises(ValueError, match="Data lacks x, edge_index"):
        model(Data(pos=graph.pos))
    with pytest.raises(TypeError, match="pos given besides a Data object"):
        model(graph, graph.pos)


def test_batch_object_and_batch_vector_are_the_same(model, graph, flat):
    batch = Batch.from_data_list([graph, graph.clone()])
    tensors = model(batch.x, batch.pos, batch.edge_index, batch.edge_attr, batch.batch)
    torch.testing.assert_close(flat(model(batch)), flat(tensors), rtol=0, atol=1e-14)
