"""The architecture behind NVIDIA's parameter names and shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pyg_se3.ops import RadialSharing
from pyg_se3.ops.plan import num_frequencies

Shape = tuple[int, ...]
Channels = dict[int, int]

_RADIAL = re.compile(
    r"(conv_out\.\d+|conv_in\.\d+|conv\.\d+,\d+|conv)\.radial_func\.net\.(\d+)\.(?:weight|bias)"
)
_KINDS: dict[str, RadialSharing] = {"conv_out": "output", "conv_in": "input"}


@dataclass(frozen=True)
class Recognised:
    """What the parameters say of the model.

    Attributes:
        pooled: whether it is an ``SE3TransformerPooled``.
        config: constructor arguments of ``SE3Transformer``, or of the pooled class.
        layouts: of every block, and of the final layer if it has radial weights.
        unsure: arguments in ``config`` that are a guess, with the reason.
    """

    pooled: bool
    config: dict[str, Any]
    layouts: list[RadialSharing]
    unsure: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Radial:
    """Radial MLPs of one convolution: rows of the last layer by key, and the widths."""

    layout: RadialSharing
    rows: dict[str, int]
    hidden: int
    edge_dim: int
    layer_norm: bool

    @property
    def keys(self) -> list[tuple[int, ...]]:
        """Degrees in the keys."""
        return [tuple(int(n) for n in re.findall(r"\d+", key)) for key in self.rows]

    def items(self) -> Iterable[tuple[tuple[int, ...], int]]:
        """Degrees of the key, and rows."""
        return zip(self.keys, self.rows.values(), strict=True)


def recognise(state: Mapping[str, Tensor]) -> Recognised:
    """Architecture of a state dict without any prefix.

    Raises:
        ValueError: the names or shapes are not of NVIDIA's SE(3)-Transformer.
    """
    pooled = any(key.startswith("mlp.") for key in state)
    start = "transformer.graph_modules." if pooled else "graph_modules."
    modules: dict[int, dict[str, Shape]] = {}
    for key, value in state.items():
        if key.startswith(start):
            index, _, name = key.removeprefix(start).partition(".")
            modules.setdefault(int(index), {})[name] = tuple(value.shape)
    ordered = [modules[index] for index in sorted(modules)]
    if not ordered:
        raise ValueError(f"no parameter starts with {start!r}")
    config, layouts, unsure = _transformer(ordered)
    if pooled:
        hidden, out = config["fiber_hidden"], config["fiber_out"]
        channels = set(hidden.values())
        if len(channels) != 1 or sorted(hidden) != list(range(len(hidden))) or set(out) != {0}:
            raise ValueError(
                f"a pooled model has hidden degrees 0, 1, .. of equal channels and output of "
                f"degree 0; the file has {hidden} and {out}"
            )
        del config["fiber_hidden"]
        config["num_degrees"], config["num_channels"] = len(hidden), channels.pop()
        if "mlp.2.weight" not in state:
            raise ValueError("mlp.2.weight is missing")
        config["output_dim"] = state["mlp.2.weight"].shape[0]
    return Recognised(pooled, config, layouts, unsure)


def _transformer(
    modules: list[dict[str, Shape]],
) -> tuple[dict[str, Any], list[RadialSharing], dict[str, str]]:
    last = modules[-1]
    is_block = ["project.weights" in " ".join(names) for names in modules]
    is_norm = [any("group_norm" in n or "layer_norms" in n for n in names) for names in modules]
    blocks = [names for names, block in zip(modules[:-1], is_block, strict=False) if block]
    if not blocks or is_norm[-1]:
        raise ValueError(
            "graph_modules must be attention blocks, norms between them, and a final layer; found "
            + ", ".join(
                "block" if b else "norm" if n else "other"
                for b, n in zip(is_block, is_norm, strict=True)
            )
        )
    final = "att" if is_block[-1] else "conv" if any("radial_func" in n for n in last) else "lin"
    unsure: dict[str, str] = {}
    tables = [_radial(names, "to_key_value.") for names in blocks]
    edge: Channels = {}
    fibers: list[Channels] = []
    hidden: Channels = {}
    value: Channels = {}
    for names, table in zip(blocks, tables, strict=True):
        fiber, hidden, value, higher = _block(names, table, unsure)
        fibers.append(fiber)
        edge |= higher
    first = tables[0]
    if first.edge_dim > 1:
        edge[0] = first.edge_dim - 1
    layouts = [table.layout for table in tables]
    if final == "lin":
        fiber_out = {int(k.removeprefix("weights.")): s[0] for k, s in last.items()}
    elif final == "att":
        fiber_out = _linear(last, "project.weights.", 0)
        layouts.append(_radial(last, "to_key_value.").layout)
    else:
        table = _radial(last, "")
        convolved = {d: c + (edge.get(d, 0) if d else 0) for d, c in hidden.items()}
        fiber_out = _final_fiber(last, table, convolved)
        layouts.append(table.layout)
    config: dict[str, Any] = {
        "num_layers": len(blocks),
        "fiber_in": fibers[0],
        "fiber_hidden": hidden,
        "fiber_out": dict(sorted(fiber_out.items())),
        "fiber_edge": dict(sorted(edge.items())),
        "channels_div": _division(hidden, value),
        "norm": any(is_norm),
        "use_layer_norm": first.layer_norm,
        "mid_dim": first.hidden,
        "final_layer": final,
    }
    return config, layouts, unsure


def _linear(names: Mapping[str, Shape], prefix: str, axis: int) -> Channels:
    found = {
        int(key.removeprefix(prefix)): shape[axis]
        for key, shape in names.items()
        if key.startswith(prefix)
    }
    return dict(sorted(found.items()))


def _radial(names: Mapping[str, Shape], prefix: str) -> _Radial:
    """Radial MLPs among the parameters that start with a prefix."""
    layers: dict[str, dict[int, Shape]] = {}
    for key, shape in names.items():
        match = _RADIAL.fullmatch(key.removeprefix(prefix))
        if match and key.endswith("weight"):
            layers.setdefault(match[1], {})[int(match[2])] = shape
    if not layers:
        raise ValueError(f"no radial weights among {sorted(names)[:5]}")
    kinds: set[RadialSharing] = {
        _KINDS.get(key.split(".")[0], "pairwise" if "." in key else "full") for key in layers
    }
    if len(kinds) != 1:
        raise ValueError(f"one convolution mixes layouts: {sorted(layers)}")
    (layout,) = kinds
    widths = {
        (len(shapes[0]) and shapes[0][1], shapes[max(shapes)][1], 6 in shapes)
        for shapes in layers.values()
        if 0 in shapes and len(shapes[0]) == 2 and len(shapes[max(shapes)]) == 2
    }
    if len(widths) != 1:
        raise ValueError(f"the radial MLPs of one convolution differ in width: {sorted(layers)}")
    ((edge_dim, hidden, layer_norm),) = widths
    rows = {key: shapes[max(shapes)][0] for key, shapes in layers.items()}
    return _Radial(layout, rows, hidden, edge_dim, layer_norm)


def _block(
    names: Mapping[str, Shape], table: _Radial, unsure: dict[str, str]
) -> tuple[Channels, Channels, Channels, Channels]:
    """Input fiber, hidden fiber, value fiber and edge channels of degree > 0 of a block."""
    hidden = _linear(names, "project.weights.", 0)
    joined = _linear(names, "project.weights.", 1)
    known = _linear(names, "to_query.weights.", 1)
    key = _linear(names, "to_query.weights.", 0)
    value = {degree: width - known.get(degree, 0) for degree, width in joined.items()}
    out = {degree: width + key.get(degree, 0) for degree, width in value.items()}
    if not hidden or not known:
        raise ValueError(f"an attention block lacks to_query or project: {sorted(names)[:5]}")
    convolved: Channels = {}
    if table.layout == "pairwise":
        for (i, o), rows in table.items():
            convolved[i] = _divide(rows, out.get(o, 0) * num_frequencies((i, o)))
    elif table.layout == "input":
        for (i,), rows in table.items():
            per = sum(num_frequencies((i, o)) * c for o, c in out.items())
            convolved[i] = _divide(rows, per)
    elif table.layout == "full":
        (rows,) = table.rows.values()
        per = sum(num_frequencies((i, o)) * c for i in out for o, c in out.items())
        convolved = {i: _divide(rows, per) for i in out}
    else:
        channels = known.get(0)
        if channels is None:
            raise ValueError("input channels cannot be told from these shapes: give fiber_in")
        (o,), rows = next(iter(table.items()))
        degrees = _degrees_up_to(o, _divide(rows, out.get(o, 0) * channels))
        convolved = dict.fromkeys(degrees, channels)
    fiber = {}
    higher = {}
    for degree, width in sorted(convolved.items()):
        fiber[degree] = known.get(degree, width)
        if degree not in known and degree > 0:
            unsure["fiber_in"] = unsure["fiber_edge"] = (
                f"degree {degree} of the input is not among the hidden ones, so its {width} "
                "channels may be of nodes and edges"
            )
        if width < fiber[degree]:
            raise ValueError(
                f"radial weights for {width} channels of degree {degree}, but to_query for "
                f"{fiber[degree]}"
            )
        if degree > 0 and width > fiber[degree]:
            higher[degree] = width - fiber[degree]
    return fiber, hidden, value, higher


def _final_fiber(names: Mapping[str, Shape], table: _Radial, convolved: Channels) -> Channels:
    """Output fiber of a final convolution from channels ``convolved``, edge features included."""
    own = _linear(names, "to_kernel_self.", 0)
    if table.layout == "pairwise":
        return {
            o: _divide(rows, convolved.get(i, 0) * num_frequencies((i, o)))
            for (i, o), rows in table.items()
        }
    if table.layout == "output":
        return {
            o: _divide(rows, sum(num_frequencies((i, o)) * c for i, c in convolved.items()))
            for (o,), rows in table.items()
        }
    if table.layout == "full":
        (rows,) = table.rows.values()
        per = sum(num_frequencies((i, o)) * c for i, c in convolved.items() for o in convolved)
        return dict.fromkeys(convolved, _divide(rows, per))
    if not own:
        raise ValueError(
            "output channels cannot be told from these shapes: to_kernel_self is missing"
        )
    channels = next(iter(own.values()))
    (i,), rows = next(iter(table.items()))
    return dict.fromkeys(_degrees_up_to(i, _divide(rows, convolved.get(i, 0) * channels)), channels)


def _degrees_up_to(degree: int, frequencies: int) -> list[int]:
    """Degrees 0, 1, .. whose frequencies with ``degree`` add up to ``frequencies``."""
    degrees: list[int] = []
    total = 0
    while total < frequencies:
        total += num_frequencies((len(degrees), degree))
        degrees.append(len(degrees))
    if total != frequencies:
        raise ValueError(f"{frequencies} radial coefficients do not fit degree {degree}")
    return degrees


def _divide(rows: int, by: int) -> int:
    if by == 0 or rows % by:
        raise ValueError(f"{rows} rows of radial weights are no multiple of {by}")
    return rows // by


def _division(hidden: Channels, value: Channels) -> int:
    """``channels_div`` with ``hidden // channels_div == value``."""
    candidates = range(1, max(hidden.values()) + 1)
    exact = [n for n in candidates if all(value[d] * n == c for d, c in hidden.items())]
    rounded = [n for n in candidates if all(value[d] == c // n for d, c in hidden.items())]
    if not rounded:
        raise ValueError(f"no channels_div makes values of {value} channels out of {hidden}")
    return (exact or rounded)[0]
