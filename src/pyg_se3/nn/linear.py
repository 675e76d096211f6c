"""Linear map of the channels of each degree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyg_se3.autocast import no_autocast
from pyg_se3.fiber import Fiber
from pyg_se3.so3.constants import traceable_constant


class EquivariantLinear(nn.Module):
    r"""Mix channels within each degree: :math:`y^l = W^l x^l`.

    Args:
        fiber_in: fiber of the input.
        fiber_out: fiber of the output; its degrees must be in ``fiber_in``.

    Raises:
        ValueError: an output degree has no input.
    """

    def __init__(self, fiber_in: Mapping[int, int], fiber_out: Mapping[int, int]) -> None:
        super().__init__()
        self.fiber_in, self.fiber_out = Fiber(fiber_in), Fiber(fiber_out)
        missing = [degree for degree in self.fiber_out if degree not in self.fiber_in]
        if missing:
            raise ValueError(
                f"a linear map cannot make degrees {missing}: {self.fiber_in} -> {self.fiber_out}"
            )
        self.weights = nn.ParameterDict(
            {
                str(degree): nn.Parameter(torch.empty(channels, self.fiber_in[degree]))
                for degree, channels in self.fiber_out.items()
            }
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with variance one over the number of input channels."""
        for weight in self.weights.values():
            nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        """Map packed features ``[N, fiber_in.dim]`` to ``[N, fiber_out.dim]``."""
        return self.forward_parts([(self.fiber_in, x)])

    def forward_parts(self, parts: Sequence[tuple[Fiber, Tensor]]) -> Tensor:
        """:meth:`forward` on features in several tensors, see :func:`packed_linear`."""
        return packed_linear(parts, self.fiber_out, list(self.weights.values()))

    def extra_repr(self) -> str:
        """The two fibers."""
        return f"{self.fiber_in} -> {self.fiber_out}"


def packed_linear(
    parts: Sequence[tuple[Fiber, Tensor]], fiber_out: Fiber, weights: Sequence[Tensor]
) -> Tensor:
    """Linear map of the channels of each degree, joined from several features.

    Products are in the precision of autocast, if that is on; the result has the features' type.

    Args:
        parts: fibers and packed features ``[N, fiber.dim]``; in every degree, channels of the first
            come first. Degrees that ``fiber_out`` lacks are ignored.
        fiber_out: of the result.
        weights: ``[C_out, C_in]`` per degree of ``fiber_out``.

    Returns:
        packed ``[N, fiber_out.dim]``.
    """
    fibers, features = zip(*parts, strict=True)
    device = features[0].device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else features[0].dtype
    alike = all(f.is_uniform and f.degrees == fiber_out.degrees for f in (*fibers, fiber_out))
    function = _UniformLinear if alike else _PackedLinear
    return function.apply(fibers, fiber_out, dtype, *features, *weights)


@traceable_constant(lambda *degrees: (sum(2 * degree + 1 for degree in degrees),))
def _degree_of_component(*arguments: Any) -> Tensor:
    """Position of its degree among ``degrees`` for every component."""
    *degrees, dtype, device = arguments
    sizes = torch.tensor([2 * degree + 1 for degree in degrees])
    return torch.arange(len(degrees)).repeat_interleave(sizes).to(device=device, dtype=dtype)


class _UniformLinear(torch.autograd.Function):
    """Of features with the same degrees, all with equally many channels: one product for all.

    Keeps packed features for the backward pass, which is made of differentiable operations.
    """

    # Named arguments before `*tensors` would mislead torch.compile without gradients: it leaves out
    # the context where the number of arguments happens to be that of the parameters.
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        """Map component by component, each with the weight of its degree."""
        fibers, fiber_out, dtype, *tensors = arguments
        ctx.fibers, ctx.fiber_out, ctx.dtype = fibers, fiber_out, dtype
        ctx.save_for_backward(*tensors)
        features, weights = tensors[: len(fibers)], tensors[len(fibers) :]
        with no_autocast(features[0].device.type):
            matrices, _ = _component_weights(fiber_out, weights, dtype)
            products: Tensor | None = None
            start = 0
            for fiber, x in zip(fibers, features, strict=True):  # joining them takes longer
                part = _by_component(fiber, x, dtype)
                matrix = matrices[:, :, start : start + fiber.channels[0]].transpose(1, 2)
                start += fiber.channels[0]
                if products is None:
                    products = torch.bmm(part, matrix)
                else:
                    products.baddbmm_(part, matrix)
            assert products is not None
            return products.transpose(0, 1).reshape(-1, fiber_out.dim).to(features[0].dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Made of differentiable operations."""
        fibers, fiber_out, dtype = ctx.fibers, ctx.fiber_out, ctx.dtype
        saved = ctx.saved_tensors  # once: a checkpoint around this gives them out only once
        features, weights = saved[: len(fibers)], saved[len(fibers) :]
        with no_autocast(gradients[0].device.type):
            dy = _by_component(fiber_out, gradients[0], dtype)
            matrices, component = _component_weights(fiber_out, weights, dtype)
            dfeatures: list[Tensor | None] = []
            columns, start = [], 0
            for fiber, x, need in zip(fibers, features, ctx.needs_input_grad[3:], strict=False):
                part = slice(start, start + fiber.channels[0])
                start = part.stop
                columns.append(torch.bmm(dy.transpose(1, 2), _by_component(fiber, x, dtype)))
                dx = torch.bmm(dy, matrices[:, :, part]).transpose(0, 1) if need else None
                dfeatures.append(None if dx is None else dx.reshape(x.shape).to(x.dtype))
            by_component = columns[0] if len(columns) == 1 else torch.cat(columns, dim=2)
            zeros = by_component.new_zeros(len(weights), *by_component.shape[1:])
            dweights = zeros.index_add(0, component, by_component).to(weights[0].dtype).unbind()
        return (None, None, None, *dfeatures, *dweights)


def _by_component(fiber: Fiber, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Packed features of a uniform fiber as ``[components, N, C]``."""
    channels = fiber.channels[0]
    return x.to(dtype).unflatten(1, (fiber.dim // channels, channels)).transpose(0, 1)


def _component_weights(
    fiber: Fiber, weights: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Weights by component ``[components, C_out, C_in]``, and the degree of each component."""
    component = _degree_of_component(*fiber.degrees, torch.long, weights[0].device)
    return torch.stack([*weights]).to(dtype).index_select(0, component), component


class _PackedLinear(torch.autograd.Function):
    """Of any features. Keeps them packed for the backward pass, not a copy of every degree."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:  # as in _UniformLinear
        """Map degree by degree."""
        fibers, fiber_out, dtype, *tensors = arguments
        ctx.fibers, ctx.fiber_out, ctx.dtype = fibers, fiber_out, dtype
        ctx.save_for_backward(*tensors)
        features, weights = tensors[: len(fibers)], tensors[len(fibers) :]
        y = features[0].new_empty(features[0].shape[0], fiber_out.dim)
        blocks = [fiber.split(x) for fiber, x in zip(fibers, features, strict=True)]
        with no_autocast(y.device.type):
            for (degree, target), weight in zip(fiber_out.split(y).items(), weights, strict=True):
                products = [
                    blocks[index][degree].to(dtype) @ weight[:, columns].to(dtype).T
                    for index, columns in _columns(fibers, degree)
                ]
                target.copy_(sum(products[1:], start=products[0]))
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Made of differentiable operations."""
        fibers, fiber_out, dtype = ctx.fibers, ctx.fiber_out, ctx.dtype
        saved = ctx.saved_tensors  # once: a checkpoint around this gives them out only once
        features, weights = saved[: len(fibers)], saved[len(fibers) :]
        needed = ctx.needs_input_grad[3:]
        with no_autocast(gradients[0].device.type):
            dy = {degree: part.to(dtype) for degree, part in fiber_out.split(gradients[0]).items()}
            blocks = [fiber.split(x) for fiber, x in zip(fibers, features, strict=True)]
            dblocks: list[dict[int, Tensor]] = [{} for _ in fibers]
            dweights = []
            for degree, weight in zip(fiber_out, weights, strict=True):
                columns_of_part = []
                for index, columns in _columns(fibers, degree):
                    x = blocks[index][degree]
                    if needed[index]:
                        dblocks[index][degree] = dy[degree] @ weight[:, columns].to(dtype)
                    product = dy[degree].flatten(0, 1).T @ x.to(dtype).flatten(0, 1)
                    columns_of_part.append(product.to(weight.dtype))
                dweights.append(torch.cat(columns_of_part, dim=1))
            dfeatures = [
                torch.cat(
                    [
                        known[d].to(x.dtype).flatten(1) if d in known else torch.zeros_like(part)
                        for d, part in zip(fiber, x.split(fiber.sizes, 1), strict=True)
                    ],
                    dim=1,
                )
                if need
                else None
                for fiber, x, known, need in zip(fibers, features, dblocks, needed, strict=False)
            ]
        return (None, None, None, *dfeatures, *dweights)


def _columns(fibers: Sequence[Fiber], degree: int) -> list[tuple[int, slice]]:
    """Columns of a degree's weight that belong to each of the fibers that have the degree."""
    start, found = 0, []
    for index, fiber in enumerate(fibers):
        if degree in fiber:
            found.append((index, slice(start, start + fiber[degree])))
            start += fiber[degree]
    return found


def concatenate(first: Fiber, second: Fiber, x: Tensor, y: Tensor) -> Tensor:
    """Packed features of fiber ``first + second``: channels of ``x``, then those of ``y``."""
    a, b = first.split(x), second.split(y)
    blocks = []
    for degree in first + second:
        parts = [part[degree] for part in (a, b) if degree in part]
        block = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        blocks.append(block.flatten(1))
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)
