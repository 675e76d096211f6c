"""Backward passes that can be differentiated again, for training on forces."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyg_se3.ops.attention_shape import AttentionShape
from pyg_se3.ops.autograd_tools import Layout
from pyg_se3.ops.chunked_edge import EdgeSettings
from pyg_se3.ops.edge import edge_form_by_blocks
from pyg_se3.ops.plan import TFNPlan


def convolution(
    plan: TFNPlan, settings: EdgeSettings, layout: Layout, source: Tensor
) -> Callable[..., Tensor]:
    """The convolution as a function of node features and the tensors of the layout."""

    def convolve(x: Tensor, *tensors: Tensor) -> Tensor:
        return edge_form_by_blocks(
            plan,
            x,
            source,
            *layout.split(tensors),
            settings.product_dtype,
            settings.block_size,
            settings.compress,
        )

    return convolve


def attention(
    plan: TFNPlan,
    settings: EdgeSettings,
    layout: Layout,
    shape: AttentionShape,
    source: Tensor,
    target: Tensor,
) -> Callable[..., Tensor]:
    """Attention as a function of queries, node features and the tensors of the layout."""
    convolve = convolution(plan, settings, layout, source)

    def attend(query: Tensor, x: Tensor, *tensors: Tensor) -> Tensor:
        return shape.attend(convolve(x, *tensors), plan.fiber_out, query, target)

    return attend


def differentiable_backward(
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
