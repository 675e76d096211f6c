"""Which kernel `auto` takes."""

import pytest
import torch

from pyg_se3 import Fiber, KernelOptions
from pyg_se3.ops import TFNPlan
from pyg_se3.ops.dispatch import choose_kernel

HIDDEN = Fiber.create(4, 32)
CASES = {
    # what: (fiber in, fiber out, nodes, edges, kernel)
    "one molecule": (HIDDEN, HIDDEN, 18, 36, "weights"),
    "a batch of molecules": (HIDDEN, HIDDEN, 1850, 3750, "edge"),
    "its last layer": (HIDDEN, Fiber({0: 128}), 1850, 3750, "edge"),
    "dense, L = 1": (Fiber.create(2, 32), Fiber.create(2, 32), 300, 300 * 64, "source"),
    "dense, L = 1, few channels": (Fiber.create(2, 8), Fiber.create(2, 8), 100, 9900, "source"),
    "dense, L = 3": (HIDDEN, HIDDEN, 100, 3200, "source"),
    "dense, L = 3, many edges": (HIDDEN, HIDDEN, 500, 16000, "edge"),
}


@pytest.mark.parametrize("case", CASES)
def test_auto_takes_the_kernel_that_was_measured_to_be_faster(case):
    fiber_in, fiber_out, nodes, edges, expected = CASES[case]
    plan, x = TFNPlan.create(fiber_in, fiber_out), torch.empty(nodes, fiber_in.dim)
    assert choose_kernel(plan, x, edges, KernelOptions()) == expected


@pytest.mark.parametrize("kernel", ["edge", "source", "weights"])
def test_a_kernel_that_was_asked_for_is_taken(kernel):
    plan, x = TFNPlan.create(HIDDEN, HIDDEN), torch.empty(18, HIDDEN.dim)
    assert choose_kernel(plan, x, 36, KernelOptions(kernel=kernel)) == kernel


def test_devices_other_than_the_cpu_use_the_edge_form():
    plan, x = TFNPlan.create(HIDDEN, HIDDEN), torch.empty(18, HIDDEN.dim, device="meta")
    assert choose_kernel(plan, x, 36, KernelOptions()) == "edge"
    dense = TFNPlan.create(Fiber.create(2, 32), Fiber.create(2, 32))
    assert (
        choose_kernel(dense, torch.empty(300, 128, device="meta"), 19200, KernelOptions()) == "edge"
    )
