"""Writing files that are either whole or not there."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# In the names of temporary files, so that what a killed process left can be told from the rest.
_PART = ".part-"


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file in the folder of ``path``, which takes its place when the block succeeds.

    Args:
        path: File to write; its folder is made if need be.

    Yields:
        Path of the temporary file, with the same suffix.

    Raises:
        OSError: If the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    prefix = f".{path.stem}{_PART}"
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner can read.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    except OSError as error:
        foreign = error.filename is not None and _PART not in str(error.filename)
        if error.errno is None or foreign:
            raise
        # People know the file by its own name.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def set_aside(path: str | os.PathLike[str]) -> Path:
    """Rename a file so that another can have its name: ``error.log`` becomes ``error.1.log``.

    Args:
        path: The file.

    Returns:
        Its new path, with the first number that is free.
    """
    path = Path(path)
    names = (path.with_name(f"{path.stem}.{n}{path.suffix}") for n in itertools.count(1))
    kept = next(name for name in names if not name.exists())
    path.rename(kept)
    return kept


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Remove temporary files of a killed process from a folder that nothing else writes to."""
    for path in Path(folder).glob(f".*{_PART}*"):
        path.unlink(missing_ok=True)
