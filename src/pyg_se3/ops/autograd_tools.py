"""What the autograd functions of all kernels share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from pyg_se3.autocast import no_autocast
from pyg_se3.ops.chunked_edge import EdgeGradients, EdgeNeeds
from pyg_se3.ops.packing import PackedWeights


@dataclass(frozen=True)
class Layout:
    """How the flat tensor arguments of a Function divide into radial, wigner and weights."""

    num_radial: int
    num_wigner: int
    num_orders: tuple[int, ...]

    @classmethod
    def of(
        cls, radial: Sequence[Tensor], wigner: Sequence[Tensor], packed: PackedWeights
    ) -> Layout:
        """Of these tensors."""
        return cls(len(radial), len(wigner), tuple(len(matrices) for matrices in packed))

    def split(self, flat: Sequence[Any]) -> tuple[list[Any], list[Any], list[list[Any]]]:
        """Activations, Wigner-D matrices and packed weights from one flat list."""
        radial = list(flat[: self.num_radial])
        start = self.num_radial + self.num_wigner
        wigner = list(flat[self.num_radial : start])
        packed = []
        for count in self.num_orders:
            packed.append(list(flat[start : start + count]))
            start += count
        return radial, wigner, packed

    def gradients(self, flags: Sequence[bool], tensors: Sequence[Tensor]) -> EdgeGradients:
        """Accumulators for the gradients of ``tensors`` that their flags ask for."""
        return EdgeGradients.zeros(self._needs(flags), *self.split(tensors))

    def _needs(self, flags: Sequence[bool]) -> EdgeNeeds:
        radial, wigner, packed = self.split(flags)
        return EdgeNeeds(any(radial), any(wigner), any(any(p) for p in packed))


def flatten_tensors(
    radial: Sequence[Tensor] | None,
    wigner: Sequence[Tensor] | None,
    packed: Sequence[Sequence[Tensor]] | None,
    layout: Layout,
) -> list[Tensor | None]:
    """Inverse of :meth:`Layout.split`, with ``None`` for what there is no gradient of."""
    flat: list[Tensor | None] = []
    flat += radial if radial is not None else [None] * layout.num_radial
    flat += wigner if wigner is not None else [None] * layout.num_wigner
    for index, count in enumerate(layout.num_orders):
        flat += packed[index] if packed is not None else [None] * count
    return flat


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep autocast out: the settings say which products are done in less precision."""

    @wraps(function)
    def run(ctx: Any, *arguments: Any) -> Any:
        device = next(a.device.type for a in arguments if isinstance(a, Tensor))
        with no_autocast(device):
            return function(ctx, *arguments)

    return run


def wanted_gradients(ctx: Any) -> list[bool]:
    """Which gradients of its tensor arguments a running backward pass is to compute.

    ``ctx.needs_input_grad`` also counts those that need a gradient, but not in this pass, as the
    weights do not when forces are computed.
    """

    def wanted(node: Any) -> bool:
        try:
            return torch._C._will_engine_execute_node(node)
        except RuntimeError:  # a leaf that torch.autograd.grad was asked for
            return True

    return [node is not None and wanted(node) for node, _ in ctx.next_functions]


class _LastDerivative(torch.autograd.Function):
    """The identity, whose backward pass refuses to be recorded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise third_derivative()
        return gradients[0]


def last_derivative(x: Tensor) -> Tensor:
    """The same tensor, which can be differentiated once, but not with ``create_graph=True``."""
    return _LastDerivative.apply(x)


def third_derivative() -> NotImplementedError:
    """Says how to have third derivatives."""
    return NotImplementedError(
        "layers whose edge lengths need a gradient have no third derivatives with this kernel; "
        "use kernel='reference'"
    )
