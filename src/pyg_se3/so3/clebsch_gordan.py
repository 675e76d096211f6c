"""Real Clebsch-Gordan coefficients."""

from __future__ import annotations

import torch
from e3nn import o3
from torch import Tensor

from pyg_se3.so3.constants import cached_constant


@cached_constant
def clebsch_gordan(degree_j: int, degree_in: int, degree_out: int) -> Tensor:
    """Coupling ``Q^J_{lk}`` of degree ``l`` with harmonics of degree ``J`` into degree ``k``.

    These are e3nn's ``wigner_3j(J, l, k)`` (signs as of e3nn 0.5, which changed some of them) with
    the axes reversed: ``Q[k-component, l-component, m]``. Their squares sum to one.

    Args:
        degree_j: ``J``, with ``|l - k| <= J <= l + k``.
        degree_in: ``l``.
        degree_out: ``k``.

    Returns:
        ``[2k+1, 2l+1, 2J+1]``, float64 on the CPU. Shared by all callers: do not modify.

    Raises:
        ValueError: the three degrees do not couple.
    """
    if not abs(degree_in - degree_out) <= degree_j <= degree_in + degree_out:
        raise ValueError(
            f"degrees do not couple: J={degree_j} is outside "
            f"{abs(degree_in - degree_out)}..{degree_in + degree_out} "
            f"for degree_in={degree_in}, degree_out={degree_out}"
        )
    with torch.no_grad():
        tensor = o3.wigner_3j(degree_j, degree_in, degree_out, dtype=torch.float64)
    return tensor.permute(2, 1, 0).contiguous()
