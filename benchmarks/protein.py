"""RFdiffusion's two SE(3) blocks on random residues: fast kernels against the reference kernel.

    python -m benchmarks.protein --residues 100 300 --kernels auto reference

Through the interface of `pyg_se3.compat.se3_transformer`, as RFdiffusion would call it: `topk` has
64 neighbours per residue, `full` all pairs. Every measurement runs in a process of its own; all of
them are made in one run. A page and a JSON file go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pyg_se3.compat.se3_transformer import Fiber, Graph, SE3Transformer
from pyg_se3.ops import KernelOptions
from pyg_se3.training.files import write_text

from . import report
from .common import OtherProcesses, machine, run_module
from .memory import PeakMemory

# Scalars and vectors in and out, edge features; one layer of 32 channels, 2 degrees, 4 heads each.
BLOCKS = {"topk": (64, 64, 3, 2, 64), "full": (8, 8, 3, 2, 32)}
NEIGHBOURS = 64
MODES = ("forward", "training")
AGREEMENT = 1e-4


@dataclass(frozen=True)
class Job:
    """One measurement: block, number of residues, kernel, forward or training step."""

    block: str
    residues: int
    kernel: str
    mode: str
    device: str = "cpu"
    threads: int = 1
    repeats: int = 5
    max_seconds: float = 30.0


def build(job: Job) -> SE3Transformer:
    """The block with random weights, the same for every kernel."""
    s_in, s_out, v_in, v_out, edge = BLOCKS[job.block]
    torch.manual_seed(0)
    model = SE3Transformer(
        num_layers=1,
        fiber_in=Fiber({0: s_in, 1: v_in}),
        fiber_hidden=Fiber.create(2, 32),
        fiber_out=Fiber({0: s_out, 1: v_out}),
        num_heads=4,
        channels_div=4,
        fiber_edge=Fiber({0: edge}),
        use_layer_norm=True,
    )
    model.set_kernel(KernelOptions(kernel=job.kernel))
    return model.to(job.device)


def inputs(job: Job, model: SE3Transformer) -> tuple[Graph, dict, dict]:
    """A random chain of residues 3.8 apart, its graph and features."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    count = job.residues
    pos = (3.8 * torch.nn.functional.normalize(draw(count, 3), dim=1)).cumsum(0)
    distance = torch.cdist(pos, pos).fill_diagonal_(float("inf"))
    if job.block == "full":
        target, source = distance.isfinite().nonzero().T
    else:
        near = distance.topk(min(NEIGHBOURS, count - 1), largest=False).indices
        target = torch.arange(count).repeat_interleave(near.shape[1])
        source = near.reshape(-1)
    graph = Graph(torch.stack([source, target]), count, pos[target] - pos[source])
    nodes = {str(d): draw(count, c, 2 * d + 1) for d, c in model.fiber_in}
    edges = {"0": draw(source.numel(), model.fiber_edge[0], 1)}
    on = [{k: v.to(job.device) for k, v in part.items()} for part in (nodes, edges)]
    return graph.to(job.device), on[0], on[1]


def step(job: Job) -> Callable[[], torch.Tensor]:
    """What is timed; features and edge features need gradients in training, as in the network."""
    model = build(job)
    graph, nodes, edges = inputs(job, model)
    if job.mode == "forward":
        model.eval()

        def forward() -> torch.Tensor:
            with torch.no_grad():
                return model(graph, nodes, edges)["1"]

        return forward

    for part in (nodes, edges):
        for value in part.values():
            value.requires_grad_()

    def training() -> torch.Tensor:
        model.zero_grad()
        for part in (nodes, edges):
            for value in part.values():
                value.grad = None
        output = model(graph, nodes, edges)
        sum(value.square().mean() for value in output.values()).backward()
        return nodes["1"].grad

    return training


def measure_here(job: Job) -> dict:
    """Times in seconds, peak memory in bytes, and a number on which kernels must agree."""
    torch.set_num_threads(job.threads)
    run = step(job)
    times: list[float] = []
    with PeakMemory(job.device) as memory:
        value = run()
        while len(times) < job.repeats and sum(times) < job.max_seconds:
            start = time.perf_counter()
            value = run()
            if job.device.startswith("cuda"):
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    found = value.double().square().mean().sqrt().item()
    return {"times": times, "peak_bytes": memory.above_base, "value": found}


def measure(job: Job) -> dict:
    """Run a job in a new process."""
    with OtherProcesses() as others:
        done = run_module("protein", "--job", json.dumps(asdict(job)), threads=job.threads)
    record = {"job": asdict(job), "status": "ok", "other_cores": others.cores}
    if done.returncode == 0:
        record |= json.loads(done.stdout.splitlines()[-1])
    else:
        lines = done.stderr.strip().splitlines() or ["killed by the system"]
        record |= {"status": "failed", "message": lines[-1]}
    shown = f"{min(record['times']):.4g} s" if "times" in record else record["message"]
    print(f"{job.block} {job.residues} {job.mode} {job.kernel}: {shown}", file=sys.stderr)
    return record


def page(head: dict, records: list[dict], kernels: list[str]) -> str:
    """The measurements as Markdown."""
    lines = [
        "# RFdiffusion's SE(3) blocks",
        "",
        f"One layer, 32 channels, 2 degrees, 4 heads. {report.machine_line(head)} "
        f"{report.disturbance(r['other_cores'] for r in records)}",
        "Minimum of the times (median in brackets), and peak memory above model and inputs.",
        "",
    ]
    header = ["block", "residues", "step"]
    header += [f"{kernel} {what}" for kernel in kernels for what in ("(s)", "(MB)")] + ["speed"]
    rows = []
    cases = dict.fromkeys(
        (r["job"]["block"], r["job"]["residues"], r["job"]["mode"]) for r in records
    )
    for case in cases:
        row = [case[0], str(case[1]), case[2]]
        best = {}
        for kernel in kernels:
            (record,) = (
                r
                for r in records
                if r["job"]["kernel"] == kernel
                and (r["job"]["block"], r["job"]["residues"], r["job"]["mode"]) == case
            )
            if record["status"] != "ok":
                row += [record["status"], "–"]
                continue
            best[kernel] = min(record["times"])
            middle = report.quantity(statistics.median(record["times"]))
            row.append(f"{report.quantity(best[kernel])} ({middle})")
            row.append(report.quantity(record["peak_bytes"] / 1e6))
        both = len(best) == len(kernels)
        row.append(f"{best[kernels[-1]] / best[kernels[0]]:.3g}x" if both else "–")
        rows.append(row)
    return "\n".join([*lines, report.table(header, rows)]) + "\n"


def disagreements(records: list[dict]) -> list[str]:
    """Cases in which kernels computed different numbers."""
    seen: dict[tuple, dict] = {}
    found = []
    for record in (r for r in records if r["status"] == "ok"):
        job = record["job"]
        first = seen.setdefault((job["block"], job["residues"], job["mode"]), record)
        if abs(record["value"] - first["value"]) > AGREEMENT * abs(first["value"]):
            found.append(f"{job}: {record['value']:.7g} instead of {first['value']:.7g}")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the page, write the files; not zero if something failed or disagreed."""
    parser = argparse.ArgumentParser(
        prog="pyg-se3 benchmark protein", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--residues", nargs="+", type=int, default=[100, 200, 300, 600])
    parser.add_argument("--blocks", nargs="+", default=list(BLOCKS), choices=list(BLOCKS))
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--kernels", nargs="+", default=["auto", "reference"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max-seconds", type=float, default=30.0)
    parser.add_argument("--output", type=Path, help="stem of the files to write")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.job:
        print(json.dumps(measure_here(Job(**json.loads(options.job)))), flush=True)
        return 0
    head = machine(options.threads, options.device)
    records = [
        measure(
            Job(
                block,
                residues,
                kernel,
                mode,
                options.device,
                options.threads,
                options.repeats,
                options.max_seconds,
            )
        )
        for block in options.blocks
        for residues in options.residues
        for mode in options.modes
        for kernel in options.kernels
    ]
    text = page(head, records, options.kernels)
    found = disagreements(records)
    text += "\n" + ("\n".join(found) if found else "The kernels computed the same numbers.") + "\n"
    print(text)
    stem = report.free_stem(options.output or report.default_stem("protein", head))
    record = json.dumps({"machine": head, "results": records}, indent=1)
    write_text(report.file_of(stem, ".json"), record + "\n")
    write_text(report.file_of(stem, ".md"), text)
    return 1 if found or any(r["status"] != "ok" for r in records) else 0


if __name__ == "__main__":
    sys.exit(main())
