"""Files of NVIDIA's code to files of this package, and back, with a check."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pyg_se3 import models
from pyg_se3.compat import nvidia
from pyg_se3.compat import se3_transformer as interface
from pyg_se3.compat.native import InterfaceModel, NativeModel
from pyg_se3.compat.signs import Convention, check_convention
from pyg_se3.fiber import Fiber
from pyg_se3.ops import KernelOptions

Model = NativeModel | InterfaceModel


@dataclass(frozen=True)
class Conversion:
    """What a conversion found, wrote and checked.

    Attributes:
        source: file read.
        target: file written.
        model: the model.
        layouts: which degree pairs share a radial MLP, per block and for the final layer.
        written: ``native`` or ``nvidia``.
        parameters: number of parameters.
        kernel_difference: largest difference between the reference and the edge kernel in
            float64 on random input, as a fraction of the largest output.
        file_difference: largest difference between the model and what the written file gives back,
            likewise.
    """

    source: Path
    target: Path
    model: Model
    layouts: list[str]
    written: str
    parameters: int
    kernel_difference: float
    file_difference: float

    def lines(self) -> list[str]:
        """The report, line by line."""
        settings = nvidia.arguments(self.model)
        shown = ", ".join(f"{key}={value}" for key, value in settings.items())
        return [
            f"read     {self.source}",
            f"found    {type(self.model).__name__}, {self.parameters:,} parameters",
            f"         {shown}",
            f"radial   {', '.join(self.layouts)} (per layer)",
            f"check    reference and edge kernel differ by {self.kernel_difference:.1e} (float64)",
            f"check    the file written differs by {self.file_difference:.1e} (float64)",
            f"wrote    {self.target} ({self.written})",
        ]


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    config: Mapping[str, Any] | None = None,
    *,
    to: Literal["native", "nvidia"] | None = None,
    cg_convention: Convention | None = None,
    write_convention: Convention | None = None,
    pairwise: bool = False,
    prefix: str | None = None,
    entry: str | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Convert a checkpoint file.

    Args:
        source: a file of NVIDIA's code or of this package.
        target: file to write.
        config: as for :func:`pyg_se3.compat.nvidia.load`.
        to: ``native`` for this package, ``nvidia`` for NVIDIA's code; by default the other one.
        cg_convention: Clebsch-Gordan signs of an NVIDIA file, as for ``load``.
        write_convention: those to write in an NVIDIA file; ``e3nn-0.3`` by default.
        pairwise: give every degree pair a radial MLP of its own, which is exact.
        prefix: as for ``load``.
        entry: as for ``load``.
        overwrite: replace ``target`` if it is there.

    Raises:
        FileExistsError: ``target`` is there and ``overwrite`` is not set.
        FileNotFoundError: ``source`` is not there.
        ValueError: ``source`` cannot be read, or has features the target's format lacks.
    """
    source, target = Path(source), Path(target)
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; say overwrite to replace it")
    if to not in (None, "native", "nvidia"):
        raise ValueError(f"unknown target format {to!r}, expected 'native' or 'nvidia'")
    model, ours = _read(source, config, cg_convention, prefix, entry)
    if pairwise:
        model = nvidia.to_pairwise(model)
    written = to or ("nvidia" if ours else "native")
    if written == "native":
        if not isinstance(model, (models.SE3Transformer, models.SE3TransformerPooled)):
            raise ValueError(
                f"{source} has features of a fork that this package's own models lack "
                f"({_features(model)}); use it as it is with pyg_se3.compat.nvidia.load, or write "
                "it with to='nvidia'"
            )
        _save(_native_checkpoint(model), target)
        again: Model = _read(target, None, None, None, None)[0]
    else:
        convention = check_convention(write_convention)
        state = nvidia.export(model, cg_convention=convention)
        _save({"state_dict": state, "pyg_se3": {"cg_convention": convention}}, target)
        again = nvidia.load(target, dict(nvidia.arguments(model)), cg_convention=convention)
    reference = evaluate(model, KernelOptions(kernel="reference"))
    return Conversion(
        source,
        target,
        model,
        nvidia.layouts_of(model),
        written,
        sum(p.numel() for p in model.parameters()),
        _difference(reference, evaluate(model, KernelOptions(kernel="edge"))),
        _difference(reference, evaluate(again, KernelOptions(kernel="reference"))),
    )


def evaluate(model: Model, options: KernelOptions, seed: int = 0) -> list[Tensor]:
    """Output of a copy of a model in float64 on a random graph, degree by degree."""
    model = copy.deepcopy(model).double().eval()
    model.set_kernel(options)
    arguments = nvidia.arguments(model)
    generator = torch.Generator().manual_seed(seed)
    nodes, edges = 24, 120

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    source = torch.randint(0, nodes, (edges,), generator=generator)
    shift = torch.randint(1, nodes, (edges,), generator=generator)
    edge_index = torch.stack([source, (source + shift) % nodes])
    pos = 3 * draw(nodes, 3)
    x = {d: draw(nodes, c, 2 * d + 1) for d, c in Fiber(arguments["fiber_in"]).items()}
    attr = {d: draw(edges, c, 2 * d + 1) for d, c in Fiber(arguments["fiber_edge"]).items()}
    with torch.no_grad():
        if isinstance(model, (interface.SE3Transformer, interface.SE3TransformerPooled)):
            graph = interface.Graph(edge_index, nodes, pos[edge_index[1]] - pos[edge_index[0]])
            named = [{str(d): v for d, v in part.items()} for part in (x, attr)]
            output = model(graph, named[0], named[1])
        else:
            output = model(x, pos, edge_index, attr or None)
    if isinstance(output, Mapping):
        return [output[key] for key in sorted(output, key=int)]
    return [output]


def _difference(a: list[Tensor], b: list[Tensor]) -> float:
    largest = max((x.abs().max().item() for x in a), default=0.0)
    difference = max(((x - y.view_as(x)).abs().max().item() for x, y in zip(a, b, strict=True)))
    return difference / largest if largest else difference


def _features(model: Model) -> str:
    from pyg_se3.compat.native import obstacle

    return str(obstacle(model))  # type: ignore[arg-type]


def _read(
    path: Path,
    config: Mapping[str, Any] | None,
    cg_convention: Convention | None,
    prefix: str | None,
    entry: str | None,
) -> tuple[Model, bool]:
    """The model of a file, and whether it is a file of this package."""
    if _is_ours(path):
        from pyg_se3.training.checkpoint import load_model

        model, _ = load_model(path)
        if not isinstance(model, (models.SE3Transformer, models.SE3TransformerPooled)):
            raise ValueError(f"{path} holds a {type(model).__name__}; NVIDIA's code has no such")
        return model, True
    return (
        nvidia.load(path, config, cg_convention=cg_convention, prefix=prefix, entry=entry),
        False,
    )


def _is_ours(path: Path) -> bool:
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 - `load` reads it again and says what is wrong
        return False
    record = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    return isinstance(record, Mapping) and "model" in record


def _native_checkpoint(model: NativeModel) -> dict[str, Any]:
    """A checkpoint that ``pyg_se3.training.checkpoint.load_model`` reads."""
    from pyg_se3.training.checkpoint import FORMAT, model_record

    return {
        "hyper_parameters": {"format": FORMAT, "model": model_record(model)},
        "state_dict": {f"net.{name}": value for name, value in model.state_dict().items()},
    }


def _save(content: Mapping[str, Any], target: Path) -> None:
    """Write whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=".tmp")
    os.close(handle)
    try:
        torch.save(dict(content), name)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, target)
    finally:
        Path(name).unlink(missing_ok=True)
