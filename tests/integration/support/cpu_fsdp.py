"""FSDP on CPUs: Lightning refuses it, and PyTorch has to be told the device."""

from typing import Any

import torch
from pytorch_lightning.strategies import FSDPStrategy
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP


class CPUStrategy(FSDPStrategy):
    """As on GPUs, but that full weights do not first move to the CPU, where they are already.

    Args:
        spoils: Name of a layer whose output becomes NaN in process 1.
        **options: Lightning's.
    """

    def __init__(self, spoils: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.spoils = spoils

    def setup(self, trainer: Any) -> None:
        if self.spoils and self.global_rank == 1:
            layer = self.lightning_module.net.get_submodule(self.spoils)
            layer.register_forward_hook(lambda *given: given[-1] * float("nan"))
        super().setup(trainer)


construct, state_dict_type = FSDP.__init__, FSDP.state_dict_type


def on_cpu(self: FSDP, *arguments: Any, **options: Any) -> None:
    construct(self, *arguments, **options | {"device_id": torch.device("cpu")})


def without_offload(**options: Any) -> Any:
    for config in options.values():
        if hasattr(config, "rank0_only"):
            config.offload_to_cpu = config.rank0_only = False
    return state_dict_type(**options)


FSDP.__init__ = on_cpu
FSDP.state_dict_type = staticmethod(without_offload)
