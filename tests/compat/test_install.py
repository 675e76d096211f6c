"""Stand-ins for the real packages: unmodified code runs, and nothing stays behind."""

import subprocess
import sys
from pathlib import Path

import pytest

import pyg_se3.compat
from pyg_se3.compat.install import _PACKAGE

SCRIPT = """
import dgl
import torch
from dgl import DGLGraph
from se3_transformer.model import SE3Transformer
from se3_transformer.model.fiber import Fiber
from se3_transformer.model.layers.norm import NormSE3
from se3_transformer.model.basis import get_basis
from se3_transformer.runtime.utils import str2bool

L = 6
pos = torch.randn(1, L, 3)
b, i, j = torch.where(torch.cdist(pos, pos) > 0)
G = dgl.graph((b * L + i, b * L + j), num_nodes=L).to("cpu")
G.edata["rel_pos"] = (pos[b, j] - pos[b, i]).detach()
assert isinstance(G, DGLGraph) and G.num_nodes() == L and len(G.edges()) == 2
model = SE3Transformer(num_layers=1, fiber_in=Fiber({0: 8, 1: 3}), fiber_hidden=Fiber.create(2, 16),
                       fiber_out=Fiber({0: 8, 1: 2}), num_heads=4, channels_div=4,
                       fiber_edge=Fiber({0: 4}), final_layer="lin", populate_edge="arcsin",
                       use_layer_norm=True)
for name, parameter in model.named_parameters():
    if "radial_func" in name and "net.6" in name:
        torch.nn.init.zeros_(parameter)
out = model(G, {"0": torch.randn(L, 8, 1), "1": torch.randn(L, 3, 3)},
            {"0": torch.randn(len(b), 4, 1)})
assert out["0"].shape == (L, 8, 1) and out["1"].shape == (L, 2, 3)
assert any(isinstance(module, NormSE3) for module in model.graph_modules)
assert "pyg_se3" in __import__("inspect").getfile(SE3Transformer)
print("ran")
"""


def run(text):
    source = str(Path(pyg_se3.compat.__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {source!r})\n{text}"],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_an_unmodified_script():
    done = run(f"import pyg_se3.compat; pyg_se3.compat.install()\n{SCRIPT}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("ran\n")


def test_importing_changes_nothing_and_uninstalling_restores():
    before = set(sys.modules)
    assert not {"dgl", "se3_transformer"} & before
    with pyg_se3.compat.install() as installation:
        import dgl
        import se3_transformer.model.layers.convolution as module

        assert module.__name__ == f"{_PACKAGE}.model.layers.convolution"
        with pytest.raises(AttributeError, match="dgl.add_self_loop.*DGLGraph, batch, graph"):
            dgl.add_self_loop()
        assert "se3_transformer.model.fiber" in installation.modules
    assert not [n for n in sys.modules if n.split(".")[0] in ("dgl", "se3_transformer")]
    pyg_se3.compat.install()
    pyg_se3.compat.install()  # again is fine
    pyg_se3.compat.uninstall()
    pyg_se3.compat.uninstall()
    assert "dgl" not in sys.modules


def test_a_copy_inside_another_package():
    with pyg_se3.compat.install(["other_se3_transformer"]):
        from other_se3_transformer.model.fiber import Fiber

        assert Fiber is pyg_se3.compat.nvidia.interface.Fiber
        assert "se3_transformer" not in sys.modules
    assert "other_se3_transformer" not in sys.modules


def test_real_packages_are_not_replaced(monkeypatch):
    monkeypatch.setitem(sys.modules, "dgl", sys)
    with pytest.raises(RuntimeError, match="dgl is imported already"):
        pyg_se3.compat.install()
    assert sys.modules["dgl"] is sys and "se3_transformer" not in sys.modules
    monkeypatch.delitem(sys.modules, "dgl")
    monkeypatch.setitem(sys.modules, "se3_transformer.model", sys)
    with pytest.raises(RuntimeError, match="se3_transformer.model is imported already"):
        pyg_se3.compat.install()
    assert "dgl" not in sys.modules
