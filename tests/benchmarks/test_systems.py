"""Every system that is measured computes the function of the fully fused reference."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.baselines.nvidia import FuseLevel
from benchmarks.inputs import dense_batch, qm9_batch
from benchmarks.systems import SYSTEMS, LayerSpec, ModelSpec, build_layer, build_model

from benchmarks import systems

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "qm9_mini.csv"
SPEC = ModelSpec(num_layers=2, num_degrees=3, num_channels=8, num_heads=2)


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    batch = qm9_batch(6, root=tmp_path_factory.mktemp("qm9"), raw_path=FIXTURE)
    # Equivalent atoms tie in the maximum, and round-off would decide which one gets the gradient.
    noise = torch.randn(batch.pos.shape, generator=torch.Generator().manual_seed(5))
    return replace(batch, pos=batch.pos + 0.05 * noise)


def test_molecules_are_whole(molecules):
    assert molecules.num_graphs == 6 == int(molecules.batch.max()) + 1
    assert molecules.x.shape == (len(molecules.pos), 6)
    assert molecules.edge_attr.sum(1).eq(1).all()
    lengths = molecules.rel_pos.norm(dim=1)
    assert 0.8 < lengths.min() and lengths.max() < 2.0
    source, target = molecules.batch[molecules.edge_index]
    assert source.equal(target)


def test_batches_survive_the_file(molecules, tmp_path):
    molecules.save(tmp_path / "batch.pt")
    again = type(molecules).load(tmp_path / "batch.pt")
    assert again.describe() == molecules.describe()
    assert again.pos.equal(molecules.pos)


def outputs_and_gradients(name, batch):
    runner = build_model(name, SPEC)
    x = batch.x.clone().requires_grad_()
    y = runner.call(replace(batch, x=x))
    return y.detach(), torch.autograd.grad(y.square().sum(), x)[0]


@pytest.mark.parametrize("name", [n for n in SYSTEMS if n != "nvidia-full"])
def test_models_agree(name, molecules):
    expected = outputs_and_gradients("nvidia-full", molecules)
    actual = outputs_and_gradients(name, molecules)
    # The fast option rounds the gradient of the radial activations, which does not enter here.
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 2e-5 * b.abs().max()


def test_our_model_agrees_in_double_precision(molecules):
    torch.set_default_dtype(torch.float64)
    try:
        batch = type(molecules)(
            **{
                k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v
                for k, v in vars(molecules).items()
            }
        )
        expected = outputs_and_gradients("nvidia-full", batch)
        for name in ("ours", "ours-exact", "reference", "original"):
            for a, b in zip(outputs_and_gradients(name, batch), expected, strict=True):
                assert (a - b).abs().max() <= 1e-10 * b.abs().max(), name
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", [n for n, s in SYSTEMS.items() if s.layer is not None])
def test_layers_agree(name):
    batch, spec = dense_batch(12, 5), LayerSpec(max_degree=2, channels=4)
    x = torch.randn(12, 4, 9, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def run(system):
        y = build_layer(system, spec, batch).call(batch, x)
        return y.detach(), torch.autograd.grad(y.square().sum(), x)[0]

    for a, b in zip(run(name), run("nvidia-full"), strict=True):
        assert (a - b).abs().max() <= 2e-5 * b.abs().max()


def test_layers_differ_in_fusing_only():
    spec = LayerSpec(max_degree=2, channels=4)
    forms = {level: systems.reference_layer(spec, level).form for level in FuseLevel}
    assert forms == {FuseLevel.FULL: "full", FuseLevel.PARTIAL: "out", FuseLevel.NONE: "pair"}


def test_dense_graphs_have_no_loops_and_no_duplicates():
    batch = dense_batch(20, 7)
    source, target = batch.edge_index
    assert (source != target).all()
    assert batch.edge_index.unique(dim=1).shape[1] == 140
    assert torch.bincount(target).eq(7).all()
    with pytest.raises(ValueError, match="20 neighbours"):
        dense_batch(20, 20)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown system 'theirs'"):
        build_model("theirs", SPEC)
    with pytest.raises(ValueError, match="no lone layer"):
        build_layer("original", LayerSpec(), dense_batch(4, 2))
