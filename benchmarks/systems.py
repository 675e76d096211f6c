"""The systems that are compared. Adding one is one entry of `SYSTEMS`.

Every system gets the weights of the same fully fused NVIDIA-layout model, so that all of them
compute one function; the reports check that they do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from .baselines import nvidia, original
from .baselines.basis import compute_bases
from .baselines.layers import populate_edge_features
from .baselines.nvidia import FuseLevel, Graph
from .baselines.weights import copy_conv, copy_weights
from .inputs import NUM_BOND_TYPES, GraphBatch


@dataclass(frozen=True)
class ModelSpec:
    """A pooled SE(3)-Transformer; the defaults are NVIDIA's QM9 recipe."""

    num_layers: int = 7
    num_degrees: int = 4
    num_channels: int = 32
    num_heads: int = 8
    channels_div: int = 2
    node_channels: int = 6
    edge_channels: int = NUM_BOND_TYPES

    def config(self) -> dict:
        """Constructor arguments that all systems understand."""
        config = asdict(self)
        config["fiber_in"] = {0: config.pop("node_channels")}
        config["fiber_edge"] = {0: config.pop("edge_channels")}
        return config


@dataclass(frozen=True)
class LayerSpec:
    """One convolution `{0..L: C} -> {0..L: C}`, summed over receivers."""

    max_degree: int = 1
    channels: int = 32
    edge_channels: int = NUM_BOND_TYPES

    @property
    def fiber(self) -> dict[int, int]:
        """Input and output fiber."""
        return {d: self.channels for d in range(self.max_degree + 1)}


@dataclass
class Runner:
    """A module, and how to call it on a batch.

    Attributes:
        module: Holds the parameters.
        call: Batch to predictions `[B]`, or for a layer (batch, x `[N, C, D]`) to `[N, C, D]`.
        forces: Whether gradients of the positions are complete, so that forces can be trained.
    """

    module: nn.Module
    call: Callable[..., Tensor]
    forces: bool = False


@dataclass(frozen=True)
class System:
    """A formulation with its way of execution.

    Attributes:
        label: For tables.
        model: Pooled model with the reference's weights.
        layer: The same for a lone convolution; None where it makes no sense. Geometry or bases are
            made on the given batch beforehand: a model shares them between layers.
    """

    label: str
    model: Callable[[nvidia.SE3TransformerPooled, ModelSpec], Runner]
    layer: Callable[[nvidia.ConvSE3, LayerSpec, GraphBatch], Runner] | None = None


def reference_model(spec: ModelSpec) -> nvidia.SE3TransformerPooled:
    """The fully fused model whose weights all systems take."""
    torch.manual_seed(0)
    return nvidia.SE3TransformerPooled(**spec.config(), tensor_cores=True)


def reference_layer(spec: LayerSpec, level: FuseLevel = FuseLevel.FULL) -> nvidia.ConvSE3:
    """The convolution whose weights all systems take."""
    torch.manual_seed(0)
    return nvidia.ConvSE3(
        spec.fiber,
        spec.fiber,
        {0: spec.edge_channels},
        max_degree=spec.max_degree,
        fuse_level=level,
    )


def _graph(batch: GraphBatch) -> Graph:
    src, dst = batch.edge_index
    return Graph(src, dst, batch.rel_pos, len(batch.pos), batch.batch, batch.num_graphs)


def _baseline_runner(module: nn.Module) -> Runner:
    def call(batch: GraphBatch) -> Tensor:
        nodes, edges = {0: batch.x.unsqueeze(-1)}, {0: batch.edge_attr.unsqueeze(-1)}
        return module(_graph(batch), nodes, edges)

    return Runner(module, call)


def _nvidia(label: str, level: FuseLevel, **execution: bool) -> System:
    def model(reference: nvidia.SE3TransformerPooled, spec: ModelSpec) -> Runner:
        module = nvidia.SE3TransformerPooled(**spec.config(), fuse_level=level, **execution)
        copy_weights(module, reference)
        return _baseline_runner(module)

    def layer(reference: nvidia.ConvSE3, spec: LayerSpec, batch: GraphBatch) -> Runner:
        module = reference_layer(spec, level)
        module.low_memory = execution.get("low_memory", False)
        copy_conv(module, reference)
        pad = level is FuseLevel.FULL
        graph = _graph(batch)
        bases = compute_bases(graph.rel_pos, module.basis_keys(), spec.max_degree, pad=pad)
        edges = populate_edge_features(graph.rel_pos, {0: batch.edge_attr.unsqueeze(-1)})
        widths = [2 * d + 1 for d in spec.fiber]

        def call(_: GraphBatch, x: Tensor) -> Tensor:
            nodes = dict(zip(spec.fiber, x.split(widths, -1), strict=True))
            return torch.cat(list(module(nodes, edges, graph, bases).values()), -1)

        return Runner(module, call)

    return System(label, model, layer)


def _original(label: str, product: str) -> System:
    def model(reference: nvidia.SE3TransformerPooled, spec: ModelSpec) -> Runner:
        module = original.OriginalSE3TransformerPooled(**spec.config(), product=product)
        copy_weights(module, reference)
        return _baseline_runner(module)

    return System(label, model)


def _ours(label: str, **options: object) -> System:
    def model(reference: nvidia.SE3TransformerPooled, spec: ModelSpec) -> Runner:
        from pyg_se3.ops import KernelOptions

        from .ours import model_like

        module = model_like(reference, spec.config())
        module.set_kernel(KernelOptions(**options))

        def call(batch: GraphBatch) -> Tensor:
            return module(
                batch.x,
                batch.pos,
                batch.edge_index,
                batch.edge_attr,
                batch.batch,
                num_graphs=batch.num_graphs,
            ).squeeze(-1)

        return Runner(module, call, forces=True)

    def layer(reference: nvidia.ConvSE3, spec: LayerSpec, batch: GraphBatch) -> Runner:
        from pyg_se3.fiber import Fiber
        from pyg_se3.nn import TFNConv
        from pyg_se3.ops import KernelOptions
        from pyg_se3.so3 import EdgeGeometry

        from .ours import copy_conv as copy_into_ours
        from .ours import sharing_of

        module = TFNConv(
            spec.fiber,
            spec.fiber,
            fiber_edge={0: spec.edge_channels},
            sharing=sharing_of(reference),
            kernel=KernelOptions(**options),
        )
        copy_into_ours(module, reference)
        geometry = EdgeGeometry.from_vectors(batch.rel_pos, spec.max_degree)
        fiber = Fiber(spec.fiber)
        widths = [2 * d + 1 for d in spec.fiber]

        def call(batch: GraphBatch, x: Tensor) -> Tensor:
            packed = fiber.pack(dict(zip(spec.fiber, x.split(widths, -1), strict=True)))
            y = module(packed, batch.edge_index, edge_attr=batch.edge_attr, geometry=geometry)
            return torch.cat(list(fiber.unpack(y).values()), -1)

        return Runner(module, call)

    return System(label, model, layer)


SYSTEMS: dict[str, System] = {
    "original": _original("original (unfused)", "matmul"),
    "original-literal": _original("original, kernels as published", "broadcast"),
    "nvidia-full": _nvidia("NVIDIA, fully fused", FuseLevel.FULL),
    "nvidia-partial": _nvidia("NVIDIA, partly fused", FuseLevel.PARTIAL),
    "nvidia-none": _nvidia("NVIDIA, not fused", FuseLevel.NONE),
    "nvidia-low-memory": _nvidia("NVIDIA, low memory", FuseLevel.NONE, low_memory=True),
    "reference": _ours("pyg-se3, reference kernel", kernel="reference"),
    "ours": _ours("pyg-se3"),
    "ours-exact": _ours("pyg-se3, uncompressed", kernel="edge", compress=False),
    "ours-fast": _ours("pyg-se3, fast", fast=True),
    "ours-edge": _ours("pyg-se3, edge kernel", kernel="edge"),
    "ours-source": _ours("pyg-se3, source kernel", kernel="source"),
    "ours-low-memory": _ours("pyg-se3, memory=low", memory="low"),
    "ours-memory-fast": _ours("pyg-se3, memory=fast", memory="fast"),
}

NVIDIA = tuple(name for name in SYSTEMS if name.startswith("nvidia-"))
"""NVIDIA's formulation at each fuse level and in its low-memory mode."""


def get_system(name: str) -> System:
    """Entry of `SYSTEMS`.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in SYSTEMS:
        raise ValueError(f"unknown system {name!r}, expected one of {', '.join(SYSTEMS)}")
    return SYSTEMS[name]


def build_model(name: str, spec: ModelSpec) -> Runner:
    """A system's model with the weights that all systems share."""
    return get_system(name).model(reference_model(spec), spec)


def build_layer(name: str, spec: LayerSpec, batch: GraphBatch) -> Runner:
    """A system's layer with the weights that all systems share.

    Raises:
        ValueError: The system has no lone layer.
    """
    layer = get_system(name).layer
    if layer is None:
        raise ValueError(f"{name!r} has no lone layer")
    return layer(reference_layer(spec), spec, batch)


__all__ = [
    "NVIDIA",
    "SYSTEMS",
    "LayerSpec",
    "ModelSpec",
    "Runner",
    "System",
    "build_layer",
    "build_model",
    "get_system",
]
