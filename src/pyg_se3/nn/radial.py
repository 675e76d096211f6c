"""Radial profiles: from the invariants of an edge to the weights of its convolution."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pyg_se3.nn.recompute import recomputed_rows
from pyg_se3.ops import TFNPlan, pack_plan
from pyg_se3.ops.packing import PackedWeights
from pyg_se3.ops.plan import Pair
from pyg_se3.so3.constants import traceable_constant

SKETCH_DIRECTIONS = 2
"""Random directions in parameter space whose derivatives are sketched."""

SKETCH_WIDTH = 24
"""Columns of the sketch; more than derivatives have dimensions over edges of similar length."""


class RadialProfile(nn.Sequential):
    """Hidden layers of a radial MLP: invariants of an edge to activations g.

    The last, bias-free linear map from g to the weights of every degree pair is
    :class:`RadialWeights`; kernels apply it together with the coupling of the features.

    Args:
        in_features: number of invariants per edge (edge features and distance).
        hidden: width H of both hidden layers.
        layer_norm: normalise each hidden layer before its ReLU.
    """

    def __init__(self, in_features: int, hidden: int = 32, layer_norm: bool = True) -> None:
        def norm() -> list[nn.Module]:
            return [nn.LayerNorm(hidden)] if layer_norm else []

        super().__init__(
            nn.Linear(in_features, hidden),
            *norm(),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            *norm(),
            nn.ReLU(),
        )

    @torch.no_grad()
    def tangents(self, invariants: Tensor) -> Tensor:
        """A sketch of the derivatives of the activations with respect to the parameters.

        Over a set of edges with similar invariants these derivatives span few dimensions. Random
        combinations of derivatives along random directions in parameter space span the same ones,
        so that the gradient of the activations, projected to the sketch, still gives the right
        gradients of the parameters.

        Args:
            invariants: ``[E, in_features]``.

        Returns:
            ``[E, SKETCH_WIDTH]``.
        """
        value = invariants
        change = invariants.new_zeros(SKETCH_DIRECTIONS, *invariants.shape)
        for position, layer in enumerate(self):
            value, change = _push_forward(layer, value, change, position)
        return mix_columns(change)

    def reset_parameters(self) -> None:
        """Initialise as PyTorch does by default."""
        for layer in self:
            if isinstance(layer, nn.Linear | nn.LayerNorm):
                layer.reset_parameters()


def radial_activations(
    profiles: Iterable[nn.Module], invariants: Tensor, sketch: bool, store: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """Activations of every profile and, if wanted and of use, their tangents.

    Args:
        profiles: the radial MLPs of a convolution.
        invariants: of the edges, ``[E, C]``.
        sketch: whether a kernel may use tangents. They are of no use if the invariants themselves
            need a gradient, or if no parameter does.
        store: keep the hidden layers for the backward pass rather than compute them again.

    Raises:
        ValueError: parameters of 16 bits, or of another type than the invariants.
    """
    activations, tangents = [], []
    for profile in profiles:
        assert isinstance(profile, RadialProfile)
        _check_type(profile, invariants)
        values = recomputed_rows(profile, invariants, store=store)
        activations.append(values)
        if sketch and values.requires_grad and not invariants.requires_grad:
            tangents.append(profile.tangents(invariants))
    return activations, tangents


def _check_type(profile: nn.Module, invariants: Tensor) -> None:
    dtype = next(profile.parameters()).dtype
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"the parameters have type {dtype}, expected torch.float32 or torch.float64; for "
            "products in 16 bits run the model under torch.autocast"
        )
    if invariants.dtype != dtype:
        raise ValueError(
            f"the positions or geometry have type {invariants.dtype}, the parameters {dtype}; "
            f"convert one of them, as with pos.to({dtype}) or model.to({invariants.dtype})"
        )


class RadialWeights(nn.Module):
    """Last linear maps of the radial MLPs, one parameter ``[2 min(l,k)+1, H, C_l, C_k]`` per pair.

    Args:
        plan: the convolution.
    """

    def __init__(self, plan: TFNPlan) -> None:
        super().__init__()
        self.plan = plan
        self.weights = nn.ParameterDict(
            {_name(pair): nn.Parameter(torch.empty(plan.weight_shape(pair))) for pair in plan.pairs}
        )
        self._packed: tuple[object, PackedWeights] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform within one over the square root of H, as a linear layer of H inputs.

        A pair of degrees 0 with a radial MLP of its own starts larger by ``sqrt(4 pi)``, so that
        the constant harmonic does not make its messages smaller than a plain linear map's.
        """
        bound = 1 / math.sqrt(self.plan.hidden)
        for group in self.plan.groups:
            for pair in group.pairs:
                alone = group.pairs == ((0, 0),)
                scale = bound * math.sqrt(4 * math.pi) if alone else bound
                nn.init.uniform_(self.weights[_name(pair)], -scale, scale)

    def by_pair(self) -> dict[Pair, Tensor]:
        """``{(l, k): [2 min(l, k) + 1, H, C_l, C_k]}``."""
        return {pair: self.weights[_name(pair)] for pair in self.plan.pairs}

    def packed(self) -> PackedWeights:
        """The weights as kernels use them; kept between calls that need no gradient.

        PyTorch does not count changes made through ``parameter.data``: after such a change in
        evaluation mode, call ``eval()`` or ``train()`` again to have it noticed.
        """
        if torch.compiler.is_compiling():
            return pack_plan(self.plan, self.by_pair())
        parameters = list(self.weights.values())
        recorded = torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
        if recorded or any(p.is_inference() for p in parameters):
            self._packed = None
            return pack_plan(self.plan, self.by_pair())
        state = tuple((p.data_ptr(), p._version, p.dtype, p.device) for p in parameters)
        if self._packed is None or self._packed[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                self._packed = (state, pack_plan(self.plan, self.by_pair()))
        return self._packed[1]

    def train(self, mode: bool = True) -> RadialWeights:
        """Switch mode and forget packed weights."""
        self._packed = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_packed": None}

    def extra_repr(self) -> str:
        """Number of weights and groups."""
        return (
            f"{self.plan.fiber_in} -> {self.plan.fiber_out}, groups={len(self.plan.groups)}, "
            f"weights={self.plan.num_weights} x {self.plan.hidden}"
        )


def mix_columns(change: Tensor) -> Tensor:
    """Random combinations ``[E, SKETCH_WIDTH]`` of the columns of ``[directions, E, C]``."""
    columns = change.transpose(0, 1).flatten(1)
    mix = _directions(SKETCH_WIDTH, columns.shape[1], 0, columns.dtype, columns.device)
    return columns @ mix.T


def sketch_directions(layer: nn.Linear | nn.LayerNorm, position: int) -> tuple[Tensor, Tensor]:
    """Directions of a sketch for weight and bias of a layer: ``[directions, *shape]`` each."""

    def draw(parameter: Tensor, seed: int) -> Tensor:
        size, number = parameter.numel(), 1000 * position + seed
        flat = _directions(SKETCH_DIRECTIONS, size, number, parameter.dtype, parameter.device)
        scale = parameter.detach().square().mean().sqrt() + 1e-3
        return flat.view(-1, *parameter.shape) * scale

    return draw(layer.weight, 1), draw(layer.bias, 2)


@traceable_constant(lambda rows, columns, seed: (rows, columns))
def _directions(
    rows: int, columns: int, seed: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Fixed normal numbers ``[rows, columns]``, the same in every run."""
    numbers = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return numbers.to(device=device, dtype=dtype)


def _push_forward(
    layer: nn.Module, value: Tensor, change: Tensor, position: int
) -> tuple[Tensor, Tensor]:
    """Value ``[E, C]`` and directional derivatives ``[directions, E, C]`` after a layer."""
    if isinstance(layer, nn.Linear):
        weight, bias = sketch_directions(layer, position)
        change = change @ layer.weight.T + value @ weight.transpose(1, 2) + bias[:, None]
        return layer(value), change
    if isinstance(layer, nn.LayerNorm):
        centred = value - value.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt()
        unit = centred / deviation
        change = change - change.mean(-1, keepdim=True)
        change = (change - unit * (unit * change).mean(-1, keepdim=True)) / deviation
        weight, bias = sketch_directions(layer, position)
        return layer(value), change * layer.weight + unit * weight[:, None] + bias[:, None]
    if isinstance(layer, nn.ReLU):
        return layer(value), change * (value > 0)
    raise TypeError(f"no derivative is known for {type(layer).__name__}")


def _name(pair: Pair) -> str:
    return f"{pair[0]},{pair[1]}"
