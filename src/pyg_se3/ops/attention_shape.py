"""Multi-head attention over messages: what is a key, what is a value, and sums over heads."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from pyg_se3.fiber import Fiber
from pyg_se3.ops.edge import pack_blocks
from pyg_se3.ops.segment import segment_softmax, segment_sum
from pyg_se3.so3.constants import traceable_constant

Blocks = dict[int, Tensor]
"""Features by degree, ``{l: [e, 2l+1, C_l]}``, or see :meth:`AttentionShape.split`."""


@traceable_constant(lambda channels, heads: (channels, heads))
def _membership(channels: int, heads: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    eye = torch.eye(heads, dtype=dtype, device=device)
    return eye.repeat_interleave(channels // heads, dim=0)


@dataclass(frozen=True)
class AttentionShape:
    """Multi-head attention over messages that hold keys and values.

    Attributes:
        value: fiber of the values, the first channels of each degree of the messages.
        key: fiber of the keys, the remaining channels; and of the queries.
        heads: number of heads, contiguous blocks of channels in every degree.
        code: all of this as text.
    """

    value: Fiber
    key: Fiber
    heads: int
    code: str = field(init=False, repr=False, compare=False)
    _alike: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        alike = self.value.degrees == self.key.degrees
        alike = alike and self.value.is_uniform and self.key.is_uniform
        object.__setattr__(self, "_alike", alike)
        code = json.dumps([list(self.value.items()), list(self.key.items()), self.heads])
        object.__setattr__(self, "code", code)

    @classmethod
    @cache
    def from_code(cls, code: str) -> AttentionShape:
        """The shape whose :attr:`code` this is."""
        value, key, heads = json.loads(code)
        return cls(Fiber(dict(value)), Fiber(dict(key)), heads)

    def split(self, fiber: Fiber, features: Tensor) -> Blocks:
        """Blocks that attention treats alike: of each degree, or of all where channels allow.

        Components of one channel all have the weight of its head. Where keys and values have
        equally many channels of every degree, all their components make one block, under the
        number of the lowest degree.

        Args:
            fiber: of the values, the keys, or both.
            features: packed ``[e, fiber.dim]``.
        """
        if not self._alike:
            return fiber.split(features)
        first, channels = next(iter(fiber.items()))
        return {first: features.view(features.shape[0], fiber.dim // channels, channels)}

    @property
    def scale(self) -> float:
        """Factor of the logits, one over the square root of the width of all keys."""
        return 1 / math.sqrt(self.key.dim)

    def dot(self, queries: Blocks, blocks: Blocks) -> Tensor:
        """Sum over components and a head's channels: ``[e, heads]``."""
        total: Tensor | None = None
        for degree, query in queries.items():
            # Channels stay contiguous until the last step, a product with few columns.
            part = (blocks[degree] * query).sum(1) @ self._membership(query)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total

    def _membership(self, block: Tensor) -> Tensor:
        """``[C, heads]``, 1 where a channel belongs to a head, for features ``[e, 2l+1, C]``."""
        return _membership(block.shape[2], self.heads, block.dtype, block.device)

    def by_channel(self, weights: Tensor, block: Tensor) -> Tensor:
        """The weight ``[e, heads]`` of every channel ``[e, 1, C]``."""
        return (weights @ self._membership(block).T)[:, None]

    def keys(self, messages: Blocks) -> Blocks:
        """The part of the messages that is keys, by degree ``[e, 2l+1, C_key]``."""
        return {
            degree: block[:, :, self.value[degree] :]
            for degree, block in messages.items()
            if degree in self.key
        }

    def values(self, messages: Blocks) -> Blocks:
        """The part of the messages that is values, by degree ``[e, 2l+1, C_value]``."""
        return {degree: block[:, :, : self.value[degree]] for degree, block in messages.items()}

    def weigh(self, weights: Tensor, blocks: Blocks) -> Blocks:
        """Multiply the channels of each head by its weight ``[e, heads]``."""
        return {degree: block * self.by_channel(weights, block) for degree, block in blocks.items()}

    def message_gradient(
        self, weights: Tensor, received: Blocks, dlogits: Tensor, queries: Blocks
    ) -> Blocks:
        """Gradient of messages by degree from that of the output and of the logits."""
        gradient = {}
        for degree, outer in received.items():
            channels = self.value[degree]
            whole = channels + self.key.get(degree, 0)
            block = outer.new_empty(*outer.shape[:2], whole)
            torch.mul(outer, self.by_channel(weights, outer), out=block[:, :, :channels])
            if degree in queries:
                query = queries[degree]
                torch.mul(query, self.by_channel(dlogits, query), out=block[:, :, channels:])
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
        blocks = self.split(fiber, messages)
        logits = self.dot(self.split(self.key, query[target]), self.keys(blocks)) * self.scale
        weights = segment_softmax(logits, target, query.shape[0])
        weighted = pack_blocks(self.weigh(weights, self.values(blocks)))
        return segment_sum(weighted, target, query.shape[0])
