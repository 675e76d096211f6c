"""One measurement in a process of its own: reads a job from stdin, prints its result as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.common import AUTOCAST, Job
from benchmarks.inputs import GraphBatch
from benchmarks.memory import PeakMemory, limit_memory
from benchmarks.systems import LayerSpec, ModelSpec, Runner, build_layer, build_model


def make_optimizer(module: nn.Module) -> torch.optim.Adam:
    """Adam with its state there already, so that it counts as base and not as a step's memory."""
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-9)  # the loss stays comparable
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


def model_step(job: Job, runner: Runner, batch: GraphBatch) -> Callable[[], Tensor]:
    """Inference, a training step (loss, gradients, Adam), or one of energies and forces."""
    module = runner.module.train(job.mode != "inference")

    def predict(inputs: GraphBatch) -> Tensor:
        if job.precision == "32":
            return runner.call(inputs)
        with torch.autocast(job.device.split(":")[0], AUTOCAST[job.precision]):
            return runner.call(inputs)

    if job.mode == "inference":

        def inference() -> Tensor:
            with torch.no_grad():
                return predict(batch)

        return inference
    optimizer = make_optimizer(module)

    def training() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = (predict(batch).float() - batch.y).abs().mean()
        loss.backward()
        optimizer.step()
        return loss

    if job.mode == "training":
        return training
    if not runner.forces:
        raise ValueError(f"{job.system!r} has no complete position gradients to train forces with")
    module.transformer.detach_geometry = False

    def forces() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        pos = batch.pos.detach().requires_grad_()
        energy = predict(GraphBatch(**{**vars(batch), "pos": pos})).float()
        (slope,) = torch.autograd.grad(energy.sum(), pos, create_graph=True)
        loss = (energy - batch.y).abs().mean() + slope.square().mean()
        loss.backward()
        optimizer.step()
        return loss

    return forces


def layer_step(job: Job, runner: Runner, batch: GraphBatch) -> Callable[[], Tensor]:
    """Forward of a lone layer, or forward and backward to parameters and features."""
    spec = LayerSpec(**job.spec)
    generator = torch.Generator().manual_seed(1)
    shape = (len(batch.pos), spec.channels, (spec.max_degree + 1) ** 2)
    x = torch.randn(shape, generator=generator).to(job.device)
    probe = torch.randn(shape, generator=generator).to(job.device)

    def forward() -> Tensor:
        with torch.no_grad():
            return runner.call(batch, x)

    def training() -> Tensor:
        for parameter in runner.module.parameters():
            parameter.grad = None
        features = x.detach().requires_grad_()
        y = runner.call(batch, features)
        y.backward(probe)
        return y

    return forward if job.mode == "inference" else training


def build(job: Job, batch: GraphBatch) -> Callable[[], Tensor]:
    """The step to measure."""
    if job.kind == "model":
        runner = build_model(job.system, ModelSpec(**job.spec))
        runner.module.to(job.device)
        return model_step(job, runner, batch)
    context = (
        nullcontext()
        if job.precision == "32"
        else torch.autocast(job.device.split(":")[0], AUTOCAST[job.precision])
    )
    if job.device != "cpu":
        raise ValueError("lone layers are measured on the CPU only")
    with context:
        step = layer_step(job, build_layer(job.system, LayerSpec(**job.spec), batch), batch)
    if job.precision == "32":
        return step

    def autocast_step() -> Tensor:
        with torch.autocast("cpu", AUTOCAST[job.precision]):
            return step()

    return autocast_step


def measure(job: Job) -> dict:
    """Times in seconds, memory in bytes, and a number that all systems must agree on."""
    torch.set_num_threads(job.threads)
    if job.memory_limit_gb is not None:
        limit_memory(job.memory_limit_gb)
    batch = GraphBatch.load(Path(job.inputs)).to(job.device)
    step = build(job, batch)
    # Thread pools and workspaces of the matrix library are base, too.
    square = torch.ones(512, 512, device=job.device, requires_grad=True)
    (square @ square).sum().backward()

    def timed() -> float:
        start = time.perf_counter()
        value = step()
        if job.device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        # The root mean square says more than a sum: it does not cancel.
        timed.value = value.detach().double().square().mean().sqrt().item()  # type: ignore[attr-defined]
        return seconds

    with PeakMemory(job.device) as memory:
        for _ in range(job.warmup):
            timed()
        times: list[float] = []
        while len(times) < job.repeats and (not times or sum(times) < job.max_seconds):
            times.append(timed())
    return {
        "times": times,
        "peak_bytes": memory.above_base,
        "base_bytes": memory.base,
        "memory_method": memory.method,
        "value": timed.value,  # type: ignore[attr-defined]
        "inputs": batch.describe(),
    }


def main() -> None:
    """Entry of the process; a failed allocation is a result, not a crash."""
    job = Job(**json.load(sys.stdin))
    try:
        result = {"status": "ok", **measure(job)}
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        lack = isinstance(error, MemoryError) or "alloc" in text or "out of memory" in text
        if not lack:
            raise
        result = {"status": "out of memory", "message": text.splitlines()[0] if text else ""}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
