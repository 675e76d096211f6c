"""Outputs, losses and gradients of other people's code, through every kernel."""

import pytest
import torch

from pyg_se3.compat import nvidia
from pyg_se3.compat.se3_transformer.model.basis import get_basis
from pyg_se3.models import SE3Transformer, SE3TransformerPooled
from pyg_se3.ops import KernelOptions
from pyg_se3.so3 import EdgeGeometry

pytestmark = pytest.mark.filterwarnings("error::UserWarning")


def largest(found, expected):
    assert set(found) == set(expected)
    return max((found[k] - expected[k]).abs().max().item() for k in expected)


def relative(found, expected):
    scale = expected.double().norm()
    return ((found.double() - expected.double()).norm() / scale).item() if scale else 0.0


def distance(found, expected):
    """Root of the summed squares: a maximum over eight numbers would be luck."""
    return sum((found[k].double() - expected[k]).square().sum() for k in expected).sqrt().item()


def test_output_loss_and_every_gradient(case, any_kernel):
    model = case.build(kernel=any_kernel)
    assert list(model.state_dict()) == list(case.data["state_dict"])
    nodes, edges = case.features(grad=True)
    output = case.run(model, nodes, edges)
    assert largest(output, case.expected()) < 1e-10
    projection = case.expected("projection")
    loss = sum((projection[k] * v).sum() for k, v in output.items())
    assert loss.item() == pytest.approx(case.data["loss"], abs=1e-9)
    loss.backward()
    compared = 0
    for name, parameter in model.named_parameters():
        if name in case.data["grads"]:
            found, expected = parameter.grad, case.data["grads"][name]
        else:
            found = parameter.grad @ case.data["grad_probe"].double()
            expected = case.data["grads_dot"][name]
        assert relative(found, expected) < 1e-6, name
        compared += 1
    assert compared == len(case.data["grads"]) + len(case.data.get("grads_dot", {}))
    for key, expected in case.data["input_grads"].items():
        assert relative(nodes[key].grad, expected) < 1e-6
    for key, expected in case.data["edge_input_grads"].items():
        assert relative(edges[key].grad, expected) < 1e-6


def test_old_clebsch_gordan_signs(case, any_kernel):
    key = "output_e3nn033" if "output_e3nn033" in case.data else "output"
    model = case.build("e3nn-0.3", any_kernel)
    assert largest(case.run(model, *case.features()), case.expected(key)) < 1e-10
    if key == "output":
        assert not any(getattr(m, "depends_on_convention", False) for m in model.modules())


def test_float32_is_as_close_to_float64_as_the_reference(case, any_kernel):
    model = case.build(kernel=any_kernel, dtype=torch.float32)
    output = case.run(model, *case.features(torch.float32))
    expected = case.expected()
    allowed = 2 * distance(case.expected("output_f32"), expected)
    size = sum(v.square().sum() for v in expected.values()).sqrt().item()
    assert distance(output, expected) <= allowed + 2 * torch.finfo(torch.float32).eps * size


@pytest.mark.parametrize("told", ["in full", "as little as possible"])
def test_loaded_models_reproduce_the_output(model_case, any_kernel, told):
    config = model_case.config if told == "in full" else model_case.hints
    kernel = KernelOptions(kernel=any_kernel)
    model = nvidia.load(model_case.state, config, cg_convention="e3nn-0.5", kernel=kernel)
    fork = "lin" in model_case.name
    fork |= model_case.name.startswith("rfaa")
    assert isinstance(model, (SE3Transformer, SE3TransformerPooled)) is not fork
    output = run_loaded(model, model_case)
    assert largest(output, model_case.expected()) < 1e-10


def test_loaded_models_have_the_old_signs_by_default(model_case):
    if "output_e3nn033" not in model_case.data:
        model = nvidia.load(model_case.state, model_case.hints)
        assert largest(run_loaded(model, model_case), model_case.expected()) < 1e-10
        return
    with pytest.warns(UserWarning, match="cg_convention"):
        model = nvidia.load(model_case.state, model_case.hints)
    output = run_loaded(model, model_case)
    assert largest(output, model_case.expected("output_e3nn033")) < 1e-10
    assert largest(output, model_case.expected()) > 1e-6


def test_gradients_of_loaded_models(model_case):
    model = nvidia.load(model_case.state, model_case.hints, cg_convention="e3nn-0.5")
    nodes, edges = model_case.features(grad=True)
    output = run_loaded(model, model_case, nodes, edges)
    projection = model_case.expected("projection")
    sum((projection[k] * v).sum() for k, v in output.items()).backward()
    for key, expected in model_case.data["input_grads"].items():
        assert relative(nodes[key].grad, expected) < 1e-6
    for key, expected in model_case.data["edge_input_grads"].items():
        assert relative(edges[key].grad, expected) < 1e-6
    if isinstance(model, (SE3Transformer, SE3TransformerPooled)):
        name = "mlp.0.weight" if isinstance(model, SE3TransformerPooled) else None
        if name:
            assert relative(model.get_parameter(name).grad, model_case.data["grads"][name]) < 1e-6
    assert all(p.grad is not None for p in model.parameters())


def run_loaded(model, case, nodes=None, edges=None):
    """Output of whatever `load` gave, by degree."""
    if nodes is None:
        nodes, edges = case.features()
    if not isinstance(model, (SE3Transformer, SE3TransformerPooled)):
        return case.run(model, nodes, edges)
    geometry = EdgeGeometry.from_vectors(case.inputs["rel_pos"].double(), model.max_degree)
    output = model(
        {int(k): v for k, v in nodes.items()},
        edge_index=case.inputs["edge_index"],
        edge_attr={int(k): v for k, v in edges.items()},
        batch=case.inputs["batch"],
        geometry=geometry,
    )
    if isinstance(output, dict):
        return {str(degree): value for degree, value in output.items()}
    return {"": output.squeeze(-1)}


def test_single_layers_give_the_intermediate_features(model_case):
    if "intermediates" not in model_case.data:
        assert model_case.data["output"] is not None
        return
    model = model_case.build()
    inner = getattr(model, "transformer", model)
    graph = model_case.graph()
    nodes, edges = model_case.features()
    basis = get_basis(graph.edata["rel_pos"], inner.max_degree)
    rel_pos = graph.edata["rel_pos"]
    distance = rel_pos.norm(dim=-1)[:, None, None]
    if inner.populate_edge == "arcsin":
        distance = torch.asinh((distance - 4).clamp(min=0)) / 3
    populated = {**edges, "0": torch.cat([edges["0"], distance], 1)}
    features = nodes
    for module, expected in zip(inner.graph_modules, model_case.data["intermediates"], strict=True):
        assert expected["module"] == type(module).__name__
        features = module(features, populated, graph=graph, basis=basis)
        assert largest(features, expected["out"]) < 1e-10


def test_the_bug_of_version_1_2_only_on_request(model_case):
    if "output_v12_bug" not in model_case.data:
        return
    with pytest.warns(UserWarning, match="not equivariant"):
        model = nvidia.load(
            model_case.state,
            {**model_case.hints, "reproduce_v12_bug": True},
            cg_convention="e3nn-0.5",
        )
    output = run_loaded(model, model_case)
    for key, expected in model_case.expected("output_v12_bug").items():
        assert relative(output[key], expected) < 1e-9
