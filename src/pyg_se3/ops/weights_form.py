r"""Weights form: the radial weights of every edge, then their products with the coupled features.

The convolution as NVIDIA computes it, in differentiable operations:

.. math::
    y_e^k = \sum_{l, J} R_e^{lkJ} \big(B_e^{lkJ} x^l\big), \qquad
    R_e^{lkJ} = \sum_h g_{eh} W_h^{lkJ}.

``num_weights`` numbers of memory per edge are needed for R. For a few edges that is about what the
weights themselves take, and no other form is faster: none of the others takes the weights as they
are. The bases :math:`B = D^k\,T\,D^{l\top}` come from the constant couplings T in the frame of an
edge and belong to the geometry.

Both directions of a bond have one length and the same features, hence the same matrices. Where
such edges follow one another, these are made once (:data:`PAIRED`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from pyg_se3.autocast import no_autocast
from pyg_se3.fiber import Fiber
from pyg_se3.ops.chunked_edge import EdgeSettings
from pyg_se3.ops.inputs import AttentionInputs, ConvInputs
from pyg_se3.ops.plan import PairWeights, TFNPlan, num_frequencies
from pyg_se3.so3 import EdgeGeometry, clebsch_gordan
from pyg_se3.so3.constants import traceable_constant

PAIRED = "edges 2i and 2i + 1 have the same features and length"
"""Key in :attr:`pyg_se3.so3.EdgeGeometry.shared`: whether this is so, and needs no gradient."""


def weights_conv(inputs: ConvInputs, settings: EdgeSettings) -> Tensor:
    """Packed messages ``[E, fiber_out.dim]``, differentiable to any order; all edges at once."""
    plan, x, geometry = inputs.plan, inputs.x, inputs.geometry
    with no_autocast(x.device.type):
        dtype, edges = settings.product_dtype, inputs.num_edges
        alike = 2 if geometry.shared.get(PAIRED) and all(map(_alike, inputs.radial)) else 1
        rows = [g[::alike].to(dtype) for g in inputs.radial]
        features = x.index_select(0, inputs.source).to(dtype)
        messages = []
        for degree, basis in edge_bases(plan, geometry).items():
            matrices = _radial_weights(plan, degree, rows, inputs.weights, dtype)
            coupled = _coupled(plan.fiber_in, degree, basis.to(dtype), features)
            matrix_edges, inside, outside = matrices.shape
            coupled = coupled.view(matrix_edges, alike * (2 * degree + 1), inside)
            product = torch.bmm(coupled, matrices)
            messages.append(product.view(edges, (2 * degree + 1) * outside))
        joined = messages[0] if len(messages) == 1 else torch.cat(messages, 1)
        return joined.to(x.dtype)


def weights_attention(
    inputs: ConvInputs, attention: AttentionInputs, settings: EdgeSettings
) -> Tensor:
    """Packed attention ``[M, value.dim]`` over :func:`weights_conv`."""
    messages = weights_conv(inputs, settings)
    with no_autocast(inputs.x.device.type):
        return attention.over(messages, inputs)


def _alike(activations: Tensor) -> bool:
    """Whether rows 2i and 2i + 1 are the same but for rounding, which depends on the row."""
    first, second = activations.detach()[0::2], activations.detach()[1::2]
    if torch.equal(first, second):
        return True
    rounding = 4 * torch.finfo(activations.dtype).eps
    return bool((first - second).norm() <= rounding * first.norm())


def _radial_weights(
    plan: TFNPlan,
    degree_out: int,
    radial: Sequence[Tensor],
    weights: PairWeights,
    dtype: torch.dtype,
) -> Tensor:
    """R for one output degree ``[E, K, C_k]``, rows by input degree, J and channel."""
    parts = []
    for degree_in in plan.fiber_in:
        pair = degree_in, degree_out
        activations = radial[plan.group_of[pair]]
        frequencies, hidden, channels_in, channels_out = plan.weight_shape(pair)
        edges = activations.shape[0]
        matrix = weights[pair].to(dtype).reshape(frequencies, hidden, channels_in * channels_out)
        products = torch.bmm(activations.expand(frequencies, edges, hidden), matrix)
        parts.append(products.view(frequencies, edges, channels_in, channels_out).transpose(0, 1))
    if plan.fiber_in.is_uniform:
        return torch.cat(parts, 1).flatten(1, 2)
    return torch.cat([part.flatten(1, 2) for part in parts], 1)


def _coupled(fiber: Fiber, degree_out: int, basis: Tensor, features: Tensor) -> Tensor:
    """``B x`` as ``[E, 2k+1, K]``, columns as the rows of :func:`_radial_weights`."""
    edges, rows, columns = basis.shape
    size = 2 * degree_out + 1
    couplings = rows // size
    if fiber.is_uniform:
        channels = fiber.channels[0]
        components = features.view(edges, columns, channels)
        return torch.bmm(basis, components).view(edges, size, couplings * channels)
    basis = basis.view(edges, size, couplings, columns)
    parts, row, column = [], 0, 0
    for degree, block in fiber.split(features).items():
        count, width = num_frequencies((degree, degree_out)), 2 * degree + 1
        part = basis[:, :, row : row + count, column : column + width].flatten(1, 2)
        parts.append(torch.bmm(part, block).view(edges, size, count * fiber[degree]))
        row, column = row + count, column + width
    return torch.cat(parts, 2)


def edge_bases(plan: TFNPlan, geometry: EdgeGeometry) -> dict[int, Tensor]:
    """Bases by output degree, ``[E, (2k+1) F_k, D]``, made once for all layers alike.

    The rows are components of the output and, faster, the couplings by input degree and J, of which
    there are ``F_k``; the columns are components of all input degrees.
    """
    key = edge_bases, plan.fiber_in.degrees, plan.fiber_out.degrees
    if key in geometry.shared:
        return geometry.shared[key]
    degrees, wigner = plan.fiber_in.degrees, geometry.wigner
    width = sum(2 * degree + 1 for degree in degrees)
    blocks, start = [], 0
    for degree in degrees:
        end = start + 2 * degree + 1
        blocks.append(pad(wigner[degree], (start, width - end)))
        start = end
    turn = torch.cat(blocks, 1).transpose(1, 2)
    bases = {}
    for degree in plan.fiber_out:
        couplings = _couplings(degree, *degrees, turn.dtype, turn.device)
        local = torch.matmul(couplings, turn)
        size = 2 * degree + 1
        basis = torch.bmm(wigner[degree], local.unflatten(1, (size, -1)).flatten(2))
        bases[degree] = basis.view(local.shape)
    if not geometry.requires_grad and not torch.compiler.is_compiling():
        geometry.shared[key] = bases
    return bases


def _coupling_shape(degree_out: int, *degrees_in: int) -> tuple[int, int]:
    couplings = sum(num_frequencies((degree, degree_out)) for degree in degrees_in)
    return (2 * degree_out + 1) * couplings, sum(2 * degree + 1 for degree in degrees_in)


@traceable_constant(_coupling_shape)
def _couplings(*arguments: Any) -> Tensor:
    """Bases along the polar axis, where ``Y_Jm`` is ``sqrt((2J+1)/4pi)`` for m = 0, else 0."""
    degree_out, *degrees_in, dtype, device = arguments
    blocks = []
    for degree in degrees_in:
        orders = range(abs(degree - degree_out), degree + degree_out + 1)
        blocks.append(
            torch.cat(
                [
                    clebsch_gordan(j, degree, degree_out)[:, None, :, j]
                    * math.sqrt((2 * j + 1) / (4 * math.pi))
                    for j in orders
                ],
                1,
            )
        )  # [2k+1, F, 2l+1]
    table = torch.stack([torch.block_diag(*component) for component in zip(*blocks, strict=True)])
    return table.flatten(0, 1).to(device=device, dtype=dtype)
