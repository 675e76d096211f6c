"""The convolution as the papers write it: slow, and obviously right. It judges every kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from pyg_se3.ops.inputs import ConvInputs
from pyg_se3.so3 import clebsch_gordan, spherical_harmonics
from pyg_se3.so3.constants import traceable_constant


@traceable_constant(lambda j, low, high: (2 * high + 1, 2 * low + 1, 2 * j + 1))
def _coupling(
    degree_j: int, degree_in: int, degree_out: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    return clebsch_gordan(degree_j, degree_in, degree_out).to(device=device, dtype=dtype)


def tfn_conv_reference(inputs: ConvInputs) -> Tensor:
    r"""Messages of a TFN convolution, one degree pair at a time.

    .. math::
        y_e^k = \sum_{l, J} \Big(\sum_h g_{eh} W^{lkJ}_h\Big)
                \Big(\sum_m Y_{Jm}(\hat r_e)\, Q^J_{lk,m}\Big) x^l_{\mathrm{source}(e)}

    (Thomas et al. 2018, eq. 3; Fuchs et al. 2020, eq. 8.)

    Returns:
        packed messages ``[E, fiber_out.dim]``.
    """
    plan, x, geometry = inputs.plan, inputs.x, inputs.geometry
    vectors = geometry.vectors
    if geometry.undirected is not None:  # the harmonics of a zero vector have no derivative
        vectors = vectors.index_fill(0, geometry.undirected, 0.0)
    harmonics = spherical_harmonics(plan.fiber_in.max_degree + plan.fiber_out.max_degree, vectors)
    gathered = plan.fiber_in.split(x[inputs.source])
    messages: dict[int, Tensor] = {}
    for group, activations in zip(plan.groups, inputs.radial, strict=True):
        for degree_in, degree_out in group.pairs:
            basis = torch.stack(
                [
                    torch.einsum(
                        "em,klm->ekl",
                        harmonics[j],
                        _coupling(j, degree_in, degree_out, vectors.dtype, vectors.device),
                    )
                    for j in range(abs(degree_in - degree_out), degree_in + degree_out + 1)
                ],
                dim=1,
            )  # [E, J, 2k+1, 2l+1]
            weight = inputs.weights[degree_in, degree_out]
            profile = torch.einsum("eh,jhio->ejio", activations, weight)
            coupled = torch.einsum("ejkl,eli->ejki", basis.to(x), gathered[degree_in])
            message = torch.einsum("ejki,ejio->eko", coupled, profile)
            messages[degree_out] = messages.get(degree_out, 0) + message
    return torch.cat([messages[degree].flatten(1) for degree in plan.fiber_out], dim=1)
