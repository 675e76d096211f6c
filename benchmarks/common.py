"""Measurements in processes of their own: peaks do not mix, and nothing is warm but its own."""

from __future__ import annotations

import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path

import torch

# "benchmarks" in a checkout, "pyg_se3.benchmarks" in an installed package.
PACKAGE = __name__.rpartition(".")[0]
ROOT = Path(__file__).resolve().parents[1]
"""The checkout, if this is one."""

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
PRECISIONS = ("32", *AUTOCAST)
MODES = ("training", "inference", "forces")


@dataclass(frozen=True)
class Job:
    """One measurement.

    Attributes:
        system: Name in `systems.SYSTEMS`.
        inputs: File of a `GraphBatch`.
        kind: "model" or "layer".
        mode: "training", "inference" or (models) "forces": energies and forces together.
        spec: Arguments of `ModelSpec` or `LayerSpec`.
        precision: "32", or "bf16-mixed" or "16-mixed" for autocast.
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
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {self.precision!r}")


@dataclass
class Result:
    """What a measurement gave.

    Attributes:
        job: What was asked for.
        status: "ok", "out of memory", "timed out", "not run" or "failed".
        times: Of every timed call, in seconds.
        peak_bytes: Peak memory above base.
        base_bytes: Held with model, optimizer state and inputs.
        memory_method: How memory was found.
        outputs: A sample of what was computed, on which all systems must agree.
        kernels: Those that pyg-se3's dispatch said it chose.
        inputs: Sizes and origin of the graphs.
        load: Load average before.
        other_cores: How many cores other processes kept busy meanwhile.
        message: Why it is not "ok".
    """

    job: Job
    status: str
    times: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    base_bytes: int | None = None
    memory_method: str = ""
    outputs: list[float] = field(default_factory=list)
    kernels: list[str] = field(default_factory=list)
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

    @property
    def case(self) -> str:
        """Name of the graphs: of the file they came in."""
        return Path(self.job.inputs).stem

    def to_dict(self) -> dict:
        """For JSON; the outputs served their purpose when the run compared them."""
        record = asdict(self)
        del record["outputs"]
        record["job"]["inputs"] = Path(self.job.inputs).name
        return record | {"median_seconds": self.seconds, "min_seconds": self.best}

    @classmethod
    def from_dict(cls, record: dict) -> Result:
        """Of what `to_dict` made."""
        names = {f.name for f in fields(cls)} - {"job"}
        return cls(Job(**record["job"]), **{k: v for k, v in record.items() if k in names})


class OtherProcesses:
    """Context that finds how many cores other processes kept busy meanwhile, the host's included.

    `cores` is None where the system does not tell.
    """

    cores: float | None = None

    def __enter__(self) -> OtherProcesses:
        self._start = time.monotonic(), _busy_seconds(), _own_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        wall, busy, own = self._start
        now = _busy_seconds()
        if busy is not None and now is not None:
            others = now - busy - (_own_seconds() - own)
            self.cores = max(0.0, others / (time.monotonic() - wall))


def _busy_seconds() -> float | None:
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    # user nice system idle iowait irq softirq steal, in clock ticks over all cores
    ticks = [int(n) for n in stat.read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """Of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def run_module(
    name: str,
    *arguments: str,
    threads: int,
    stdin: str | None = None,
    time_limit: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a module of this package in a new Python process and wait for it.

    Raises:
        subprocess.TimeoutExpired: It took longer than `time_limit` seconds, and was ended.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if PACKAGE == "benchmarks":
        paths = [str(ROOT), str(ROOT / "src"), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(p for p in paths if p)
    return subprocess.run(
        [sys.executable, "-m", f"{PACKAGE}.{name}", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        env=environment,
        timeout=time_limit,
        check=False,
    )


def measure(job: Job, time_limit: float = 3600.0) -> Result:
    """Run a job in a new process and wait for it, at most `time_limit` seconds."""
    with OtherProcesses() as others:
        result = _measure(job, time_limit)
    result.other_cores = others.cores
    return result


def _measure(job: Job, time_limit: float) -> Result:
    load = os.getloadavg()[0]
    try:
        done = run_module(
            "worker", threads=job.threads, stdin=json.dumps(asdict(job)), time_limit=time_limit
        )
    except subprocess.TimeoutExpired:
        return Result(job, "timed out", load=load, message=f"took longer than {time_limit:g} s")
    if done.returncode == 0:
        return Result(job, load=load, **json.loads(done.stdout.splitlines()[-1]))
    if done.returncode == -signal.SIGKILL:
        return Result(job, "out of memory", load=load, message="killed by the system")
    last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
    message = last or f"exit status {done.returncode}"
    return Result(job, "failed", load=load, message=message)


def measure_all(
    jobs: Iterable[Job], *, rounds: int = 1, time_limit: float = 3600.0
) -> list[Result]:
    """Run jobs one after the other, `rounds` times over, and merge the times of each.

    Rounds interleave the systems: a disturbance of the machine does not hit one of them alone.
    What failed is reported as failed and not tried again.
    """
    jobs = list(jobs)
    merged: list[Result | None] = [None] * len(jobs)
    for turn in range(rounds):
        for index, job in enumerate(jobs):
            before = merged[index]
            if before is not None and before.status != "ok":
                continue
            now = measure(job, time_limit)
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
    head = f"[{turn + 1}/{rounds}] {result.case} {job.mode}: {job.system} {job.precision}"
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
