"""Packed masks against plain multiplication."""

import pytest
import torch

from streamview.streaming import stream
from streamview.streaming.ops import bits


@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (2, 8, 9, 4), (1, 1, 1, 1), (1, 4, 300, 301)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_select_equals_multiplication(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    mask = (torch.randn(shape) > 0).contiguous(memory_format=layout)
    packed = bits.pack(mask)
    assert isinstance(packed[0], bytes)
    assert len(packed[0]) == (mask.numel() + 7) // 8
    for grad in (torch.randn(shape), torch.randn(shape).contiguous(memory_format=layout), torch.randn(*shape[:3], 2 * shape[3])[..., ::2]):
        expected = grad * mask
        assert torch.equal(bits.select_(grad, packed), expected)
    assert torch.equal(bits.unpack(packed, torch.zeros(1, dtype=torch.float64)), mask.double())


def test_a_part_of_a_larger_buffer_alone_is_changed() -> None:
    buffer = torch.ones(1, 4, 6, 5).contiguous(memory_format=torch.channels_last)
    part = buffer[:, :, 2:4]
    bits.select_(part, bits.pack(torch.zeros_like(part, dtype=torch.bool)))
    assert buffer.sum() == 4 * 4 * 5


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_stays_where_it_belongs(value: float) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2)).requires_grad_(False)
    image = torch.randn(1, 3, 26, 30, requires_grad=True)
    grads = []
    for module in (network, stream(network, tile=(8, 30)), stream(network, memory="1GB")):
        out = module(image)
        cotangent = torch.ones_like(out)
        cotangent[0, 1, 4, 5] = value
        grads.append(torch.autograd.grad(out, image, cotangent)[0].isfinite())
    assert not grads[0].all()
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])
