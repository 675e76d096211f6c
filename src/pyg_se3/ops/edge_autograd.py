"""Autograd for the edge form: the convolution alone, and fused with attention.

Both save node features, radial activations and Wigner-D matrices, nothing per edge and channel,
and rebuild the rest chunk by chunk in the backward pass. If a gradient of the gradient is wanted
(``create_graph=True``), the backward pass runs on differentiable operations instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyg_se3.ops.attention_shape import AttentionShape
from pyg_se3.ops.autograd_tools import (
    Layout,
    flatten_tensors,
    without_autocast,
)
from pyg_se3.ops.chunked_edge import EdgeForm, EdgeSettings
from pyg_se3.ops.differentiable import attention, convolution, differentiable_backward
from pyg_se3.ops.edge import pack_blocks
from pyg_se3.ops.edge_frames import FramePair, edge_frames
from pyg_se3.ops.inputs import AttentionInputs, ConvInputs
from pyg_se3.ops.plan import TFNPlan
from pyg_se3.ops.segment import segment_softmax, segment_sum


class EdgeConv(torch.autograd.Function):
    """Messages ``[E, fiber_out.dim]`` of a convolution in the edge form."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any,
        plan: TFNPlan,
        settings: EdgeSettings,
        layout: Layout,
        frames: FramePair,
        tangents: Sequence[Tensor],
        source: Tensor,
        x: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        """Compute chunk by chunk; keep the inputs."""
        form = EdgeForm(plan, settings, frames, *layout.split(tensors), tangents)
        y = x.new_empty(source.numel(), plan.fiber_out.dim)
        batches = form.batches()
        for block, weights in form.weighted(batches):
            for edges, within in form.chunks(block):
                local = form.frames_in.rotate_in(x.index_select(0, source[edges]), edges)
                outer = form.outer_products(block, within, local, full=False)
                local = form.messages(block, weights, outer, x)
                form.frames_out.rotate_out(local, edges, out=y[edges])
        ctx.plan, ctx.settings, ctx.layout = plan, settings, layout
        ctx.frames, ctx.batches = frames, batches
        ctx.save_for_backward(source, x, *tensors)
        return y

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Rebuild each chunk; differentiable if a graph of the gradient is wanted."""
        (dy,) = gradients
        source, x, *tensors = ctx.saved_tensors
        plan, settings, layout = ctx.plan, ctx.settings, ctx.layout
        needed = ctx.needs_input_grad[6:]
        if torch.is_grad_enabled():
            convolve = convolution(plan, settings, layout, source)
            again = differentiable_backward(convolve, (x, *tensors), needed, dy)
            return (None, None, None, None, None, None, *again)
        form = EdgeForm(plan, settings, ctx.frames, *layout.split(tensors))
        total = layout.gradients(needed[1:], tensors)
        dx = torch.zeros_like(x)
        for block, work in form.backward(ctx.batches, total):
            for edges, within in form.chunks(block):
                sources = source[edges]
                gathered = x.index_select(0, sources)
                local = form.frames_in.rotate_in(gathered, edges)
                outer = form.outer_products(block, within, local, full=True)
                part = work.chunk(edges, within, gathered, local, outer, None, dy[edges])
                dx.index_add_(0, sources, part)
        rest = flatten_tensors(total.radial, total.wigner, total.packed, layout)
        return (None, None, None, None, None, None, dx, *rest)


class EdgeAttention(torch.autograd.Function):
    """Attention ``[N, value.dim]`` whose keys and values exist for one chunk at a time.

    The backward pass rebuilds them and uses that the softmax's inner product with its gradient,
    summed over a receiver's edges, is the inner product of the output with its gradient.
    """

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any,
        plan: TFNPlan,
        settings: EdgeSettings,
        layout: Layout,
        frames: FramePair,
        tangents: Sequence[Tensor],
        shape: AttentionShape,
        source: Tensor,
        target: Tensor,
        query: Tensor,
        x: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        """Compute chunk by chunk; keep the inputs."""
        form = EdgeForm(plan, settings, frames, *layout.split(tensors), tangents)
        edges_total, nodes = source.numel(), query.shape[0]
        values = x.new_empty(edges_total, shape.value.dim)
        value_blocks = shape.split(shape.value, values)
        stored = x.new_empty(edges_total if settings.store else 0, plan.fiber_out.dim)
        logits = x.new_empty(edges_total, shape.heads)
        batches = form.batches()
        for block, weights in form.weighted(batches):
            for edges, within in form.chunks(block):
                local = form.frames_in.rotate_in(x.index_select(0, source[edges]), edges)
                outer = form.outer_products(block, within, local, full=False)
                local = form.messages(block, weights, outer, x)
                out = stored[edges] if settings.store else None
                packed = form.frames_out.rotate_out(local, edges, out)
                messages = shape.split(plan.fiber_out, packed)
                queries = shape.split(shape.key, query.index_select(0, target[edges]))
                logits[edges] = shape.dot(queries, shape.keys(messages))
                for degree, value in shape.values(messages).items():
                    value_blocks[degree][edges] = value
        alpha = segment_softmax(logits.mul_(shape.scale), target, nodes)
        for value in value_blocks.values():
            value.mul_(shape.by_channel(alpha, value))
        output = segment_sum(values, target, nodes)
        ctx.plan, ctx.settings, ctx.layout = plan, settings, layout
        ctx.frames, ctx.batches = frames, batches
        ctx.shape = shape
        ctx.save_for_backward(source, target, alpha, output, stored, query, x, *tensors)
        return output

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Rebuild each chunk; differentiable if a graph of the gradient is wanted."""
        (do,) = gradients
        source, target, alpha, output, stored, query, x, *tensors = ctx.saved_tensors
        plan, settings, layout = ctx.plan, ctx.settings, ctx.layout
        shape: AttentionShape = ctx.shape
        needed = ctx.needs_input_grad[8:]
        if torch.is_grad_enabled():
            attend = attention(plan, settings, layout, shape, source, target)
            again = differentiable_backward(attend, (query, x, *tensors), needed, do)
            return (None, None, None, None, None, None, None, None, *again)
        form = EdgeForm(plan, settings, ctx.frames, *layout.split(tensors))
        total = layout.gradients(needed[2:], tensors)
        dx, dquery = torch.zeros_like(x), torch.zeros_like(query)
        # Per node and head: the output times its gradient.
        mean = shape.dot(shape.split(shape.value, output), shape.split(shape.value, do))
        frame: Tensor | None = None
        for block, work in form.backward(ctx.batches, total):
            for edges, within in form.chunks(block):
                sources, targets = source[edges], target[edges]
                gathered = x.index_select(0, sources)
                local = form.frames_in.rotate_in(gathered, edges)
                outer = form.outer_products(block, within, local, full=True)
                if settings.store:
                    packed = stored[edges]
                else:
                    frame = form.messages(block, work.weights, outer, x)
                    packed = form.frames_out.rotate_out(frame, edges)
                messages = shape.split(plan.fiber_out, packed)
                received = shape.split(shape.value, do.index_select(0, targets))
                queries = shape.split(shape.key, query.index_select(0, targets))
                weights = alpha[edges]
                dalpha = shape.dot(received, shape.values(messages))
                dlogits = weights * (dalpha - mean.index_select(0, targets)) * shape.scale
                keys = pack_blocks(shape.weigh(dlogits, shape.keys(messages)))
                dquery.index_add_(0, targets, keys)
                gradient = pack_blocks(shape.message_gradient(weights, received, dlogits, queries))
                part = work.chunk(edges, within, gathered, local, outer, frame, gradient)
                dx.index_add_(0, sources, part)
        rest = flatten_tensors(total.radial, total.wigner, total.packed, layout)
        return (None, None, None, None, None, None, None, None, dquery, dx, *rest)


def edge_conv(inputs: ConvInputs, settings: EdgeSettings) -> Tensor:
    """Packed messages ``[E, fiber_out.dim]`` in the edge form; see :class:`EdgeConv`."""
    layout, flat = inputs.flat()
    frames = edge_frames(inputs.plan, inputs.wigner, inputs.geometry.shared)
    return EdgeConv.apply(
        inputs.plan, settings, layout, frames, inputs.tangents, inputs.source, inputs.x, *flat
    )


def edge_attention(
    inputs: ConvInputs, attention: AttentionInputs, settings: EdgeSettings
) -> Tensor:
    """Packed attention ``[M, value.dim]`` in the edge form; see :class:`EdgeAttention`."""
    layout, flat = inputs.flat()
    frames = edge_frames(inputs.plan, inputs.wigner, inputs.geometry.shared)
    return EdgeAttention.apply(
        inputs.plan,
        settings,
        layout,
        frames,
        inputs.tangents,
        attention.shape,
        inputs.source,
        attention.target,
        attention.query,
        inputs.x,
        *flat,
    )
