"""The gradient of an image through the first convolution, block by block, against autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from streamview.streaming.ops.image_gradient import image_gradient

pairs = st.tuples(st.integers(0, 3), st.integers(0, 3))


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.tuples(st.integers(2, 7), st.integers(2, 7)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=pairs,
    size=st.tuples(st.integers(7, 18), st.integers(7, 18)),
    channels=st.integers(1, 4),
)
def test_equals_autograd(lengths, stride, padding, size, channels):
    image = torch.randn(2, channels, *size, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(16, channels, *lengths, dtype=torch.float64)
    out = F.conv2d(image, kernel, stride=stride, padding=padding)
    grad = torch.randn_like(out)
    found = image_gradient(grad, kernel, stride, padding, size)
    if found is not None:
        (expected,) = torch.autograd.grad(out, image, grad)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("length", "stride", "padding"), [(3, 1, 1), (7, 2, 3), (3, 2, 1)])
def test_first_layers_are_taken(length, stride, padding):
    grad = torch.randn(1, 32, 64 // stride, 64 // stride)
    assert image_gradient(grad, torch.randn(32, 3, length, length), (stride, stride), (padding, padding), (64, 64)) is not None


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_gradients_that_are_not_finite_are_left_to_torch(value):
    grad = torch.randn(1, 32, 8, 8)
    grad[0, 3, 4, 4] = value
    assert image_gradient(grad, torch.randn(32, 3, 3, 3), (1, 1), (1, 1), (8, 8)) is None


@pytest.mark.parametrize("kernel", [(8, 3, 3, 3), (32, 5, 3, 3), (32, 3, 2, 2)], ids=["few outputs", "many channels", "no overlap"])
def test_others_are_left_to_torch(kernel):
    stride = 2 if kernel[2] == 2 else 1
    assert image_gradient(torch.randn(1, kernel[0], 8, 8), torch.randn(kernel), (stride, stride), (1, 1), (8, 8)) is None
