"""Cases with known numbers: those of other codes where they are at hand, and always our excerpt."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import get_args

import pytest
import torch

from pyg_se3.compat import se3_transformer
from pyg_se3.compat.se3_transformer import ConvSE3FuseLevel, Fiber, Graph
from pyg_se3.compat.se3_transformer import get_populated_edge_features as populate
from pyg_se3.ops.options import Kernel

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT.parent / "shared" / "golden"  # optional: outputs of other people's code
EXCERPT = ROOT / "tests" / "fixtures" / "compat_excerpt.pt"


@lru_cache(maxsize=4)
def load(path):
    return torch.load(path, weights_only=True)


def read_case(name):
    return load(EXCERPT)[name] if name.startswith("excerpt") else load(GOLDEN / f"{name}.pt")


EXCERPT_CASES = sorted(load(EXCERPT))
NAMES = EXCERPT_CASES + sorted(p.stem for p in GOLDEN.glob("*.pt") if p.stem != "basis")
KERNELS = [k for k in get_args(Kernel) if k not in ("auto", "triton")]


def is_model(name):
    return not (name.startswith("conv_") or "_conv_" in name)


class Case:
    """One file: its numbers, and how to run a model on its inputs."""

    def __init__(self, name):
        self.name, self.data = name, read_case(name)
        self.config, self.inputs = self.data["config"], self.data["inputs"]
        self.is_conv = self.config["class"] == "ConvSE3"

    @property
    def state(self):
        """The parameters in float64."""
        return {k: v.double() for k, v in self.data["state_dict"].items()}

    @property
    def settings(self):
        """Constructor arguments of the class."""
        settings = {k: v for k, v in self.config.items() if k not in ("class", "use_pad_trick")}
        if "fuse_level" in settings:
            settings["fuse_level"] = ConvSE3FuseLevel[settings["fuse_level"]]
        for key in settings:
            if key.startswith("fiber"):
                settings[key] = Fiber([tuple(pair) for pair in settings[key]])
        return settings

    @property
    def hints(self):
        """Only the arguments that the parameters cannot tell."""
        keys = ("num_heads", "pooling", "populate_edge")
        return {k: self.config[k] for k in keys if self.config.get(k) is not None}

    def build(self, convention="e3nn-0.5", kernel=None, dtype=torch.float64):
        """The model with NVIDIA's interface."""
        kind = getattr(se3_transformer, self.config["class"])
        model = kind(**self.settings, cg_convention=convention).to(dtype)
        model.load_state_dict(self.data["state_dict"])
        if kernel is not None:
            self.set_kernel(model, kernel)
        return model

    @staticmethod
    def set_kernel(model, kernel):
        for module in model.modules():
            if hasattr(module, "kernel_options"):
                module.kernel_options = replace(module.kernel_options, kernel=kernel)

    def graph(self, dtype=torch.float64):
        inputs = self.inputs
        rel_pos = inputs["rel_pos"].to(dtype)
        return Graph(inputs["edge_index"], inputs["num_nodes"], rel_pos, inputs["batch"])

    def features(self, dtype=torch.float64, grad=False):
        """Node and edge features by degree."""
        return tuple(
            {k: v.to(dtype).clone().requires_grad_(grad) for k, v in self.inputs[part].items()}
            for part in ("node_feats", "edge_feats")
        )

    def run(self, model, nodes, edges, graph=None):
        """Output of a model with NVIDIA's interface, by degree."""
        if graph is None:
            graph = self.graph(next(iter(nodes.values())).dtype)
        if self.is_conv:
            output = model(nodes, populate(graph.edata["rel_pos"], edges), graph)
        else:
            output = model(graph, nodes, edges)
        return as_dict(output)

    def expected(self, key="output"):
        return as_dict(self.data[key])


def as_dict(output):
    return output if isinstance(output, dict) else {"": output}


@pytest.fixture(params=NAMES)
def case(request):
    return Case(request.param)


@pytest.fixture(params=[name for name in NAMES if is_model(name)])
def model_case(request):
    return Case(request.param)


@pytest.fixture(params=KERNELS)
def any_kernel(request):
    """Every kernel that runs here, the reference included."""
    return request.param


@pytest.fixture
def pooled():
    """A small pooled model of three degrees."""
    return Case("excerpt_pooled_full")


@pytest.fixture
def fork():
    """A small model with a linear final layer and the distances of RoseTTAFold."""
    return Case("excerpt_lin_arcsin")
