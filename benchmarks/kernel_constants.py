"""Measure the factors of `pyg_se3.ops.cost`: about a minute on an idle machine.

    python -m benchmarks.kernel_constants --threads 1

Times a training step of lone convolutions in both forms over degrees, channels and neighbours and
fits the factors to them by least squares on relative errors. Prints the factors in the form in
which `cost.py` has them, and for every case what was measured and what they predict.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import fields

import torch

from pyg_se3 import Fiber
from pyg_se3.nn import RadialProfile
from pyg_se3.ops import ConvInputs, TFNPlan, pack_plan
from pyg_se3.ops.chunked_edge import EdgeSettings
from pyg_se3.ops.compression import compressed_basis
from pyg_se3.ops.cost import EDGE_CHUNK, CostFactors, source_chunk, work
from pyg_se3.ops.edge_autograd import edge_conv
from pyg_se3.ops.source_autograd import source_conv
from pyg_se3.ops.source_schedule import source_schedule
from pyg_se3.so3 import EdgeGeometry

CASES = [  # (largest degree of input, of output, channels, nodes, neighbours)
    (0, 1, 16, 100, 32),
    (0, 3, 16, 1000, 2),
    (0, 3, 16, 20, 2),
    (1, 1, 8, 200, 40),
    (1, 1, 16, 300, 4),
    (1, 1, 16, 200, 16),
    (1, 1, 16, 20, 2),
    (1, 1, 32, 300, 8),
    (1, 1, 32, 150, 32),
    (1, 1, 64, 60, 32),
    (2, 2, 16, 100, 16),
    (2, 2, 32, 60, 16),
    (3, 0, 32, 100, 16),
    (3, 3, 16, 100, 4),
    (3, 3, 8, 60, 32),
    (3, 3, 16, 60, 32),
    (3, 3, 32, 60, 8),
    (3, 3, 32, 40, 32),
]


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Least time of some calls, after one that does not count."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def multiply_add(repeats: int) -> float:
    """Seconds per multiply-add of a large product."""
    matrix = torch.randn(1024, 1024)
    return seconds(lambda: matrix @ matrix, repeats) / 1024**3


def sketch(repeats: int) -> float:
    """Seconds per edge of sketching a radial MLP's derivatives and finding bases with them."""
    edges, profile = 16 * EDGE_CHUNK, RadialProfile(1)
    invariants = torch.rand(edges, 1).sort(0).values
    activations = profile(invariants).detach()

    def find() -> None:
        tangents = profile.tangents(invariants)
        for g, t in zip(activations.split(EDGE_CHUNK), tangents.split(EDGE_CHUNK), strict=True):
            compressed_basis(g, t, 2e-7)

    return seconds(find, repeats) / edges


def measure(case: tuple[int, int, int, int, int], repeats: int) -> tuple[list, list, float, float]:
    """Counts of the terms of both costs, and seconds of both forms."""
    degree_in, degree_out, channels, nodes, neighbours = case
    plan = TFNPlan.create(
        Fiber.create(degree_in + 1, channels), Fiber.create(degree_out + 1, channels)
    )
    edges = nodes * neighbours
    source = torch.randint(nodes, (edges,))
    geometry = EdgeGeometry.from_vectors(torch.randn(edges, 3), plan.max_degree)
    radial = torch.randn(edges, plan.hidden).relu_().requires_grad_()
    x = torch.randn(nodes, plan.fiber_in.dim, requires_grad=True)
    weights = {pair: torch.randn(plan.weight_shape(pair)) / 30 for pair in plan.pairs}
    packed = tuple(tuple(m.requires_grad_() for m in ms) for ms in pack_plan(plan, weights))
    leaves = [x, radial, *(m for ms in packed for m in ms)]

    inputs = ConvInputs(plan, x, source, [radial], geometry, weights, packed=lambda: packed)

    def step(form: Callable, chunk: int) -> object:
        settings = EdgeSettings(chunk, chunk, False, 1e-6, torch.float32, torch.float32)
        y = form(inputs, settings)
        return torch.autograd.grad(y, leaves, y.detach())

    counts, hidden = work(plan), plan.hidden
    schedule = source_schedule(source, nodes, source_chunk(plan))
    slots = schedule.num_slots
    by_edge = [
        edges * counts.edge * hidden,
        edges * counts.features,
        edges / EDGE_CHUNK * counts.edge_products,
    ]
    by_source = [
        int(source.unique().numel()) * counts.node * hidden,
        slots * counts.slot * hidden,
        slots * counts.coupling * hidden,
        slots * counts.features,
        len(schedule.chunks) * counts.source_products,
    ]
    return (
        by_edge,
        by_source,
        seconds(lambda: step(edge_conv, EDGE_CHUNK), repeats),
        seconds(lambda: step(source_conv, source_chunk(plan)), repeats),
    )


def fit(terms: list[list[int]], times: list[float]) -> torch.Tensor:
    """Factors >= 0 that predict the times with the least relative errors."""
    matrix = torch.tensor(terms, dtype=torch.float64)
    matrix = matrix / torch.tensor(times, dtype=torch.float64)[:, None]
    keep = list(range(matrix.shape[1]))
    while True:  # a term with a negative factor is left out
        part = torch.linalg.lstsq(matrix[:, keep], torch.ones(len(times), 1, dtype=torch.float64))
        solution = part.solution.squeeze(1)
        if (solution >= 0).all():
            break
        del keep[int(solution.argmin())]
    found = torch.zeros(matrix.shape[1], dtype=torch.float64)
    found[keep] = solution
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measure, fit, print."""
    parser = argparse.ArgumentParser(
        prog="pyg-se3 benchmark constants", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    unit = multiply_add(options.repeats)
    rows = [measure(case, options.repeats) for case in CASES]
    edge = fit([row[0] for row in rows], [row[2] for row in rows])
    source = fit([row[1] for row in rows], [row[3] for row in rows])
    names = [field.name for field in fields(CostFactors)]
    edge_factors = [*edge / unit, sketch(options.repeats) / unit]
    print(f"{options.threads} threads, {unit * 1e12:.1f} ps per multiply-add")
    for name, value in zip(names, [*edge_factors, *source / unit], strict=True):
        print(f"    {name}={float(value):.3g},")
    print("L       C   nodes x neighbours   edge ms (fit)   source ms (fit)")
    for (degree_in, degree_out, channels, nodes, neighbours), row in zip(CASES, rows, strict=True):
        predicted = [
            1e3 * float(torch.tensor(terms, dtype=torch.float64) @ factors)
            for terms, factors in ((row[0], edge), (row[1], source))
        ]
        print(
            f"{degree_in} -> {degree_out}  {channels:<3} {nodes:>5} x {neighbours:<12}"
            f"{row[2] * 1e3:9.1f} ({predicted[0]:.1f}) {row[3] * 1e3:9.1f} ({predicted[1]:.1f})"
        )


if __name__ == "__main__":
    main()
