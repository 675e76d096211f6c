"""Between models of this package and models with NVIDIA's interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyg_se3 import models
from pyg_se3.compat import se3_transformer as interface
from pyg_se3.compat.layout import best_layout, pieces
from pyg_se3.compat.se3_transformer.model.layers.pooling import MODES
from pyg_se3.compat.signs import Convention
from pyg_se3.compat.weights import ConvWeights
from pyg_se3.nn import SE3Attention, TFNConv
from pyg_se3.ops import KernelOptions, RadialSharing
from pyg_se3.ops.plan import Pair

NativeModel = models.SE3Transformer | models.SE3TransformerPooled
InterfaceModel = interface.SE3Transformer | interface.SE3TransformerPooled


def obstacle(model: InterfaceModel) -> str | None:
    """Why this package's own models cannot express a model, or ``None`` if they can."""
    inner = _inner(model)
    if inner.final_layer != "conv":
        return f"final_layer={inner.final_layer!r}"
    if inner.populate_edge != "lin":
        return f"populate_edge={inner.populate_edge!r}"
    if not _final_conv(inner).sum_over_edge:
        return "sum_over_edge=False"
    for norm in inner.norms:
        if not isinstance(norm.nonlinearity, nn.ReLU):
            return f"nonlinearity={norm.nonlinearity}"
        if norm.reproduce_v12_bug:
            return "reproduce_v12_bug=True"
    if any(channels % inner.channels_div for channels in inner.fiber_hidden.channels):
        return f"channels_div={inner.channels_div} does not divide {inner.fiber_hidden}"
    if isinstance(model, interface.SE3TransformerPooled):
        if inner.fiber_out.num_features != inner.fiber_hidden[0] * len(inner.fiber_hidden.degrees):
            return f"fiber_out={inner.fiber_out} before pooling"
    return None


def to_native(model: InterfaceModel, kernel: KernelOptions | None = None) -> NativeModel:
    """The same function as a model of this package.

    Raises:
        ValueError: it has a feature that this package's models lack.
    """
    reason = obstacle(model)
    if reason:
        raise ValueError(f"this package's own models have no equivalent of {reason}")
    inner = _inner(model)
    block = inner.blocks[0].to_key_value
    pool = None if inner.pooling is None else MODES[inner.pooling]
    common: dict[str, Any] = {
        "fiber_edge": inner.fiber_edge.native,
        "num_layers": inner.num_layers,
        "num_heads": inner.num_heads,
        "channels_div": inner.channels_div,
        "norm": bool(inner.norms),
        "radial_layer_norm": has_layer_norm(block),
        "radial_sharing": [conv.layout for conv in inner.convolutions],
        "radial_hidden": block.plan.hidden,
        "detach_geometry": not inner.compute_gradients,
        "pooling": pool,
        "kernel": kernel,
    }
    native: NativeModel
    if isinstance(model, interface.SE3TransformerPooled):
        degrees = inner.fiber_hidden.degrees
        native = models.SE3TransformerPooled(
            inner.fiber_in.native,
            len(degrees),
            inner.fiber_hidden[0],
            output_dim=model.output_dim,
            **common,
        )
        state = _native_state(native.transformer, inner, "transformer.")
        state |= {f"mlp.{name}": value for name, value in model.mlp.state_dict().items()}
    else:
        native = models.SE3Transformer(
            inner.fiber_in.native,
            inner.fiber_hidden.native,
            inner.fiber_out.native,
            return_degree=inner.return_type,
            **common,
        )
        state = _native_state(native, inner, "")
    native.to(next(iter(state.values())))
    native.load_state_dict(state)
    return native.train(model.training)


def from_native(
    model: NativeModel, cg_convention: Convention, layouts: Sequence[RadialSharing] | None = None
) -> InterfaceModel:
    """The same function with NVIDIA's interface.

    Args:
        model: of this package.
        cg_convention: Clebsch-Gordan signs of the weights to be.
        layouts: per block and for the last convolution; chosen as NVIDIA's code would if left out.

    Raises:
        TypeError: it is not an SE(3)-Transformer of this package.
        ValueError: a layout shares what the model does not.
    """
    if not isinstance(model, (models.SE3Transformer, models.SE3TransformerPooled)):
        raise TypeError(
            f"expected a pyg_se3 SE3Transformer or SE3TransformerPooled, got {type(model).__name__}"
        )
    pooled = isinstance(model, models.SE3TransformerPooled)
    inner = cast(models.SE3Transformer, model.transformer if pooled else model)
    config = inner.config
    names = {ours: theirs for theirs, ours in MODES.items()}
    common: dict[str, Any] = {
        "num_layers": config["num_layers"],
        "num_heads": config["num_heads"],
        "channels_div": config["channels_div"],
        "norm": config["norm"],
        "use_layer_norm": config["radial_layer_norm"],
        "mid_dim": config["radial_hidden"],
        "compute_gradients": not config["detach_geometry"],
        "layouts": list(layouts) if layouts is not None else nvidia_layouts(inner),
        "cg_convention": cg_convention,
        "pooling": names[config["pooling"]] if config["pooling"] else None,
    }
    if isinstance(model, models.SE3TransformerPooled):
        result: InterfaceModel = interface.SE3TransformerPooled(
            fiber_in=config["fiber_in"],
            fiber_out=config["fiber_out"],
            fiber_edge=config["fiber_edge"],
            num_degrees=model.config["num_degrees"],
            num_channels=model.config["num_channels"],
            output_dim=model.config["output_dim"],
            **common,
        )
        state = _interface_state(_inner(result), inner, "transformer.")
        state |= {f"mlp.{name}": value for name, value in model.mlp.state_dict().items()}
    else:
        result = interface.SE3Transformer(
            fiber_in=config["fiber_in"],
            fiber_hidden=config["fiber_hidden"],
            fiber_out=config["fiber_out"],
            fiber_edge=config["fiber_edge"],
            return_type=config["return_degree"],
            **common,
        )
        state = _interface_state(result, inner, "")
    result.to(next(iter(state.values())))
    result.load_state_dict(state)
    return result.train(model.training)


def nvidia_layouts(model: models.SE3Transformer) -> list[RadialSharing]:
    """The layouts of the NVIDIA model that shares most among those that share no more than ours.

    NVIDIA's code has one setting for all layers and falls back layer by layer where the fibers do
    not allow it; so only such combinations can be loaded there.
    """
    convs = [*(block.to_key_value for block in _attention(model)), model.last]
    refined: list[RadialSharing] | None = None
    for level in (2, 1, 0):
        layouts = [
            best_layout(conv.plan.fiber_in, conv.plan.fiber_out, model.max_degree, level)
            for conv in convs
        ]
        wanted = [_groups(conv, layout) for conv, layout in zip(convs, layouts, strict=True)]
        have = [{frozenset(group.pairs) for group in conv.plan.groups} for conv in convs]
        if wanted == have:
            return layouts
        finer = all(
            any(group <= other for other in available)
            for groups, available in zip(wanted, have, strict=True)
            for group in groups
        )
        if finer and refined is None:
            refined = layouts
    assert refined is not None, "pairwise layouts share nothing"
    return refined


def has_layer_norm(conv: interface.ConvSE3) -> bool:
    """Whether the radial MLPs of a convolution have layer norms."""
    _, part = conv.radial_pieces()[0]
    return any(isinstance(layer, nn.LayerNorm) for layer in part.radial_func.net)


def _groups(conv: TFNConv, layout: RadialSharing) -> set[frozenset[Pair]]:
    degrees = conv.plan.fiber_in.degrees, conv.plan.fiber_out.degrees
    return {frozenset(piece.pairs) for piece in pieces(layout, *degrees)}


def _inner(model: InterfaceModel) -> interface.SE3Transformer:
    pooled = isinstance(model, interface.SE3TransformerPooled)
    return model.transformer if pooled else model  # type: ignore[return-value]


def _final_conv(model: interface.SE3Transformer) -> interface.ConvSE3:
    assert isinstance(model.final, interface.ConvSE3)
    return model.final


def _attention(model: models.SE3Transformer) -> list[SE3Attention]:
    return cast("list[SE3Attention]", list(model.blocks))


def _native_state(
    native: models.SE3Transformer, model: interface.SE3Transformer, prefix: str
) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for index, (block, target) in enumerate(zip(model.blocks, _attention(native), strict=True)):
        here = f"{prefix}blocks.{index}."
        for part in ("to_query", "project"):
            for name, value in block.get_submodule(part).state_dict().items():
                state[f"{here}{part}.{name}"] = value
        weights = ConvWeights.of_interface(block.to_key_value)
        state |= weights.native_state(target.to_key_value, f"{here}to_key_value.")
    for index, norm in enumerate(model.norms):
        for name, value in norm.state_dict().items():
            state[f"{prefix}norms.{index}.{name}"] = value
    final = _final_conv(model)
    state |= ConvWeights.of_interface(final).native_state(native.last, f"{prefix}last.")
    for degree, parameter in final.to_kernel_self.items():
        state[f"{prefix}last.self_interaction.weights.{degree}"] = parameter.detach()
    return state


def _interface_state(
    model: interface.SE3Transformer, native: models.SE3Transformer, prefix: str
) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    names = {module: f"{prefix}{name}." for name, module in model.named_modules()}
    for block, source in zip(model.blocks, _attention(native), strict=True):
        here = names[block]
        for part in ("to_query", "project"):
            for name, value in source.get_submodule(part).state_dict().items():
                state[f"{here}{part}.{name}"] = value
        weights = ConvWeights.of_native(source.to_key_value)
        state |= weights.interface_state(block.to_key_value, f"{here}to_key_value.")
    for norm, ours in zip(model.norms, native.norms, strict=bool(model.norms)):
        for name, value in ours.state_dict().items():
            state[names[norm] + name] = value
    final = _final_conv(model)
    state |= ConvWeights.of_native(native.last).interface_state(final, names[final])
    own = native.last.self_interaction
    for degree, parameter in final.to_kernel_self.items():
        # NVIDIA's final convolution always has self-interaction; none is one of zeros.
        value = torch.zeros_like(parameter) if own is None else own.weights[degree].detach()
        state[f"{names[final]}to_kernel_self.{degree}"] = value
    return state
