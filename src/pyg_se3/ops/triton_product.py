"""The product of the edge form by Triton: custom operators with gradients of any order.

The product is linear in activations, features and weights, so each of its derivatives is one of
three operators again: the product, its gradients by the inputs, its gradient by the weights.
"""

import importlib.util
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, library

TYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def require_triton(device: torch.device) -> None:
    """Check that Triton is installed and can compute on a device.

    Raises:
        RuntimeError: it is not, or cannot.
    """
    if importlib.util.find_spec("triton") is None:
        raise RuntimeError(
            "kernel='triton' needs Triton, which is not installed: pip install 'pyg-se3[triton]'"
        )
    if device.type != "cuda" and not _kernels().INTERPRETED:
        raise RuntimeError(
            f"kernel='triton' needs a CUDA device, the tensors are on {device}; "
            "on a CPU it runs only in Triton's interpreter, which is slow "
            "(TRITON_INTERPRET=1 in the environment before Triton is imported)"
        )


def triton_product(g: Tensor, x: Tensor, w: Tensor, dtype: torch.dtype) -> Tensor:
    r"""Coupled product of one ``|m|`` with the outer product formed in registers.

    .. math::
        y = A\,(g \otimes x) \text{ for m = 0}, \qquad
        y_{\pm m} = A\,(g \otimes x_{\pm m}) \pm B\,(g \otimes x_{\mp m}) \text{ for m > 0}.

    Sums are in float32, for float64 in float64; float32 matrices are rounded to TF32 where
    ``torch.backends.cuda.matmul`` allows it.

    Args:
        g: radial activations ``[E, H]``.
        x: features in the edge frame ``[E, c, K]``: c = 1 for m = 0, else 2, +m before -m.
        w: packed weights ``[H * K, c * O]``, for c = 2 the columns A, then B.
        dtype: type of the matrices in the product.

    Returns:
        ``[E, c, O]`` in the type of x.

    Raises:
        RuntimeError: see :func:`require_triton`.
        ValueError: shapes or a type that do not fit.
    """
    require_triton(x.device)
    _validate(g, x, w, dtype)
    return _product(g, x, w, dtype)


def _validate(g: Tensor, x: Tensor, w: Tensor, dtype: torch.dtype) -> None:
    if dtype not in TYPES:
        raise ValueError(f"the product is in one of {TYPES}, got {dtype}")
    if g.ndim != 2 or x.ndim != 3 or w.ndim != 2 or x.shape[1] not in (1, 2):
        raise ValueError(
            "expected activations [E, H], features [E, 1 or 2, K] and weights [H K, c O], "
            f"got {list(g.shape)}, {list(x.shape)} and {list(w.shape)}"
        )
    if g.shape[0] != x.shape[0]:
        raise ValueError(f"activations of {g.shape[0]} edges do not fit features of {x.shape[0]}")
    if w.shape[0] != g.shape[1] * x.shape[2] or w.shape[1] % x.shape[1]:
        raise ValueError(
            f"weights {list(w.shape)} do not fit {g.shape[1]} activations "
            f"and features {list(x.shape)}"
        )


def _kernels() -> ModuleType:
    from pyg_se3.ops import triton_kernels

    return triton_kernels


def _tf32() -> bool:
    """Whether float32 products may round to TF32, by torch's own setting."""
    setting = getattr(torch.backends.cuda.matmul, "fp32_precision", None)  # torch >= 2.9
    if setting is not None:
        return setting == "tf32"
    return torch.backends.cuda.matmul.allow_tf32


@library.custom_op("pyg_se3::triton_product", mutates_args=())
def _product(g: Tensor, x: Tensor, w: Tensor, dtype: torch.dtype) -> Tensor:
    return _kernels().product(g, x, w.to(dtype), _tf32())


@library.custom_op("pyg_se3::triton_input_gradients", mutates_args=())
def _input_gradients(
    g: Tensor, x: Tensor, w: Tensor, dy: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return _kernels().input_gradients(g, x, w.to(dtype), dy, _tf32())


@library.custom_op("pyg_se3::triton_weight_gradient", mutates_args=())
def _weight_gradient(g: Tensor, x: Tensor, dy: Tensor, dtype: torch.dtype) -> Tensor:
    return _kernels().weight_gradient(g, x, dy, dtype, _tf32())


@_product.register_fake
def _(g: Tensor, x: Tensor, w: Tensor, dtype: torch.dtype) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], w.shape[1] // x.shape[1])


@_input_gradients.register_fake
def _(g: Tensor, x: Tensor, w: Tensor, dy: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return g.new_empty(g.shape), x.new_empty(x.shape)


@_weight_gradient.register_fake
def _(g: Tensor, x: Tensor, dy: Tensor, dtype: torch.dtype) -> Tensor:
    total = torch.float64 if dtype == torch.float64 else torch.float32
    return x.new_empty(g.shape[1] * x.shape[2], x.shape[1] * dy.shape[2], dtype=total)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.dtype = inputs
    ctx.save_for_backward(*tensors)


def _product_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    g, x, w = ctx.saved_tensors
    need, dtype = ctx.needs_input_grad, ctx.dtype
    dg = dx = dw = None
    if need[0] or need[1]:
        dg, dx = _input_gradients(g, x, w, dy, dtype)
    if need[2]:
        dw = _weight_gradient(g, x, dy, dtype).to(w.dtype)
    return dg, dx, dw, None


def _input_gradients_backward(ctx: Any, cg: Tensor, cx: Tensor) -> tuple[Tensor | None, ...]:
    # The gradients' inner product with (cg, cx) is dy . product(cg, x, w) + dy . product(g, cx, w).
    g, x, w, dy = ctx.saved_tensors
    need, dtype = ctx.needs_input_grad, ctx.dtype
    gg = gx = gw = gdy = None
    if need[0]:
        gg = _input_gradients(g, cx, w, dy, dtype)[0]
    if need[1]:
        gx = _input_gradients(cg, x, w, dy, dtype)[1]
    if need[2]:
        gw = _weight_gradient(cg, x, dy, dtype) + _weight_gradient(g, cx, dy, dtype)
        gw = gw.to(w.dtype)
    if need[3]:
        gdy = (_product(cg, x, w, dtype) + _product(g, cx, w, dtype)).to(dy.dtype)
    return gg, gx, gw, gdy, None


def _weight_gradient_backward(ctx: Any, cw: Tensor) -> tuple[Tensor | None, ...]:
    # The gradient's inner product with cw is dy . product(g, x, cw).
    g, x, dy = ctx.saved_tensors
    need, dtype = ctx.needs_input_grad, ctx.dtype
    gg = gx = gdy = None
    if need[0] or need[1]:
        gg, gx = _input_gradients(g, x, cw, dy, dtype)
    if need[2]:
        gdy = _product(g, x, cw, dtype).to(dy.dtype)
    return gg, gx, gdy, None


_product.register_autograd(_product_backward, setup_context=_save)
_input_gradients.register_autograd(_input_gradients_backward, setup_context=_save)
_weight_gradient.register_autograd(_weight_gradient_backward, setup_context=_save)
