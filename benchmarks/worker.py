"""One measurement in a process of its own: reads a job from stdin, prints its result as JSON."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from .common import AUTOCAST, Job
from .inputs import GraphBatch
from .memory import PeakMemory, limit_memory
from .systems import LayerSpec, ModelSpec, Runner, build_layer, build_model


def make_optimizer(module: nn.Module) -> torch.optim.Adam:
    """Adam with its state there already, so that it counts as base and not as a step's memory."""
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-9)  # outputs stay comparable
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


def model_step(job: Job, runner: Runner, batch: GraphBatch) -> Callable[[], Tensor]:
    """Inference, a training step (loss, gradients, Adam), or one of energies and forces.

    Every step returns the predictions.
    """
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
        prediction = predict(batch).float()
        (prediction - batch.y).abs().mean().backward()
        optimizer.step()
        return prediction

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
        ((energy - batch.y).abs().mean() + slope.square().mean()).backward()
        optimizer.step()
        return energy

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


MAX_OUTPUTS = 4096


def sample(outputs: Tensor) -> list[float]:
    """At most `MAX_OUTPUTS` numbers, evenly spread."""
    flat = outputs.detach().flatten()
    return flat[:: -(-len(flat) // MAX_OUTPUTS)].double().tolist()


class KernelLog(logging.Handler):
    """Collects the names of the kernels that the dispatch logs."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        found = re.search(r"(\w+) kernel", record.getMessage())
        if found and found[1] not in self.kernels:
            self.kernels.append(found[1])


@contextmanager
def chosen_kernels() -> Iterator[list[str]]:
    """Names of the kernels that pyg-se3 says it chose, in a process that has not run it yet."""
    logger, handler = logging.getLogger("pyg_se3.ops.dispatch"), KernelLog()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler.kernels
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def measure(job: Job) -> dict:
    """Times in seconds, memory in bytes, and outputs that all systems must agree on."""
    torch.set_num_threads(job.threads)
    if job.memory_limit_gb is not None:
        limit_memory(job.memory_limit_gb)
    batch = GraphBatch.load(Path(job.inputs)).to(job.device)
    step = build(job, batch)
    # Thread pools and workspaces of the matrix library are base, too.
    square = torch.ones(512, 512, device=job.device, requires_grad=True)
    (square @ square).sum().backward()

    outputs = torch.empty(0)
    times: list[float] = []
    with chosen_kernels() as kernels, PeakMemory(job.device) as memory:
        for call in range(job.warmup + job.repeats):
            if sum(times) >= job.max_seconds:
                break
            start = time.perf_counter()
            found = step().detach()
            if call == 0:  # before training changes the weights
                outputs = found
            if job.device.startswith("cuda"):
                torch.cuda.synchronize()
            if call >= job.warmup:
                times.append(time.perf_counter() - start)
    return {
        "times": times,
        "peak_bytes": memory.above_base,
        "base_bytes": memory.base,
        "memory_method": memory.method,
        "outputs": sample(outputs),
        "kernels": kernels,
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
