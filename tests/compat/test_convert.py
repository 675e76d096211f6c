"""Converting files."""

import pytest
import torch

from pyg_se3.compat import convert, nvidia
from pyg_se3.training.checkpoint import load_model


def write(case, path):
    torch.save({"state_dict": case.data["state_dict"], "epoch": 7}, path)
    return path


def test_there_and_back(pooled, tmp_path):
    source = write(pooled, tmp_path / "nvidia.pt")
    there = convert(source, tmp_path / "ours.ckpt", pooled.hints, cg_convention="e3nn-0.3")
    assert there.written == "native"
    assert there.kernel_difference < 1e-10 and there.file_difference < 1e-12
    assert there.parameters == sum(v.numel() for v in pooled.data["state_dict"].values())
    text = "\n".join(there.lines())
    assert "num_heads=2" in text and "pairwise, full, output" in text
    model, _ = load_model(tmp_path / "ours.ckpt")
    assert type(model).__name__ == "SE3TransformerPooled"
    back = convert(tmp_path / "ours.ckpt", tmp_path / "back.pt")
    assert back.written == "nvidia" and back.file_difference < 1e-6
    found = torch.load(tmp_path / "back.pt", weights_only=True)["state_dict"]
    assert list(found) == list(pooled.data["state_dict"])
    for name, value in pooled.data["state_dict"].items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=0)


def test_signs_and_layout_of_nvidia_files(pooled, tmp_path):
    source = write(pooled, tmp_path / "old.pt")
    done = convert(
        source,
        tmp_path / "new.pt",
        pooled.hints,
        to="nvidia",
        cg_convention="e3nn-0.3",
        write_convention="e3nn-0.5",
        pairwise=True,
    )
    assert set(done.layouts) == {"pairwise"} and done.file_difference < 1e-6
    model = nvidia.load(tmp_path / "new.pt")
    assert set(nvidia.layouts_of(model)) == {"pairwise"}


def test_fork_features_stay_in_their_format(fork, tmp_path):
    source = write(fork, tmp_path / "fork.pt")
    with pytest.raises(ValueError, match="final_layer='lin'.*to='nvidia'"):
        convert(source, tmp_path / "ours.ckpt", fork.hints)
    assert not (tmp_path / "ours.ckpt").exists()
    done = convert(source, tmp_path / "copy.pt", fork.hints, to="nvidia")
    assert done.file_difference < 1e-12


def test_refusals(pooled, tmp_path):
    source = write(pooled, tmp_path / "nvidia.pt")
    with pytest.raises(FileNotFoundError, match="nothing.pt"):
        convert(tmp_path / "nothing.pt", tmp_path / "out.pt")
    (tmp_path / "out.pt").write_text("mine")
    with pytest.raises(FileExistsError, match="out.pt exists"):
        convert(source, tmp_path / "out.pt", pooled.hints)
    assert (tmp_path / "out.pt").read_text() == "mine"
    with pytest.raises(ValueError, match="unknown target format 'dgl'"):
        convert(source, tmp_path / "other.pt", pooled.hints, to="dgl")
    convert(source, tmp_path / "out.pt", pooled.hints, cg_convention="e3nn-0.3", overwrite=True)
    assert load_model(tmp_path / "out.pt")
    assert not list(tmp_path.glob(".*"))
