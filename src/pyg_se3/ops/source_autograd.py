"""Autograd for the source-node form, as :mod:`pyg_se3.ops.edge_autograd` has it for the edge form.

Saved are node features, radial activations and Wigner-D matrices; the rest is rebuilt chunk by
chunk in the backward pass, which runs on differentiable operations where a gradient of the
gradient is wanted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyg_se3.ops.attention_shape import AttentionShape
from pyg_se3.ops.autograd_tools import (
    Layout,
    flatten_tensors,
    without_autocast,
)
from pyg_se3.ops.chunked_edge import EdgeSettings
from pyg_se3.ops.differentiable import attention, convolution, differentiable_backward
from pyg_se3.ops.edge import pack_blocks
from pyg_se3.ops.edge_frames import EdgeFrames
from pyg_se3.ops.inputs import AttentionInputs, ConvInputs
from pyg_se3.ops.plan import TFNPlan
from pyg_se3.ops.segment import segment_softmax, segment_sum
from pyg_se3.ops.source import ALL, SourceBackward, SourceForm
from pyg_se3.ops.source_schedule import SourceSchedule, shared_schedule


class SourceConv(torch.autograd.Function):
    """Messages ``[E, fiber_out.dim]`` of a convolution in the source-node form."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any,
        plan: TFNPlan,
        settings: EdgeSettings,
        layout: Layout,
        frames: EdgeFrames,
        schedule: SourceSchedule,
        source: Tensor,
        x: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        """Compute chunk by chunk; keep the inputs."""
        form = SourceForm(plan, settings, frames, *layout.split(tensors))
        y = x.new_empty(source.numel(), plan.fiber_out.dim)
        weights = form.weights()
        for chunk in schedule.chunks:
            given = form.inputs(chunk, x)
            local = form.messages(chunk, given, weights)
            y.index_copy_(0, chunk.edges, given.frames.rotate_out(local, ALL))
        ctx.plan, ctx.settings, ctx.layout = plan, settings, layout
        ctx.frames, ctx.schedule = frames, schedule
        ctx.save_for_backward(source, x, *tensors)
        return y

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Rebuild each chunk and add up the gradients of the inputs."""
        (dy,) = gradients
        source, x, *tensors = ctx.saved_tensors
        plan, settings, layout = ctx.plan, ctx.settings, ctx.layout
        needed = ctx.needs_input_grad[6:]
        if torch.is_grad_enabled():
            convolve = convolution(plan, settings, layout, source)
            again = differentiable_backward(convolve, (x, *tensors), needed, dy)
            return (*[None] * 6, *again)
        form = SourceForm(plan, settings, ctx.frames, *layout.split(tensors))
        total = layout.gradients(needed[1:], tensors)
        dx = torch.zeros_like(x)
        work = SourceBackward(form, total)
        for chunk in ctx.schedule.chunks:
            gradient = chunk.without_padding(dy.index_select(0, chunk.edges))
            work.chunk(chunk, form.inputs(chunk, x), gradient, dx)
        work.finish()
        rest = flatten_tensors(total.radial, total.wigner, total.packed, layout)
        return (*[None] * 6, dx, *rest)


def source_conv(inputs: ConvInputs, settings: EdgeSettings) -> Tensor:
    """Packed messages ``[E, fiber_out.dim]`` in the source-node form; see :class:`SourceConv`.

    Edges may come in any order; ``settings.chunk_size`` counts edges and padding. Tangents are not
    used, as this form compresses no further than leaving out silent activations.
    """
    layout, flat = inputs.flat()
    frames, schedule = _shared(inputs, settings)
    return SourceConv.apply(
        inputs.plan, settings, layout, frames, schedule, inputs.source, inputs.x, *flat
    )


def _shared(inputs: ConvInputs, settings: EdgeSettings) -> tuple[EdgeFrames, SourceSchedule]:
    """What layers with the same edges share."""
    plan, x, shared = inputs.plan, inputs.x, inputs.geometry.shared
    frames = EdgeFrames.of(plan.fiber_out, plan.max_order, inputs.wigner, shared)
    return frames, shared_schedule(inputs.source, x.shape[0], settings.chunk_size, shared)


class SourceAttention(torch.autograd.Function):
    """Attention ``[N, value.dim]`` whose keys and values exist for one chunk at a time.

    The softmax is over the edges of a receiver, which lie in many chunks: the forward pass keeps
    values and logits until all are there, the backward pass only the attention weights, by the
    identity that :class:`pyg_se3.ops.edge_autograd.EdgeAttention` states.
    """

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any,
        plan: TFNPlan,
        settings: EdgeSettings,
        layout: Layout,
        frames: EdgeFrames,
        schedule: SourceSchedule,
        shape: AttentionShape,
        source: Tensor,
        target: Tensor,
        query: Tensor,
        x: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        """Compute chunk by chunk; keep the inputs."""
        form = SourceForm(plan, settings, frames, *layout.split(tensors))
        values = x.new_empty(source.numel(), shape.value.dim)
        logits = x.new_empty(source.numel(), shape.heads)
        value_blocks = shape.split(shape.value, values)
        weights = form.weights()
        for chunk in schedule.chunks:
            given = form.inputs(chunk, x)
            local = form.messages(chunk, given, weights)
            packed = given.frames.rotate_out(local, ALL)
            messages = shape.split(plan.fiber_out, packed)
            targets = target.index_select(0, chunk.edges)
            queries = shape.split(shape.key, query.index_select(0, targets))
            logits.index_copy_(0, chunk.edges, shape.dot(queries, shape.keys(messages)))
            for degree, value in shape.values(messages).items():
                value_blocks[degree].index_copy_(0, chunk.edges, value)
        alpha = segment_softmax(logits.mul_(shape.scale), target, query.shape[0])
        for value in value_blocks.values():
            value.mul_(shape.by_channel(alpha, value))
        output = segment_sum(values, target, query.shape[0])
        ctx.plan, ctx.settings, ctx.layout, ctx.shape = plan, settings, layout, shape
        ctx.frames, ctx.schedule = frames, schedule
        ctx.save_for_backward(source, target, alpha, output, query, x, *tensors)
        return output

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Rebuild each chunk and add up the gradients of the inputs."""
        (do,) = gradients
        source, target, alpha, output, query, x, *tensors = ctx.saved_tensors
        plan, settings, layout = ctx.plan, ctx.settings, ctx.layout
        shape: AttentionShape = ctx.shape
        needed = ctx.needs_input_grad[8:]
        if torch.is_grad_enabled():
            attend = attention(plan, settings, layout, shape, source, target)
            again = differentiable_backward(attend, (query, x, *tensors), needed, do)
            return (*[None] * 8, *again)
        form = SourceForm(plan, settings, ctx.frames, *layout.split(tensors))
        total = layout.gradients(needed[2:], tensors)
        dx, dquery = torch.zeros_like(x), torch.zeros_like(query)
        # Per node and head: the output times its gradient.
        mean = shape.dot(shape.split(shape.value, output), shape.split(shape.value, do))
        work = SourceBackward(form, total)
        for chunk in ctx.schedule.chunks:
            given = form.inputs(chunk, x)
            local = form.messages(chunk, given, work.weights)
            packed = given.frames.rotate_out(local, ALL)
            messages = shape.split(plan.fiber_out, packed)
            targets = target.index_select(0, chunk.edges)
            received = shape.split(shape.value, do.index_select(0, targets))
            queries = shape.split(shape.key, query.index_select(0, targets))
            weights = chunk.without_padding(alpha.index_select(0, chunk.edges))
            dalpha = shape.dot(received, shape.values(messages))
            dlogits = weights * (dalpha - mean.index_select(0, targets)) * shape.scale
            keys = pack_blocks(shape.weigh(dlogits, shape.keys(messages)))
            dquery.index_add_(0, targets, keys)
            gradient = pack_blocks(shape.message_gradient(weights, received, dlogits, queries))
            work.chunk(chunk, given, gradient, dx, local)
        work.finish()
        rest = flatten_tensors(total.radial, total.wigner, total.packed, layout)
        return (*[None] * 8, dquery, dx, *rest)


def source_attention(
    inputs: ConvInputs, attention: AttentionInputs, settings: EdgeSettings
) -> Tensor:
    """Packed attention ``[M, value.dim]`` in the source-node form; see :class:`SourceAttention`."""
    layout, flat = inputs.flat()
    frames, schedule = _shared(inputs, settings)
    return SourceAttention.apply(
        inputs.plan,
        settings,
        layout,
        frames,
        schedule,
        attention.shape,
        inputs.source,
        attention.target,
        attention.query,
        inputs.x,
        *flat,
    )
