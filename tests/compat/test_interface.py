"""NVIDIA's interface as the code of its users calls it."""

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch_geometric.data import Batch, Data

from pyg_se3.compat import nvidia
from pyg_se3.compat.se3_transformer import (
    AttentionBlockSE3,
    ConvSE3,
    ConvSE3FuseLevel,
    Fiber,
    Graph,
    LinearSE3,
    NormSE3,
    SE3Transformer,
    SE3TransformerPooled,
    get_populated_edge_features,
)
from pyg_se3.compat.se3_transformer.graph import batch_graphs
from pyg_se3.compat.se3_transformer.model.basis import get_basis
from pyg_se3.compat.se3_transformer.model.layers.attention import AttentionSE3
from pyg_se3.ops import KernelOptions

# Published settings: layers, channels, l0 in/out, l1 in/out, edge features.
PROTEINS = {
    "rfdiffusion_full": ((1, 32, 8, 8, 3, 2, 32), {}),
    "rfdiffusion_topk": ((1, 32, 64, 64, 3, 2, 64), {}),
    "rosettafold2_full": (
        (1, 48, 32, 32, 2, 2, 32),
        {"final_layer": "lin", "populate_edge": "arcsin"},
    ),
    "all_atom_ref": (
        (2, 32, 64, 64, 3, 2, 64),
        {"final_layer": "lin", "populate_edge": "arcsin", "compute_gradients": True},
    ),
}


def protein(name, **more):
    (layers, channels, s_in, s_out, v_in, v_out, edge), extra = PROTEINS[name]
    return SE3Transformer(
        num_layers=layers,
        fiber_in=Fiber({0: s_in, 1: v_in}),
        fiber_hidden=Fiber.create(2, channels),
        fiber_out=Fiber({0: s_out, 1: v_out}),
        num_heads=4,
        channels_div=4,
        fiber_edge=Fiber({0: edge}),
        use_layer_norm=True,
        **extra,
        **more,
    )


def residues(model, count=9, dtype=torch.float32):
    """All pairs of residues: graph, node features, edge features."""
    source, target = (~torch.eye(count, dtype=torch.bool)).nonzero().T
    pos = 5 * torch.randn(count, 3, dtype=dtype)
    graph = Graph(torch.stack([source, target]), count, pos[source] - pos[target])
    nodes = {str(d): torch.randn(count, c, 2 * d + 1, dtype=dtype) for d, c in model.fiber_in}
    edges = {"0": torch.randn(source.numel(), model.fiber_edge[0], 1, dtype=dtype)}
    return graph, nodes, edges


@pytest.mark.parametrize("name", PROTEINS)
def test_published_settings_train_and_round_trip(name):
    model = protein(name)
    graph, nodes, edges = residues(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    before = copy.deepcopy(model.state_dict())
    losses = []
    for _ in range(3):
        output = model(graph, nodes, edges)
        assert {k: v.shape[1:] for k, v in output.items()} == {
            "0": (model.fiber_out[0], 1),
            "1": (model.fiber_out[1], 3),
        }
        loss = sum(v.square().mean() for v in output.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all((model.state_dict()[k] != v).any() for k, v in before.items())
    again = nvidia.load(nvidia.export(model), as_interface=True).eval()
    model.eval()
    for key, value in model(graph, nodes, edges).items():
        torch.testing.assert_close(again(graph, nodes, edges)[key], value)


def test_parameters_that_users_reset_by_name():
    model = protein("rfdiffusion_topk")
    zeroed = 0
    for name, parameter in model.named_parameters():
        if "radial_func" in name and "net.6" in name:
            torch.nn.init.zeros_(parameter)
            zeroed += 1
    torch.nn.init.zeros_(model.graph_modules[-1].to_kernel_self["0"])
    torch.nn.init.zeros_(model.graph_modules[-1].to_kernel_self["1"])
    assert zeroed == 4
    output = model(*residues(model))
    assert not any(value.any() for value in output.values())
    linear = protein("rosettafold2_full")
    torch.nn.init.zeros_(linear.graph_modules[-1].weights["0"])
    torch.nn.init.zeros_(linear.graph_modules[-1].weights["1"])
    assert not any(value.any() for value in linear(*residues(linear)).values())


def test_weights_changed_behind_autograd_are_noticed():
    model = protein("rfdiffusion_full").eval()
    inputs = residues(model)
    with torch.no_grad():
        first = model(*inputs)["0"]
        torch.testing.assert_close(model(*inputs)["0"], first)
        for name, parameter in model.named_parameters():
            if "net.6" in name:
                parameter.data.neg_()
                parameter.data += 0.1
        second = model(*inputs)["0"]
    fresh = protein("rfdiffusion_full").eval()
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(second, fresh(*inputs)["0"])
    assert not torch.allclose(first, second)


def test_inputs_are_left_alone_and_rel_pos_is_honoured():
    model = protein("rosettafold2_full")
    graph, nodes, edges = residues(model)
    kept = edges["0"].clone(), graph.edata["rel_pos"].clone()
    first = model(graph, nodes, edges)
    second = model(graph, nodes, edges)
    assert torch.equal(edges["0"], kept[0]) and edges["0"].shape == kept[0].shape
    torch.testing.assert_close(first["1"], second["1"])
    graph.edata["rel_pos"] = -kept[1]
    assert not torch.allclose(model(graph, nodes, edges)["1"], first["1"], atol=1e-3)


def test_pyg_data_and_batches():
    model = SE3TransformerPooled(
        Fiber({0: 3}), Fiber({0: 8}), Fiber({0: 2}), 2, 4, 1, num_layers=1, num_heads=2,
        channels_div=2,
    )  # fmt: skip
    molecules = []
    for count in (4, 6):
        edge_index = (~torch.eye(count, dtype=torch.bool)).nonzero().T.contiguous()
        molecules.append(Data(pos=torch.randn(count, 3), edge_index=edge_index))
    batch = Batch.from_data_list(molecules)
    nodes = {"0": torch.randn(10, 3, 1)}
    edges = {"0": torch.randn(batch.num_edges, 2, 1)}
    found = model(batch, nodes, edges)
    assert found.shape == (2,)
    joined = batch_graphs([Graph.from_data(data) for data in molecules])
    assert joined.batch_num_nodes().tolist() == [4, 6]
    assert joined.batch_num_edges().tolist() == [12, 30]
    torch.testing.assert_close(model(joined, nodes, edges), found)
    batch.rel_pos = -Graph.from_data(batch).edata["rel_pos"]
    assert torch.equal(Graph.from_data(batch).edata["rel_pos"], batch.rel_pos)
    with pytest.raises(ValueError, match="rel_pos or pos"):
        model(Data(edge_index=torch.tensor([[0], [1]]), num_nodes=2), nodes, edges)


def test_graphs():
    graph = Graph(torch.tensor([[0, 1, 2], [1, 2, 0]]), 4, torch.randn(3, 3))
    graph.ndata["x"] = torch.randn(4, 2)
    source, target = graph.edges()
    assert source.tolist() == [0, 1, 2] and target.tolist() == [1, 2, 0]
    assert (graph.num_nodes(), graph.num_edges(), graph.batch_size) == (4, 3, 1)
    assert graph.in_degrees().tolist() == [1, 1, 1, 0]
    moved = graph.to("cpu")
    assert moved.batch_num_nodes().tolist() == [4]
    assert torch.equal(moved.edata["rel_pos"], graph.edata["rel_pos"])
    assert "x" in moved.ndata and moved.device.type == "cpu"
    with pytest.raises(ValueError, match="values from 0 to 2, expected 0 to 1"):
        Graph(graph.edge_index, 2)
    with pytest.raises(ValueError, match=r"rel_pos has shape \[2, 3\]"):
        Graph(graph.edge_index, 4, torch.randn(2, 3))
    model = protein("rfdiffusion_full")
    with pytest.raises(ValueError, match=r"edata\['rel_pos'\]"):
        model(Graph(graph.edge_index, 4), {}, {})
    with pytest.raises(TypeError, match="got str"):
        model("graph", {}, {})


@pytest.mark.parametrize("compute", [False, True])
def test_position_gradients(compute):
    model = protein("rfdiffusion_full", compute_gradients=compute).double()
    graph, nodes, edges = residues(model, 5, torch.float64)
    rel_pos = graph.edata["rel_pos"].clone().requires_grad_()
    graph.edata["rel_pos"] = rel_pos
    model(graph, nodes, edges)["0"].sum().backward()
    across = torch.linalg.cross(rel_pos.grad, rel_pos.detach()).norm()
    assert rel_pos.grad.norm() > 0
    assert (across > 1e-6) if compute else (across < 1e-10)


def test_a_basis_computed_once():
    model = protein("rfdiffusion_full")
    graph, nodes, edges = residues(model)
    basis = get_basis(graph.edata["rel_pos"], max_degree=1)
    expected = model(graph, nodes, edges)
    torch.testing.assert_close(model(graph, nodes, edges, basis), expected)
    with pytest.raises(TypeError, match="get_basis"):
        model(graph, nodes, edges, {"0,0": None})
    with pytest.raises(ValueError, match="degrees up to 0"):
        model(graph, nodes, edges, get_basis(graph.edata["rel_pos"], max_degree=0))


def test_autocast_and_gradient_checkpointing():
    model = protein("rfdiffusion_topk")
    graph, nodes, edges = residues(model)
    expected = model(graph, nodes, edges)["0"]
    expected.sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()

    def step(x, e):
        return model(graph, {**nodes, "0": x}, {"0": e})["0"]

    x = nodes["0"].clone().requires_grad_()
    found = checkpoint(step, x, edges["0"], use_reentrant=False)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(graph, nodes, edges)["0"]
    assert low.dtype == torch.float32
    assert (low - expected).norm() < 0.05 * expected.norm()
    model.zero_grad()
    low.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_every_kernel_and_chunk_gives_the_same(any_kernel):
    model = protein("rosettafold2_full").double()
    inputs = residues(model, dtype=torch.float64)
    expected = model(*inputs)
    model.set_kernel(KernelOptions(kernel=any_kernel, chunk_size=7))
    for key, value in model(*inputs).items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-11)


def test_nodes_without_edges_and_edges_of_no_length():
    model = protein("rfdiffusion_full")
    rel_pos = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    graph = Graph(torch.tensor([[0, 1], [1, 2]]), 4, rel_pos)
    nodes = {"0": torch.randn(4, 8, 1), "1": torch.randn(4, 3, 3)}
    output = model(graph, nodes, {"0": torch.randn(2, 32, 1)})
    assert all(v.isfinite().all() for v in output.values())
    # The final convolution sums over edges: no edge, nothing.
    assert not output["0"][[0, 3]].any() and output["0"][1].any()


@pytest.mark.parametrize("final", ["conv", "lin", "att"])
@pytest.mark.parametrize("populate", ["lin", "arcsin", "log", "zero"])
def test_arguments_of_the_forks(final, populate):
    model = SE3Transformer(
        1, Fiber({0: 4, 1: 2}), Fiber.create(2, 8), Fiber({0: 4, 1: 2}), 2, 2, Fiber({0: 3}),
        final_layer=final, populate_edge=populate, sum_over_edge=False, mid_dim=16,
        nonlinearity=torch.nn.SiLU(), cg_convention="e3nn-0.5",
    )  # fmt: skip
    graph, nodes, edges = residues(model, 5)
    output = model(graph, nodes, edges)
    extra = {"nonlinearity": torch.nn.SiLU()}
    again = nvidia.load(nvidia.export(model), extra)
    for key, value in again(graph, nodes, edges).items():
        torch.testing.assert_close(value, output[key])
    scaled = Graph(graph.edge_index, 5, 2 * graph.edata["rel_pos"])
    moved = (model(scaled, nodes, edges)["0"] - output["0"]).abs().max()
    assert (moved < 1e-5) if populate == "zero" else (moved > 1e-5)


def test_averaging_over_edges():
    fibers = Fiber({0: 3, 1: 2}), Fiber({0: 2, 1: 2}), Fiber({0: 1})
    torch.manual_seed(0)
    summed = ConvSE3(*fibers, self_interaction=True, max_degree=1)
    averaged = ConvSE3(*fibers, self_interaction=True, max_degree=1, sum_over_edge=False)
    averaged.load_state_dict(summed.state_dict())
    graph = Graph(torch.tensor([[0, 1, 2], [2, 2, 0]]), 4, torch.randn(3, 3))
    nodes = {"0": torch.randn(4, 3, 1), "1": torch.randn(4, 2, 3)}
    edges = get_populated_edge_features(graph.edata["rel_pos"], {"0": torch.randn(3, 1, 1)})
    a, b = summed(nodes, edges, graph), averaged(nodes, edges, graph)
    torch.testing.assert_close(a["1"][2], 2 * b["1"][2])
    torch.testing.assert_close(a["1"][0], b["1"][0])
    assert not b["1"][[1, 3]].any()


def test_fused_output_and_attention_of_its_parts():
    fiber, edge = Fiber.create(2, 4), Fiber({0: 1})
    block = AttentionBlockSE3(fiber, fiber, edge, num_heads=2, max_degree=1)
    graph = Graph(torch.tensor([[0, 1, 2, 0], [1, 2, 0, 2]]), 3, torch.randn(4, 3))
    nodes = {"0": torch.randn(3, 4, 1), "1": torch.randn(3, 4, 3)}
    edges = get_populated_edge_features(graph.edata["rel_pos"], {"0": torch.randn(4, 1, 1)})
    messages = block.to_key_value(nodes, edges, graph)
    assert messages.shape == (4, 4, 4)  # value and key of 2 channels; 1 + 3 components
    parts = dict(zip(("0", "1"), messages.split([1, 3], dim=-1), strict=True))
    value, key = ({d: m.chunk(2, dim=1)[i] for d, m in parts.items()} for i in (0, 1))
    attended = block.attention(value, key, block.to_query(nodes), graph)
    assert isinstance(block.attention, AttentionSE3)
    joined = {d: torch.cat([attended[d], nodes[d]], 1) for d in nodes}
    expected = block.project(joined)
    for degree, found in block(nodes, edges, graph).items():
        torch.testing.assert_close(found, expected[degree])


def test_populated_edge_features_are_new():
    rel_pos, edges = torch.tensor([[3.0, 4.0, 0.0]]), {"0": torch.ones(1, 2, 1)}
    populated = get_populated_edge_features(rel_pos, edges)
    assert populated["0"].flatten().tolist() == [1.0, 1.0, 5.0]
    assert edges["0"].shape == (1, 2, 1)
    assert get_populated_edge_features(rel_pos)["0"].shape == (1, 1, 1)


def test_fibers_iterate_by_channels():
    fiber = Fiber({0: 16, 1: 8, 2: 8})
    assert [tuple(pair) for pair in fiber] == [(1, 8), (2, 8), (0, 16)]
    assert fiber.degrees == [0, 1, 2] and fiber.channels == [16, 8, 8]
    assert fiber[7] == 0 and fiber.num_features == 16 + 24 + 40
    assert [tuple(p) for p in fiber + Fiber({1: 10})] == [(2, 8), (0, 16), (1, 18)]
    assert [tuple(p) for p in fiber * 2][0] == (1, 16)
    assert len(list(fiber * fiber)) == 9
    assert Fiber.combine_max(fiber, Fiber({3: 1, 0: 20})) == {0: 20, 1: 8, 2: 8, 3: 1}
    assert Fiber.combine_selectively(fiber, Fiber({0: 1, 5: 1})) == {0: 17, 1: 8, 2: 8}
    assert Fiber.from_features({"1": torch.ones(2, 3, 3)}) == {1: 3}
    copied = copy.deepcopy(fiber)
    assert copied == fiber and [tuple(p) for p in copied] == [tuple(p) for p in fiber]


def test_errors_name_what_is_wrong():
    fiber, edge = Fiber.create(2, 8), Fiber({0: 2})
    with pytest.raises(TypeError, match="'final_layers'; did you mean 'final_layer'"):
        SE3Transformer(1, fiber, fiber, fiber, 2, 2, edge, final_layers="lin")
    with pytest.raises(ValueError, match="unknown populate_edge 'arcsinh'"):
        SE3Transformer(1, fiber, fiber, fiber, 2, 2, edge, populate_edge="arcsinh")
    with pytest.raises(ValueError, match="needs return_type"):
        SE3Transformer(1, fiber, fiber, fiber, 2, 2, edge, pooling="max")
    with pytest.raises(ValueError, match="num_heads=3 does not divide"):
        SE3Transformer(1, fiber, fiber, fiber, 3, 2, edge)
    with pytest.raises(ValueError, match="equivariant for degree 0 only"):
        SE3Transformer(1, fiber, fiber, fiber, 2, 2, edge, pooling="max", return_type=1)
    model = SE3Transformer(1, fiber, fiber, fiber, 2, 2, edge)
    graph, nodes, edges = residues(model, 3)
    with pytest.raises(ValueError, match=r"node_feats lack degrees \[1\]"):
        model(graph, {"0": nodes["0"]}, edges)
    with pytest.raises(ValueError, match=r"edge_feats lack degrees \[0\]"):
        model(graph, nodes)
    with pytest.raises(ValueError, match=r"shape \[6, 3, 1\], expected"):
        model(graph, nodes, {"0": torch.randn(6, 3, 1)})


def test_the_convention_is_warned_of_only_where_it_matters():
    low, high = Fiber.create(2, 4), Fiber.create(3, 4)
    with pytest.warns(UserWarning, match="cg_convention"):
        SE3Transformer(1, high, high, high, 2, 2)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SE3Transformer(1, low, low, low, 2, 2)
        SE3Transformer(1, high, high, high, 2, 2, cg_convention="e3nn-0.3")


def test_low_memory_means_different_layouts_in_the_versions():
    fiber = Fiber.create(2, 4)
    for version, layout in (("1.0", "output"), ("1.2", "pairwise")):
        model = SE3Transformer(
            1, fiber, fiber, Fiber({0: 4}), 2, 2, low_memory=True, nvidia_version=version
        )
        assert {conv.layout for conv in model.convolutions} == {layout}
    assert ConvSE3(fiber, fiber, max_degree=1).used_fuse_level is ConvSE3FuseLevel.FULL


def test_linear_and_norm_alone():
    fiber = Fiber({0: 4, 1: 2})
    features = {"0": torch.randn(3, 4, 1), "1": torch.randn(3, 2, 3)}
    linear = LinearSE3(fiber, Fiber({0: 2, 1: 5}))
    found = linear(features, None, graph=None)
    torch.testing.assert_close(found["1"], linear.weights["1"] @ features["1"])
    norm = NormSE3(fiber)
    found = norm(features, graph=None)
    lengths = features["1"].norm(dim=-1)
    expected = torch.relu(norm.layer_norms["1"](lengths))
    torch.testing.assert_close(found["1"].norm(dim=-1), expected)
