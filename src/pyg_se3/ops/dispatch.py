"""The one door to the kernels: validate, choose, call."""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor

from pyg_se3.ops.attention_autograd import attention as expanded_attention
from pyg_se3.ops.chunked_edge import EdgeSettings
from pyg_se3.ops.cost import (
    EDGE_CHUNK,
    edge_cost,
    source_chunk,
    source_cost,
)
from pyg_se3.ops.edge_autograd import edge_attention, edge_conv
from pyg_se3.ops.expanded_autograd import expanded_conv
from pyg_se3.ops.inputs import AttentionInputs, ConvInputs
from pyg_se3.ops.isotropic import add_isotropic_messages
from pyg_se3.ops.options import KernelOptions
from pyg_se3.ops.plan import TFNPlan
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
    "weights": weights_conv,
}
ATTENTIONS = {
    "edge": edge_attention,
    "source": source_attention,
    "triton": triton_attention,
    "weights": weights_attention,
}

WORKSPACE_BYTES = 1 << 29
"""Size of the outer products of one chunk on other devices."""


def tfn_conv(inputs: ConvInputs, options: KernelOptions | None = None) -> Tensor:
    """Messages of a TFN convolution by the kernel that the options name or cost suggests.

    Args:
        inputs: of the convolution.
        options: how to compute.

    Returns:
        packed messages ``[E, fiber_out.dim]``.

    Raises:
        ValueError: shapes that do not fit the plan.
    """
    options = options or KernelOptions()
    inputs.check()
    if options.kernel == "reference":
        return tfn_conv_reference(inputs)
    inputs = inputs.in_type_of_geometry()
    if inputs.expansion is not None:
        y = expanded_conv(inputs, _settings(inputs, "edge", options))
    else:
        kernel = choose_kernel(inputs.plan, inputs.x, inputs.num_edges, options)
        y = CONVOLUTIONS[kernel](inputs, _settings(inputs, kernel, options))
    return add_isotropic_messages(inputs, y)


def tfn_attention(
    inputs: ConvInputs, attention: AttentionInputs, options: KernelOptions | None = None
) -> Tensor:
    """Attention over the messages of :func:`tfn_conv`, which hold values and keys.

    Args:
        inputs: of the convolution.
        attention: what it needs besides.
        options: how to compute.

    Returns:
        packed ``[M, shape.value.dim]``; zero for nodes without incoming edges.

    Raises:
        ValueError: shapes that do not fit the plan.
    """
    options = options or KernelOptions()
    if inputs.expansion is not None:
        messages = tfn_conv(inputs, options)
        query = attention.query.to(messages.dtype)
        fiber, target = inputs.plan.fiber_out, attention.target
        return expanded_attention(attention.shape, messages, fiber, query, target, EDGE_CHUNK)
    if not can_fuse_attention(inputs.geometry, options):
        return attention.over(tfn_conv(inputs, options), inputs)
    inputs.check()
    inputs = inputs.in_type_of_geometry()
    query = attention.query.to(inputs.x.dtype)
    attention = AttentionInputs(attention.shape, query, attention.target)
    kernel = choose_kernel(inputs.plan, inputs.x, inputs.num_edges, options)
    return ATTENTIONS[kernel](inputs, attention, _settings(inputs, kernel, options))


def _settings(inputs: ConvInputs, kernel: str, options: KernelOptions) -> EdgeSettings:
    geometry = inputs.geometry
    return edge_settings(inputs.plan, kernel, geometry.distance, geometry.runs, options)


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
