"""One processed file on disk: written whole or not at all, never reused when stale or damaged.

The file's name carries a hash of everything that determines its content (options, source version,
the code that made it). Beside it lies a manifest with its size and checksum.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

import torch
from filelock import FileLock, Timeout
from torch import Tensor

SCHEMA = 1
"""Version of the layout of the file. Raise it when the layout changes."""


class CacheError(RuntimeError):
    """A processed file exists but cannot be used; the message says why."""


def fingerprint(spec: Mapping[str, Any]) -> str:
    """Hash of a JSON-able description, 16 hexadecimal digits."""
    text = json.dumps({"schema": SCHEMA, **spec}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_fingerprint(package: str, modules: Sequence[str]) -> str:
    """Hash of the source of modules, so that files made by older code are not reused.

    Args:
        package: Package that holds them.
        modules: File names inside the package.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in modules:
        source = resources.files(package).joinpath(name).read_bytes()
        digest.update(source.replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:16]


def data_path(folder: Path, name: str, spec: Mapping[str, Any]) -> Path:
    """Where the processed file for ``spec`` lies."""
    return folder / f"{name}-{fingerprint(spec)}.pt"


def manifest_path(path: Path) -> Path:
    """Where the manifest of a processed file lies."""
    return path.with_suffix(".json")


def save(path: Path, tensors: Mapping[str, Tensor], spec: Mapping[str, Any]) -> None:
    """Write tensors and their manifest, each atomically, the manifest last.

    Args:
        path: Path of the processed file.
        tensors: What to write.
        spec: Description of how they were made.

    Raises:
        OSError: If the folder cannot be written; nothing half-written stays behind.
    """
    write(path, lambda stream: torch.save(dict(tensors), stream), spec)


def write(path: Path, fill: Callable[[BinaryIO], object], spec: Mapping[str, Any]) -> None:
    """Write a file of any form and its manifest, each atomically, the manifest last.

    Args:
        path: Path of the processed file.
        fill: Writes the content into a binary stream.
        spec: Description of how it was made.

    Raises:
        OSError: If the folder cannot be written; nothing half-written stays behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A crash between the two leaves a manifest whose checksum does not fit: check() finds out.
    _write_atomically(path, fill)
    manifest = {
        "schema": SCHEMA,
        "spec": dict(spec),
        "bytes": path.stat().st_size,
        "sha256": _checksum(path),
    }
    text = json.dumps(manifest, indent=2, sort_keys=True).encode() + b"\n"
    _write_atomically(manifest_path(path), lambda stream: stream.write(text))


def load(path: Path, spec: Mapping[str, Any], *, mmap: bool = False) -> dict[str, Tensor] | None:
    """Read a processed file if it is there and whole.

    Args:
        path: Path of the processed file.
        spec: Description it must have been made with.
        mmap: Map the file into memory instead of reading it.

    Returns:
        The tensors, or None if there is no such file.

    Raises:
        CacheError: If the file is there but truncated, damaged or made otherwise.
    """
    if not check(path, spec):
        return None
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def load_or_make(
    path: Path,
    spec: Mapping[str, Any],
    make: Callable[[], Mapping[str, Tensor]],
    *,
    mmap: bool = False,
    force: bool = False,
    tell: Callable[[str], None],
) -> Mapping[str, Tensor]:
    """Read a processed file, or make it; one process makes it and others wait.

    Args:
        path: Path of the processed file.
        spec: Description of how it is made.
        make: Makes the tensors.
        mmap: Map the file into memory instead of reading it.
        force: Make it even if a good file is there.
        tell: Called with a sentence about what happens, if it is out of the ordinary.

    Returns:
        The tensors.
    """

    def read(report: bool) -> dict[str, Tensor] | None:
        try:
            return load(path, spec, mmap=mmap)
        except CacheError as error:
            if report:
                tell(f"{path} cannot be used: {error}; it is made again")
            return None

    found = None if force else read(report=False)
    if found is not None:
        return found
    with locked(path, waiting=lambda: tell("waiting for another process")):
        # Another process may have made the file while this one waited.
        found = None if force else read(report=True)
        if found is not None:
            return found
        tensors = make()
        save(path, tensors, spec)
    return (read(report=True) if mmap else None) or tensors


def check(path: Path, spec: Mapping[str, Any]) -> bool:
    """Whether a processed file is there; if it is, it is whole.

    Args:
        path: Path of the processed file.
        spec: Description it must have been made with.

    Returns:
        False if there is neither file nor manifest.

    Raises:
        CacheError: If the file is there but truncated, damaged or made otherwise.
    """
    if not path.exists() and not manifest_path(path).exists():
        return False
    try:
        manifest = json.loads(manifest_path(path).read_text(encoding="utf-8"))
        size, checksum, made = manifest["bytes"], manifest["sha256"], manifest["spec"]
    except FileNotFoundError:
        raise CacheError("its manifest is missing (writing it was interrupted)") from None
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise CacheError(f"its manifest cannot be read ({error})") from error
    if made != json.loads(json.dumps(dict(spec))):
        raise CacheError("it was made with other options")
    if not path.exists():
        raise CacheError("the file itself is missing")
    if path.stat().st_size != size:
        raise CacheError(f"it has {path.stat().st_size} bytes instead of {size} (truncated?)")
    if _checksum(path) != checksum:
        raise CacheError("its checksum is wrong (corrupted)")
    return True


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Let one process at a time make ``path``.

    Args:
        path: Path of the processed file; the lock lies beside it.
        waiting: Called once if another process holds the lock.

    Yields:
        Nothing; the lock is held inside the block and released by the system if a process dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(path) + ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp's files are private; a data set is usually shared within a group.
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
