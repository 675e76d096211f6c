"""Autograd for the edge form: the convolution alone, and fused with attention.

Both save node features, radial activations and Wigner-D matrices, nothing per edge and channel,
and rebuild the rest chunk by chunk in the backward pass. If a gradient of the gradient is wanted
(``create_graph=True``), the backward pass runs on differentiable operations instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from pyg_se3.fiber import Fiber
from pyg_se3.ops.chunked_edge import (
    BlockBackward,
    Blocks,
    EdgeForm,
    EdgeNeeds,
    EdgeSettings,
)
from pyg_se3.ops.edge import edge_form, pack_blocks
from pyg_se3.ops.packing import PackedWeights
from pyg_se3.ops.plan import TFNPlan
from pyg_se3.ops.segment import segment_softmax, segment_sum


@dataclass(frozen=True)
class _Layout:
    """How the flat tensor arguments of a Function divide into radial, wigner and weights."""

    num_radial: int
    num_wigner: int
    num_orders: tuple[int, ...]

    @classmethod
    def of(
        cls, radial: Sequence[Tensor], wigner: Sequence[Tensor], packed: PackedWeights
    ) -> _Layout:
        return cls(len(radial), len(wigner), tuple(len(matrices) for matrices in packed))

    def split(self, flat: Sequence[Any]) -> tuple[list[Any], list[Any], list[list[Any]]]:
        radial = list(flat[: self.num_radial])
        start = self.num_radial + self.num_wigner
        wigner = list(flat[self.num_radial : start])
        packed = []
        for count in self.num_orders:
            packed.append(list(flat[start : start + count]))
            start += count
        return radial, wigner, packed

    def needs(self, flags: Sequence[bool]) -> EdgeNeeds:
        radial, wigner, packed = self.split(flags)
        return EdgeNeeds(any(radial), any(wigner), any(any(p) for p in packed))


def _flatten(
    radial: Sequence[Tensor] | None,
    wigner: Sequence[Tensor] | None,
    packed: Sequence[Sequence[Tensor]] | None,
    layout: _Layout,
) -> list[Tensor | None]:
    """Inverse of :meth:`_Layout.split`, with ``None`` for what there is no gradient of."""
    flat: list[Tensor | None] = []
    flat += radial if radial is not None else [None] * layout.num_radial
    flat += wigner if wigner is not None else [None] * layout.num_wigner
    for index, count in enumerate(layout.num_orders):
        flat += packed[index] if packed is not None else [None] * count
    return flat


def _differentiable_backward(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], needed: Sequence[bool], dy: Tensor
) -> list[Tensor | None]:
    """Gradients of ``function(*inputs)`` that can themselves be differentiated."""
    # Some inputs depend on others (a Wigner-D matrix on the one below it); differentiating with
    # respect to views keeps those dependencies out of the partial derivatives.
    inputs = [tensor.view_as(tensor) for tensor in inputs]
    wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if need]
    gradients = iter(
        torch.autograd.grad(function(*inputs), wanted, dy, create_graph=True, allow_unused=True)
    )
    return [next(gradients) if need else None for need in needed]


def _without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep autocast out: the settings say which products are done in less precision."""

    @wraps(function)
    def run(ctx: Any, *arguments: Any) -> Any:
        device = next(a.device.type for a in arguments if isinstance(a, Tensor))
        with torch.autocast(device, enabled=False):
            return function(ctx, *arguments)

    return run


class EdgeConv(torch.autograd.Function):
    """Messages ``[E, fiber_out.dim]`` of a convolution in the edge form."""

    @staticmethod
    @_without_autocast
    def forward(
        ctx: Any,
        plan: TFNPlan,
        settings: EdgeSettings,
        layout: _Layout,
        tangents: Sequence[Tensor],
        source: Tensor,
        x: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        """Compute chunk by chunk; keep the inputs."""
        form = EdgeForm(plan, settings, *layout.split(tensors), tangents)
        y = x.new_empty(source.numel(), plan.fiber_out.dim)
        targets = plan.fiber_out.split(y)
        blocks = form.blocks()
        for block in blocks:
            weights = form.weights(block)
            for edges, within in form.chunks(block):
                gathered = plan.fiber_in.split(x[source[edges]])
                local = form.rotate_in(plan.fiber_in, gathered, edges)
                outer = form.outer_products(block, within, local, full=False)
                local = form.messages(block, weights, outer, x)
                for degree, message in form.rotate_out(plan.fiber_out, local, edges).items():
                    targets[degree][edges] = message
        ctx.plan, ctx.settings, ctx.layout, ctx.blocks = plan, settings, layout, blocks
        ctx.save_for_backward(source, x, *tensors)
        return y

    @staticmethod
    @_without_autocast
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Rebuild each chunk; differentiable if a graph of the gradient is wanted."""
        (dy,) = gradients
        source, x, *tensors = ctx.saved_tensors
        plan, settings, layout = ctx.plan, ctx.settings, ctx.layout
        needed = ctx.needs_input_grad[5:]
        if torch.is_grad_enabled():

            def convolve(x: Tensor, *tensors: Tensor) -> Tensor:
                radial, wigner, packed = layout.split(tensors)
                return edge_form(plan, x[source], radial, wigner, packed, settings.product_dtype)

            again = _differentiable_backward(convolve, (x, *tensors), needed, dy)
            return (None, None, None, None, None, *again)
        form = EdgeForm(plan, settings, *layout.split(tensors))
        total = form.gradients(layout.needs(needed[1:]))
        dx = torch.zeros_like(x)
        dy_blocks = plan.fiber_out.split(dy)
        for block in ctx.blocks:
            work = BlockBackward(form, block, total)
            for edges, within in form.chunks(block):
                sources = source[edges]
                gathered = plan.fiber_in.split(x[sources])
                local = form.rotate_in(plan.fiber_in, gathered, edges)
                outer = form.outer_products(block, within, local, full=True)
                gradient = {degree: part[edges] for degree, part in dy_blocks.items()}
                part = work.chunk(edges, within, gathered, local, outer, None, gradient)
                dx.index_add_(0, sources, pack_blocks(part))
            work.finish()
        rest = _flatten(total.radial, total.wigner, total.packed, layout)
        return (None, None, None, None, None, dx, *rest)


@dataclass(frozen=True)
class AttentionShape:
    """Multi-head attention over messages that hold keys and values.

    Attributes:
        value: fiber of the values, the first channels of each degree of the messages.
        key: fiber of the keys, the remaining channels; and of the queries.
        heads: number of heads, contiguous blocks of channels in every degree.
    """

    value: Fiber
    key: Fiber
    heads: int

    @property
    def scale(self) -> float:
        """Factor of the logits, one over the square root of the width of all keys."""
        return 1 / math.sqrt(self.key.dim)

    def dot(self, queries: Blocks, blocks: Blocks) -> Tensor:
        """Sum over components and a head's channels: ``[e, heads]``."""
        parts = [
            (blocks[degree] * query).unflatten(2, (self.heads, -1)).sum((1, 3))
            for degree, query in queries.items()
        ]
        return sum(parts[1:], start=parts[0])

    def keys(self, messages: Blocks) -> Blocks:
        """The part of the messages that is keys, by degree ``[e, 2l+1, C_key]``."""
        return {degree: messages[degree][:, :, self.value[degree] :] for degree in self.key}

    def values(self, messages: Blocks) -> Blocks:
        """The part of the messages that is values, by degree ``[e, 2l+1, C_value]``."""
        return {
            degree: messages[degree][:, :, :channels] for degree, channels in self.value.items()
        }

    def weigh(self, weights: Tensor, blocks: Blocks) -> Blocks:
        """Multiply the channels of each head by its weight ``[e, heads]``."""
        return {
            degree: (block.unflatten(2, (self.heads, -1)) * weights[:, None, :, None]).flatten(2)
            for degree, block in blocks.items()
        }

    def message_gradient(
        self, weights: Tensor, received: Blocks, dlogits: Tensor, queries: Blocks
    ) -> Blocks:
        """Gradient of messages by degree from that of the output and of the logits."""
        gradient = {}
        for degree, outer in received.items():
            channels = self.value[degree]
            whole = channels + self.key.get(degree, 0)
            block = outer.new_empty(*outer.shape[:2], whole)
            part = block[:, :, :channels].unflatten(2, (self.heads, -1))
            torch.mul(outer.unflatten(2, (self.heads, -1)), weights[:, None, :, None], out=part)
            if degree in queries:
                part = block[:, :, channels:].unflatten(2, (self.heads, -1))
                query = queries[degree].unflatten(2, (self.heads, -1))
                torch.mul(query, dlogits[:, None, :, None], out=part)
            gradient[degree] = block
        return gradient

    def attend(self, messages: Tensor, fiber: Fiber, query: Tensor, target: Tensor) -> Tensor:
        """Attention over given messages, in differentiable operations.

        Args:
            messages: packed keys and values ``[E, fiber.dim]``.
            fiber: of the messages.
            query: packed queries ``[N, key.dim]``.
            target: receiving node of every edge ``[E]``.

        Returns:
            packed ``[N, value.dim]``.
        """
        blocks = fiber.split(messages)
        logits = self.dot(self.key.split(query[target]), self.keys(blocks)) * self.scale
        weights = segment_softmax(logits, target, query.shape[0])
        weighted = pack_blocks(self.weigh(weights, self.values(blocks)))
        return segment_sum(weighted, target, query.shape[0])


class EdgeAttention(torch.autograd.Function):
    """Attention ``[N, value.dim]`` whose keys and values exist for one chunk at a time.

    The backward pass rebuilds them and uses that the softmax's inner product with its gradient,
    summed over a receiver's edges, is the inner product of the output with its gradient.
    """

    @staticmethod
    @_without_autocast
    def forward(
        ctx: Any,
        plan: TFNPlan,
        settings: EdgeSettings,
        layout: _Layout,
        tangents: Sequence[Tensor],
        shape: AttentionShape,
        source: Tensor,
        target: Tensor,
        query: Tensor,
        x: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        """Compute chunk by chunk; keep the inputs."""
        form = EdgeForm(plan, settings, *layout.split(tensors), tangents)
        edges_total, nodes = source.numel(), query.shape[0]
        values = x.new_empty(edges_total, shape.value.dim)
        value_blocks = shape.value.split(values)
        logits = x.new_empty(edges_total, shape.heads)
        blocks = form.blocks()
        for block in blocks:
            weights = form.weights(block)
            for edges, within in form.chunks(block):
                gathered = plan.fiber_in.split(x[source[edges]])
                local = form.rotate_in(plan.fiber_in, gathered, edges)
                outer = form.outer_products(block, within, local, full=False)
                local = form.messages(block, weights, outer, x)
                messages = form.rotate_out(plan.fiber_out, local, edges)
                queries = shape.key.split(query[target[edges]])
                logits[edges] = shape.dot(queries, shape.keys(messages))
                for degree, value in shape.values(messages).items():
                    value_blocks[degree][edges] = value
        alpha = segment_softmax(logits.mul_(shape.scale), target, nodes)
        for value in value_blocks.values():
            value.unflatten(2, (shape.heads, -1)).mul_(alpha[:, None, :, None])
        output = segment_sum(values, target, nodes)
        ctx.plan, ctx.settings, ctx.layout, ctx.blocks = plan, settings, layout, blocks
        ctx.shape = shape
        ctx.save_for_backward(source, target, alpha, output, query, x, *tensors)
        return output

    @staticmethod
    @_without_autocast
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Rebuild each chunk; differentiable if a graph of the gradient is wanted."""
        (do,) = gradients
        source, target, alpha, output, query, x, *tensors = ctx.saved_tensors
        plan, settings, layout = ctx.plan, ctx.settings, ctx.layout
        shape: AttentionShape = ctx.shape
        needed = ctx.needs_input_grad[7:]
        if torch.is_grad_enabled():

            def attend(query: Tensor, x: Tensor, *tensors: Tensor) -> Tensor:
                radial, wigner, packed = layout.split(tensors)
                messages = edge_form(
                    plan, x[source], radial, wigner, packed, settings.product_dtype
                )
                return shape.attend(messages, plan.fiber_out, query, target)

            again = _differentiable_backward(attend, (query, x, *tensors), needed, do)
            return (None, None, None, None, None, None, None, *again)
        form = EdgeForm(plan, settings, *layout.split(tensors))
        total = form.gradients(layout.needs(needed[2:]))
        dx, dquery = torch.zeros_like(x), torch.zeros_like(query)
        # Per node and head: the output times its gradient.
        mean = shape.dot(shape.value.split(output), shape.value.split(do))
        for block in ctx.blocks:
            work = BlockBackward(form, block, total)
            for edges, within in form.chunks(block):
                sources, targets = source[edges], target[edges]
                gathered = plan.fiber_in.split(x[sources])
                local = form.rotate_in(plan.fiber_in, gathered, edges)
                outer = form.outer_products(block, within, local, full=True)
                frame = form.messages(block, work.weights, outer, x)
                messages = form.rotate_out(plan.fiber_out, frame, edges)
                received = shape.value.split(do[targets])
                weights = alpha[edges]
                dalpha = shape.dot(received, shape.values(messages))
                dlogits = weights * (dalpha - mean[targets]) * shape.scale
                keys = pack_blocks(shape.weigh(dlogits, shape.keys(messages)))
                dquery.index_add_(0, targets, keys)
                gradient = shape.message_gradient(
                    weights, received, dlogits, shape.key.split(query[targets])
                )
                part = work.chunk(edges, within, gathered, local, outer, frame, gradient)
                dx.index_add_(0, sources, pack_blocks(part))
            work.finish()
        rest = _flatten(total.radial, total.wigner, total.packed, layout)
        return (None, None, None, None, None, None, None, dquery, dx, *rest)


def edge_conv(
    plan: TFNPlan,
    settings: EdgeSettings,
    x: Tensor,
    source: Tensor,
    radial: Sequence[Tensor],
    wigner: Sequence[Tensor],
    packed: PackedWeights,
    tangents: Sequence[Tensor] = (),
) -> Tensor:
    """Packed messages ``[E, fiber_out.dim]`` in the edge form; see :class:`EdgeConv`."""
    layout = _Layout.of(radial, wigner, packed)
    flat = _flatten(radial, wigner, packed, layout)
    return EdgeConv.apply(plan, settings, layout, tangents, source, x, *flat)


def edge_attention(
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
) -> Tensor:
    """Packed attention ``[N, value.dim]`` in the edge form; see :class:`EdgeAttention`."""
    layout = _Layout.of(radial, wigner, packed)
    flat = _flatten(radial, wigner, packed, layout)
    return EdgeAttention.apply(
        plan, settings, layout, tangents, shape, source, target, query, x, *flat
    )
