"""NVIDIA's checkpoints, and those of the RoseTTAFold family, in and out."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyg_se3 import models
from pyg_se3.compat import se3_transformer as interface
from pyg_se3.compat.native import (
    InterfaceModel,
    NativeModel,
    from_native,
    has_layer_norm,
    obstacle,
    to_native,
)
from pyg_se3.compat.recognise import Recognised, recognise
from pyg_se3.compat.se3_transformer.model.arguments import refuse_unknown
from pyg_se3.compat.se3_transformer.model.fiber import as_fiber
from pyg_se3.compat.se3_transformer.model.layers.convolution import layout_of
from pyg_se3.compat.se3_transformer.model.transformer import (
    ARGUMENTS,
    POOLED_ARGUMENTS,
    _fuse_level,
)
from pyg_se3.compat.signs import Convention, check_convention, warn_of_default
from pyg_se3.compat.state import read_state_dict
from pyg_se3.compat.weights import ConvWeights
from pyg_se3.ops import KernelOptions, RadialSharing

_FIBERS = ("fiber_in", "fiber_hidden", "fiber_out", "fiber_edge")
_LAYOUT_ARGUMENTS = ("tensor_cores", "low_memory", "nvidia_version")


def load(
    source: Mapping[str, Any] | str | os.PathLike[str],
    config: Mapping[str, Any] | None = None,
    *,
    cg_convention: Convention | None = None,
    prefix: str | None = None,
    entry: str | None = None,
    as_interface: bool | None = None,
    kernel: KernelOptions | None = None,
) -> NativeModel | InterfaceModel:
    """A model with the weights, hence the function, of an NVIDIA checkpoint.

    Fibers, layers, fuse level, norms and the kind of final layer are told from the parameters. What
    leaves no trace there must be in ``config``: ``num_heads``, for pooled models ``pooling``
    (``max`` or ``avg``), and where they differ from the defaults ``populate_edge``,
    ``sum_over_edge``, ``nonlinearity``, ``compute_gradients`` and ``return_type``.

    Args:
        source: a state dict, a checkpoint that holds one (also of ``DistributedDataParallel``), or
            the file of either, read with ``weights_only=True``.
        config: constructor arguments by NVIDIA's names, in part or in full. All that can be told
            from the parameters are compared with them.
        cg_convention: Clebsch-Gordan signs that the weights were trained with: ``e3nn-0.3``
            (NVIDIA's requirements, the default) or ``e3nn-0.5`` (e3nn 0.5 and later).
        prefix: part of a larger model to take, for example ``simulator.se3.``.
        entry: entry of the checkpoint, if several hold parameters.
        as_interface: give a model of :mod:`pyg_se3.compat.se3_transformer` (True) or of
            :mod:`pyg_se3.models` (False); by default the latter where it can express the model.
        kernel: how the model computes.

    Returns:
        The model, in training mode, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: something is missing, left over, or contradicts ``config``; names it.
        TypeError: ``config`` has an unknown argument.
    """
    state, note = read_state_dict(source, prefix, entry)
    settings = dict(config or {})
    if note:
        settings, cg_convention = _noted(note, settings, cg_convention)
    model = _build(state, recognise(state), settings, cg_convention)
    if kernel is not None:
        model.set_kernel(kernel)
    if as_interface is None:
        as_interface = obstacle(model) is not None
    return model if as_interface else to_native(model, kernel)


def export(
    model: NativeModel | InterfaceModel, *, cg_convention: Convention | None = None
) -> dict[str, Tensor]:
    """NVIDIA's state dict of a model: ``load(export(model))`` is the same function.

    Radial MLPs that NVIDIA's layouts cannot share are copied to every pair, which is exact.

    Args:
        model: of :mod:`pyg_se3.models` or :mod:`pyg_se3.compat.se3_transformer`.
        cg_convention: Clebsch-Gordan signs to write, ``e3nn-0.3`` (what NVIDIA's code needs) by
            default.

    Returns:
        Parameters by NVIDIA's names. The constructor arguments are noted in its ``_metadata``,
        which survives ``torch.save``.

    Raises:
        TypeError: the model is of another kind.
    """
    convention = check_convention(cg_convention)
    if isinstance(model, (interface.SE3Transformer, interface.SE3TransformerPooled)):
        written = model
        state = OrderedDict((k, v.detach().clone()) for k, v in model.state_dict().items())
        inner = _inner(model)
        if inner.cg_convention != convention:
            target = _same_with(model, convention, [conv.layout for conv in inner.convolutions])
            state.update(_radial_state(model, target))
    else:
        written = from_native(model, convention)
        state = OrderedDict((k, v.detach().clone()) for k, v in written.state_dict().items())
    metadata = dict(getattr(written.state_dict(), "_metadata", {}))
    note = {**arguments(written), "cg_convention": convention}
    if "nonlinearity" in note:
        note["nonlinearity"] = repr(note["nonlinearity"])
    metadata["pyg_se3"] = note
    state._metadata = metadata  # type: ignore[attr-defined]
    return state


def arguments(model: NativeModel | InterfaceModel) -> dict[str, Any]:
    """Constructor arguments of NVIDIA's class for a model, as plain values.

    The nonlinearity of the norms, a module, is among them if it is not ReLU.
    ``tensor_cores`` and ``low_memory`` are left out: the parameters tell the layout.

    Raises:
        TypeError: the model is of another kind.
    """
    if not isinstance(model, (interface.SE3Transformer, interface.SE3TransformerPooled)):
        model = from_native(model, "e3nn-0.5")
    inner = _inner(model)
    first = inner.blocks[0].to_key_value
    found: dict[str, Any] = {
        "num_layers": inner.num_layers,
        "fiber_in": inner.fiber_in.native.to_dict(),
        "fiber_out": inner.fiber_out.native.to_dict(),
        "fiber_edge": inner.fiber_edge.native.to_dict(),
        "num_heads": inner.num_heads,
        "channels_div": inner.channels_div,
        "pooling": inner.pooling,
        "norm": bool(inner.norms),
        "use_layer_norm": has_layer_norm(first),
        "mid_dim": first.plan.hidden,
        "final_layer": inner.final_layer,
        "populate_edge": inner.populate_edge,
        "compute_gradients": inner.compute_gradients,
    }
    final = inner.final
    if isinstance(final, interface.ConvSE3):
        found["sum_over_edge"] = final.sum_over_edge
    norms = inner.norms
    if norms and not isinstance(norms[0].nonlinearity, nn.ReLU):
        found["nonlinearity"] = norms[0].nonlinearity
    if norms and norms[0].reproduce_v12_bug:
        found["reproduce_v12_bug"] = True
    if isinstance(model, interface.SE3TransformerPooled):
        found["num_degrees"] = len(inner.fiber_hidden.degrees)
        found["num_channels"] = inner.fiber_hidden[0]
        found["output_dim"] = model.output_dim
    else:
        found["fiber_hidden"] = inner.fiber_hidden.native.to_dict()
        found["return_type"] = inner.return_type
    return found


def to_pairwise(model: NativeModel | InterfaceModel) -> NativeModel | InterfaceModel:
    """The same function with a radial MLP per degree pair, copies of those that were shared.

    The way back does not exist: several MLPs are not one.

    Raises:
        TypeError: the model is of another kind.
    """
    if isinstance(model, (interface.SE3Transformer, interface.SE3TransformerPooled)):
        inner = _inner(model)
        layouts: list[RadialSharing] = ["pairwise"] * len(inner.convolutions)
        result = _same_with(model, inner.cg_convention, layouts)
        state = {k: v for k, v in model.state_dict().items() if ".radial_func." not in k}
        state |= _radial_state(model, result)
        result.load_state_dict(state)
        return result.train(model.training)
    if not isinstance(model, (models.SE3Transformer, models.SE3TransformerPooled)):
        raise TypeError(f"expected an SE(3)-Transformer, got {type(model).__name__}")
    count = model.config["num_layers"] + 1
    pairwise = from_native(model, "e3nn-0.5", ["pairwise"] * count)
    return to_native(pairwise, model.kernel_options)


def layouts_of(model: NativeModel | InterfaceModel) -> list[str]:
    """Which degree pairs share a radial MLP, per block and for the final layer."""
    if isinstance(model, (interface.SE3Transformer, interface.SE3TransformerPooled)):
        return [conv.layout for conv in _inner(model).convolutions]
    return list(model.config["radial_sharing"])


def _noted(
    note: dict[str, Any], config: dict[str, Any], cg_convention: Convention | None
) -> tuple[dict[str, Any], Convention | None]:
    """Arguments from what :func:`export` noted, completed by the caller's."""
    written = note.pop("cg_convention", None)
    if cg_convention is not None and written not in (None, cg_convention):
        raise ValueError(
            f"cg_convention={cg_convention!r} was given, but this was exported with {written!r}"
        )
    if isinstance(note.get("nonlinearity"), str) and "nonlinearity" not in config:
        raise ValueError(
            f"the model's norms use {note['nonlinearity']}, which a file cannot hold: "
            "give config={'nonlinearity': ...}"
        )
    return {**note, **config}, cg_convention or written


def _inner(model: InterfaceModel) -> interface.SE3Transformer:
    pooled = isinstance(model, interface.SE3TransformerPooled)
    return model.transformer if pooled else model  # type: ignore[return-value]


def _same_with(
    model: InterfaceModel, convention: Convention, layouts: Sequence[RadialSharing]
) -> InterfaceModel:
    """A model of the same architecture but for convention and layouts, with fresh weights."""
    build = type(model)
    result = build(**arguments(model), layouts=list(layouts), cg_convention=convention)
    return result.to(next(model.parameters()))


def _radial_state(source: InterfaceModel, target: InterfaceModel) -> dict[str, Tensor]:
    """Radial parameters of ``target`` that make it the same function as ``source``."""
    names = {module: name for name, module in target.named_modules()}
    state: dict[str, Tensor] = {}
    convs = zip(_inner(source).convolutions, _inner(target).convolutions, strict=True)
    for before, after in convs:
        weights = ConvWeights.of_interface(before)
        state |= weights.interface_state(after, f"{names[after]}.")
    return state


def _build(
    state: Mapping[str, Tensor],
    found: Recognised,
    config: dict[str, Any],
    cg_convention: Convention | None,
) -> InterfaceModel:
    """The interface model with the parameters of ``state``, all of them and nothing else."""
    name = "SE3TransformerPooled" if found.pooled else "SE3Transformer"
    build = getattr(interface, name)
    if config.pop("class", name) != name:
        raise ValueError(f"the parameters are of NVIDIA's {name}, config says another class")
    cg_convention = config.pop("cg_convention", None) or cg_convention
    known = {*ARGUMENTS, *(POOLED_ARGUMENTS if found.pooled else ())}
    refuse_unknown({k: v for k, v in config.items() if k not in known}, known, name)
    config = {
        key: as_fiber(value).native.to_dict() if key in _FIBERS else value
        for key, value in config.items()
        if key in known
    }
    settings = _agree(found, config)
    missing = []
    if "num_heads" not in settings:
        missing.append("num_heads (the number of attention heads)")
    if found.pooled and not settings.get("pooling"):
        missing.append("pooling ('max' or 'avg')")
    for key, reason in found.unsure.items():
        if key not in config:
            missing.append(f"{key} ({reason})")
    if missing:
        raise ValueError(
            f"the parameters of this {name} do not tell {', '.join(missing)}: "
            "give it in config={...}, by NVIDIA's argument names"
        )
    _check_layouts(found, settings)
    for key in _LAYOUT_ARGUMENTS:
        settings.pop(key, None)
    settings.pop("layouts", None)
    if found.pooled:
        settings.pop("return_type", None)
    convention = check_convention(cg_convention)
    model = build(**settings, layouts=found.layouts, cg_convention=convention)
    if cg_convention is None and _inner(model).depends_on_convention:
        warn_of_default("this checkpoint")
    floats = {value.dtype for value in state.values()}
    model.to(torch.float64 if torch.float64 in floats else torch.float32)
    _check_parameters(model, state)
    model.load_state_dict(dict(state))
    return model


def _agree(found: Recognised, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the parameters tell and what ``config`` adds, which must not contradict."""
    settings = dict(found.config)
    conflicts = []
    for key, value in config.items():
        told = settings.get(key, value)
        if key == "fiber_edge":
            # Edge features of a degree that no node has leave no trace.
            used = {*found.config["fiber_in"], *found.config.get("fiber_hidden", {}), 0}
            used |= set(range(found.config.get("num_degrees", 0)))
            seen = {d: c for d, c in value.items() if d in used}
        else:
            seen = value
        unsure = key in found.unsure
        if told != seen and key != "channels_div" and not unsure:
            conflicts.append(f"{key} is {told!r} in the parameters, {value!r} in config")
        settings[key] = value
    if conflicts:
        raise ValueError("config does not fit the parameters: " + "; ".join(conflicts))
    return settings


def _check_layouts(found: Recognised, settings: Mapping[str, Any]) -> None:
    """Compare the layouts in the parameters with what the arguments would give, if given."""
    given = {key: settings[key] for key in _LAYOUT_ARGUMENTS if key in settings}
    if not given:
        return
    level = _fuse_level(
        given.get("tensor_cores", False),
        given.get("low_memory", False),
        given.get("nvidia_version", "1.2"),
    ).value
    if found.pooled:
        hidden = dict.fromkeys(range(settings["num_degrees"]), settings["num_channels"])
    else:
        hidden = settings["fiber_hidden"]
    fiber, out = settings["fiber_in"], settings["fiber_out"]
    top = max(*fiber, *hidden, *out)
    expected: list[str] = []
    for layer in range(len(found.layouts)):
        last = layer == settings["num_layers"]
        target = dict(out) if last else {}
        if not last or settings["final_layer"] == "att":
            shape = out if last else hidden
            for degree, channels in shape.items():
                div = settings["channels_div"] if not last or degree == 0 else 1
                target[degree] = channels // div * (2 if degree in fiber else 1)
        expected.append(layout_of(fiber, settings["fiber_edge"], target, top, level))
        fiber = hidden
    if expected != found.layouts:
        raise ValueError(
            f"the parameters have the layouts {found.layouts} (per layer), but {given} gives "
            f"{expected}; leave these arguments out to take what the parameters have"
        )


def _check_parameters(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise a ``ValueError`` that lists every parameter that is missing, left over or misshapen."""
    expected = model.state_dict()
    problems = []
    missing = sorted(set(expected) - set(state))
    extra = sorted(set(state) - set(expected))
    shapes = [
        f"{key} is {list(state[key].shape)}, expected {list(expected[key].shape)}"
        for key in sorted(set(state) & set(expected))
        if state[key].shape != expected[key].shape
    ]
    if missing:
        problems.append(f"missing: {', '.join(missing)}")
    if extra:
        problems.append(f"not part of the model: {', '.join(extra)}")
    if shapes:
        problems.append(f"of another shape: {'; '.join(shapes)}")
    if problems:
        raise ValueError(
            f"the parameters do not fit {type(model).__name__}: " + ". ".join(problems)
        )
