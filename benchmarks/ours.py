"""pyg-se3's model and layer with the weights of a baseline."""

from __future__ import annotations

import torch

from pyg_se3.models import SE3TransformerPooled
from pyg_se3.nn import TFNConv

from .baselines import nvidia
from .baselines.weights import pair_profile

SHARING = {"full": "full", "out": "output", "in": "input", "pair": "pairwise"}


def sharing_of(conv: nvidia.ConvSE3) -> str:
    """Our name for how a convolution shares radial profiles."""
    return SHARING[conv.form]


@torch.no_grad()
def copy_conv(ours: TFNConv, theirs: nvidia.ConvSE3) -> None:
    """Weights of an NVIDIA-layout convolution into ours; the function is the same."""
    for group, profile in zip(ours.plan.groups, ours.radial, strict=True):
        trunk, _ = pair_profile(theirs, group.pairs[0])
        profile.load_state_dict(trunk.net[:-1].state_dict())
        for degree_in, degree_out in group.pairs:
            _, last = pair_profile(theirs, (degree_in, degree_out))
            weight = ours.weight.weights[f"{degree_in},{degree_out}"]
            weight.copy_(last.permute(2, 3, 1, 0))  # [C_out, C_in, F, H] -> [F, H, C_in, C_out]
    if theirs.to_kernel_self is not None:
        ours.self_interaction.weights.load_state_dict(theirs.to_kernel_self.state_dict())


def model_like(
    theirs: nvidia.SE3TransformerPooled, config: dict, *, detach_geometry: bool = True
) -> SE3TransformerPooled:
    """Our model, computing the same function as an NVIDIA-layout model built from `config`."""
    modules = list(theirs.transformer.graph_modules)
    blocks = [m for m in modules if isinstance(m, nvidia.AttentionBlockSE3)]
    norms = [m for m in modules if isinstance(m, nvidia.NormSE3)]
    sharing = [sharing_of(block.to_key_value) for block in blocks] + [sharing_of(modules[-1])]
    ours = SE3TransformerPooled(**config, radial_sharing=sharing, detach_geometry=detach_geometry)
    inner = ours.transformer
    for block, source in zip(inner.blocks, blocks, strict=True):
        copy_conv(block.to_key_value, source.to_key_value)
        block.to_query.load_state_dict(source.to_query.state_dict())
        block.project.load_state_dict(source.project.state_dict())
    for norm, source in zip(inner.norms, norms, strict=True):
        norm.load_state_dict(source.state_dict())
    copy_conv(inner.last, modules[-1])
    ours.mlp.load_state_dict(theirs.mlp.state_dict())
    return ours
