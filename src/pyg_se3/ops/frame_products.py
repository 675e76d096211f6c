"""The products of one ``|m|`` in the edge frame, and what their derivatives are made of.

Features are ``[e, c, C]``, with components -m and +m (c = 2) or 0 (c = 1), as in
:class:`pyg_se3.ops.edge_frames.FrameLayout`; weights ``[r * K, C]`` or ``[r * K, 2 C]``, the two
parts A and B side by side, as :func:`pyg_se3.ops.packing.pack_weights` makes them.
"""

from __future__ import annotations

import torch
from torch import Tensor

FEW = 12
"""Ranks up to which a few multiply-adds beat many tiny matrix products on a CPU."""


def outer(values: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """``values x x``: rows ``[e * c, r * K]`` from ``[e, r]`` and ``[e, c, K]``."""
    edges, components, channels = x.shape
    product = values.to(dtype)[:, None, :, None] * x.to(dtype)[:, :, None]
    return product.view(edges * components, values.shape[1] * channels)


def add_outer(products: Tensor, values: Tensor, x: Tensor) -> None:
    """Add :func:`outer` to ``[e * c, r * K]``."""
    rows = products.view(*x.shape[:2], values.shape[1], x.shape[2])
    rows.addcmul_(values.to(rows.dtype)[:, None, :, None], x.to(rows.dtype)[:, :, None])


def couple(rows: Tensor, target: Tensor, add: bool) -> None:
    """Write or add to ``[e, c, C]`` what products with ``[A | B]`` make.

    These are A x+ + B x- and A x- - B x+.
    """
    edges, components, channels = target.shape
    if components == 1:
        part = rows.view(edges, 1, channels)
        target.add_(part) if add else target.copy_(part)
        return
    pair = rows.view(edges, 2, 2, channels)
    if add:
        target += pair[:, :, 0]
        target[:, 0] -= pair[:, 1, 1]
        target[:, 1] += pair[:, 0, 1]
    elif rows.dtype == target.dtype:
        torch.sub(pair[:, 0, 0], pair[:, 1, 1], out=target[:, 0])
        torch.add(pair[:, 1, 0], pair[:, 0, 1], out=target[:, 1])
    else:
        target[:, 0] = pair[:, 0, 0] - pair[:, 1, 1]
        target[:, 1] = pair[:, 1, 0] + pair[:, 0, 1]


def uncouple(dy: Tensor, dtype: torch.dtype) -> Tensor:
    """Transpose of :func:`couple`: rows ``[e * c, C or 2 C]`` from ``[e, c, C]``."""
    edges, components, channels = dy.shape
    if components == 1:
        return dy[:, 0].to(dtype)
    rows = dy.new_empty(edges, 2, 2, channels, dtype=dtype)
    rows[:, :, 0] = dy
    rows[:, 0, 1] = dy[:, 1]
    torch.neg(dy[:, 0], out=rows[:, 1, 1]) if dtype == dy.dtype else rows[:, 1, 1].copy_(-dy[:, 0])
    return rows.view(2 * edges, 2 * channels)


def over_ranks(back: Tensor, values: Tensor, target: Tensor, add: bool) -> None:
    """Write or add ``sum_r values_er back_ecrK`` to ``[e, c, K]``; ``back`` may have more ranks."""
    edges, components, channels = target.shape
    rank = values.shape[1]
    if 0 < rank <= FEW and back.device.type == "cpu":
        factors = values[:, :, None, None].unbind(1)
        for part, factor in zip(back.unbind(2), factors, strict=False):
            if add:
                target.addcmul_(part, factor)
            else:
                torch.mul(part, factor, out=target)
            add = True
        return
    rows = values.to(back.dtype)[:, None, None].expand(edges, components, 1, rank)
    flat = torch.bmm(rows.reshape(-1, 1, rank), back[:, :, :rank].reshape(-1, rank, channels))
    flat = flat.view(edges, components, channels)
    target.add_(flat) if add else target.copy_(flat)


def over_channels(back: Tensor, x: Tensor) -> Tensor:
    """``sum_cK back_ecrK x_ecK``: ``[e, r]``."""
    edges, components, rank, channels = back.shape
    flat = torch.bmm(back.flatten(0, 1), x.to(back.dtype).reshape(-1, channels, 1))
    return flat.view(edges, components, rank).sum(1).to(x.dtype)
