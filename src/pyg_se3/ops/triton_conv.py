"""Convolution and attention in the edge form with Triton's product.

As in :mod:`pyg_se3.ops.edge_autograd`, only node features, radial activations and Wigner-D matrices
are saved; a chunk of edges at a time is rebuilt in the backward pass. The messages of a chunk are
made of differentiable operations, so autograd derives its part of the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pyg_se3.autocast import no_autocast
from pyg_se3.ops.attention_shape import AttentionShape
from pyg_se3.ops.autograd_tools import (
    Layout,
    without_autocast,
)
from pyg_se3.ops.chunked_edge import EdgeSettings
from pyg_se3.ops.differentiable import differentiable_backward
from pyg_se3.ops.edge import edge_form, pack_blocks
from pyg_se3.ops.inputs import AttentionInputs, ConvInputs
from pyg_se3.ops.plan import TFNPlan
from pyg_se3.ops.segment import segment_softmax, segment_sum
from pyg_se3.ops.triton_product import require_triton, triton_product


class _Convolution:
    """Messages chunk by chunk, and the sums of their gradients.

    Args:
        plan: the convolution.
        settings: how to compute.
        layout: of ``tensors``.
        source: source node of every edge ``[E]``.
        x: packed node features ``[N, fiber_in.dim]``.
        tensors: radial activations, Wigner-D matrices and packed weights.
    """

    def __init__(
        self,
        plan: TFNPlan,
        settings: EdgeSettings,
        layout: Layout,
        source: Tensor,
        x: Tensor,
        tensors: Sequence[Tensor],
    ) -> None:
        self.plan, self.settings, self.layout = plan, settings, layout
        self.source, self.x, self.tensors = source, x, tensors
        self.per_edge = layout.num_radial + layout.num_wigner

    def chunks(self) -> Iterator[slice]:
        """The edges, in parts."""
        total, size = self.source.numel(), self.settings.chunk_size
        for start in range(0, total, size):
            yield slice(start, min(start + size, total))

    def messages(self, x: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """Packed messages of some edges from the features of their sources."""
        radial, wigner, packed = self.layout.split(tensors)
        dtype = self.settings.product_dtype
        return edge_form(self.plan, x, radial, wigner, packed, dtype, triton_product)

    def chunk(self, edges: slice) -> tuple[Tensor, list[Tensor]]:
        """Source features and tensors of some edges."""
        per_edge = [tensor[edges] for tensor in self.tensors[: self.per_edge]]
        return self.x[self.source[edges]], [*per_edge, *self.tensors[self.per_edge :]]

    def zeros(self, needed: Sequence[bool]) -> list[Tensor | None]:
        """Accumulators for the gradients that are needed, of x and of the tensors."""
        inputs = (self.x, *self.tensors)
        return [
            torch.zeros_like(t) if need else None for t, need in zip(inputs, needed, strict=True)
        ]

    def rebuild(self, edges: slice, total: Sequence[Tensor | None]) -> _Rebuilt:
        """The messages of some edges, ready for their backward pass."""
        x, tensors = self.chunk(edges)
        with torch.enable_grad():
            inputs = [
                t.detach().requires_grad_(wanted is not None)
                for t, wanted in zip((x, *tensors), total, strict=True)
            ]
            return _Rebuilt(self, edges, inputs, self.messages(inputs[0], inputs[1:]))


class _Rebuilt:
    """Messages of a chunk with their graph."""

    def __init__(
        self, form: _Convolution, edges: slice, inputs: list[Tensor], messages: Tensor
    ) -> None:
        self.form, self.edges, self.inputs, self.graph = form, edges, inputs, messages
        self.messages = messages.detach()

    def add_gradients(self, gradient: Tensor, total: Sequence[Tensor | None]) -> None:
        """Add what a gradient of the messages makes of the inputs' gradients."""
        form = self.form
        wanted = [t for t in self.inputs if t.requires_grad]
        if not wanted:
            return
        found = iter(torch.autograd.grad(self.graph, wanted, gradient, materialize_grads=True))
        for number, gathered in enumerate(total):
            if gathered is None:
                continue
            part = next(found)
            if number == 0:
                gathered.index_add_(0, form.source[self.edges], part)
            elif number <= form.per_edge:
                gathered[self.edges] = part
            else:
                gathered += part


class TritonConv(torch.autograd.Function):
    """Messages ``[E, fiber_out.dim]`` of a convolution."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any,
        plan: TFNPlan,
        settings: EdgeSettings,
        layout: Layout,
        source: Tensor,
        x: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        """Compute chunk by chunk; keep the inputs."""
        form = _Convolution(plan, settings, layout, source, x, tensors)
        y = x.new_empty(source.numel(), plan.fiber_out.dim)
        for edges in form.chunks():
            y[edges] = form.messages(*form.chunk(edges))
        ctx.plan, ctx.settings, ctx.layout = plan, settings, layout
        ctx.save_for_backward(source, x, *tensors)
        return y

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Rebuild each chunk; differentiable if a graph of the gradient is wanted."""
        (dy,) = gradients
        source, x, *tensors = ctx.saved_tensors
        form = _Convolution(ctx.plan, ctx.settings, ctx.layout, source, x, tensors)
        needed = ctx.needs_input_grad[4:]
        if torch.is_grad_enabled():

            def convolve(x: Tensor, *tensors: Tensor) -> Tensor:
                return form.messages(x[source], tensors)

            again = differentiable_backward(convolve, (x, *tensors), needed, dy)
            return (None, None, None, None, *again)
        total = form.zeros(needed)
        for edges in form.chunks():
            form.rebuild(edges, total).add_gradients(dy[edges], total)
        return (None, None, None, None, *total)


class TritonAttention(torch.autograd.Function):
    """Attention ``[N, value.dim]`` whose keys and values exist for one chunk at a time."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any,
        plan: TFNPlan,
        settings: EdgeSettings,
        layout: Layout,
        shape: AttentionShape,
        source: Tensor,
        target: Tensor,
        query: Tensor,
        x: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        """Compute chunk by chunk; keep the inputs."""
        form = _Convolution(plan, settings, layout, source, x, tensors)
        nodes = query.shape[0]
        values = x.new_empty(source.numel(), shape.value.dim)
        logits = x.new_empty(source.numel(), shape.heads)
        for edges in form.chunks():
            messages = plan.fiber_out.split(form.messages(*form.chunk(edges)))
            queries = shape.key.split(query[target[edges]])
            logits[edges] = shape.dot(queries, shape.keys(messages)) * shape.scale
            values[edges] = pack_blocks(shape.values(messages))
        alpha = segment_softmax(logits, target, nodes)
        weighted = pack_blocks(shape.weigh(alpha, shape.value.split(values)))
        output = segment_sum(weighted, target, nodes)
        ctx.plan, ctx.settings, ctx.layout, ctx.shape = plan, settings, layout, shape
        ctx.save_for_backward(source, target, alpha, output, query, x, *tensors)
        return output

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Rebuild each chunk; differentiable if a graph of the gradient is wanted."""
        (do,) = gradients
        source, target, alpha, output, query, x, *tensors = ctx.saved_tensors
        shape: AttentionShape = ctx.shape
        form = _Convolution(ctx.plan, ctx.settings, ctx.layout, source, x, tensors)
        needed = ctx.needs_input_grad[6:]
        if torch.is_grad_enabled():

            def attend(query: Tensor, x: Tensor, *tensors: Tensor) -> Tensor:
                messages = form.messages(x[source], tensors)
                return shape.attend(messages, form.plan.fiber_out, query, target)

            again = differentiable_backward(attend, (query, x, *tensors), needed, do)
            return (None, None, None, None, None, None, *again)
        total, dquery = form.zeros(needed[1:]), torch.zeros_like(query)
        # Per node and head: the output times its gradient, the softmax's sum over a receiver.
        mean = shape.dot(shape.value.split(output), shape.value.split(do))
        for edges in form.chunks():
            rebuilt = form.rebuild(edges, total)
            messages = form.plan.fiber_out.split(rebuilt.messages)
            targets, weights = target[edges], alpha[edges]
            received = shape.value.split(do[targets])
            dalpha = shape.dot(received, shape.values(messages))
            dlogits = weights * (dalpha - mean[targets]) * shape.scale
            dquery.index_add_(0, targets, pack_blocks(shape.weigh(dlogits, shape.keys(messages))))
            queries = shape.key.split(query[targets])
            gradient = shape.message_gradient(weights, received, dlogits, queries)
            rebuilt.add_gradients(pack_blocks(gradient), total)
        return (None, None, None, None, None, None, dquery, *total)


def triton_conv(inputs: ConvInputs, settings: EdgeSettings) -> Tensor:
    """Packed messages ``[E, fiber_out.dim]`` by Triton; see :class:`TritonConv`.

    Raises:
        RuntimeError: no Triton or no CUDA device.
        ValueError: settings that only other kernels have.
    """
    _check(settings, inputs.x)
    if torch.compiler.is_compiling():
        return _traced_messages(inputs, settings)
    layout, flat = inputs.flat()
    return TritonConv.apply(inputs.plan, settings, layout, inputs.source, inputs.x, *flat)


def triton_attention(
    inputs: ConvInputs, attention: AttentionInputs, settings: EdgeSettings
) -> Tensor:
    """Packed attention ``[M, value.dim]`` by Triton; see :class:`TritonAttention`.

    Raises:
        RuntimeError: no Triton or no CUDA device.
        ValueError: settings that only other kernels have.
    """
    _check(settings, inputs.x)
    if torch.compiler.is_compiling():
        messages = _traced_messages(inputs, settings)
        with no_autocast(inputs.x.device.type):
            return attention.over(messages, inputs)
    layout, flat = inputs.flat()
    return TritonAttention.apply(
        inputs.plan,
        settings,
        layout,
        attention.shape,
        inputs.source,
        attention.target,
        attention.query,
        inputs.x,
        *flat,
    )


def _traced_messages(inputs: ConvInputs, settings: EdgeSettings) -> Tensor:
    """All messages in one graph: the compiler chooses what to rebuild in the backward pass."""
    plan, x, dtype = inputs.plan, inputs.x, settings.product_dtype
    with no_autocast(x.device.type):
        packed = inputs.packed_weights()
        return edge_form(
            plan, x[inputs.source], inputs.radial, inputs.wigner, packed, dtype, triton_product
        )


def _check(settings: EdgeSettings, x: Tensor) -> None:
    require_triton(x.device)
    if settings.compress:
        raise ValueError(
            "compress=True needs kernel='edge' or 'source': Triton's does not compress"
        )
    if settings.activation_grad_dtype != settings.product_dtype:
        raise ValueError(
            "fast=True needs kernel='edge' or 'source': Triton's has no product of its own "
            "for the gradient of the radial activations"
        )
