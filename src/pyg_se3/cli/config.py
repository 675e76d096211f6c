"""Where the configuration lies, and checks that it says something that exists."""

from __future__ import annotations

import difflib
import inspect
import os
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import pyg_se3

FROM_DATA = ("fiber_in", "fiber_edge", "fiber_out", "output_dim")
"""Arguments of a model that may be null in ``model`` and are then those of the data."""

# Keys that Hydra itself reads in a node with a ``_target_``.
_HYDRA_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")


# In names of folders: one target as it is, several with hyphens.
OmegaConf.register_new_resolver(
    "joined", lambda value: value if isinstance(value, str) else "-".join(value), replace=True
)


class ConfigError(ValueError):
    """The configuration asks for something that does not exist or does not fit."""


@dataclass
class PathsConfig:
    """``paths``: where data lies and where runs go."""

    data: str = "data"
    runs: str = "runs"
    run: str = "???"


@dataclass
class TrainConfig:
    """The keys of ``conf/train.yaml``.

    Nodes with a ``_target_`` are checked against the signature of what they name.
    """

    name: str = "???"
    seed: int = 0
    run_dir: str = "???"
    resume: bool = False
    ckpt_path: str | None = None
    deterministic: bool = False
    matmul_precision: Literal["highest", "high"] | None = None
    test: bool = True
    test_weights: Literal["best", "last"] = "best"
    data: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    kernel: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)
    paths: PathsConfig = field(default_factory=PathsConfig)


@dataclass
class EvaluateDataConfig:
    """``data`` of an evaluation: what may differ from the training; null keeps it."""

    root: str | None = None
    raw_path: str | None = None
    path: str | list[str] | None = None
    csv: str | None = None
    eval_batch_size: int | None = None
    num_workers: int | None = None


@dataclass
class EvaluateConfig:
    """The keys of ``conf/evaluate.yaml``."""

    ckpt_path: str = "???"
    overwrite: bool = False
    matmul_precision: Literal["highest", "high"] | None = None
    kernel: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    data: EvaluateDataConfig = field(default_factory=EvaluateDataConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)


@dataclass
class PredictConfig:
    """The keys of ``conf/predict.yaml``."""

    ckpt_path: str = "???"
    input: str | list[str] = "???"
    output: str = "???"
    overwrite: bool = False
    batch_size: int = 256
    charge: int = 0
    skip_invalid: bool = False
    matmul_precision: Literal["highest", "high"] | None = None
    kernel: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    paths: PathsConfig = field(default_factory=PathsConfig)


SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "predict": PredictConfig,
}


def config_dir() -> Path:
    """Folder of the Hydra configuration: inside an installed package, at the root of a checkout.

    Raises:
        FileNotFoundError: If it is in neither place.
    """
    package = Path(pyg_se3.__file__).parent
    for candidate in (package / "conf", package.parents[1] / "conf"):
        if (candidate / "train.yaml").is_file():
            return candidate
    raise FileNotFoundError(f"there is no conf folder in {package} or {package.parents[1]}")


def validate(config: DictConfig | Mapping[str, Any], schema: type) -> None:
    """Reject keys and values that nothing understands.

    Args:
        config: The configuration; interpolations need not be resolvable yet.
        schema: Dataclass of its top level.

    Raises:
        ConfigError: Naming every unknown key, with the closest that exists, and every value of a
            wrong type.
    """
    plain: Any = config
    if OmegaConf.is_config(config):
        plain = OmegaConf.to_container(config, resolve=False)
    problems = _check_dataclass(plain, schema, "")
    if problems:
        raise ConfigError("\n".join(problems))


def check_overrides(config_name: str, arguments: Sequence[str]) -> None:
    """Check overrides of a command line before Hydra does, whose messages suggest nothing.

    Args:
        config_name: ``train``, ``evaluate`` or ``predict``.
        arguments: Arguments of the process. Flags are ignored.

    Raises:
        ConfigError: See :func:`validate`.
    """
    if any(a.split("=")[0] in _CONFIG_FLAGS for a in arguments):
        # Another configuration than ours is composed; it is checked when the run starts.
        return
    lines = [a for a in arguments if not a.startswith("-")]
    try:
        overrides = OverridesParser.create().parse_overrides(lines)
        with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
            config = hydra.compose(
                config_name, [_forced(o) for o in overrides], return_hydra_config=True
            )
    except (HydraException, OmegaConfBaseException, ValueError):
        # Not a matter of keys; Hydra meets it again and says it best.
        return
    plain: Any = OmegaConf.to_container(config, resolve=False)
    del plain["hydra"]
    validate(plain, SCHEMAS[config_name])
    _check_writable(Path(config.hydra.run.dir))


def _check_writable(folder: Path) -> None:
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not os.access(place, os.W_OK):
        raise ConfigError(
            f"the results cannot be written to {folder}: {place} is read-only or belongs to "
            "somebody else. Choose another place with paths.runs=..."
        )


_CONFIG_FLAGS = (
    "--config-name", "-cn", "--config-dir", "-cd", "--config-path", "-cp", "--help", "-h",
    "--hydra-help", "--version", "--info", "-i", "--shell-completion", "-sc",
)  # fmt: skip


def _forced(override: Override) -> str:
    """The override, such that Hydra accepts unknown keys; of a sweep, its first value."""
    line = str(override.input_line)
    if override.is_sweep_override():
        key = override.get_key_element()
        first = next(iter(override.sweep_string_iterator()))
        line = f"{key}={first}"
    known_to_hydra = (config_dir() / override.key_or_group).is_dir()
    if (
        override.type == OverrideType.CHANGE
        and not known_to_hydra
        and not override.key_or_group.startswith("hydra")
    ):
        return f"++{line}"
    return line


def _check_dataclass(node: Mapping[str, Any], schema: type, path: str) -> list[str]:
    hints = typing.get_type_hints(schema)
    names = [f.name for f in fields(schema)]
    problems = _unknown_keys(node, names, path)
    for name in names:
        if name not in node:
            continue
        value, hint, where = node[name], hints[name], f"{path}{name}"
        if isinstance(hint, type) and hasattr(hint, "__dataclass_fields__"):
            problems += _check_dataclass(value, hint, f"{where}.")
        elif isinstance(value, Mapping):
            problems += _check_node(value, where)
        else:
            problems += _check_value(value, hint, where)
    return problems


def _check_node(node: Mapping[str, Any], path: str) -> list[str]:
    """Check a node with a target, or a group of them."""
    if "_target_" not in node:
        problems = []
        for key, value in node.items():
            if isinstance(value, Mapping):
                if "_target_" not in value:
                    problems.append(f"{path}.{key} needs a _target_, got {dict(value)!r}")
                problems += _check_node(value, f"{path}.{key}")
            elif value is not None:
                problems.append(f"{path}.{key} must be a node with a _target_, got {value!r}")
        return problems
    target = node["_target_"]
    try:
        function = hydra.utils.get_object(target)
    except (ImportError, ValueError) as error:
        return [f"{path}._target_ names {target!r}, which cannot be imported: {error}"]
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:
        # Types written in C may have none; Hydra says what does not fit.
        return []
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        names: Collection[str] = [*parameters, *node]
    else:
        names = list(parameters)
    problems = _unknown_keys(node, [*names, *_HYDRA_KEYS], f"{path}.")
    hints = _type_hints(function)
    for key, value in node.items():
        if isinstance(value, Mapping) and "_target_" in value:
            problems += _check_node(value, f"{path}.{key}")
        elif key in hints and not (value is None and path == "model" and key in FROM_DATA):
            problems += _check_value(value, hints[key], f"{path}.{key}")
    return problems


def _type_hints(function: Callable) -> dict[str, Any]:
    init = function.__init__ if inspect.isclass(function) else function  # type: ignore[misc]
    try:
        return typing.get_type_hints(init)
    except (NameError, TypeError):
        # Some packages annotate with names that exist for type checkers only.
        return {}


def _unknown_keys(node: Mapping[str, Any], names: Collection[str], path: str) -> list[str]:
    problems = []
    for key in node:
        if key in names:
            continue
        close = difflib.get_close_matches(str(key), names, n=1)
        known = sorted(name for name in names if name not in _HYDRA_KEYS)
        hint = f"did you mean {path}{close[0]}?" if close else f"known keys: {', '.join(known)}"
        problems.append(f"unknown key {path}{key}; {hint}")
    return problems


def _check_value(value: Any, hint: Any, path: str) -> list[str]:
    if value == "???":
        return [f"{path} is mandatory: give it as {path}=..."]
    if isinstance(value, str) and "${" in value:
        return []
    if fits(value, hint):
        return []
    return [f"{path} expects {_name(hint)}, got {value!r}"]


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value from YAML fits a type annotation; true where that is not known."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is None or hint is type(None):
        return value is None
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, str)
    base = origin or hint
    if inspect.isclass(base) and issubclass(base, (list, tuple, Sequence)):
        if not isinstance(value, (list, tuple)):
            return False
        return len(arguments) != 1 or all(fits(item, arguments[0]) for item in value)
    if inspect.isclass(base) and issubclass(base, Mapping):
        return isinstance(value, Mapping)
    return True


def _name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_name(argument) for argument in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if hint is type(None):
        return "null"
    return getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
