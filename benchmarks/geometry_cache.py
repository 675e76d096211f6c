"""What precomputed edge frames save per training step, and what they cost.

Steps with frames computed on the way, and taken from memory or disk, alternate on the same batches
of QM9: loading the batch, forward, backward and optimizer step. What concerns the frames, computing
them or fetching and checking them, is also timed by itself, as steps differ by more than it takes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch_geometric.data import Batch

from pyg_se3 import SE3TransformerPooled
from pyg_se3.data import QM9, EpochSampler, GeometryCache, MoleculeLoader
from pyg_se3.so3 import EdgeGeometry, unpack_frames

from .common import machine

MODELS = {
    "quick": ({"num_degrees": 3, "num_channels": 16, "num_layers": 4, "num_heads": 4}, 64),
    "full": ({"num_degrees": 4, "num_channels": 32, "num_layers": 7, "num_heads": 8}, 100),
}
"""Architecture and batch size."""


def seconds(task: Callable[..., object], *arguments: object) -> float:
    """Of one call."""
    start = time.perf_counter()
    task(*arguments)
    return time.perf_counter() - start


def endless(loader: MoleculeLoader) -> Iterator[Batch]:
    """Batches of one epoch after the other."""
    while True:
        yield from loader


def compare(dataset: QM9, name: str, repeats: int) -> None:
    """Measure one model and print a table."""
    architecture, batch_size = MODELS[name]
    torch.manual_seed(0)
    model = SE3TransformerPooled({0: 6}, fiber_edge={0: 4}, **architecture)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    degree = model.max_degree

    with tempfile.TemporaryDirectory() as folder:
        caches: dict[str, GeometryCache | None] = {"computed in the step": None}
        passes = {"computed in the step": 0.0}
        for where, kept in (("ram", None), ("disk", folder)):
            for dtype in ("float32", "bfloat16"):
                start = time.perf_counter()
                key = f"{where} {dtype}"
                caches[key] = GeometryCache(dataset, degree, dtype, folder=kept, progress=False)
                passes[key] = time.perf_counter() - start
        loaders = {
            key: endless(
                MoleculeLoader(
                    dataset,
                    batch_size,
                    columns=[2],
                    geometry=cache,
                    sampler=EpochSampler(len(dataset)),
                )
            )
            for key, cache in caches.items()
        }

        def step(key: str) -> None:
            batch = next(loaders[key])
            optimizer.zero_grad()
            torch.nn.functional.l1_loss(model(batch), batch.y).backward()
            optimizer.step()

        def geometry(key: str, batch: Batch, rows: Tensor) -> EdgeGeometry | None:
            cache = caches[key]
            source, target = batch.edge_index
            vectors = batch.pos[target] - batch.pos[source]
            if cache is None:
                return EdgeGeometry.from_vectors(vectors, degree)
            return unpack_frames(vectors, cache.attach(batch, rows).edge_frames, degree)

        steps: dict[str, list[float]] = {key: [] for key in caches}
        parts: dict[str, list[float]] = {key: [] for key in caches}
        for turn in range(repeats + 2):
            for key in caches:
                spent = seconds(step, key)
                # Molecules of its own for each: another's would be in the processor's cache.
                rows = torch.randint(len(dataset), (batch_size,))
                batch = dataset.gather(rows)
                part = seconds(geometry, key, batch, rows)
                if turn > 1:
                    steps[key].append(spent)
                    parts[key].append(part)

    molecules, edges = len(dataset), int(dataset.store.edge_ptr[-1])
    print(
        f"\n{name} model: batch {batch_size}, {edges / molecules:.1f} edges per molecule, "
        f"degree {degree}, {repeats} steps each"
    )
    print(
        "| frames | geometry, ms | share of the step | step, median (min) ms "
        "| bytes per molecule | data set | one pass |"
    )
    print("|---|---|---|---|---|---|---|")
    for key, cache in caches.items():
        size = 0.0 if cache is None else cache.bytes_per_edge * edges / molecules
        step_time, part_time = statistics.median(steps[key]), statistics.median(parts[key])
        print(
            f"| {key} | {1e3 * part_time:.2f} | {part_time / step_time:.2%} | "
            f"{1e3 * step_time:.1f} ({1e3 * min(steps[key]):.1f}) | {size:,.0f} | "
            f"{size * molecules / 1e9:.2f} GB | {passes[key]:.1f} s |"
        )


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="pyg-se3 benchmark geometry", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--data", type=Path, default=Path("data/qm9"), help="folder of QM9")
    parser.add_argument("--raw-path", type=Path, help="part of QM9 in qm9pack's format")
    parser.add_argument(
        "--model", choices=MODELS, action="append", help="quick and full if left out"
    )
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    here = machine(options.threads)
    print(
        f"{here['cpu']}, {options.threads} threads, torch {here['torch']}, "
        f"commit {here['commit']}, load {here['load_at_start']:.2f}"
    )
    dataset = QM9(options.data, raw_path=options.raw_path)
    for name in options.model or MODELS:
        compare(dataset, name, options.repeats)


if __name__ == "__main__":
    main()
