"""Packed masks against plain multiplication."""

import pytest
import torch

from streamview.streaming.ops import bits


@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (2, 8, 9, 4), (1, 1, 1, 1), (1, 4, 300, 301)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_select_equals_multiplication(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    mask = (torch.randn(shape) > 0).contiguous(memory_format=layout)
    packed = bits.pack(mask)
    assert packed[0].numel() == (mask.numel() + 7) // 8
    for grad in (torch.randn(shape), torch.randn(shape).contiguous(memory_format=layout), torch.randn(*shape[:3], 2 * shape[3])[..., ::2]):
        expected = grad * mask
        assert torch.equal(bits.select_(grad, packed), expected)
    assert torch.equal(bits.unpack(packed, torch.zeros(1, dtype=torch.float64)), mask.double())


def test_a_part_of_a_larger_buffer_alone_is_changed() -> None:
    buffer = torch.ones(1, 4, 6, 5).contiguous(memory_format=torch.channels_last)
    part = buffer[:, :, 2:4]
    bits.select_(part, bits.pack(torch.zeros_like(part, dtype=torch.bool)))
    assert buffer.sum() == 4 * 4 * 5
