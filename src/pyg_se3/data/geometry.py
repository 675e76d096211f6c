"""Edge frames of a whole data set, computed in one pass and attached to its batches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from torch import Tensor
from torch_geometric.data import Batch
from tqdm.auto import tqdm

from pyg_se3.data import cache
from pyg_se3.data.dataset import MoleculeDataset
from pyg_se3.so3 import EdgeGeometry, frame_width, pack_frames

GeometryDtype = Literal["float32", "bfloat16"]
"""Type in which edge frames are kept."""

_CODE = ("clebsch_gordan.py", "edge_frame.py", "stored_frames.py")
_CHUNK = 1024  # molecules


class GeometryCache:
    """Edge frames of all molecules of a data set, in memory or mapped from a file.

    Models take them from ``batch.edge_frames`` [E, K] with K = 9 + 25 + ... + (2L+1)² and then
    compute of the geometry only the edges' vectors and lengths.

    Args:
        dataset: The whole data set.
        max_degree: Largest degree L of any feature of the model.
        dtype: ``"float32"`` or ``"bfloat16"`` (half the space, directions rounded to 0.2 %).
        folder: Where to keep them; in memory if None. The file's name carries a hash of the data
            set, the options and the code; the file is memory-mapped.
        progress: Show a progress bar.

    Raises:
        ValueError: If ``max_degree`` is below 1 (such models need no frames), or the data set is
            only a part.
    """

    def __init__(
        self,
        dataset: MoleculeDataset,
        max_degree: int,
        dtype: GeometryDtype = "float32",
        *,
        folder: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        if max_degree < 1:
            raise ValueError(f"degree {max_degree} needs no edge frames; expected at least 1")
        if dataset._indices is not None:
            raise ValueError("edge frames are those of a whole data set, got a part of one")
        self.dtype = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        self.width = frame_width(max_degree)
        counts = dataset.table.num_edges
        self.edge_ptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        self.path: Path | None = None
        chunks = _frames(dataset, max_degree, self.dtype, progress)
        if folder is None:
            self.frames = torch.empty(int(self.edge_ptr[-1]), self.width, dtype=self.dtype)
            start = 0
            for chunk in chunks:
                self.frames[start : start + chunk.size(0)] = chunk
                start += chunk.size(0)
            return
        spec = {
            "dataset": dataset.spec,
            "max_degree": max_degree,
            "dtype": dtype,
            "code": cache.code_fingerprint("pyg_se3.so3", _CODE),
        }
        self.path = Path(folder) / f"geometry-{cache.fingerprint(spec)}.bin"
        _make_file(self.path, spec, chunks)
        self.frames = self._map()

    def _map(self) -> Tensor:
        shape = (int(self.edge_ptr[-1]), self.width)
        size = shape[0] * shape[1]
        if size == 0:
            return torch.zeros(shape, dtype=self.dtype)
        return torch.from_file(str(self.path), shared=False, size=size, dtype=self.dtype).view(
            shape
        )

    def __getstate__(self) -> dict[str, Any]:
        # A loader's worker maps the file itself; a mapped tensor would be copied to it.
        return self.__dict__ if self.path is None else self.__dict__ | {"frames": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.path is not None:
            self.frames = self._map()

    @property
    def bytes_per_edge(self) -> int:
        """Bytes that the frames of one edge take."""
        return self.width * self.dtype.itemsize

    def attach(self, batch: Batch, rows: Tensor) -> Batch:
        """Give a batch its ``edge_frames``.

        Args:
            batch: Molecules as :meth:`MoleculeDataset.gather` gives them.
            rows: Their positions in the data set [B].

        Returns:
            The same batch.
        """
        start = self.edge_ptr[rows]
        counts = self.edge_ptr[rows + 1] - start
        before = counts.cumsum(0) - counts
        place = torch.arange(int(counts.sum())) + (start - before).repeat_interleave(counts)
        batch.edge_frames = self.frames[place]
        batch._slice_dict["edge_frames"] = batch._slice_dict["edge_index"]
        batch._inc_dict["edge_frames"] = torch.zeros_like(rows)
        return batch


def _frames(
    dataset: MoleculeDataset, max_degree: int, dtype: torch.dtype, progress: bool
) -> Iterator[Tensor]:
    """Frames of all edges, molecule by molecule, [E_chunk, K] at a time."""
    with tqdm(
        total=len(dataset), desc="edge frames", unit=" molecules", disable=not progress
    ) as bar:
        for rows in torch.arange(len(dataset)).split(_CHUNK):
            batch = dataset.gather(rows)
            source, target = batch.edge_index
            vectors = batch.pos[target] - batch.pos[source]
            yield pack_frames(EdgeGeometry.from_vectors(vectors, max_degree)).to(dtype)
            bar.update(rows.numel())


def _make_file(path: Path, spec: dict[str, Any], chunks: Iterator[Tensor]) -> None:
    def fill(stream: BinaryIO) -> None:
        for chunk in chunks:
            stream.write(chunk.contiguous().view(torch.uint8).numpy().data)

    with cache.locked(path, waiting=lambda: _tell("waiting for another process")):
        try:
            if cache.check(path, spec):
                return
        except cache.CacheError as error:
            _tell(f"{path} cannot be used: {error}; it is made again")
        cache.write(path, fill, spec)


def _tell(message: str) -> None:
    print(f"edge frames: {message}", file=sys.stderr, flush=True)
