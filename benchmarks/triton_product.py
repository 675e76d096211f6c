"""Is Triton's product faster than cuBLAS on this CUDA device, and with which tiles?

    python -m benchmarks.triton_product            # convolutions: edge form against Triton's
    python -m benchmarks.triton_product --tiles    # the three kernels with other tiles

The edge form forms the outer products of a chunk of edges in memory and multiplies them by cuBLAS;
Triton forms them in registers. Both get the same inputs, chunks and precision. Prints milliseconds
(median) and the peak of allocated memory above the inputs. `auto` does not choose Triton before
this shows, on some device, that it should.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from pyg_se3 import Fiber
from pyg_se3.ops import ConvInputs, TFNPlan, pack_plan
from pyg_se3.ops.chunked_edge import EdgeSettings
from pyg_se3.ops.edge_autograd import edge_conv
from pyg_se3.ops.triton_conv import triton_conv
from pyg_se3.ops.triton_product import require_triton
from pyg_se3.so3 import EdgeGeometry

from .common import machine
from .report import machine_line

PRECISIONS = {  # type of the products, and whether float32 may be rounded to TF32
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False),
}
KERNELS = {"cuBLAS": edge_conv, "Triton": triton_conv}


@dataclass(frozen=True)
class Case:
    """A convolution between fibers of degrees 0 to L: keys and values, as attention asks for."""

    degree: int
    channels: int
    edges: int
    chunk: int
    precision: str
    hidden: int = 32


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a forward pass and of a training step, and the peak of the latter in MB."""

    forward: float
    training: float
    memory: float


def milliseconds(function: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median over some calls, after two that compile and warm up."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times = []
    for _ in range(repeats + 2):
        wait()
        start = time.perf_counter()
        function()
        wait()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[2:])


def measure(case: Case, kernel: str, device: torch.device, repeats: int) -> Timing:
    """Time and memory of a case by one kernel."""
    torch.manual_seed(0)
    dtype, tf32 = PRECISIONS[case.precision]
    fiber = Fiber.create(case.degree + 1, case.channels)
    fiber_out = Fiber.create(case.degree + 1, 2 * case.channels)
    plan = TFNPlan.create(fiber, fiber_out, hidden=case.hidden)
    nodes = max(1, case.edges // 16)
    source = torch.randint(nodes, (case.edges,), device=device)
    vectors = torch.randn(case.edges, 3, device=device)
    geometry = EdgeGeometry.from_vectors(vectors, case.degree)
    radial = torch.randn(case.edges, plan.hidden, device=device).relu_().requires_grad_()
    x = torch.randn(nodes, fiber.dim, device=device, requires_grad=True)
    weights = {p: torch.randn(plan.weight_shape(p), device=device) / 30 for p in plan.pairs}
    packed = tuple(tuple(m.requires_grad_() for m in ms) for ms in pack_plan(plan, weights))
    leaves = [x, radial, *(m for ms in packed for m in ms)]
    settings = EdgeSettings(case.chunk, case.chunk, False, 1e-6, dtype, dtype)
    dy = torch.randn(case.edges, plan.fiber_out.dim, device=device)

    inputs = ConvInputs(plan, x, source, [radial], geometry, weights, packed=lambda: packed)

    def forward() -> torch.Tensor:
        return KERNELS[kernel](inputs, settings)

    def step() -> object:
        return torch.autograd.grad(forward(), leaves, dy)

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        with torch.no_grad():
            alone = milliseconds(forward, device, repeats)
        training, memory = milliseconds(step, device, repeats), 0.0
        if device.type == "cuda":
            resident = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            step()
            memory = (torch.cuda.max_memory_allocated(device) - resident) / 2**20
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return Timing(alone, training, memory)


def compare(cases: Iterable[Case], device: torch.device, repeats: int) -> None:
    """Print a table of all cases by both kernels."""
    print("| L | channels | edges | chunk | precision | kernel | forward | training | peak MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case in cases:
        for kernel in KERNELS:
            found = measure(case, kernel, device, repeats)
            print(
                f"| {case.degree} | {case.channels} | {case.edges} | {case.chunk} "
                f"| {case.precision} | {kernel} | {found.forward:.2f} | {found.training:.2f} "
                f"| {found.memory:.0f} |",
                flush=True,
            )


def tiles(case: Case, device: torch.device, repeats: int) -> None:
    """Print what the three kernels take with other tiles, at m = 1, fastest first."""
    from pyg_se3.ops import triton_kernels as kernels

    torch.manual_seed(0)
    dtype, tf32 = PRECISIONS[case.precision]
    hidden, inner = case.hidden, case.degree * case.channels
    g = torch.randn(case.edges, hidden, device=device)
    x = torch.randn(case.edges, 2, inner, device=device)
    dy = torch.randn(case.edges, 2, 2 * inner, device=device)
    w = torch.randn(hidden * inner, 4 * inner, device=device).to(dtype)

    def calls(tiling: kernels.Tiling | None) -> dict[str, Callable[[], object]]:
        return {
            "product": lambda: kernels.product(g, x, w, tf32, tiling),
            "inputs": lambda: kernels.input_gradients(g, x, w, dy, tf32, tiling),
            "weights": lambda: kernels.weight_gradient(g, x, dy, dtype, tf32, tiling),
        }

    for name in calls(None):
        found: list[tuple[float, object]] = [
            (milliseconds(calls(None)[name], device, repeats), "the default")
        ]
        for sides in itertools.product((64, 128), (32, 64), (64, 128), (4, 8), (2, 3)):
            blocks = kernels.Blocks(*sides)
            try:
                call = calls(kernels.Tiling(blocks, blocks, blocks))[name]
                found.append((milliseconds(call, device, repeats), blocks))
            except kernels.triton.OutOfResources as error:
                print(f"{name}: {blocks} does not fit: {error}")
        for taken, what in sorted(found, key=lambda pair: pair[0])[:5]:
            print(f"{case.precision} {name}: {taken:.3f} ms with {what}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiles", action="store_true", help="try other tiles of the kernels")
    parser.add_argument("--degree", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--edges", type=int, nargs="+", default=[4000, 40000])
    parser.add_argument("--chunk", type=int, default=16384, help="edges worked on at a time")
    parser.add_argument("--precision", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.exit(2, "there is no CUDA device here, and on a CPU there is nothing to compare\n")
    device = torch.device("cuda")
    require_triton(device)
    print(machine_line(machine(torch.get_num_threads(), "cuda")), end="\n\n")
    cases = [
        Case(degree, channels, edges, options.chunk, precision)
        for precision in options.precision
        for degree in options.degree
        for channels in options.channels
        for edges in options.edges
    ]
    if options.tiles:
        for case in cases:
            print(f"\nL = {case.degree}, {case.channels} channels, {case.edges} edges")
            tiles(case, device, options.repeats)
    else:
        compare(cases, device, options.repeats)


if __name__ == "__main__":
    main()
