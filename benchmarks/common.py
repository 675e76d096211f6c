"""Measurements in processes of their own: peaks do not mix, and nothing is warm but its own."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
AUTOCAST = {"bf16": torch.bfloat16, "16": torch.float16}
MODES = ("training", "inference", "forces")


@dataclass(frozen=True)
class Job:
    """One measurement.

    Attributes:
        system: Name in `benchmarks.systems.SYSTEMS`.
        inputs: File of a `GraphBatch`.
        kind: "model" or "layer".
        mode: "training", "inference" or (models) "forces": energies and forces together.
        spec: Arguments of `ModelSpec` or `LayerSpec`.
        precision: "32", or "bf16" or "16" for autocast.
        threads: Of PyTorch.
        warmup: Untimed calls before the timed ones.
        repeats: Timed calls at most.
        max_seconds: Start no further call once the timed ones took this long.
        memory_limit_gb: Let allocations beyond this fail.
        device: "cpu" or "cuda".
    """

    system: str
    inputs: str
    kind: str = "model"
    mode: str = "training"
    spec: dict = field(default_factory=dict)
    precision: str = "32"
    threads: int = 1
    warmup: int = 1
    repeats: int = 5
    max_seconds: float = 60.0
    memory_limit_gb: float | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, got {self.mode!r}")
        if self.kind not in ("model", "layer"):
            raise ValueError(f"kind must be 'model' or 'layer', got {self.kind!r}")
        if self.precision != "32" and self.precision not in AUTOCAST:
            raise ValueError(f"precision must be '32', 'bf16' or '16', got {self.precision!r}")


@dataclass
class Result:
    """What a measurement gave; `status` is "ok", "out of memory" or "failed"."""

    job: Job
    status: str
    times: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    base_bytes: int | None = None
    memory_method: str = ""
    value: float | None = None
    inputs: dict = field(default_factory=dict)
    load: float = 0.0
    other_cores: float | None = None
    message: str = ""

    @property
    def seconds(self) -> float | None:
        """Median."""
        return statistics.median(self.times) if self.times else None

    @property
    def best(self) -> float | None:
        """Minimum: what the machine can do when nothing else disturbs it."""
        return min(self.times) if self.times else None

    def to_dict(self) -> dict:
        """For JSON."""
        record = asdict(self)
        record["job"]["inputs"] = Path(self.job.inputs).name
        return record | {"median_seconds": self.seconds, "min_seconds": self.best}


class OtherProcesses:
    """Context that finds how many cores other processes kept busy meanwhile, the host's included.

    `cores` is None where the system does not tell.
    """

    cores: float | None = None

    def __enter__(self) -> OtherProcesses:
        self._start = time.monotonic(), _busy_seconds(), _children_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        wall, busy, children = self._start
        now = _busy_seconds()
        if busy is not None and now is not None:
            others = now - busy - (_children_seconds() - children)
            self.cores = max(0.0, others / (time.monotonic() - wall))


def _busy_seconds() -> float | None:
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    # user nice system idle iowait irq softirq steal, in clock ticks over all cores
    ticks = [int(n) for n in stat.read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(job: Job, timeout: float = 3600.0) -> Result:
    """Run a job in a new process and wait for it."""
    with OtherProcesses() as others:
        result = _measure(job, timeout)
    result.other_cores = others.cores
    return result


def _measure(job: Job, timeout: float) -> Result:
    environment = dict(os.environ)
    threads = str(job.threads)
    environment.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
    paths = [str(ROOT), str(ROOT / "src"), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(p for p in paths if p)
    load = os.getloadavg()[0]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.worker"],
            input=json.dumps(asdict(job)),
            capture_output=True,
            text=True,
            env=environment,
            cwd=ROOT,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Result(job, "failed", load=load, message=f"took longer than {timeout:g} s")
    if done.returncode == 0:
        return Result(job, load=load, **json.loads(done.stdout.splitlines()[-1]))
    if done.returncode == -9:
        return Result(job, "out of memory", load=load, message="killed by the system")
    last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
    message = last or f"exit status {done.returncode}"
    return Result(job, "failed", load=load, message=message)


def measure_all(jobs: Iterable[Job], *, rounds: int = 1, timeout: float = 3600.0) -> list[Result]:
    """Run jobs one after the other, `rounds` times over, and merge the times of each.

    Rounds interleave the systems: a disturbance of the machine does not hit one of them alone.
    """
    jobs = list(jobs)
    merged: list[Result | None] = [None] * len(jobs)
    for turn in range(rounds):
        for index, job in enumerate(jobs):
            before = merged[index]
            if before is not None and before.status != "ok":
                continue
            now = measure(job, timeout)
            print(_progress(now, turn, rounds), file=sys.stderr, flush=True)
            if before is None or now.status != "ok":
                merged[index] = now
                continue
            before.times += now.times
            before.load = max(before.load, now.load)
            before.other_cores = max(before.other_cores or 0.0, now.other_cores or 0.0)
            before.peak_bytes = max(before.peak_bytes or 0, now.peak_bytes or 0)
    return [result for result in merged if result is not None]


def _progress(result: Result, turn: int, rounds: int) -> str:
    job = result.job
    head = f"[{turn + 1}/{rounds}] {job.system} {job.kind} {job.mode} {job.precision}"
    if result.status != "ok":
        return f"{head}: {result.status} {result.message}"
    assert result.best is not None and result.seconds is not None
    memory = (result.peak_bytes or 0) / 1e9
    return (
        f"{head}: min {result.best:.4g} s, median {result.seconds:.4g} s of {len(result.times)}, "
        f"{memory:.3g} GB, others {result.other_cores or 0:.2f} cores"
    )


def machine(threads: int, device: str = "cpu") -> dict:
    """Hardware, versions, commit and load, for the head of a report."""
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_at_start": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
    }
    if device.startswith("cuda"):
        record["gpu"] = torch.cuda.get_device_name(device)
    return record


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(
            (part.strip() for part in line.split(":", 1))
            for line in info.read_text().splitlines()
            if ":" in line
        )
        if name := fields.get("model name"):
            kind = f"family {fields['cpu family']} model {fields['model']}"
            return f"{name} ({kind})" if "cpu family" in fields else name
    return platform.processor() or platform.machine()


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"
