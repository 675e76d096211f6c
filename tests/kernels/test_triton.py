"""Triton's product, convolution and attention: on a GPU, else in Triton's interpreter."""

import importlib.util
import json
import os
import subprocess
import sys
from typing import get_args

import pytest
import torch
from torch import library
from torch._dynamo.testing import CompileCounterWithBackend

from pyg_se3.ops import AttentionInputs, ConvInputs, RadialSharing, pack_plan
from pyg_se3.ops import triton_product as operators
from pyg_se3.ops.chunked_edge import EdgeSettings
from pyg_se3.ops.edge import formed_product
from pyg_se3.ops.triton_conv import triton_attention, triton_conv
from pyg_se3.ops.triton_product import require_triton, triton_product
from pyg_se3.so3 import EdgeGeometry

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed: pip install 'pyg-se3[triton]'",
)


@pytest.fixture
def kernels():
    from pyg_se3.ops import triton_kernels

    if DEVICE == "cpu" and not triton_kernels.INTERPRETED:
        pytest.skip("no CUDA device, and TRITON_INTERPRET=1 came after Triton's first import")
    return triton_kernels


# edges, components, hidden, channels in, channels out
SIZES = [
    (1, 1, 1, 1, 1),
    (5, 2, 3, 2, 3),
    (70, 1, 3, 17, 20),
    (33, 2, 2, 40, 70),
    (0, 1, 3, 2, 3),
    (0, 2, 3, 2, 3),
]


def inputs(size, dtype=torch.float64, seed=0):
    """Activations, features and weights that need gradients, and a gradient of the product."""
    edges, components, hidden, inner, columns = size
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)

    leaves = [
        normal(edges, hidden),
        normal(edges, components, inner),
        normal(hidden * inner, components * columns) / (hidden * inner) ** 0.5,
    ]
    return [leaf.requires_grad_() for leaf in leaves], normal(edges, components, columns)


def derivatives(product, leaves, dy, dtype):
    """Product, gradients, and gradients of their squares."""
    y = product(*leaves, dtype)
    dy = dy.detach().requires_grad_()
    first = torch.autograd.grad(y, leaves, dy, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), [*leaves, dy])
    return [t.detach() for t in (y, *first, *second)]


def assert_close(got, expected, tolerance):
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        assert (one - other).norm() <= tolerance * other.norm()


@needs_triton
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float64, 1e-13), (torch.float32, 2e-6)], ids=["double", "float"]
)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_product_and_its_derivatives(kernels, size, dtype, tolerance):
    leaves, dy = inputs(size, dtype)
    got = derivatives(triton_product, leaves, dy, dtype)
    assert_close(got, derivatives(formed_product, leaves, dy, dtype), tolerance)


@needs_triton
@pytest.mark.parametrize("components", [1, 2])
def test_tiles_smaller_than_every_side(kernels, components, monkeypatch):
    """Loops over tiles of all sides, ragged ends, and rows split over several programs."""
    (g, x, w), dy = inputs((45, components, 2, 35, 20))
    monkeypatch.setattr(kernels, "_processors", lambda x: 12 * components)
    tiles = kernels.Blocks(16, 16, 16, warps=4, stages=2)
    tiling = kernels.Tiling(tiles, tiles, tiles)
    g, x, w = (t.detach() for t in (g, x, w))
    got = [
        kernels.product(g, x, w, False, tiling),
        *kernels.input_gradients(g, x, w, dy, False, tiling),
        kernels.weight_gradient(g, x, dy, torch.float64, False, tiling),
    ]
    assert_close(
        got,
        derivatives(formed_product, inputs((45, components, 2, 35, 20))[0], dy, torch.float64)[:4],
        1e-13,
    )


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("components", [1, 2])
def test_low_precision_is_at_most_twice_as_far_off_as_plain_products(kernels, dtype, components):
    size = (100, components, 4, 20, 24)
    leaves, dy = inputs(size, torch.float32)
    exact = derivatives(formed_product, *inputs(size), torch.float64)[:4]
    plain = derivatives(formed_product, leaves, dy, dtype)[:4]
    got = derivatives(triton_product, leaves, dy, dtype)[:4]
    # Triton's interpreter cuts off the bits that bfloat16 lacks where devices round.
    allowed = 4 if kernels.INTERPRETED and dtype == torch.bfloat16 else 2
    for one, other, true in zip(got, plain, exact, strict=True):
        assert one.dtype == torch.float32
        assert (one - true).norm() <= allowed * (other - true).norm()
        assert (one - true).norm() > 1e-5 * true.norm()  # the products are in low precision


@needs_triton
def test_the_same_inputs_give_the_same_bits(kernels):
    leaves, dy = inputs((150, 2, 2, 8, 8), torch.float32)
    once, again = (derivatives(triton_product, leaves, dy, torch.float32) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))


@needs_triton
@pytest.mark.parametrize("components", [1, 2])
def test_operators_are_registered_as_torch_wants_them(kernels, components):
    (g, x, w), dy = inputs((5, components, 2, 3, 4), torch.float32)
    for operator, arguments in [
        (operators._product, (g, x, w)),
        (operators._input_gradients, (g, x, w, dy)),
        (operators._weight_gradient, (g, x, dy)),
    ]:
        library.opcheck(operator, (*arguments, torch.float32))


@needs_triton
def test_compiled_once_for_batches_of_any_size(kernels):
    def loss(g, x, w):
        return triton_product(g, x, w, torch.float32).square().sum()

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, backend=counter, fullgraph=True, dynamic=True)
    for edges in (5, 9, 40):
        leaves, _ = inputs((edges, 2, 2, 3, 4), torch.float32)
        got = torch.autograd.grad(compiled(*leaves), leaves)
        assert_close(got, torch.autograd.grad(loss(*leaves), leaves), 1e-6)
    assert counter.frame_count == 1


def test_torchs_setting_decides_on_tf32():
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for allowed in (True, False):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            assert operators._tf32() is allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def settings_of(chunk, dtype=torch.float64, narrow=None, compress=False):
    return EdgeSettings(chunk, chunk, compress, 1e-6, dtype, narrow or dtype)


def arguments(problem, leaves):
    """What a layer is called with."""
    plan, activation = problem.plan, torch.relu if problem.plan.rectified else torch.tanh
    leaves = {name: leaf.to(DEVICE) for name, leaf in leaves.items()}
    radial = [activation(leaves[f"radial {i}"]) for i in range(len(plan.groups))]
    geometry = EdgeGeometry.from_vectors(leaves["vectors"], plan.max_degree)
    packed = pack_plan(plan, {pair: leaves[f"weight {pair}"] for pair in plan.pairs})
    return leaves, problem.source.to(DEVICE), (radial, geometry, packed)


class Layer(torch.nn.Module):
    """Convolution or, with a shape, attention."""

    def __init__(self, plan, settings, shape):
        super().__init__()
        self.plan, self.settings, self.shape = plan, settings, shape

    def forward(self, leaves, source, target, rest):
        radial, geometry, packed = rest
        inputs = ConvInputs(
            self.plan, leaves["x"], source, radial, geometry, {}, packed=lambda: packed
        )
        if self.shape is None:
            return triton_conv(inputs, self.settings)
        attention = AttentionInputs(self.shape, leaves["query"], target)
        return triton_attention(inputs, attention, self.settings)


def by_triton(problem, settings):
    """The same problem, convolved by Triton."""

    class ByTriton(type(problem)):
        def output(self, options, leaves=None):
            leaves, source, rest = arguments(self, leaves or self.leaves)
            layer = Layer(self.plan, settings, self.shape)
            y = layer(leaves, source, self.target.to(DEVICE), rest)
            return y.to(self.leaves["x"].device)

    return ByTriton(**vars(problem))


def assert_as_reference(problem, order, chunk, assert_agree, reference):
    got = by_triton(problem, settings_of(chunk)).derivatives(None, order)
    assert_agree(got, problem.derivatives(reference, order))


@needs_triton
@pytest.mark.parametrize("sharing", get_args(RadialSharing))
@pytest.mark.parametrize("order", [1, 2])
def test_sharing(kernels, sharing, order, make_problem, reference, assert_agree):
    problem = make_problem({0: 1, 2: 2}, {1: 2, 2: 1}, "chain", sharing=sharing, hidden=2)
    assert_as_reference(problem, order, 3, assert_agree, reference)


@needs_triton
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    "fiber_in, fiber_out",
    [({0: 2, 1: 3}, {0: 3, 1: 1}), ({0: 2}, {0: 3}), ({1: 1}, {3: 2})],
    ids=["0 1 to 0 1", "0 to 0", "1 to 3"],
)
def test_degrees(kernels, fiber_in, fiber_out, order, make_problem, reference, assert_agree):
    problem = make_problem(fiber_in, fiber_out, hidden=3)
    assert_as_reference(problem, order, 5, assert_agree, reference)


@needs_triton
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("graph", ["empty", "single edge", "star in", "duplicates", "disconnected"])
def test_graphs(kernels, graph, order, make_problem, reference, assert_agree):
    problem = make_problem({0: 2, 1: 1}, {0: 1, 1: 2}, graph, rectified=False, hidden=2)
    assert_as_reference(problem, order, 4, assert_agree, reference)


@needs_triton
def test_high_degrees(kernels, make_problem, reference, assert_agree):
    problem = make_problem({0: 1, 8: 1}, {5: 2, 8: 1}, "duplicates", hidden=2)
    assert_as_reference(problem, 1, 3, assert_agree, reference)


@needs_triton
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("graph", ["empty", "complete", "star out"])
def test_attention(kernels, graph, order, make_problem, reference, assert_agree):
    problem = make_problem(
        {0: 2, 1: 2}, {0: 4, 1: 4, 2: 2}, graph, heads=2, value={0: 2, 1: 2, 2: 2}, hidden=3
    )
    assert_as_reference(problem, order, 5, assert_agree, reference)


@needs_triton
@pytest.mark.parametrize("wanted", ["x", "vectors", "radial 0", "weight (1, 1)", "query"])
def test_a_gradient_for_one_input_alone(kernels, wanted, make_problem, reference):
    problem = make_problem({0: 2, 1: 2}, {0: 2, 1: 2}, heads=1, value={0: 1, 1: 1}, hidden=2)
    gradients = []
    for case, options in [(by_triton(problem, settings_of(5)), None), (problem, reference)]:
        leaves = {n: t.clone().requires_grad_(n == wanted) for n, t in problem.leaves.items()}
        case.output(options, leaves).square().sum().backward()
        assert [n for n, t in leaves.items() if t.grad is not None] == [wanted]
        gradients.append(leaves[wanted].grad)
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-10 * gradients[1].abs().max()


@needs_triton
@pytest.mark.parametrize("heads", [None, 2], ids=["convolution", "attention"])
def test_layers_compile_once_for_graphs_of_any_size(kernels, heads, make_problem):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    fibers, value = ({0: 2, 1: 2}, {0: 4, 1: 4}), {0: 2, 1: 2}
    layer = compiled = None
    for edges in (5, 12, 30):
        problem = make_problem(*fibers, nodes=6, edges=edges, hidden=2, heads=heads, value=value)
        if layer is None:
            layer = Layer(problem.plan, settings_of(7), problem.shape)
            compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
        leaves = {n: t.requires_grad_() for n, t in problem.leaves.items()}
        found = []
        for function in (compiled, layer):
            nodes, source, rest = arguments(problem, leaves)
            nodes = {n: nodes[n] for n in ("x", "query") if n in nodes}
            y = function(nodes, source, problem.target.to(DEVICE), rest)
            found.append(torch.autograd.grad(y.square().sum(), list(leaves.values())))
        assert_close(*found, 1e-12)
    assert counter.frame_count == 1


@needs_triton
def test_float16_as_under_autocast(kernels, make_problem, reference):
    problem = make_problem({0: 4, 1: 4}, {0: 4, 1: 4}, nodes=20, edges=100, hidden=4)
    exact = problem.derivatives(reference)
    problem = problem.to(torch.float32)
    with torch.autocast("cpu", dtype=torch.float16):
        plain = problem.derivatives(reference)
        got = by_triton(problem, settings_of(60, torch.float16)).derivatives(None)
    for name, true in exact.items():
        assert got[name].dtype == torch.float32
        error = (got[name] - true).norm()
        assert 1e-5 * true.norm() < error <= 2 * (plain[name] - true).norm()


@needs_triton
def test_refuses_what_only_other_kernels_do(kernels, make_problem):
    problem = make_problem({0: 1}, {0: 1})
    with pytest.raises(ValueError, match="does not compress"):
        by_triton(problem, settings_of(5, compress=True)).output(None)
    with pytest.raises(ValueError, match="fast=True"):
        by_triton(problem, settings_of(5, narrow=torch.bfloat16)).output(None)


@needs_triton
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda g, x, w: (g[:3], x, w, torch.float32), "of 3 edges do not fit features of 5"),
        (lambda g, x, w: (g, x, w[:5], torch.float32), "do not fit 2 activations"),
        (lambda g, x, w: (g, x, w[:, :7], torch.float32), "do not fit 2 activations"),
        (lambda g, x, w: (g, x[:, 0], w, torch.float32), r"expected activations \[E, H\]"),
        (lambda g, x, w: (g, x, w, torch.int8), "got torch.int8"),
    ],
)
def test_refuses_shapes_and_types_that_do_not_fit(kernels, change, message):
    leaves, _ = inputs((5, 2, 2, 3, 4))
    with pytest.raises(ValueError, match=message):
        triton_product(*change(*leaves))


def test_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install 'pyg-se3\[triton\]'"):
        require_triton(torch.device("cuda"))


@needs_triton
def test_needs_a_cuda_device_or_the_interpreter(kernels, monkeypatch):
    require_triton(torch.device(DEVICE))
    monkeypatch.setattr(kernels, "INTERPRETED", False)
    with pytest.raises(RuntimeError, match="needs a CUDA device, the tensors are on cpu"):
        require_triton(torch.device("cpu"))


COMPILE = """
import json, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from pyg_se3.ops import triton_kernels as kernels

POINTERS = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}
found = []
for capability, dtype, tf32 in [
    (80, torch.float32, True), (90, torch.bfloat16, False), (90, torch.float32, False)
]:
    kind = kernels._kind(dtype, tf32)
    for name, role in [
        ("_product_kernel", "product"),
        ("_input_gradient_kernel", "inputs"),
        ("_weight_gradient_kernel", "weights"),
    ]:
        kernel = getattr(kernels, name)
        blocks = getattr(kernels.TILINGS[kind], role)
        constants = kernels._constants(blocks, kind, dtype, 32, 96, 192, 2)
        options = {key: constants.pop(key) for key in ("num_warps", "num_stages")}
        constants["PRODUCT"] = kernels._TYPES[dtype]
        types = {"w_ptr": POINTERS[dtype], "dy_ptr": POINTERS[dtype]}
        signature, values, aligned = {}, {}, {}
        for index, argument in enumerate(kernel.arg_names):
            if argument in constants:
                signature[argument], values[index,] = "constexpr", constants[argument]
            elif argument.endswith("ptr"):
                signature[argument] = types.get(argument, "*fp32")
                aligned[index,] = [["tt.divisibility", 16]]
            else:
                signature[argument] = "i32"
        source = ASTSource(kernel, signature, values, aligned)
        binary = triton.compile(source, GPUTarget("cuda", capability, 32), options)
        found.append({
            "kernel": name, "kind": kind, "capability": capability,
            "shared": binary.metadata.shared, "tensor cores": "mma" in binary.asm["ptx"],
        })
print(json.dumps(found))
"""


@needs_triton
def test_compiles_for_devices(tmp_path):
    """The interpreter takes more than the compiler does; compiling takes no device."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    script = tmp_path / "compile.py"
    script.write_text(COMPILE)
    run = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert len(found) == 9
    for binary in found:
        assert binary["shared"] <= 99 * 1024, binary
        assert binary["tensor cores"] == (binary["kind"] != "full"), binary
