r"""Autograd for attention over given messages, by hand to the second derivative.

Per head, with :math:`\alpha` the softmax of the logits :math:`s\,q \cdot k` over the edges of a
receiver, :math:`a = \langle do, v \rangle` and :math:`\bar a = \sum \alpha a`,

.. math::
    dv = \alpha\,do, \quad \lambda = \alpha (a - \bar a), \quad dk = s \lambda q, \quad
    dq = \sum s \lambda k .

If these get the gradients :math:`\dot v, \dot k, \dot q` in turn, what is to be differentiated is
:math:`\langle do, \sum \alpha \dot v + \dot\alpha v \rangle` with
:math:`\dot l = s (q \cdot \dot k + \dot q \cdot k)` and
:math:`\dot\alpha = \alpha (\dot l - \sum \alpha \dot l)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyg_se3.fiber import Fiber
from pyg_se3.ops.attention_shape import AttentionShape
from pyg_se3.ops.autograd_tools import third_derivative, without_autocast
from pyg_se3.ops.edge import pack_blocks
from pyg_se3.ops.segment import segment_softmax, segment_sum


@dataclass(frozen=True)
class _Edges:
    """What attention needs besides features: shape, fiber of the messages, receivers, chunks."""

    shape: AttentionShape
    fiber: Fiber
    target: Tensor
    size: int

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Ranges of edges and their receivers."""
        for start in range(0, self.target.numel(), self.size):
            edges = slice(start, start + self.size)
            yield edges, self.target[edges]

    def messages(self, packed: Tensor, edges: slice) -> tuple[dict, dict]:
        """Keys and values of some edges."""
        blocks = self.shape.split(self.fiber, packed[edges])
        return self.shape.keys(blocks), self.shape.values(blocks)

    def queries(self, packed: Tensor, targets: Tensor) -> dict:
        """Queries of the receivers."""
        return self.shape.split(self.shape.key, packed.index_select(0, targets))

    def outputs(self, packed: Tensor, targets: Tensor) -> dict:
        """Features like values of the receivers."""
        return self.shape.split(self.shape.value, packed.index_select(0, targets))


class Attention(torch.autograd.Function):
    """Attention ``[N, value.dim]`` over given messages."""

    @staticmethod
    @without_autocast
    def forward(ctx: Any, graph: _Edges, messages: Tensor, query: Tensor) -> Tensor:
        """Compute chunk by chunk; keep weights and output."""
        shape = graph.shape
        logits = messages.new_empty(messages.shape[0], shape.heads)
        for edges, targets in graph.chunks():
            keys, _ = graph.messages(messages, edges)
            logits[edges] = shape.dot(graph.queries(query, targets), keys)
        alpha = segment_softmax(logits.mul_(shape.scale), graph.target, query.shape[0])
        output = messages.new_zeros(query.shape[0], shape.value.dim)
        for edges, targets in graph.chunks():
            _, values = graph.messages(messages, edges)
            output.index_add_(0, targets, pack_blocks(shape.weigh(alpha[edges], values)))
        ctx.graph = graph
        ctx.save_for_backward(messages, query, alpha, output)
        return output

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Through a function that can be differentiated."""
        messages, query, alpha, output = ctx.saved_tensors
        known = alpha.detach(), output.detach()
        dmessages, dquery = AttentionGradient.apply(ctx.graph, known, gradients[0], messages, query)
        return None, dmessages, dquery


class AttentionGradient(torch.autograd.Function):
    """Gradients of messages and queries."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any,
        graph: _Edges,
        known: tuple[Tensor, Tensor],
        do: Tensor,
        messages: Tensor,
        query: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """First gradients, chunk by chunk."""
        shape, (alpha, output) = graph.shape, known
        mean = _mean(shape, output, do)
        dmessages, dquery = torch.empty_like(messages), torch.zeros_like(query)
        inner = torch.empty_like(alpha)
        for edges, targets in graph.chunks():
            keys, values = graph.messages(messages, edges)
            received, queries = graph.outputs(do, targets), graph.queries(query, targets)
            weights = alpha[edges]
            inner[edges] = shape.dot(received, values)
            dlogits = weights * (inner[edges] - mean[targets]) * shape.scale
            dquery.index_add_(0, targets, pack_blocks(shape.weigh(dlogits, keys)))
            gradient = shape.message_gradient(weights, received, dlogits, queries)
            dmessages[edges] = pack_blocks(gradient)
        ctx.graph, ctx.known = graph, (alpha, mean, inner)
        ctx.save_for_backward(do, messages, query)
        return dmessages, dquery

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Second gradients, chunk by chunk."""
        if torch.is_grad_enabled():
            raise third_derivative()
        graph, (along_messages, along_query) = ctx.graph, gradients
        shape: AttentionShape = graph.shape
        alpha, mean, inner = ctx.known
        do, messages, query = ctx.saved_tensors
        target, nodes = graph.target, query.shape[0]
        change, own = torch.empty_like(alpha), torch.empty_like(alpha)
        for edges, targets in graph.chunks():
            keys, _ = graph.messages(messages, edges)
            along_keys, along_values = graph.messages(along_messages, edges)
            part = shape.dot(graph.queries(query, targets), along_keys)
            part += shape.dot(graph.queries(along_query, targets), keys)
            change[edges] = part
            own[edges] = shape.dot(graph.outputs(do, targets), along_values)
        change *= shape.scale
        moved = change - segment_sum(alpha * change, target, nodes)[target]
        own += moved * inner - change * mean[target]  # derivative by alpha
        dlogits = alpha * (inner - mean[target]) * shape.scale
        ddlogits = alpha * (own - segment_sum(alpha * own, target, nodes)[target]) * shape.scale
        moved *= alpha
        dmessages, dquery = torch.empty_like(messages), torch.zeros_like(query)
        ddo = torch.zeros_like(do)
        for edges, targets in graph.chunks():
            keys, values = graph.messages(messages, edges)
            along_keys, along_values = graph.messages(along_messages, edges)
            queries, along_queries = (
                graph.queries(query, targets),
                graph.queries(along_query, targets),
            )
            first, second = dlogits[edges], ddlogits[edges]
            received = graph.outputs(do, targets)
            gradient = shape.message_gradient(moved[edges], received, second, queries)
            for degree, block in shape.weigh(first, along_queries).items():
                shape.keys(gradient)[degree].add_(block)
            dmessages[edges] = pack_blocks(gradient)
            part = pack_blocks(shape.weigh(first, along_keys))
            part += pack_blocks(shape.weigh(second, keys))
            dquery.index_add_(0, targets, part)
            part = pack_blocks(shape.weigh(alpha[edges], along_values))
            part += pack_blocks(shape.weigh(moved[edges], values))
            ddo.index_add_(0, targets, part)
        return None, None, ddo, dmessages, dquery


def _mean(shape: AttentionShape, output: Tensor, do: Tensor) -> Tensor:
    """Per node and head: the output times its gradient."""
    return shape.dot(shape.split(shape.value, output), shape.split(shape.value, do))


def attention(
    shape: AttentionShape, messages: Tensor, fiber: Fiber, query: Tensor, target: Tensor, size: int
) -> Tensor:
    """Attention over given messages, fast to differentiate twice.

    Args:
        shape: of the attention.
        messages: packed keys and values ``[E, fiber.dim]``.
        fiber: of the messages.
        query: packed queries ``[N, key.dim]``.
        target: receiving node of every edge ``[E]``.
        size: edges per chunk.

    Returns:
        packed ``[N, value.dim]``.
    """
    return Attention.apply(_Edges(shape, fiber, target, size), messages, query)
