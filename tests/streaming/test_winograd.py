"""Convolutions and gradients with fewer products, and kernels' gradients by matrix products, against autograd."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import streamview
from streamview.streaming.ops import kernel_gradient, winograd
from streamview.streaming.schedule import Window
from tests.support.oracle import errors

sides = st.tuples(st.integers(5, 17), st.integers(5, 17))


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 3 x 3 convolution and every kernel's gradient is computed so, however few its channels, in several parts."""
    monkeypatch.setattr(winograd, "_CHANNELS", dict.fromkeys(winograd._CHANNELS, 1))
    monkeypatch.setattr(winograd, "_TILES", 1)
    monkeypatch.setattr(winograd, "_ELEMENTS", 2**9)
    monkeypatch.setattr(kernel_gradient, "_ONE", 1)
    monkeypatch.setattr(kernel_gradient, "_SEVERAL", 1)
    monkeypatch.setattr(winograd, "AVX512", False)


@settings(max_examples=100, deadline=None)
@given(
    size=sides,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    images=st.integers(1, 2),
    elements=st.sampled_from([1, 2**9, 2**20]),
)
def test_equals_autograd(size, padding, images, elements):
    x = torch.randn(images, 3, *size, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64)
    out = F.conv2d(x, kernel, bias, padding=padding)
    grad = torch.randn_like(out)
    of_x, of_kernel = torch.autograd.grad(out, (x, kernel), grad)
    x, kernel = x.detach(), kernel.detach()
    with mock.patch.object(winograd, "_ELEMENTS", elements):
        torch.testing.assert_close(winograd.convolve(x, kernel, bias, padding), out.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(winograd.input_gradient(grad, kernel, padding), of_x, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(winograd.kernel_gradient(x, grad, padding), of_kernel, rtol=1e-12, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(
    size=sides,
    lengths=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
def test_a_kernels_gradient_by_its_elements_equals_autograd(size, lengths, stride, dilation, padding):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    kernel = torch.randn(4, 3, *lengths, dtype=torch.float64, requires_grad=True)
    out = F.conv2d(x, kernel, None, stride, padding, dilation)
    grad = torch.randn_like(out)
    (expected,) = torch.autograd.grad(out, kernel, grad)
    window = tuple(Window(n, s, d) for n, s, d in zip(lengths, stride, dilation, strict=True))
    torch.testing.assert_close(kernel_gradient._by_element(x, grad, window, padding), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("always", "fine_rows")
@pytest.mark.parametrize("tile", [(8, 64), (16, 11)])
def test_a_network_is_exact(tile):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Conv2d(6, 5, 3, stride=2, padding=1), nn.ReLU()]
    network = nn.Sequential(
        *layers, nn.Conv2d(5, 7, 3, bias=False), nn.ReLU(), nn.Conv2d(7, 2, 3, padding=2), nn.AdaptiveAvgPool2d(1)
    ).double()
    image = torch.randn(2, 3, 47, 39, dtype=torch.float64)
    calls = {name: mock.patch.object(winograd, name, wraps=getattr(winograd, name)) for name in _WAYS}
    with calls["convolve"] as convolved, calls["input_gradient"] as of_input, calls["kernel_gradient"] as of_kernel:
        assert max(errors(network, image, tile=tile)) < 1e-10
    assert all(call.called for call in (convolved, of_input, of_kernel))


_WAYS = ("convolve", "input_gradient", "kernel_gradient")


@pytest.mark.usefixtures("always", "fine_rows")
@pytest.mark.parametrize("name", _WAYS)
def test_a_wrong_sign_is_noticed(name, monkeypatch):
    network = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 3), nn.AdaptiveAvgPool2d(1)).double()
    right = getattr(winograd, name)
    monkeypatch.setattr(winograd, name, lambda *args: -right(*args))
    assert max(errors(network, torch.randn(1, 3, 24, 24, dtype=torch.float64), tile=(8, 24))) > 1e-3


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("padding", [3, 5])
def test_padding_beyond_the_kernel(padding):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=padding), nn.AdaptiveAvgPool2d(1)).double()
    assert max(errors(network, torch.randn(1, 3, 12, 14, dtype=torch.float64), tile=(64, 64))) < 1e-10


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_what_is_not_finite_spreads_as_in_torch(value):
    network = nn.Conv2d(2, 3, 3, padding=1).double().requires_grad_(False)
    image = torch.randn(1, 2, 12, 12, dtype=torch.float64)
    image[0, 1, 5, 6] = value
    torch.testing.assert_close(streamview.stream(network)(image), network(image), equal_nan=True)


def test_a_transformed_kernel_is_kept_until_it_changes():
    kernel = torch.randn(128, 128, 3, 3)
    before = winograd.transformed(kernel)
    assert winograd.transformed(kernel) is before
    assert before.nbytes == winograd.transformed_bytes(kernel)
    kernel.mul_(2)
    torch.testing.assert_close(winograd.transformed(kernel), 2 * before)


@pytest.mark.usefixtures("always")
def test_no_transformed_kernel_outlives_a_call():
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1)).eval().requires_grad_(False)
    before = len(winograd._transformed)
    with torch.inference_mode():
        streamview.stream(network)(torch.rand(1, 3, 24, 24))
    streamview.stream(network)(torch.rand(1, 3, 24, 24, requires_grad=True)).sum().backward()
    assert len(winograd._transformed) == before


def test_float32_is_near_to_float64():
    """No further from it than three times torch's own kernel."""
    torch.manual_seed(0)
    x, kernel = torch.randn(1, 256, 34, 34, dtype=torch.float64).relu(), torch.randn(256, 256, 3, 3, dtype=torch.float64)
    exact = F.conv2d(x, kernel)
    ours = winograd.convolve(x.float(), kernel.float(), None, (0, 0)) - exact
    torchs = F.conv2d(x.float(), kernel.float()) - exact
    assert ours.square().mean().sqrt() < 3 * torchs.square().mean().sqrt()


@pytest.mark.usefixtures("always")
def test_a_plan_counts_what_it_takes():
    network = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1), nn.AdaptiveAvgPool2d(1)).requires_grad_(False)
    with_it = streamview.stream(network, tile=(64, 512)).plan((1, 3, 512, 512)).peak_bytes
    with mock.patch.object(winograd, "_CHANNELS", dict.fromkeys(winograd._CHANNELS, 10**9)):
        without = streamview.stream(network, tile=(64, 512)).plan((1, 3, 512, 512)).peak_bytes
    assert with_it - without >= winograd.transformed_bytes(network[1].weight)
