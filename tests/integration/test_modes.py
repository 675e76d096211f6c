"""What one way of calling leaves behind must not break another."""

from __future__ import annotations

import torch

from pyg_se3.models import SE3TransformerPooled


def test_training_after_inference():
    # Tables of a kind that no other test in this process has asked for before.
    net = SE3TransformerPooled({0: 2}, 6, 2, num_layers=1, num_heads=1).double()
    generator = torch.Generator().manual_seed(0)
    x, pos = (torch.randn(5, k, generator=generator, dtype=torch.float64) for k in (2, 3))
    edge_index = torch.combinations(torch.arange(5)).T
    with torch.inference_mode():
        first = net.eval()(x, pos, edge_index)
    second = net.train()(x, pos, edge_index)
    torch.testing.assert_close(first.clone(), second.detach())
    second.sum().backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)
