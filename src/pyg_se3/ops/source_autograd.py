"""Autograd for the source-node form, as :mod:`pyg_se3.ops.edge_autograd` has it for the edge form.

Saved are node features, radial activations and Wigner-D matrices; the rest is rebuilt chunk by
chunk in the backward pass, which runs on differentiable operations where a gradient of the
gradient is wanted.
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
from pyg_se3.ops.chunked_edge import EdgeSettings
from pyg_se3.ops.differentiable import attention, convolution, differentiable_backward
from pyg_se3.ops.edge import pack_blocks
from pyg_se3.ops.packing import PackedWeights
from pyg_se3.ops.plan import TFNPlan
from pyg_se3.ops.segment import segment_softmax, segment_sum
from pyg_se3.ops.source import SourceBlockBackward, SourceForm
from pyg_se3.ops.source_schedule import SourceSchedule, source_schedule


class SourceConv(torch.autograd.Function):
    """Messages ``[E, fiber_out.dim]`` of a convolution in the source-node form."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any,
        plan: TFNPlan,
        settings: EdgeSettings,
        schedule: SourceSchedule,
        layout: Layout,
        tangents: Sequence[Tensor],
        source: Tensor,
        x: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        """Compute chunk by chunk; keep the inputs."""
        form = SourceForm(plan, settings, schedule, *layout.split(tensors), tangents)
        y = x.new_empty(source.numel(), plan.fiber_out.dim)
        blocks = form.blocks()
        for block in blocks:
            weights = form.weights(block.bases, settings.product_dtype)
            for chunk in block.chunks:
                given = form.inputs(block, chunk, x, block.values)
                found = form.messages(chunk, given, weights)
                messages = pack_blocks(form.rotate_out(chunk, given, found))
                y.index_copy_(0, chunk.real(chunk.edges), chunk.real(messages))
        ctx.plan, ctx.settings, ctx.layout = plan, settings, layout
        ctx.schedule, ctx.blocks = schedule, blocks
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
            return (None, None, None, None, None, None, *again)
        form = SourceForm(plan, settings, ctx.schedule, *layout.split(tensors))
        total = layout.gradients(needed[1:], tensors)
        dx = torch.zeros_like(x)
        for block in ctx.blocks:
            work = SourceBlockBackward(form, block, total)
            for chunk in block.chunks:
                given = form.inputs(block, chunk, x, block.values)
                gradient = plan.fiber_out.split(dy.index_select(0, chunk.edges))
                work.chunk(chunk, given, gradient, dx)
            work.finish()
        rest = flatten_tensors(total.radial, total.wigner, total.packed, layout)
        return (None, None, None, None, None, None, dx, *rest)


def source_conv(
    plan: TFNPlan,
    settings: EdgeSettings,
    x: Tensor,
    source: Tensor,
    radial: Sequence[Tensor],
    wigner: Sequence[Tensor],
    packed: PackedWeights,
    tangents: Sequence[Tensor] = (),
    schedule: SourceSchedule | None = None,
) -> Tensor:
    """Packed messages ``[E, fiber_out.dim]`` in the source-node form; see :class:`SourceConv`.

    Args:
        plan: the convolution.
        settings: how to compute; ``chunk_size`` counts edges and padding.
        x: packed node features ``[N, fiber_in.dim]``.
        source: source node of every edge ``[E]``, in any order.
        radial: per group activations ``[E, H]``.
        wigner: per degree ``[E, 2l+1, 2l+1]``.
        packed: weights of the plan.
        tangents: as for :func:`pyg_se3.ops.tfn_conv`.
        schedule: of the sources, if at hand; made here otherwise.
    """
    schedule = schedule or source_schedule(source, x.shape[0], settings.chunk_size)
    layout = Layout.of(radial, wigner, packed)
    flat = flatten_tensors(radial, wigner, packed, layout)
    return SourceConv.apply(plan, settings, schedule, layout, tangents, source, x, *flat)


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
        schedule: SourceSchedule,
        layout: Layout,
        tangents: Sequence[Tensor],
        shape: AttentionShape,
        source: Tensor,
        target: Tensor,
        query: Tensor,
        x: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        """Compute chunk by chunk; keep the inputs."""
        form = SourceForm(plan, settings, schedule, *layout.split(tensors), tangents)
        nodes = query.shape[0]
        # By position in the schedule: chunks write consecutive rows.
        receiver = target.index_select(0, schedule.order)
        values = x.new_empty(source.numel(), shape.value.dim)
        logits = x.new_empty(source.numel(), shape.heads)
        blocks = form.blocks()
        for block in blocks:
            weights = form.weights(block.bases, settings.product_dtype)
            for chunk in block.chunks:
                given = form.inputs(block, chunk, x, block.values)
                found = form.rotate_out(chunk, given, form.messages(chunk, given, weights))
                messages = {degree: chunk.real(part) for degree, part in found.items()}
                queries = query.index_select(0, receiver[chunk.span])
                logits[chunk.span] = shape.dot(shape.key.split(queries), shape.keys(messages))
                value_blocks = shape.value.split(values[chunk.span])
                for degree, value in shape.values(messages).items():
                    value_blocks[degree].copy_(value)
        alpha = segment_softmax(logits.mul_(shape.scale), receiver, nodes)
        for value in shape.value.split(values).values():
            value.mul_(shape.by_channel(alpha, value))
        output = segment_sum(values, receiver, nodes)
        ctx.plan, ctx.settings, ctx.layout, ctx.shape = plan, settings, layout, shape
        ctx.schedule, ctx.blocks = schedule, blocks
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
        schedule: SourceSchedule = ctx.schedule
        needed = ctx.needs_input_grad[8:]
        if torch.is_grad_enabled():
            attend = attention(plan, settings, layout, shape, source, target)
            again = differentiable_backward(attend, (query, x, *tensors), needed, do)
            return (None, None, None, None, None, None, None, None, *again)
        form = SourceForm(plan, settings, schedule, *layout.split(tensors))
        total = layout.gradients(needed[2:], tensors)
        dx, dquery = torch.zeros_like(x), torch.zeros_like(query)
        # Per node and head: the output times its gradient.
        mean = shape.dot(shape.value.split(output), shape.value.split(do))
        alpha = torch.cat([alpha, alpha.new_zeros(1, shape.heads)])  # for the padding
        for block in ctx.blocks:
            work = SourceBlockBackward(form, block, total)
            for chunk in block.chunks:
                given = form.inputs(block, chunk, x, block.values)
                found = form.messages(chunk, given, work.weights)
                messages = form.rotate_out(chunk, given, found)
                targets = target.index_select(0, chunk.edges)
                received = shape.value.split(do.index_select(0, targets))
                queries = shape.key.split(query.index_select(0, targets))
                weights = alpha.index_select(0, chunk.sorted_edges)
                dalpha = shape.dot(received, shape.values(messages))
                dlogits = weights * (dalpha - mean.index_select(0, targets)) * shape.scale
                keys = pack_blocks(shape.weigh(dlogits, shape.keys(messages)))
                dquery.index_add_(0, targets, keys)
                gradient = shape.message_gradient(weights, received, dlogits, queries)
                work.chunk(chunk, given, gradient, dx, found)
            work.finish()
        rest = flatten_tensors(total.radial, total.wigner, total.packed, layout)
        return (None, None, None, None, None, None, None, None, dquery, dx, *rest)


def source_attention(
    plan: TFNPlan,
    settings: EdgeSettings,
    shape: AttentionShape,
    x: Tensor,
    query: Tensor,
    source: Tensor,
    target: Tensor,
    radial: Sequence[Tensor],
    wigner: Sequence[Tensor],
    packed: PackedWeights,
    tangents: Sequence[Tensor] = (),
    schedule: SourceSchedule | None = None,
) -> Tensor:
    """Packed attention ``[N, value.dim]`` in the source-node form; see :class:`SourceAttention`.

    Args:
        plan: the convolution; its output fiber is ``shape.value + shape.key``.
        settings: as for :func:`source_conv`.
        shape: of the attention.
        x: packed node features ``[N, fiber_in.dim]``.
        query: packed queries ``[M, shape.key.dim]``.
        source: source node of every edge ``[E]``, in any order.
        target: receiving node of every edge ``[E]``.
        radial: per group activations ``[E, H]``.
        wigner: per degree ``[E, 2l+1, 2l+1]``.
        packed: weights of the plan.
        tangents: as for :func:`pyg_se3.ops.tfn_conv`.
        schedule: of the sources, if at hand; made here otherwise.
    """
    schedule = schedule or source_schedule(source, x.shape[0], settings.chunk_size)
    layout = Layout.of(radial, wigner, packed)
    flat = flatten_tensors(radial, wigner, packed, layout)
    return SourceAttention.apply(
        plan, settings, schedule, layout, tangents, shape, source, target, query, x, *flat
    )
