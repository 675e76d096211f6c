"""Autograd for the edge form of expanded activations: training on forces.

The first backward pass is a function of its own whose backward pass is written by hand, so that
``create_graph=True`` records one node per convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyg_se3.ops.autograd_tools import (
    last_derivative,
    third_derivative,
    wanted_gradients,
    without_autocast,
)
from pyg_se3.ops.chunked_edge import EdgeSettings
from pyg_se3.ops.differentiable import differentiable_backward
from pyg_se3.ops.edge import edge_form_by_blocks
from pyg_se3.ops.edge_frames import FramePair, edge_frames
from pyg_se3.ops.expanded_form import ExpandedBatch, ExpandedForm, expanded_batches
from pyg_se3.ops.expanded_gradients import (
    Direction,
    Kept,
    Totals,
    Wanted,
    first_gradients,
    second_gradients,
)
from pyg_se3.ops.inputs import ConvInputs
from pyg_se3.ops.plan import TFNPlan


@dataclass(frozen=True)
class Inputs:
    """The differentiable inputs of a convolution, or anything else that comes one for each.

    Attributes:
        x: node features.
        change: of the lengths.
        values: activations, per group.
        slopes: per group.
        wigner: per degree.
        packed: weights per group and ``|m|``.
    """

    x: Any
    change: Any
    values: list[Any]
    slopes: list[Any]
    wigner: list[Any]
    packed: list[list[Any]]

    @classmethod
    def split(cls, plan: TFNPlan, flat: Sequence[Any]) -> Inputs:
        """From a flat list; inverse of :meth:`flat`."""
        rest = iter(flat)

        def take(count: int) -> list[Any]:
            return [next(rest) for _ in range(count)]

        groups = len(plan.groups)
        x, change = take(2)
        values, slopes, wigner = take(groups), take(groups), take(plan.max_degree + 1)
        return cls(x, change, values, slopes, wigner, [take(g.max_order + 1) for g in plan.groups])

    def flat(self) -> list[Any]:
        """All of them."""
        packed = [matrix for matrices in self.packed for matrix in matrices]
        return [self.x, self.change, *self.values, *self.slopes, *self.wigner, *packed]

    def wanted(self) -> Wanted:
        """Which gradients these flags ask for."""
        return Wanted(
            bool(self.change),
            any(self.wigner),
            any(self.values) or any(self.slopes),
            any(any(flags) for flags in self.packed),
        )


@dataclass(frozen=True)
class Problem:
    """All of a convolution but its differentiable inputs.

    Attributes:
        plan: what to compute.
        settings: how.
        curvatures: of the activations, per group ``[E, H]``.
        batches: of the edges.
        frames: rotations of the incoming and of the outgoing features.
    """

    plan: TFNPlan
    settings: EdgeSettings
    curvatures: Sequence[Tensor]
    batches: Sequence[ExpandedBatch]
    frames: FramePair

    def form(self, inputs: Inputs) -> ExpandedForm:
        """For these inputs."""
        return ExpandedForm(self.plan, self.settings, self.batches, inputs.packed, self.frames)

    def differentiable(self, source: Tensor, *tensors: Tensor) -> Tensor:
        """The convolution in differentiable operations."""
        inputs, settings = Inputs.split(self.plan, tensors), self.settings
        change = inputs.change[:, None]
        radial = [
            g0 + change * g1 + change.square() * (g2 / 2)
            for g0, g1, g2 in zip(inputs.values, inputs.slopes, self.curvatures, strict=True)
        ]
        return edge_form_by_blocks(
            self.plan,
            inputs.x,
            source,
            radial,
            inputs.wigner,
            inputs.packed,
            settings.product_dtype,
            settings.block_size,
            settings.compress,
        )


class ExpandedConv(torch.autograd.Function):
    """Messages ``[E, fiber_out.dim]``."""

    @staticmethod
    @without_autocast
    def forward(ctx: Any, problem: Problem, source: Tensor, *tensors: Tensor) -> Tensor:
        """Compute chunk by chunk; keep the inputs, and the messages in the edge frame."""
        plan, inputs = problem.plan, Inputs.split(problem.plan, tensors)
        form, x = problem.form(inputs), inputs.x
        frames_in, frames_out = form.frames
        y = x.new_empty(source.numel(), plan.fiber_out.dim)
        messages = form.room(y, outgoing=True)
        for batch in form.batches:
            for block in form.fitted(batch):
                for edges, within in form.chunks(block):
                    gathered = x.index_select(0, source[edges])
                    local = frames_in.rotate_in(gathered, edges)
                    form.put_messages(block, within, local, messages[edges])
                    frames_out.rotate_out(messages[edges], edges, y[edges])
        ctx.problem = problem
        ctx.save_for_backward(source, messages, *tensors)
        return y

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by hand, which can be differentiated once more if a graph is wanted."""
        (dy,), problem = gradients, ctx.problem
        source, messages, *tensors = ctx.saved_tensors
        flags = wanted_gradients(ctx)[1:]
        wanted = Inputs.split(problem.plan, flags).wanted()
        if not torch.is_grad_enabled():
            inputs = Inputs.split(problem.plan, tensors)
            form = problem.form(inputs)
            total = first_gradients(form, wanted, source, inputs.x, messages, dy, None)
            return None, None, *_gradients(total, inputs)
        if wanted.sums:
            again = differentiable_backward(
                lambda *inputs: problem.differentiable(source, *inputs), tensors, flags, dy
            )
            return None, None, *(None if g is None else last_derivative(g) for g in again)
        known = problem, wanted, messages
        dx, dchange, *dwigner = ExpandedGradient.apply(known, source, dy, *tensors)
        nothing = Inputs.split(problem.plan, [None] * len(tensors))
        found = replace(
            nothing,
            x=dx,
            change=dchange if wanted.change else None,
            wigner=dwigner or nothing.wigner,
        )
        return None, None, *found.flat()


class ExpandedGradient(torch.autograd.Function):
    """Gradients of features, lengths and Wigner-D matrices, as a function of all they need."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any,
        known: tuple[Problem, Wanted, Tensor],
        source: Tensor,
        dy: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        """First gradients; keep them per edge, too."""
        problem, wanted, messages = known
        inputs = Inputs.split(problem.plan, tensors)
        form, x = problem.form(inputs), inputs.x
        kept = Kept(form.room(dy), form.room(dy), x.new_empty(source.numel()))
        everything = Wanted(True, wanted.wigner, False, False)
        total = first_gradients(form, everything, source, x, messages, dy, kept)
        ctx.problem, ctx.kept, ctx.messages = problem, kept, messages
        ctx.save_for_backward(source, dy, *tensors)
        assert total.change is not None
        return total.features, total.change, *(total.wigner() or [])

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Second gradients."""
        if torch.is_grad_enabled():
            raise third_derivative()
        problem = ctx.problem
        along_x, along_lengths, *along_wigner = gradients
        source, dy, *tensors = ctx.saved_tensors
        inputs = Inputs.split(problem.plan, tensors)
        wanted = Inputs.split(problem.plan, wanted_gradients(ctx)[2:]).wanted()
        turned = edge_frames(problem.plan, along_wigner) if along_wigner else None
        total, ddy = second_gradients(
            problem.form(inputs),
            wanted,
            source,
            inputs.x,
            ctx.messages,
            dy,
            ctx.kept,
            Direction(along_x, along_lengths, turned),
        )
        return None, None, ddy, *_gradients(total, inputs)


def _gradients(total: Totals, inputs: Inputs) -> list[Tensor | None]:
    """As autograd wants them, ``None`` where there is none."""
    groups: list[None] = [None] * len(inputs.values)
    return Inputs(
        total.features,
        total.change,
        total.values or groups,
        total.slopes or groups,
        total.wigner() or [None] * len(inputs.wigner),
        total.packed or [[None] * len(matrices) for matrices in inputs.packed],
    ).flat()


def expanded_conv(inputs: ConvInputs, settings: EdgeSettings) -> Tensor:
    """Packed messages ``[E, fiber_out.dim]``, fast to differentiate twice by positions."""
    plan, expansion = inputs.plan, inputs.expansion
    assert expansion is not None
    problem = Problem(
        plan,
        settings,
        expansion.curvatures,
        expanded_batches(plan, settings, expansion),
        edge_frames(plan, inputs.wigner, inputs.geometry.shared),
    )
    differentiable = Inputs(
        inputs.x,
        expansion.change,
        list(expansion.values),
        list(expansion.slopes),
        list(inputs.wigner),
        [list(matrices) for matrices in inputs.packed_weights()],
    )
    return ExpandedConv.apply(problem, inputs.source, *differentiable.flat())
