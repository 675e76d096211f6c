"""Stand-ins for the packages that NVIDIA's users import; put in place only on request."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType, TracebackType
from typing import Any

import torch
from torch import Tensor

from pyg_se3.compat.se3_transformer.graph import Graph, batch_graphs

_PACKAGE = "pyg_se3.compat.se3_transformer"

_current: Installation | None = None


class Installation:
    """Stand-ins in ``sys.modules``; :meth:`remove` takes them out. Also a context manager."""

    def __init__(self, modules: dict[str, ModuleType]) -> None:
        self.modules = modules

    def remove(self) -> None:
        """Take the stand-ins out of ``sys.modules`` again."""
        global _current
        for name, module in self.modules.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
        if _current is self:
            _current = None

    def __enter__(self) -> Installation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"Installation({', '.join(sorted(self.modules)) or 'empty'})"


def install(packages: Sequence[str] = ("se3_transformer",)) -> Installation:
    """Let ``import dgl`` and ``import se3_transformer`` find stand-ins from now on.

    ``dgl`` has what SE(3)-Transformer code touches: ``graph``, ``DGLGraph``, ``batch``. Call this
    before the code that imports them; undo it with :func:`uninstall` or the object returned.

    Args:
        packages: names under which code imports NVIDIA's package; forks that carry it along have
            it elsewhere, such as ``rf2aa.SE3Transformer.se3_transformer``.

    Returns:
        What was put in place.

    Raises:
        RuntimeError: one of the real packages is imported already.
    """
    global _current
    names = ("dgl", *packages)
    taken = [
        name
        for name in sys.modules
        if any(name == package or name.startswith(package + ".") for package in names)
        and not (_current is not None and _current.modules.get(name) is sys.modules[name])
    ]
    if taken:
        raise RuntimeError(
            f"{sorted(taken)[0]} is imported already (from "
            f"{getattr(sys.modules[sorted(taken)[0]], '__file__', 'unknown')}); call "
            "pyg_se3.compat.install() before anything imports it"
        )
    if _current is not None:
        _current.remove()
    modules = {"dgl": _dgl()}
    own = importlib.import_module(_PACKAGE)
    for package in packages:
        modules[package] = own
        for info in pkgutil.walk_packages(own.__path__, _PACKAGE + "."):
            modules[package + info.name.removeprefix(_PACKAGE)] = importlib.import_module(info.name)
    sys.modules.update(modules)
    _current = Installation(modules)
    return _current


def uninstall() -> None:
    """Undo :func:`install`; nothing happens if it was not called."""
    if _current is not None:
        _current.remove()


def graph(
    data: tuple[Any, Any],
    *,
    num_nodes: int | None = None,
    idtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Graph:
    """A graph as ``dgl.graph`` makes it.

    Args:
        data: sources and targets of the edges, tensors or sequences ``[E]``.
        num_nodes: number of nodes; one more than the largest index if left out.
        idtype: type of the indices; they are kept as 64-bit integers.
        device: where to put them; that of ``data`` if left out.
    """
    del idtype
    source, target = (torch.as_tensor(part, device=device).long() for part in data)
    edge_index = torch.stack([source, target])
    if num_nodes is None:
        num_nodes = int(edge_index.max()) + 1 if edge_index.numel() else 0
    return Graph(edge_index, num_nodes)


def _dgl() -> ModuleType:
    module = ModuleType("dgl", "Stand-in of pyg_se3 for the part of DGL that SE(3) code uses.")
    contents: dict[str, Any] = {
        "graph": graph,
        "batch": batch_graphs,
        "DGLGraph": Graph,
        "__version__": "0+pyg_se3",
        "__all__": ["DGLGraph", "batch", "graph"],
    }
    for name, value in contents.items():
        setattr(module, name, value)

    def missing(name: str) -> Tensor:
        raise AttributeError(
            f"dgl.{name} is not there: this is the stand-in of pyg_se3.compat.install(), which has "
            f"{', '.join(contents['__all__'])} only"
        )

    setattr(module, "__getattr__", missing)  # noqa: B010
    return module
