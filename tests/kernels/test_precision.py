"""Errors of every kernel in low precision, judged by those of the plain reference in the same."""

import pytest
import torch

from pyg_se3 import KernelOptions

CASES = {
    "convolution": (({0: 8, 1: 8, 2: 8, 3: 8}, {0: 8, 1: 8, 2: 8, 3: 8}), {}),
    "unequal": (({0: 4, 1: 6}, {0: 6, 1: 2}), {}),
    "attention": (
        ({0: 4, 1: 4, 2: 4}, {0: 8, 1: 8, 2: 8}),
        {"heads": 2, "value": {0: 4, 1: 4, 2: 4}},
    ),
}


@pytest.fixture(scope="session", params=CASES.values(), ids=CASES)
def problem(request, make_problem):
    """600 edges in float32, with radial activations as smooth as those of similar edges."""
    fibers, options = request.param
    problem = make_problem(*fibers, nodes=60, edges=600, hidden=16, **options)
    distance = problem.leaves["vectors"].norm(dim=1, keepdim=True)
    generator = torch.Generator().manual_seed(1)
    slope, shift = torch.randn(2, 16, dtype=torch.float64, generator=generator)
    problem.leaves["radial 0"] = distance * slope + shift
    return problem.to(torch.float32)


@pytest.fixture(scope="session")
def exact(problem, reference):
    return problem.to(torch.float64).derivatives(reference)


def errors(got, exact):
    """Relative errors by quantity, all weights together."""
    groups = {}
    for name in exact:
        groups.setdefault("d weights" if name.startswith("d weight") else name, []).append(name)
    found = {}
    for name, members in groups.items():
        difference = torch.cat([(got[n].double() - exact[n]).flatten() for n in members])
        size = torch.cat([exact[n].flatten() for n in members]).norm()
        found[name] = float(difference.norm() / size)
    return found


def assert_within(got, allowed):
    for name, error in got.items():
        assert error <= allowed[name], f"{name}: error {error:.2e} > {allowed[name]:.2e}"


@pytest.mark.parametrize("compress", [False, True], ids=["full", "compress"])
def test_float32_is_at_most_twice_as_far_off_as_the_reference(
    kernel, compress, problem, exact, reference
):
    plain = errors(problem.derivatives(reference), exact)
    options = KernelOptions(kernel=kernel, compress=compress)
    slack = options.tolerance if compress else 0.0
    noise = 4 * torch.finfo(torch.float32).eps  # of sums in another order
    allowed = {name: max(2 * error, noise) + slack for name, error in plain.items()}
    assert_within(errors(problem.derivatives(options), exact), allowed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("compress", [False, True], ids=["full", "compress"])
@pytest.mark.parametrize("inside", [True, False], ids=["backward inside", "backward outside"])
def test_autocast_is_at_most_twice_as_far_off_as_the_reference(
    kernel, dtype, compress, inside, problem, exact, reference
):
    """Whether the backward pass runs under autocast, too, or as it should."""

    def run(options):
        if inside:
            with torch.autocast("cpu", dtype=dtype):
                return problem.derivatives(options)
        return _outside(problem, options, dtype)

    plain = errors(run(reference), exact)
    options = KernelOptions(kernel=kernel, compress=compress)
    slack = options.tolerance if compress else 0.0
    noise = 4 * torch.finfo(torch.float32).eps  # of sums in another order
    allowed = {name: max(2 * error, noise) + slack for name, error in plain.items()}
    assert_within(errors(run(options), exact), allowed)


def _outside(problem, options, dtype):
    whole = type(problem).output

    class Cast(type(problem)):
        def output(self, *arguments):
            with torch.autocast("cpu", dtype=dtype):
                return whole(self, *arguments)

    return Cast(**vars(problem)).derivatives(options)


def test_output_under_autocast_has_the_precision_of_the_features(kernel, problem):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = problem.output(KernelOptions(kernel=kernel))
    assert output.dtype == torch.float32


def test_fast_changes_the_gradient_of_the_activations_only(kernel, problem, exact):
    plain = problem.derivatives(KernelOptions(kernel=kernel))
    fast = problem.derivatives(KernelOptions(kernel=kernel, fast=True))
    for name in plain:
        if name != "d radial 0":
            assert torch.equal(fast[name], plain[name]), name
    assert errors(fast, exact)["d radial 0"] < 1e-2


def test_compression_keeps_to_its_tolerance(problem, exact):
    """Loose tolerances are used, so compression does take place; tight ones are kept."""
    found = []
    for tolerance in (1e-1, 1e-3, 1e-5):
        options = KernelOptions(kernel="edge", compress=True, tolerance=tolerance)
        found.append(errors(problem.derivatives(options), exact)["output"])
        assert found[-1] <= 3 * tolerance
    assert found[0] > 1e-4


def test_compression_refuses_other_activations_than_relus(make_problem):
    problem = make_problem({0: 1}, {0: 1}, rectified=False)
    with pytest.raises(ValueError, match="come out of a ReLU"):
        problem.output(KernelOptions(kernel="edge", compress=True))
