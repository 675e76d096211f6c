"""What all tests share: hypothesis' profile, one thread, and the list of kernels."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import HealthCheck, settings

if not torch.cuda.is_available():
    # Triton, where installed, looks when it is first imported, which importing pyg_se3 does.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from pyg_se3.ops.options import Kernel  # noqa: E402

settings.register_profile(
    "quick",
    deadline=None,
    derandomize=True,
    max_examples=15,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("quick")

NEEDS_GPU = {"triton"}


def _parameter(kernel):
    reason = f"the {kernel} kernel needs a CUDA device"
    skip = pytest.mark.skipif(kernel in NEEDS_GPU and not torch.cuda.is_available(), reason=reason)
    return pytest.param(kernel, marks=[skip])


@pytest.fixture(
    scope="session",
    params=[_parameter(k) for k in get_args(Kernel) if k not in ("auto", "reference")],
)
def kernel(request):
    """Every kernel that the options offer but the reference, which judges them."""
    return request.param


def pytest_configure(config):
    # The tensors of the tests are small: more threads only wait for one another.
    torch.set_num_threads(1)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(20)


@pytest.fixture(autouse=True)
def _seeded():
    """Weights are drawn from the global generator: the same ones in every run."""
    torch.manual_seed(7)


@pytest.fixture(scope="session")
def flat():
    """One tensor of whatever a model returns."""

    def join(output):
        if isinstance(output, torch.Tensor):
            return output
        return torch.cat([output[degree].flatten(1) for degree in sorted(output)], dim=1)

    return join


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """Folder of the processed molecules of the fixture, made once for all tests."""
    return tmp_path_factory.mktemp("qm9")


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b


def _curve(run: Path) -> dict[int, dict[str, float]]:
    """The metrics of a run without those that tell about the machine."""
    from pyg_se3.training.loggers import read_metrics

    machine = {"train/molecules_per_second", "train/peak_memory_mb"}
    rows = read_metrics(run / "metrics.csv")
    return {s: {k: v for k, v in r.items() if k not in machine} for s, r in rows.items()}


@pytest.fixture(scope="session")
def assert_same_run() -> Callable[[Path, Path], None]:
    """Checkpoints and metrics of the runs in two folders are the same, bit for bit."""
    from pyg_se3.training import read_checkpoint

    def check(first: Path, second: Path) -> None:
        a, b = (read_checkpoint(f / "checkpoints" / "last.ckpt") for f in (first, second))
        assert a["global_step"] == b["global_step"] and a["epoch"] == b["epoch"]
        for key in ("state_dict", "raw_parameters", "optimizer_states", "lr_schedulers"):
            assert _same(a[key], b[key]), key
        for key in ("TrainingRandomness", "ExponentialMovingAverage"):
            assert _same(a["callbacks"][key], b["callbacks"][key]), key
        a, b = (read_checkpoint(f / "checkpoints" / "best.ckpt") for f in (first, second))
        assert a["global_step"] == b["global_step"]
        assert _same(a["state_dict"], b["state_dict"])
        assert _curve(first) == _curve(second)

    return check
