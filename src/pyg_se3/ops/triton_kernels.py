r"""Triton kernels of the edge form's product, with the outer product formed in registers.

For one ``|m|``, rows r run over the edges and their components, all +m before -m of an edge:

.. math::
    y_{e,c,o} = \sum_{p,h,k} s_{cp}\, g_{eh}\, x_{e,c \oplus p,k}\, W_{h,k,p,o}.

For m = 0 there is one component and p = 0. For m > 0 there are two, p = 0 is the part A of the
weights and p = 1 the part B, which takes the other component of the pair, with
:math:`s_{c1} = +1` for +m and -1 for -m.

Importing this module needs Triton; :mod:`pyg_se3.ops.triton_product` imports it when called.
All loop bounds but the number of rows are constants of a compiled kernel, so batches of any size
share it.
"""

# The signatures of kernels are Triton's: pointers and numbers without Python types.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

SPLIT_WAVES = 2
"""Programs per processor that the weight gradient is split into, at least."""


@dataclass(frozen=True)
class Blocks:
    """Tile sizes of a kernel.

    Attributes:
        rows: edges times components.
        inner: input channels.
        columns: output channels.
        warps: per program.
        stages: of the software pipeline.
    """

    rows: int
    inner: int
    columns: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Tiling:
    """Tiles of the three kernels. They fit the 99 KB of shared memory of the smaller devices.

    Attributes:
        product: tiles of the product.
        inputs: of the gradients of activations and features, which sum over columns.
        weights: of the gradient of the weights, which sums over rows.
    """

    product: Blocks
    inputs: Blocks
    weights: Blocks


TILINGS = {
    "half": Tiling(
        Blocks(64, 64, 128, warps=4, stages=3),
        Blocks(64, 64, 64, warps=4, stages=3),
        Blocks(64, 64, 128, warps=4, stages=3),
    ),
    "tf32": Tiling(
        Blocks(64, 32, 128, warps=4, stages=3),
        Blocks(64, 32, 64, warps=4, stages=3),
        Blocks(64, 64, 64, warps=4, stages=2),
    ),
    "full": Tiling(
        Blocks(64, 32, 64, warps=4, stages=2),
        Blocks(64, 32, 32, warps=4, stages=2),
        Blocks(64, 32, 64, warps=4, stages=2),
    ),
    "double": Tiling(
        Blocks(32, 32, 32, warps=4, stages=2),
        Blocks(32, 16, 32, warps=4, stages=2),
        Blocks(32, 32, 32, warps=4, stages=2),
    ),
}
"""By kind of product: 16 bits, TF32, full float32, float64."""


@triton.jit(do_not_specialize=["rows"])
def _product_kernel(
    g_ptr,  # [H, E]
    x_ptr,  # [rows, K]
    w_ptr,  # [H, K, COMPONENTS, O]
    y_ptr,  # [rows, O]
    rows,
    H: tl.constexpr,
    K: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    COMPONENTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_O: tl.constexpr,
    PRODUCT: tl.constexpr,
    OPERAND: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    inside = row < rows
    edge, edges = row // COMPONENTS, (rows // COMPONENTS).to(tl.int64)
    total = tl.zeros((BLOCK_ROWS, BLOCK_O), SUM)
    for part in tl.static_range(COMPONENTS - 1, -1, -1):
        partner = row ^ part
        for start in range(0, K, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            mask = inside[:, None] & (k < K)[None, :]
            x = tl.load(x_ptr + partner[:, None] * K + k[None, :], mask=mask, other=0.0).to(SUM)
            for h in range(H):
                g = tl.load(g_ptr + h * edges + edge, mask=inside, other=0.0).to(SUM)
                w = tl.load(
                    w_ptr + ((h * K + k) * COMPONENTS + part)[:, None] * O + column[None, :],
                    mask=(k < K)[:, None] & (column < O)[None, :],
                    other=0.0,
                ).to(OPERAND)
                outer = (x * g[:, None]).to(PRODUCT).to(OPERAND)
                total = tl.dot(outer, w, total, input_precision=PRECISION, out_dtype=SUM)
        if part == 1:  # the sign of the rest, part 0, is +1
            total = total * (1 - 2 * (row % 2)).to(SUM)[:, None]
    mask = inside[:, None] & (column < O)[None, :]
    tl.store(y_ptr + row[:, None] * O + column[None, :], total, mask=mask)


@triton.jit(do_not_specialize=["rows"])
def _input_gradient_kernel(
    g_ptr,  # [H, E]
    x_ptr,  # [rows, K]
    w_ptr,  # [H, K, COMPONENTS, O]
    dy_ptr,  # [rows, O]
    dg_ptr,  # [blocks of K, H, rows]
    dx_ptr,  # [rows, K]
    rows,
    H: tl.constexpr,
    K: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    COMPONENTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_O: tl.constexpr,
    OPERAND: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = row < rows
    edge, edges = row // COMPONENTS, (rows // COMPONENTS).to(tl.int64)
    mask = inside[:, None] & (k < K)[None, :]
    x = tl.load(x_ptr + row[:, None] * K + k[None, :], mask=mask, other=0.0).to(SUM)
    dx = tl.zeros((BLOCK_ROWS, BLOCK_K), SUM)
    for h in range(H):
        # W_h^T dy serves both gradients: scaled by g it is dx, contracted with x it is dg.
        back = tl.zeros((BLOCK_ROWS, BLOCK_K), SUM)
        for part in tl.static_range(COMPONENTS - 1, -1, -1):
            partner = row ^ part
            for start in range(0, O, BLOCK_O):
                column = start + tl.arange(0, BLOCK_O)
                dy = tl.load(
                    dy_ptr + partner[:, None] * O + column[None, :],
                    mask=inside[:, None] & (column < O)[None, :],
                    other=0.0,
                ).to(OPERAND)
                w = tl.load(
                    w_ptr + ((h * K + k) * COMPONENTS + part)[None, :] * O + column[:, None],
                    mask=(k < K)[None, :] & (column < O)[:, None],
                    other=0.0,
                ).to(OPERAND)
                back = tl.dot(dy, w, back, input_precision=PRECISION, out_dtype=SUM)
            if part == 1:  # the adjoint has the opposite signs
                back = back * (2 * (row % 2) - 1).to(SUM)[:, None]
        g = tl.load(g_ptr + h * edges + edge, mask=inside, other=0.0).to(SUM)
        dx += back * g[:, None]
        to = (tl.program_id(1) * H + h) * rows.to(tl.int64) + row
        tl.store(dg_ptr + to, tl.sum(back * x, 1), mask=inside)
    tl.store(dx_ptr + row[:, None] * K + k[None, :], dx, mask=mask)


@triton.jit(do_not_specialize=["rows", "span"])
def _weight_gradient_kernel(
    g_ptr,  # [H, E]
    x_ptr,  # [rows, K]
    dy_ptr,  # [rows, O]
    dw_ptr,  # [splits, H, K, COMPONENTS, O]
    rows,
    span,  # rows of a split
    H: tl.constexpr,
    K: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    COMPONENTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_O: tl.constexpr,
    PRODUCT: tl.constexpr,
    OPERAND: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    h = tl.program_id(0) % H
    part = tl.program_id(0) // H % COMPONENTS
    column = tl.program_id(0) // (H * COMPONENTS) * BLOCK_O + tl.arange(0, BLOCK_O)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    split = tl.program_id(2).to(tl.int64)
    edges = (rows // COMPONENTS).to(tl.int64)
    total = tl.zeros((BLOCK_K, BLOCK_O), SUM)
    first = split * span
    for start in range(0, span, BLOCK_ROWS):
        row = first + start + tl.arange(0, BLOCK_ROWS)
        inside = row < rows
        partner = row ^ part
        g = tl.load(g_ptr + h * edges + row // COMPONENTS, mask=inside, other=0.0).to(SUM)
        g = g * (1 - 2 * part * (row % 2)).to(SUM)
        x = tl.load(
            x_ptr + partner[None, :] * K + k[:, None],
            mask=inside[None, :] & (k < K)[:, None],
            other=0.0,
        ).to(SUM)
        dy = tl.load(
            dy_ptr + row[:, None] * O + column[None, :],
            mask=inside[:, None] & (column < O)[None, :],
            other=0.0,
        ).to(OPERAND)
        outer = (x * g[None, :]).to(PRODUCT).to(OPERAND)
        total = tl.dot(outer, dy, total, input_precision=PRECISION, out_dtype=SUM)
    to = (((split * H + h) * K + k) * COMPONENTS + part)[:, None] * O + column[None, :]
    tl.store(dw_ptr + to, total, mask=(k < K)[:, None] & (column < O)[None, :])


INTERPRETED = not isinstance(_product_kernel, triton.JITFunction)
"""Whether the kernels run in Triton's interpreter, on the CPU."""

_TYPES = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


def product(g: Tensor, x: Tensor, w: Tensor, tf32: bool, tiling: Tiling | None = None) -> Tensor:
    """Product ``[E, c, O]`` in the type of w.

    Args:
        g: radial activations ``[E, H]``.
        x: features in the edge frame ``[E, c, K]``, c = 1 for m = 0 and 2 for m > 0.
        w: packed weights ``[H * K, c * O]``.
        tf32: whether float32 matrices may be rounded to TF32.
        tiling: other tiles than :data:`TILINGS` has.
    """
    edges, components, inner = x.shape
    columns = w.shape[1] // components
    y = x.new_empty(edges, components, columns)
    if not edges:
        return y
    kind = _kind(w.dtype, tf32)
    blocks = (tiling or TILINGS[kind]).product
    constants = _constants(blocks, kind, w.dtype, g.shape[1], inner, columns, components)
    rows = edges * components
    grid = (triton.cdiv(rows, blocks.rows), triton.cdiv(columns, constants["BLOCK_O"]))
    with _on(x):
        _product_kernel[grid](
            g.t().contiguous(),
            x.contiguous(),
            w.contiguous(),
            y,
            rows,
            PRODUCT=_TYPES[w.dtype],
            **constants,
        )
    return y


def input_gradients(
    g: Tensor, x: Tensor, w: Tensor, dy: Tensor, tf32: bool, tiling: Tiling | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of g and of x for a gradient ``[E, c, O]`` of :func:`product`."""
    edges, components, inner = x.shape
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    if not edges:
        return torch.empty_like(g), dx
    kind, hidden, columns = _kind(w.dtype, tf32), g.shape[1], dy.shape[2]
    blocks = (tiling or TILINGS[kind]).inputs
    constants = _constants(blocks, kind, w.dtype, hidden, inner, columns, components)
    rows, tiles = edges * components, triton.cdiv(inner, constants["BLOCK_K"])
    dg = x.new_empty(tiles, hidden, edges, components, dtype=_sum_type(w.dtype))
    with _on(x):
        _input_gradient_kernel[triton.cdiv(rows, blocks.rows), tiles](
            g.t().contiguous(),
            x.contiguous(),
            w.contiguous(),
            dy.to(w.dtype).contiguous(),
            dg,
            dx,
            rows,
            **constants,
        )
    return dg.sum((0, 3)).t().to(g.dtype).contiguous(), dx


def weight_gradient(
    g: Tensor,
    x: Tensor,
    dy: Tensor,
    dtype: torch.dtype,
    tf32: bool,
    tiling: Tiling | None = None,
) -> Tensor:
    """Gradient ``[H * K, c * O]`` of the weights, multiplied in the given type.

    The rows are split over programs whose sums are added in a fixed order, without atomics: the
    same inputs give the same bits.
    """
    hidden, (edges, components, inner), columns = g.shape[1], x.shape, dy.shape[2]
    size = (hidden * inner, components * columns)
    if not edges:
        return x.new_zeros(size, dtype=_sum_type(dtype))
    kind = _kind(dtype, tf32)
    blocks = (tiling or TILINGS[kind]).weights
    constants = _constants(blocks, kind, dtype, hidden, inner, columns, components)
    rows = edges * components
    tiles = triton.cdiv(rows, blocks.rows)
    across = hidden * components * triton.cdiv(columns, constants["BLOCK_O"])
    down = triton.cdiv(inner, constants["BLOCK_K"])
    splits = min(tiles, max(1, SPLIT_WAVES * _processors(x) // (across * down)))
    span = triton.cdiv(tiles, splits) * blocks.rows
    dw = x.new_empty(splits, *size, dtype=_sum_type(dtype))
    with _on(x):
        _weight_gradient_kernel[across, down, splits](
            g.t().contiguous(),
            x.contiguous(),
            dy.to(dtype).contiguous(),
            dw,
            rows,
            span,
            PRODUCT=_TYPES[dtype],
            **constants,
        )
    return dw.sum(0)


def _kind(dtype: torch.dtype, tf32: bool) -> str:
    if dtype.itemsize == 2:
        return "half"
    if dtype == torch.float64:
        if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 5):
            raise ValueError(f"float64 needs Triton 3.5 or newer, this is {triton.__version__}")
        return "double"
    return "tf32" if tf32 else "full"


def _sum_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _constants(
    blocks: Blocks,
    kind: str,
    dtype: torch.dtype,
    hidden: int,
    inner: int,
    columns: int,
    components: int,
) -> dict[str, Any]:
    # The interpreter multiplies the bits of bfloat16 matrices as if they were integers.
    widen = INTERPRETED and dtype == torch.bfloat16
    return {
        "H": hidden,
        "K": inner,
        "O": columns,
        "COMPONENTS": components,
        "BLOCK_ROWS": blocks.rows,
        "BLOCK_K": _tile(inner, blocks.inner),
        "BLOCK_O": _tile(columns, blocks.columns),
        "OPERAND": tl.float32 if widen else _TYPES[dtype],
        "SUM": _TYPES[_sum_type(dtype)],
        "PRECISION": "tf32" if kind == "tf32" else "ieee",
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }


def _tile(size: int, largest: int) -> int:
    """Tile along a side: a power of two, at least the 16 that a matrix product takes."""
    return min(max(triton.next_power_of_2(size), 16), largest)


def _on(x: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _processors(x: Tensor) -> int:
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1
