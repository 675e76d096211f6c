"""The yardstick reproduces numbers made by NVIDIA's own code, in outputs and every gradient."""

from pathlib import Path

import pytest
import torch
from benchmarks.baselines.basis import compute_bases
from benchmarks.baselines.layers import Graph, populate_edge_features
from benchmarks.baselines.nvidia import ConvSE3, FuseLevel, SE3Transformer, SE3TransformerPooled

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
NAMES = [
    "qm9_full",
    "qm9_partial",
    "qm9_lowmem",
    "qm9_avgpool",
    "degrees_uneven",
    "edge1_partial",
    *(
        f"conv_{level}_{ends}"
        for level in ("full", "partial_out", "partial_in", "none")
        for ends in ("edges", "pool")
    ),
]

needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the reference folder ../shared/golden is not there"
)


def load(name):
    return torch.load(GOLDEN / f"{name}.pt", weights_only=True)


class ConvWithBases(torch.nn.Module):
    """A lone convolution, given what the model around it would prepare."""

    def __init__(self, pad, **config):
        super().__init__()
        self.conv, self.pad = ConvSE3(**config), pad

    def forward(self, graph, node_feats, edge_feats):
        bases = compute_bases(
            graph.rel_pos, self.conv.basis_keys(), self.conv.max_degree, pad=self.pad
        )
        edge_feats = populate_edge_features(graph.rel_pos, edge_feats)
        return self.conv(node_feats, edge_feats, graph, bases)


def build(config):
    config = dict(config)
    kind = config.pop("class")
    for key in ("fiber_in", "fiber_hidden", "fiber_out", "fiber_edge"):
        if key in config:
            config[key] = {d: c for d, c in config[key]}
    config["layer_norm"] = config.pop("use_layer_norm")
    if kind == "SE3TransformerPooled":
        del config["fiber_out"]
        return SE3TransformerPooled(**config)
    if kind == "SE3Transformer":
        return SE3Transformer(**config)
    config["fuse_level"] = FuseLevel[config["fuse_level"]]
    return ConvWithBases(config.pop("use_pad_trick"), **config)


def relative(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


def run(golden, dtype):
    model = build(golden["config"])
    inner = model.conv if isinstance(model, ConvWithBases) else model
    inner.load_state_dict(golden["state_dict"], strict=True)
    model.to(dtype)
    inputs = golden["inputs"]
    graph = Graph(
        src=inputs["edge_index"][0],
        dst=inputs["edge_index"][1],
        rel_pos=inputs["rel_pos"].to(dtype),
        num_nodes=inputs["num_nodes"],
        batch=inputs["batch"],
        num_graphs=int(inputs["batch"].max()) + 1,
    )
    nodes, edges = (
        {int(d): x.to(dtype).requires_grad_() for d, x in inputs[key].items()}
        for key in ("node_feats", "edge_feats")
    )
    return inner, model(graph, nodes, edges), nodes, edges


def as_dict(x):
    return {int(d): y for d, y in x.items()} if isinstance(x, dict) else {0: x}


@needs_golden
@pytest.mark.parametrize("name", NAMES)
def test_float64_outputs_and_gradients(name):
    golden = load(name)
    model, output, nodes, edges = run(golden, torch.float64)
    output, expected = as_dict(output), as_dict(golden["output"])
    assert output.keys() == expected.keys()
    for d in expected:
        torch.testing.assert_close(output[d], expected[d], rtol=1e-10, atol=1e-10)

    projection = as_dict(golden["projection"])
    loss = sum((output[d] * projection[d]).sum() for d in expected)
    assert loss.item() == pytest.approx(golden["loss"], rel=1e-10)
    loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    assert grads.keys() == golden["grads"].keys() | golden["grads_dot"].keys()
    for n, expected_grad in golden["grads"].items():
        assert relative(grads[n], expected_grad) < 1e-6, n
    for n, expected_dot in golden["grads_dot"].items():
        assert relative(grads[n].view(-1, 32) @ golden["grad_probe"], expected_dot) < 1e-6, n
    for x, key in ((nodes, "input_grads"), (edges, "edge_input_grads")):
        for d, expected_grad in as_dict(golden[key]).items():
            assert relative(x[d].grad, expected_grad) < 1e-6, (key, d)


@needs_golden
@pytest.mark.parametrize("name", ["qm9_full", "qm9_partial", "qm9_lowmem"])
def test_float32_is_as_close_as_the_original_code(name):
    golden = load(name)
    _, output, _, _ = run(golden, torch.float32)
    ours = relative(output.double(), golden["output"])
    theirs = relative(golden["output_f32"].double(), golden["output"])
    assert ours < max(3 * theirs, 1e-5)


@needs_golden
def test_bases_equal_the_materialised_ones():
    golden = load("basis")
    rel_pos = golden["rel_pos"]
    from benchmarks.baselines.basis import FULL_KEY, in_key, out_key, pair_key

    keys = {key: pair_key(*map(int, key.split(","))) for key in golden["basis"]}
    bases = compute_bases(rel_pos, keys.values(), 4)
    for text, key in keys.items():
        expected = golden["basis"][text]
        torch.testing.assert_close(bases[key][: len(expected)], expected, rtol=0, atol=1e-12)

    for padded in (False, True):
        fused = golden["fused_max_degree2_first5"]["padded" if padded else "plain"]
        named = {"fully_fused": FULL_KEY}
        named |= {f"out{d}_fused": out_key(d) for d in range(3)}
        named |= {f"in{d}_fused": in_key(d) for d in range(3)}
        bases = compute_bases(rel_pos[:5], named.values(), 2, pad=padded)
        for text, key in named.items():
            torch.testing.assert_close(bases[key], fused[text].double(), rtol=0, atol=1e-6)
