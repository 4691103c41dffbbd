"""What runs on CUDA alone, as far as it can be tested without: its arithmetic on the CPU, its decisions on the meta device."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.grad import conv2d_input

from streamview.streaming import stream
from streamview.streaming.capture.capture import capture
from streamview.streaming.cuda import full_float32, rounds_to_tf32
from streamview.streaming.ops import bits
from streamview.streaming.ops.window import Convolution
from streamview.streaming.plan import plan
from streamview.streaming.run.out_of_memory import ran_out
from streamview.streaming.schedule import Window
from tests.support.networks import Excite

CUDA = torch.device("cuda")  # a name; nothing here allocates there


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.data())
def test_input_gradients_from_forward_convolutions(data: st.DataObject) -> None:
    def pair(low: int, high: int) -> tuple[int, int]:
        return data.draw(st.integers(low, high)), data.draw(st.integers(low, high))

    kernel, stride = pair(1, 7), pair(1, 4)
    dilation = pair(1, 3) if stride == (1, 1) else (1, 1)
    native = tuple(data.draw(st.integers(0, k)) for k in kernel)
    groups, outputs, inputs = data.draw(st.sampled_from([1, 2])), 4, 6
    size = tuple(d * (k - 1) + 1 + n for d, k, n in zip(dilation, kernel, pair(0, 12), strict=True))
    torch.manual_seed(data.draw(st.integers(0, 100)))
    weight = torch.randn(outputs, inputs // groups, *kernel, dtype=torch.float64)
    image = torch.randn(2, inputs, *size, dtype=torch.float64)
    grad = torch.randn_like(torch.conv2d(image, weight, None, stride, native, dilation, groups))
    rows, cols = (Window(k, s, d, n, n) for k, s, d, n in zip(kernel, stride, dilation, native, strict=True))
    gradient = Convolution(rows, cols, groups, outputs)._input_gradient(grad, weight, native, image.shape)
    expected = conv2d_input(image.shape, weight, grad, stride, native, dilation, groups)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_passes_by_forward_convolutions_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Convolution, "_transposes", lambda self, grad: True)
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 7, 2, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(6, 4, 1, 2, bias=False)]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    image = torch.randn(1, 3, 61, 47, dtype=torch.float64, requires_grad=True)
    gradients = [torch.autograd.grad(m(image)[0, 1], [image, *network.parameters()]) for m in (network, stream(network, tile=(16, 20)))]
    for expected, gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.integers(1, 300), st.integers(0, 9), st.integers(0, 2**16))
def test_bits_are_packed_and_unpacked_on_the_device(count: int, offset: int, seed: int) -> None:
    mask = torch.rand(offset + count, generator=torch.Generator().manual_seed(seed))[offset:] > 0.5
    packed = bits._pack_on_device(mask.view(torch.uint8))
    assert packed.numel() == (count + 7) // 8
    assert torch.equal(bits._unpack_on_device(packed, count) != 0, mask)


@pytest.mark.parametrize(
    "whole", [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), Excite(4)], ids=["group norm", "instance norm", "squeeze-excitation"]
)
def test_networks_with_statistics_are_captured_wherever_they_are(whole: nn.Module) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), whole, nn.ReLU(), nn.Conv2d(4, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    expected = capture(network, channels=3)
    graph = capture(network.to("meta"), channels=3)
    assert (graph.passes, len(graph.nodes)) == (expected.passes, len(expected.nodes))


def test_float32_is_full_for_callers_that_overlap_and_as_before_afterwards() -> None:
    def flags() -> tuple[Any, ...]:
        return torch.backends.cudnn.allow_tf32, torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision

    before = flags()
    first, second = full_float32(CUDA), full_float32(CUDA)
    assert rounds_to_tf32()
    first.__enter__()
    second.__enter__()
    assert not rounds_to_tf32()
    assert flags() == (False, "ieee", "ieee")
    first.__exit__(None, None, None)  # the first to come leaves before the second
    assert flags() == (False, "ieee", "ieee")
    second.__exit__(None, None, None)
    assert flags() == before
    with full_float32(torch.device("cpu")):
        assert flags() == before


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.integers(1, 40_000), st.integers(1, 40_000))
def test_steps_are_large_on_cuda(height: int, width: int) -> None:
    candidates = plan._cuda_candidates((height, width), plan.MEASURED)
    (rows, columns), _ = candidates[0]
    assert columns == width or width > 2**13
    assert rows == 2**13 or min(rows, height) * columns >= min(height * width, 2**22)
    works = [work for _, work in candidates]
    assert works == sorted(works)
    assert min(rows for (rows, _), _ in candidates) <= 32  # small ones are there for small budgets


def test_memory_that_cudnn_lacks_is_memory_that_ran_out() -> None:
    assert ran_out(RuntimeError("FIND was unable to find an engine to execute this computation"))
    assert ran_out(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert not ran_out(RuntimeError("shape mismatch"))
