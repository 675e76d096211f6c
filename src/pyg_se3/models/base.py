"""What every model has: its architecture as data, and kernels that can be exchanged."""

from __future__ import annotations

from typing import Any

from torch import nn

from pyg_se3.ops import KernelOptions


class EquivariantModel(nn.Module):
    """Base of the models.

    ``config`` holds the architecture as plain numbers, strings, lists and dictionaries:
    ``type(model)(**model.config)`` builds the same model. How convolutions are computed is not in
    it and never changes a key of the ``state_dict``.
    """

    config: dict[str, Any]

    def __init__(self, kernel: KernelOptions | None) -> None:
        super().__init__()
        self.kernel_options = kernel or KernelOptions()

    def set_kernel(self, options: KernelOptions) -> None:
        """Compute all convolutions as ``options`` says from now on."""
        for module in self.modules():
            if hasattr(module, "kernel_options"):
                setattr(module, "kernel_options", options)  # noqa: B010

    @property
    def num_parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)
