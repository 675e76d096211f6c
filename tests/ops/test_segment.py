"""Sum, maximum and softmax by segment, on numbers done by hand."""

import torch

from pyg_se3.ops.segment import segment_max, segment_softmax, segment_sum

INDEX = torch.tensor([2, 0, 2])
VALUES = torch.tensor([[1.0, -1.0], [2.0, 5.0], [3.0, -4.0]])


def test_sum():
    assert segment_sum(VALUES, INDEX, 4).tolist() == [[2, 5], [0, 0], [4, -5], [0, 0]]


def test_max_of_negative_numbers_and_of_nothing():
    assert segment_max(VALUES, INDEX, 4).tolist() == [[2, 5], [0, 0], [3, -1], [0, 0]]


def test_softmax_sums_to_one_in_every_segment():
    weights = segment_softmax(100 * VALUES, INDEX, 4)
    torch.testing.assert_close(weights[1], torch.ones(2))
    torch.testing.assert_close(weights[0] + weights[2], torch.ones(2))
    torch.testing.assert_close(
        segment_softmax(VALUES, INDEX, 4)[[0, 2], 0], VALUES[[0, 2], 0].softmax(0)
    )


def test_no_rows():
    assert segment_softmax(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), 3).shape == (0, 2)
    assert (
        segment_max(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), 3).tolist()
        == [[0] * 2] * 3
    )


def test_softmax_is_differentiable_twice():
    logits = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def softmax(logits):
        return segment_softmax(logits, INDEX, 3)

    assert torch.autograd.gradcheck(softmax, logits)
    assert torch.autograd.gradgradcheck(softmax, logits)
