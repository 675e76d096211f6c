"""The kernels' door, open to ``torch.compile`` and ``torch.export``, too.

While a compiler traces, the calls become operators of PyTorch with known output shapes and a
backward operator: opaque to the compiler, so that kernels may decide by the tensors' values. The
backward operator computes the messages once more. What is not a tensor travels as text
(``plan.code`` and the like).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, library

from pyg_se3.ops import dispatch
from pyg_se3.ops.attention_shape import AttentionShape
from pyg_se3.ops.autograd_tools import Layout
from pyg_se3.ops.edge_autograd import EdgeAttention, EdgeConv
from pyg_se3.ops.edge_frames import edge_frames
from pyg_se3.ops.inputs import AttentionInputs, ConvInputs
from pyg_se3.ops.isotropic import add_isotropic_messages
from pyg_se3.ops.options import KernelOptions
from pyg_se3.ops.plan import TFNPlan
from pyg_se3.ops.source_autograd import SourceAttention, SourceConv
from pyg_se3.ops.source_schedule import source_schedule


def tfn_conv(inputs: ConvInputs, options: KernelOptions | None = None) -> Tensor:
    """Messages of a TFN convolution, see :func:`pyg_se3.ops.dispatch.tfn_conv`."""
    if _is_eager(options):
        return dispatch.tfn_conv(inputs, options)
    codes = inputs.plan.code, (options or KernelOptions()).code, ""
    tensors, tangents = _tensors(inputs), list(inputs.tangents)
    y = _operator(*codes, _autocast_dtype(inputs.x), [inputs.source], tensors, tangents)
    return add_isotropic_messages(inputs, y)


def tfn_attention(
    inputs: ConvInputs, attention: AttentionInputs, options: KernelOptions | None = None
) -> Tensor:
    """Attention over messages, see :func:`pyg_se3.ops.dispatch.tfn_attention`."""
    if _is_eager(options):
        return dispatch.tfn_attention(inputs, attention, options)
    if inputs.geometry.undirected is not None:
        return attention.over(tfn_conv(inputs, options), inputs)
    codes = inputs.plan.code, (options or KernelOptions()).code, attention.shape.code
    tensors, tangents = [*_tensors(inputs), attention.query], list(inputs.tangents)
    index = [inputs.source, attention.target]
    return _operator(*codes, _autocast_dtype(inputs.x), index, tensors, tangents)


def _is_eager(options: KernelOptions | None) -> bool:
    """Whether the kernel runs as it is: no compiler is at work, or it can look into the kernel."""
    transparent = options is not None and options.kernel in ("reference", "weights", "triton")
    return transparent or not torch.compiler.is_compiling()


def _tensors(inputs: ConvInputs) -> list[Tensor]:
    matrices = [matrix for group in inputs.packed_weights() for matrix in group]
    return [inputs.x, *inputs.radial, *inputs.wigner, *matrices]


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


@library.custom_op("pyg_se3::convolution", mutates_args=())
def _operator(
    plan: str,
    options: str,
    shape: str,
    autocast: torch.dtype | None,
    index: Sequence[Tensor],
    tensors: Sequence[Tensor],
    tangents: Sequence[Tensor],
) -> Tensor:
    """The convolution, or with a shape and targets in ``index`` attention over it."""
    function, arguments, _ = _call(plan, options, shape, autocast, index, tensors, tangents)
    with torch.no_grad():
        return function.forward(_Context(), *arguments)


@_operator.register_fake
def _(
    plan: str,
    options: str,
    shape: str,
    autocast: torch.dtype | None,
    index: Sequence[Tensor],
    tensors: Sequence[Tensor],
    tangents: Sequence[Tensor],
) -> Tensor:
    problem = TFNPlan.from_code(plan)
    geometry = tensors[1 + len(problem.groups)]
    if not shape:
        return geometry.new_empty(index[0].shape[0], problem.fiber_out.dim)
    return geometry.new_empty(tensors[-1].shape[0], AttentionShape.from_code(shape).value.dim)


@library.custom_op("pyg_se3::convolution_backward", mutates_args=())
def _backward_operator(
    plan: str,
    options: str,
    shape: str,
    autocast: torch.dtype | None,
    needed: Sequence[bool],
    gradient: Tensor,
    index: Sequence[Tensor],
    tensors: Sequence[Tensor],
    tangents: Sequence[Tensor],
) -> list[Tensor]:
    """Gradients of all ``tensors``; of no elements where none is needed."""
    function, arguments, places = _call(plan, options, shape, autocast, index, tensors, tangents)
    context = _Context()
    context.needs_input_grad = [False] * len(arguments)
    for place, need in zip(places, needed, strict=True):
        context.needs_input_grad[place] = need
    with torch.no_grad():
        function.forward(context, *arguments)
        gradients = function.backward(context, gradient)
    found = []
    for place, tensor, need in zip(places, tensors, needed, strict=True):
        part = gradients[place] if need else None
        if need and part is None:
            part = torch.zeros_like(tensor)
        found.append(tensor.new_empty(0) if part is None else part.to(tensor.dtype))
    return found


@_backward_operator.register_fake
def _(
    plan: str,
    options: str,
    shape: str,
    autocast: torch.dtype | None,
    needed: Sequence[bool],
    gradient: Tensor,
    index: Sequence[Tensor],
    tensors: Sequence[Tensor],
    tangents: Sequence[Tensor],
) -> list[Tensor]:
    return [
        torch.empty_like(tensor) if need else tensor.new_empty(0)
        for tensor, need in zip(tensors, needed, strict=True)
    ]


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *ctx.settings, index, tensors, tangents = inputs
    ctx.counts = len(index), len(tensors)
    ctx.needed = [tensor.requires_grad for tensor in tensors]
    ctx.save_for_backward(*index, *tensors, *tangents)


def _backward(ctx, gradient):  # type: ignore[no-untyped-def]
    saved, (first, count) = list(ctx.saved_tensors), ctx.counts
    gradients = _backward_operator(
        *ctx.settings,
        ctx.needed,
        gradient,
        saved[:first],
        saved[first : first + count],
        saved[first + count :],
    )
    found = [part if need else None for part, need in zip(gradients, ctx.needed, strict=True)]
    tangents = len(saved) - first - count
    return None, None, None, None, [None] * first, found, [None] * tangents


_operator.register_autograd(_backward, setup_context=_setup_context)


class _Context(SimpleNamespace):
    """Stands in for the context of an autograd function that is called by hand."""

    needs_input_grad: list[bool]
    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors


def _call(
    plan: str,
    options: str,
    shape: str,
    autocast: torch.dtype | None,
    index: Sequence[Tensor],
    tensors: Sequence[Tensor],
    tangents: Sequence[Tensor],
) -> tuple[Any, list[Any], list[int]]:
    """The autograd function, its arguments, and where ``tensors`` are among them."""
    problem, how = TFNPlan.from_code(plan), KernelOptions.from_code(options)
    attention = AttentionShape.from_code(shape) if shape else None
    x, rest = tensors[0], list(tensors[1:])
    query = [rest.pop()] if attention else []
    groups, degrees = len(problem.groups), problem.max_degree + 1
    radial, wigner = rest[:groups], rest[groups : groups + degrees]
    matrices = iter(rest[groups + degrees :])
    packed = tuple(
        tuple(next(matrices) for _ in range(group.max_order + 1)) for group in problem.groups
    )
    kernel = dispatch.choose_kernel(problem, x, index[0].numel(), how)
    with torch.autocast(x.device.type, dtype=autocast, enabled=autocast is not None):
        settings = dispatch.edge_settings(problem, kernel, wigner[0], None, how)
    layout, frames = Layout.of(radial, wigner, packed), edge_frames(problem, wigner)
    head: list[Any] = [problem, settings, layout]
    if kernel == "source":
        head += [frames[1], source_schedule(index[0], x.shape[0], settings.chunk_size)]
    else:
        head += [frames, tangents]
    if attention:
        function: Any = SourceAttention if kernel == "source" else EdgeAttention
        head += [attention, *index]
    else:
        function = SourceConv if kernel == "source" else EdgeConv
        head += index
    dtype = wigner[0].dtype
    given = [tensor.to(dtype) for tensor in (*query, x, *rest)]
    first = len(head) + len(query)
    places = list(range(first, first + len(tensors) - len(query)))
    if query:
        places.append(len(head))
    return function, head + given, places
