"""What all tests share: hypothesis' profile, one thread, and the list of kernels."""

import os
from typing import get_args

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
