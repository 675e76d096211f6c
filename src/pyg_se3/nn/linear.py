"""Linear map of the channels of each degree."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pyg_se3.fiber import Fiber


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
        blocks = self.fiber_in.split(x)
        mapped = [
            (blocks[degree] @ self.weights[str(degree)].T).flatten(1) for degree in self.fiber_out
        ]
        return mapped[0] if len(mapped) == 1 else torch.cat(mapped, dim=1)

    def extra_repr(self) -> str:
        """The two fibers."""
        return f"{self.fiber_in} -> {self.fiber_out}"


def concatenate(first: Fiber, second: Fiber, x: Tensor, y: Tensor) -> Tensor:
    """Packed features of fiber ``first + second``: channels of ``x``, then those of ``y``."""
    a, b = first.split(x), second.split(y)
    blocks = []
    for degree in first + second:
        parts = [part[degree] for part in (a, b) if degree in part]
        block = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        blocks.append(block.flatten(1))
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)
