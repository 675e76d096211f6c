"""Give models of different formulations and fuse levels the same weights, exactly.

A radial profile shared by several degree pairs is a profile per pair with equal hidden layers and
the pair's rows of the last layer. The reverse is not possible, so weights go from the more fused
model to the less fused one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .basis import num_frequencies
from .layers import NormSE3, RadialProfile
from .nvidia import (
    AttentionBlockSE3,
    ConvSE3,
    SE3Transformer,
    SE3TransformerPooled,
)
from .original import (
    OriginalSE3Transformer,
    OriginalSE3TransformerPooled,
    UnfusedAttentionBlock,
    UnfusedConv,
)

Pair = tuple[int, int]

# Y_0: pairwise profiles of 0,0 are used without a basis, all other forms with it.
Y_0 = 1 / math.sqrt(4 * math.pi)


def pair_profile(conv: ConvSE3, pair: Pair) -> tuple[RadialProfile, Tensor]:
    """Hidden layers of a degree pair and its part of the last one, `[C_out, C_in, F, H]`.

    The part is scaled for use with a basis, also for 0,0.
    """
    degree_in, degree_out = pair
    if conv.form == "full":
        shared = conv.conv
        pairs = [(i, o) for o in conv.fiber_out for i in conv.fiber_in]
    elif conv.form == "out":
        shared = conv.conv_out[str(degree_out)]
        pairs = [(i, degree_out) for i in conv.fiber_in]
    elif conv.form == "in":
        shared = conv.conv_in[str(degree_in)]
        pairs = [(degree_in, o) for o in conv.fiber_out]
    else:
        shared, pairs = conv.conv[f"{degree_in},{degree_out}"], [pair]
    widths = [num_frequencies(*p) for p in pairs]
    profile = shared.radial_func
    weight = (
        profile.net[-1]
        .weight.detach()
        .view(shared.channels_out, shared.channels_in, sum(widths), -1)
    )
    part = weight.split(widths, 2)[pairs.index(pair)]
    return profile, part / Y_0 if conv.form == "pair" and pair == (0, 0) else part


@torch.no_grad()
def _set_profile(target: RadialProfile, trunk: RadialProfile, last: Tensor) -> None:
    for ours, theirs in zip(target.net[:-1], trunk.net[:-1], strict=True):
        ours.load_state_dict(theirs.state_dict())
    target.net[-1].weight.copy_(last.reshape(-1, last.shape[-1]))


@torch.no_grad()
def copy_conv(target: ConvSE3, source: ConvSE3) -> None:
    """Weights of a convolution into one that is fused as much or less."""
    if target.to_kernel_self is not None:
        target.to_kernel_self.load_state_dict(source.to_kernel_self.state_dict())
    if target.form == source.form:
        target.load_state_dict(source.state_dict())
        return
    if source.form in ("pair", "in") or target.form in ("full", "in"):
        raise ValueError(
            f"cannot turn radial profiles shared as {source.form!r} into {target.form!r}"
        )
    for o in target.fiber_out:
        parts = {i: pair_profile(source, (i, o)) for i in target.fiber_in}
        if target.form == "out":
            trunk = next(iter(parts.values()))[0]
            joint = torch.cat([last for _, last in parts.values()], 2)
            _set_profile(target.conv_out[str(o)].radial_func, trunk, joint)
            continue
        for i, (trunk, last) in parts.items():
            scaled = last * Y_0 if (i, o) == (0, 0) else last
            _set_profile(target.conv[f"{i},{o}"].radial_func, trunk, scaled)


def _copy_unfused(target: UnfusedConv, source: ConvSE3, rows: dict[int, slice]) -> None:
    for i in target.fiber_in:
        for o in target.fiber_out:
            trunk, last = pair_profile(source, (i, o))
            kernel = target.kernels[f"{i},{o}"]
            _set_profile(kernel.radial_func, trunk, last[rows[o]])


def _copy_block(target: UnfusedAttentionBlock, source: AttentionBlockSE3) -> None:
    values = {d: slice(0, c) for d, c in source.value_fiber.items()}
    keys = {d: slice(source.value_fiber[d], None) for d in source.key_fiber}
    _copy_unfused(target.to_value, source.to_key_value, values)
    _copy_unfused(target.to_key, source.to_key_value, keys)
    target.to_query.load_state_dict(source.to_query.state_dict())
    target.project.load_state_dict(source.project.state_dict())


def copy_weights(target: nn.Module, source: SE3Transformer | SE3TransformerPooled) -> None:
    """Weights of an NVIDIA-layout model into an original one, or into a less fused NVIDIA one.

    Raises:
        ValueError: The target is fused more than the source.
    """
    if isinstance(target, SE3TransformerPooled | OriginalSE3TransformerPooled):
        target.mlp.load_state_dict(source.mlp.state_dict())
        copy_weights(target.transformer, source.transformer)
        return
    assert isinstance(target, SE3Transformer | OriginalSE3Transformer)
    for ours, theirs in zip(target.graph_modules, source.graph_modules, strict=True):
        if isinstance(theirs, NormSE3):
            ours.load_state_dict(theirs.state_dict())
        elif isinstance(theirs, ConvSE3):
            if isinstance(ours, ConvSE3):
                copy_conv(ours, theirs)
            else:
                _copy_unfused(ours.conv, theirs, {o: slice(None) for o in theirs.fiber_out})
                weights = theirs.to_kernel_self.state_dict()
                ours.to_self.weights.load_state_dict(weights)
        elif isinstance(ours, UnfusedAttentionBlock):
            _copy_block(ours, theirs)
        else:
            copy_conv(ours.to_key_value, theirs.to_key_value)
            ours.to_query.load_state_dict(theirs.to_query.state_dict())
            ours.project.load_state_dict(theirs.project.state_dict())
