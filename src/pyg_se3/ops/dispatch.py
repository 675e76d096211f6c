"""The one door to the kernels: validate, choose, call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from pyg_se3.ops.attention_autograd import attention
from pyg_se3.ops.attention_shape import AttentionShape
from pyg_se3.ops.chunked_edge import EdgeSettings
from pyg_se3.ops.cost import (
    EDGE_CHUNK,
    edge_cost,
    source_chunk,
    source_cost,
)
from pyg_se3.ops.edge_autograd import edge_attention, edge_conv
from pyg_se3.ops.expanded_autograd import expanded_conv
from pyg_se3.ops.isotropic import add_isotropic_messages
from pyg_se3.ops.options import KernelOptions
from pyg_se3.ops.packing import PackedWeights, pack_plan
from pyg_se3.ops.plan import PairWeights, TFNPlan
from pyg_se3.ops.radial_expansion import RadialExpansion
from pyg_se3.ops.reference import tfn_conv_reference
from pyg_se3.ops.source_autograd import source_attention, source_conv
from pyg_se3.ops.triton_conv import triton_attention, triton_conv
from pyg_se3.ops.weights_form import weights_attention, weights_conv
from pyg_se3.so3 import EdgeGeometry

logger = logging.getLogger(__name__)

CPU_COLUMNS = 3072
"""Edges times columns of the radial basis per chunk on a CPU, if that makes chunks longer."""

CPU_BLOCK = 512
"""Edges per block on a CPU: more share the work on the weights, but compress less well."""

FEW_EDGES = 128
"""Fewer edges are not worth finding a basis for, and the weights of each take little memory."""

TYPICAL_PADDING = 1.1
"""Slots per edge of the source form, for the choice by cost."""

CONVOLUTIONS = {
    "edge": edge_conv,
    "source": source_conv,
    "triton": triton_conv,
}
ATTENTIONS = {
    "edge": edge_attention,
    "source": source_attention,
    "triton": triton_attention,
}

WORKSPACE_BYTES = 1 << 29
"""Size of the outer products of one chunk on other devices."""


def tfn_conv(
    plan: TFNPlan,
    x: Tensor,
    source: Tensor,
    radial: Sequence[Tensor],
    geometry: EdgeGeometry,
    weights: PairWeights,
    options: KernelOptions | None = None,
    packed: Callable[[], PackedWeights] | None = None,
    tangents: Sequence[Tensor] = (),
    expansion: RadialExpansion | None = None,
) -> Tensor:
    """Messages of a TFN convolution by the kernel that the options name or cost suggests.

    Args:
        plan: the convolution.
        x: packed node features ``[N, fiber_in.dim]``.
        source: source node of every edge ``[E]``.
        radial: radial activations ``[E, H]``, one tensor per group of the plan.
        geometry: of the edges.
        weights: ``{(l, k): [2 min(l, k) + 1, H, C_l, C_k]}``.
        options: how to compute.
        packed: gives the weights as :func:`pyg_se3.ops.packing.pack_plan` packs them, if they may
            be at hand.
        tangents: per group columns ``[E, s]`` that span the derivatives of the activations with
            respect to the parameters of their radial MLP. Handing them over says that nothing else
            needs a gradient through the activations; the edge kernel may then compress them in
            the backward pass, too.
        expansion: the activations as functions of the edge lengths; ``radial`` are its values.
            Used if :func:`expands_radial` says so.

    Returns:
        packed messages ``[E, fiber_out.dim]``.

    Raises:
        ValueError: shapes that do not fit the plan.
    """
    options = options or KernelOptions()
    _validate(plan, x, source, radial, geometry)
    if options.kernel == "reference":
        return tfn_conv_reference(plan, x, source, radial, geometry, weights)
    expands = expansion is not None
    kernel = "edge" if expands else choose_kernel(plan, x, source.numel(), options)
    settings = edge_settings(plan, kernel, geometry.distance, geometry.runs, options)
    x = x.to(geometry.distance.dtype)  # only matrix products are done in less
    radial = [g.to(x.dtype) for g in radial]
    if kernel == "weights":
        y = weights_conv(plan, settings, x, source, radial, geometry, weights)
    else:
        matrices = packed() if packed else pack_plan(plan, weights)
        if expansion is not None:
            y = expanded_conv(plan, settings, x, source, expansion.to(x.dtype), geometry, matrices)
        else:
            convolve = CONVOLUTIONS[kernel]
            y = convolve(plan, settings, x, source, radial, geometry, matrices, tangents)
    if geometry.undirected is not None:
        y = add_isotropic_messages(plan, y, x, source, radial, geometry.undirected, weights)
    return y


def tfn_attention(
    plan: TFNPlan,
    shape: AttentionShape,
    x: Tensor,
    query: Tensor,
    source: Tensor,
    target: Tensor,
    radial: Sequence[Tensor],
    geometry: EdgeGeometry,
    weights: PairWeights,
    options: KernelOptions | None = None,
    packed: Callable[[], PackedWeights] | None = None,
    tangents: Sequence[Tensor] = (),
    expansion: RadialExpansion | None = None,
) -> Tensor:
    """Attention over the messages of :func:`tfn_conv`, which hold values and keys.

    Args:
        plan: the convolution; its output fiber is ``shape.value + shape.key``.
        shape: of the attention.
        x: packed node features ``[N, fiber_in.dim]``.
        query: packed queries ``[N, shape.key.dim]``.
        source: source node of every edge ``[E]``.
        target: receiving node of every edge ``[E]``.
        radial: radial activations ``[E, H]``, one tensor per group of the plan.
        geometry: of the edges.
        weights: as for :func:`tfn_conv`.
        options: how to compute.
        packed: as for :func:`tfn_conv`.
        tangents: as for :func:`tfn_conv`.
        expansion: as for :func:`tfn_conv`; attention is not fused then.

    Returns:
        packed ``[N, shape.value.dim]``; zero for nodes without incoming edges.

    Raises:
        ValueError: shapes that do not fit the plan.
    """
    options = options or KernelOptions()
    if expansion is not None or not can_fuse_attention(geometry, options):
        messages = tfn_conv(
            plan, x, source, radial, geometry, weights, options, packed, tangents, expansion
        )
        if expansion is not None:
            query = query.to(messages.dtype)
            return attention(shape, messages, plan.fiber_out, query, target, EDGE_CHUNK)
        return shape.attend(messages, plan.fiber_out, query.to(messages.dtype), target)
    _validate(plan, x, source, radial, geometry)
    kernel = choose_kernel(plan, x, source.numel(), options)
    settings = edge_settings(plan, kernel, geometry.distance, geometry.runs, options)
    x = x.to(geometry.distance.dtype)  # only matrix products are done in less
    query, radial = query.to(x.dtype), [g.to(x.dtype) for g in radial]
    given = plan, settings, shape, x, query, source, target, radial, geometry
    if kernel == "weights":
        return weights_attention(*given, weights)
    return ATTENTIONS[kernel](*given, packed() if packed else pack_plan(plan, weights), tangents)


def uses_tangents(plan: TFNPlan, x: Tensor, geometry: EdgeGeometry, options: KernelOptions) -> bool:
    """Whether the kernel for node features ``x`` makes use of tangents of the activations."""
    return (
        torch.is_grad_enabled()
        and geometry.distance.dtype != torch.float64
        and wants_similar_edges(plan, x, geometry.num_edges, options)
    )


def expands_radial(geometry: EdgeGeometry, options: KernelOptions) -> bool:
    """Whether the kernel wants the radial activations expanded in the edge lengths."""
    return (
        options.kernel in ("auto", "edge")
        and torch.is_grad_enabled()
        and geometry.distance.requires_grad
        and not torch.compiler.is_compiling()
    )


def wants_similar_edges(plan: TFNPlan, x: Tensor, num_edges: int, options: KernelOptions) -> bool:
    """Whether the kernel for node features ``x`` compresses, and so gains from sorted edges."""
    if torch.compiler.is_compiling():  # a look at the size would tie what is compiled to it
        compress = _compresses(x.device, plan, options, FEW_EDGES)
        return compress and options.kernel in ("auto", "edge")
    if not _compresses(x.device, plan, options, num_edges):
        return False
    return choose_kernel(plan, x, num_edges, options) == "edge"


def can_fuse_attention(geometry: EdgeGeometry, options: KernelOptions) -> bool:
    """Whether keys and values need not exist for all edges at once."""
    return options.kernel != "reference" and geometry.undirected is None


def edge_settings(
    plan: TFNPlan,
    kernel: str,
    like: Tensor,
    runs: tuple[int, ...] | None,
    options: KernelOptions,
) -> EdgeSettings:
    """Settings of a kernel, as options and autocast say.

    Args:
        plan: the convolution.
        kernel: its name.
        like: any tensor ``[E, ...]`` of the geometry.
        runs: see :class:`pyg_se3.so3.EdgeGeometry`.
        options: how to compute.
    """
    product, device, num_edges = like.dtype, like.device, like.shape[0]
    if torch.is_autocast_enabled(device.type):
        product = torch.get_autocast_dtype(device.type)
    compress = _compresses(device, plan, options, num_edges)
    chunk, columns = options.chunk_size, 0
    if chunk is None:
        if device.type == "cpu" and kernel == "source":
            chunk = source_chunk(plan)
        elif device.type == "cpu":
            chunk, columns = EDGE_CHUNK, CPU_COLUMNS
        else:
            width = sum(c for d, c in plan.fiber_in.items())
            chunk = max(1024, WORKSPACE_BYTES // (2 * product.itemsize * plan.hidden * width))
    narrow = torch.bfloat16 if options.fast else product
    block = max(CPU_BLOCK, chunk) if compress else chunk
    return EdgeSettings(
        block,
        chunk,
        compress,
        options.tolerance,
        product,
        narrow,
        columns,
        runs,
        options.memory == "fast",
        _column_multiple(device, product),
    )


def _column_multiple(device: torch.device, dtype: torch.dtype) -> int:
    """16 bytes where products run on NVIDIA's tensor cores, which are slow with odd widths."""
    if device.type != "cuda":
        return 1
    uses_tf32 = torch.get_float32_matmul_precision() != "highest"
    low = dtype.itemsize == 2 or (dtype == torch.float32 and uses_tf32)
    return 16 // dtype.itemsize if low else 1


def choose_kernel(plan: TFNPlan, x: Tensor, num_edges: int, options: KernelOptions) -> str:
    """Name of the fast kernel that the options ask for or cost suggests.

    Grouping the edges by source waits for the device, so on other devices than the CPU the source
    form is used only when asked for.
    """
    kernel = options.kernel
    if kernel == "auto":
        kernel = "edge"
        if x.device.type == "cpu":
            compress = _compresses(x.device, plan, options, num_edges)
            nodes, slots = min(x.shape[0], num_edges), int(TYPICAL_PADDING * num_edges)
            if num_edges < FEW_EDGES:
                kernel = "weights"
            elif source_cost(plan, nodes, slots, compress) < edge_cost(plan, num_edges, compress):
                kernel = "source"
    if not torch.compiler.is_compiling():
        _log_choice(kernel, x.device.type)
    return kernel


def _compresses(
    device: torch.device, plan: TFNPlan, options: KernelOptions, num_edges: int
) -> bool:
    if options.compress is None:
        suits = plan.rectified and options.kernel not in ("triton", "weights")
        return suits and num_edges >= FEW_EDGES and device.type == "cpu"
    if options.compress and not plan.rectified:
        raise ValueError(
            "compress=True needs radial activations that come out of a ReLU; "
            "this convolution's do not"
        )
    return options.compress


@cache
def _log_choice(kernel: str, device: str) -> None:
    logger.info("TFN convolutions on %s use the %s kernel", device, kernel)


def _validate(
    plan: TFNPlan, x: Tensor, source: Tensor, radial: Sequence[Tensor], geometry: EdgeGeometry
) -> None:
    plan.fiber_in.check(x, "node features")
    edges = source.numel()
    if geometry.num_edges != edges:
        raise ValueError(f"the geometry is of {geometry.num_edges} edges, edge_index of {edges}")
    if geometry.max_degree < plan.max_degree:
        raise ValueError(
            f"the geometry has degrees up to {geometry.max_degree}, "
            f"the convolution {plan.fiber_in} -> {plan.fiber_out} needs {plan.max_degree}"
        )
    if len(radial) != len(plan.groups):
        raise ValueError(
            f"got {len(radial)} tensors of radial activations for {len(plan.groups)} groups"
        )
    for activations in radial:
        if activations.shape != (edges, plan.hidden):
            raise ValueError(
                f"radial activations have shape {list(activations.shape)}, "
                f"expected [{edges}, {plan.hidden}]"
            )
