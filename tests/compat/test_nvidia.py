"""Checkpoints in and out: what is recognised, what is refused, what comes back."""

import pytest
import torch

from pyg_se3 import SE3Transformer, SE3TransformerPooled
from pyg_se3.compat import nvidia, se3_transformer

NEW = {"cg_convention": "e3nn-0.5"}


def same(first, second):
    """Whether two models are the same parameters, but for the last bit of a rescaling."""
    a, b = first.state_dict(), second.state_dict()
    assert list(a) == list(b)
    return all(torch.allclose(a[k], b[k], rtol=1e-14, atol=0) for k in a)


@pytest.mark.parametrize("convention", ["e3nn-0.3", "e3nn-0.5"])
def test_exporting_and_loading_is_the_identity(model_case, convention, tmp_path):
    model = nvidia.load(model_case.state, model_case.hints, **NEW)
    state = nvidia.export(model, cg_convention=convention)
    assert list(state) == list(model_case.state)
    if convention == "e3nn-0.5":
        for name, value in model_case.state.items():
            torch.testing.assert_close(state[name], value, rtol=1e-14, atol=0)
    again = nvidia.load(state)
    assert type(again) is type(model)
    assert same(model, again)
    torch.save(state, tmp_path / "model.pt")
    assert same(model, nvidia.load(tmp_path / "model.pt"))
    plain = dict(state)  # without the note: what the parameters cannot tell must be said
    assert same(model, nvidia.load(plain, model_case.hints, cg_convention=convention))


def test_an_interface_model_takes_its_own_export(model_case):
    model = model_case.build("e3nn-0.3")
    state = nvidia.export(model, cg_convention="e3nn-0.5")
    other = model_case.build("e3nn-0.5")
    other.load_state_dict(state)
    inputs = model_case.features()
    first, second = model_case.run(model, *inputs), model_case.run(other, *inputs)
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=0, atol=1e-10)


def test_fused_to_pairwise_is_exact(model_case):
    for as_interface in (None, True):
        model = nvidia.load(model_case.state, model_case.hints, as_interface=as_interface, **NEW)
        pairwise = nvidia.to_pairwise(model)
        assert set(nvidia.layouts_of(pairwise)) == {"pairwise"}
        assert type(pairwise) is type(model)
        if as_interface:
            inputs = model_case.features()
            found = model_case.run(pairwise, *inputs)
            for key, value in model_case.run(model, *inputs).items():
                torch.testing.assert_close(found[key], value, rtol=0, atol=1e-10)
        state = nvidia.export(pairwise, **NEW)
        kept = [name for name in state if ".radial_func." in name]
        assert all(".conv." in name and "," in name for name in kept)


@pytest.mark.parametrize("sharing", ["full", "output", "input", "pairwise"])
def test_models_made_here_are_exported_in_a_layout_that_nvidia_builds(sharing):
    model = SE3TransformerPooled(
        {0: 3}, 3, 8, num_layers=2, num_heads=2, radial_sharing=sharing, radial_hidden=8
    ).double()
    again = nvidia.load(nvidia.export(model))
    layouts = nvidia.layouts_of(again)
    assert layouts[0] == "pairwise"  # from degree 0 alone NVIDIA shares nothing
    shared = {"full": "full", "output": "output", "input": "pairwise", "pairwise": "pairwise"}
    assert layouts[1] == shared[sharing]
    x, pos = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    edge_index = torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 2]])
    torch.testing.assert_close(again(x, pos, edge_index), model(x, pos, edge_index))


def test_no_self_interaction_is_one_of_zeros():
    model = SE3Transformer(
        {0: 4, 1: 2}, {0: 4, 1: 4}, {0: 2, 1: 2}, num_layers=1, num_heads=2, self_interaction=False
    ).double()
    state = nvidia.export(model)
    assert not state["graph_modules.2.to_kernel_self.0"].any()
    again = nvidia.load(state)
    x = {0: torch.randn(4, 4, 1).double(), 1: torch.randn(4, 2, 3).double()}
    pos = torch.randn(4, 3).double()
    edge_index = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
    for degree, value in model(x, pos, edge_index).items():
        torch.testing.assert_close(again(x, pos, edge_index)[degree], value)


def test_sharing_cannot_be_introduced(pooled):
    from pyg_se3.compat.native import from_native

    model = nvidia.to_pairwise(nvidia.load(pooled.state, pooled.hints, **NEW))
    with pytest.raises(ValueError, match="hidden layers of their own.*needs training"):
        from_native(model, "e3nn-0.5", ["pairwise", "full", "output"])


@pytest.mark.parametrize("wrap", ["state_dict", "model_state_dict", "ddp", "file", "part"])
def test_what_parameters_are_kept_in(pooled, wrap, tmp_path):
    state, options = dict(pooled.data["state_dict"]), {}
    source = {
        "state_dict": {"state_dict": state, "epoch": 3, "optimizer_state_dict": {"state": {}}},
        "model_state_dict": {"model_state_dict": state, "step": 1},
        "ddp": {f"module.{name}": value for name, value in state.items()},
        "part": {**{f"a.se3.{k}": v for k, v in state.items()}, "b.weight": torch.ones(1)},
        "file": tmp_path / "checkpoint.pt",
    }[wrap]
    if wrap == "file":
        torch.save({"state_dict": state, "epoch": 1}, source)
    if wrap == "part":
        options["prefix"] = "a.se3."
        with pytest.raises(ValueError, match="b.weight.*prefix='a.se3.'"):
            nvidia.load(source, pooled.hints, **NEW)
    expected = nvidia.load(state, pooled.hints, **NEW)
    assert same(nvidia.load(source, pooled.hints, **options, **NEW), expected)


def test_several_models_in_one_checkpoint(pooled):
    state = {f"{p}.{k}": v for p in ("a", "b") for k, v in pooled.data["state_dict"].items()}
    with pytest.raises(ValueError, match=r"prefix= one of \['a\.', 'b\.'\]"):
        nvidia.load(state, pooled.hints, **NEW)
    assert nvidia.load(state, pooled.hints, prefix="b.", **NEW) is not None


@pytest.mark.parametrize("missing", ["num_heads", "pooling"])
def test_a_missing_argument_is_named(pooled, missing):
    hints = {k: v for k, v in pooled.hints.items() if k != missing}
    with pytest.raises(ValueError, match=f"do not tell {missing}"):
        nvidia.load(pooled.state, hints, **NEW)


def test_parameters_that_do_not_fit_are_listed(pooled):
    state = dict(pooled.state)
    first = "transformer.graph_modules.0.to_query.weights.0"
    norm = "transformer.graph_modules.1.group_norm"
    lacking = {k: v for k, v in state.items() if k != f"{norm}.bias"}
    with pytest.raises(ValueError, match=f"missing: {norm}.bias"):
        nvidia.load(lacking, pooled.hints, **NEW)
    with pytest.raises(ValueError, match="not part of the model: transformer.extra"):
        nvidia.load({**state, "transformer.extra": torch.ones(2)}, pooled.hints, **NEW)
    narrow = {**state, f"{norm}.bias": torch.ones(5)}
    with pytest.raises(ValueError, match=rf"{norm}.bias is \[5\], expected \[12\]"):
        nvidia.load(narrow, pooled.hints, **NEW)
    with pytest.raises(ValueError, match="rows of radial weights|to_query"):
        nvidia.load({**state, first: torch.ones(2, 7)}, pooled.hints, **NEW)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_layers": 5}, "num_layers is 2 in the parameters, 5 in config"),
        ({"use_layer_norm": False}, "use_layer_norm is True"),
        ({"fiber_edge": {0: 3}}, "fiber_edge is {0: 2}"),
        ({"tensor_cores": False}, "leave these arguments out"),
        ({"low_memory": True}, "leave these arguments out"),
        ({"class": "SE3Transformer"}, "SE3TransformerPooled"),
        ({"num_heads": 3}, "num_heads=3 does not divide"),
    ],
)
def test_contradictions_are_named(pooled, config, message):
    with pytest.raises(ValueError, match=message):
        nvidia.load(pooled.state, {**pooled.hints, **config}, **NEW)


def test_unknown_arguments_are_refused(pooled):
    with pytest.raises(TypeError, match="'num_head'; did you mean 'num_heads'"):
        nvidia.load(pooled.state, {**pooled.hints, "num_head": 2}, **NEW)
    with pytest.raises(ValueError, match="cg_convention 'e3nn-0.4'"):
        nvidia.load(pooled.state, pooled.hints, cg_convention="e3nn-0.4")
    # The training script of NVIDIA hands everything to the model.
    assert nvidia.load(pooled.state, {**pooled.hints, "batch_size": 240, "amp": True}, **NEW)


def test_what_is_no_checkpoint(tmp_path, pooled):
    with pytest.raises(FileNotFoundError, match="nothing.pt"):
        nvidia.load(tmp_path / "nothing.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match="text.pt"):
        nvidia.load(tmp_path / "text.pt")
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="graph_modules"):
        nvidia.load(tmp_path / "other.pt")
    torch.save({"epoch": 1}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match="no state dict found.*epoch"):
        nvidia.load(tmp_path / "empty.pt")
    torch.save({"state_dict": pooled.state, "tool": pytest.raises}, tmp_path / "unsafe.pt")
    with pytest.raises(ValueError, match="weights_only=True"):
        nvidia.load(tmp_path / "unsafe.pt")


def test_gradients_through_directions_are_a_choice(pooled):
    kinds = {False: True, True: False}
    for compute, detached in kinds.items():
        config = {**pooled.hints, "compute_gradients": compute}
        model = nvidia.load(pooled.state, config, **NEW)
        assert model.config["detach_geometry"] is detached
        assert nvidia.load(nvidia.export(model)).config["detach_geometry"] is detached


def test_a_nonlinearity_is_asked_for_again(pooled):
    config = {**pooled.hints, "nonlinearity": torch.nn.LeakyReLU(0.1)}
    model = nvidia.load(pooled.state, config, **NEW)
    assert isinstance(model, se3_transformer.SE3TransformerPooled)
    with pytest.raises(ValueError, match="LeakyReLU.*config"):
        nvidia.load(nvidia.export(model))
    with pytest.raises(ValueError, match="no equivalent of nonlinearity"):
        nvidia.load(pooled.state, config, as_interface=False, **NEW)
