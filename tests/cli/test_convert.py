from __future__ import annotations

import pytest
import torch

from pyg_se3 import SE3TransformerPooled
from pyg_se3.cli import main
from pyg_se3.compat import nvidia
from pyg_se3.training import load_model


@pytest.fixture
def nvidia_file(tmp_path):
    model = SE3TransformerPooled(
        {0: 3},
        2,
        4,
        num_layers=1,
        num_heads=2,
        radial_sharing=["pairwise", "full"],
        detach_geometry=True,
    )
    state = nvidia.export(model, cg_convention="e3nn-0.3")
    path = tmp_path / "nvidia.pt"
    # Without the notes of this package, as a file in the wild.
    torch.save({"state_dict": dict(state), "epoch": 3}, path)
    return model, path


def test_nvidia_file_becomes_one_of_ours(nvidia_file, tmp_path, capsys):
    model, path = nvidia_file
    target = tmp_path / "native.ckpt"
    config = '{"num_heads": 2, "pooling": "max"}'
    main(["convert", str(path), str(target), "--config", config])
    assert "reference and edge kernel differ by" in capsys.readouterr().out
    again, _ = load_model(target)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)


def test_errors_name_what_is_missing(nvidia_file, tmp_path):
    _, path = nvidia_file
    target = tmp_path / "native.ckpt"
    with pytest.raises(SystemExit, match="num_heads"):
        main(["convert", str(path), str(target)])
    assert not target.exists()
    with pytest.raises(SystemExit, match="there is no checkpoint"):
        main(["convert", str(tmp_path / "none.pt"), str(target)])
    target.write_text("mine")
    with pytest.raises(SystemExit, match="exists"):
        main(["convert", str(path), str(target)])
    assert target.read_text() == "mine"
