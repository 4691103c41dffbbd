"""Masks as one bit an element: the little that the backward pass of a piecewise-linear operation has to remember."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["Bits", "divide", "nonzero", "pack", "select_", "unpack"]

Bits = tuple[Tensor | bytes, torch.Size, tuple[int, ...]]
"""Data, shape and strides. On a processor the data are `bytes`, one allocation that stays. A tensor would make several small ones
beside it; they would come to lie in the gaps that glibc leaves around aligned blocks and keep these from joining when they are freed, so
that no block of the same size fits again, and memory grows by the step."""
_CHUNK = 2**19  # elements that stay in the processor's cache; a multiple of 8
# Whole numbers of the same size: times 1 they leave infinities and NaN as they are, and times 0 they make a zero of them.
_WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def nonzero(out: Tensor) -> Bits:
    """The bits of where a rectified tensor is not zero; where it is NaN its gradient passes, as in torch.

    The cast is five times as fast as a comparison, which torch does not vectorise.
    """
    return pack(out.to(torch.bool))


def pack(mask: Tensor) -> Bits:
    """A boolean tensor (N, C, H, W) of any dense layout as its bits, shape and strides."""
    if mask.device.type == "meta":
        return mask.new_empty((mask.numel() + 7) // 8, dtype=torch.uint8), mask.shape, mask.stride()
    flat = mask.as_strided((mask.numel(),), (1,), mask.storage_offset()).view(torch.uint8)
    if mask.device.type == "cpu":
        return np.packbits(flat.numpy()).tobytes(), mask.shape, mask.stride()
    return _pack_on_device(flat), mask.shape, mask.stride()


def unpack(bits: Bits, like: Tensor) -> Tensor:
    """The mask as zeros and ones of the dtype of `like`."""
    data, shape, stride = bits
    if isinstance(data, bytes):
        flat = _unpack(memoryview(data), shape.numel())
    elif data.device.type == "meta":
        return torch.empty_strided(shape, stride, dtype=like.dtype, device="meta")
    else:
        flat = _unpack_on_device(data, shape.numel()) != 0
    return flat.to(like.dtype).as_strided(shape, stride)


def select_(grad: Tensor, bits: Bits) -> Tensor:
    """Set `grad` to zero where the mask is not set, in place."""
    data, shape, stride = bits
    if not isinstance(data, bytes):
        if data.device.type == "meta":
            return grad
        # no look at the values, for which the host would wait
        return grad.masked_fill_((_unpack_on_device(data, shape.numel()) == 0).as_strided(shape, stride), 0)
    same = all(n == 1 or a == b for n, a, b in zip(shape, grad.stride(), stride, strict=True))
    if not same:
        whole = grad.view(_WHOLE[grad.itemsize])
        whole.mul_(unpack(bits, whole))
        return grad
    # the same dense layout: in chunks, so that the mask never stands in memory as numbers
    whole = grad.as_strided((shape.numel(),), (1,), grad.storage_offset()).view(_WHOLE[grad.itemsize])
    for start in range(0, shape.numel(), _CHUNK):
        part = whole[start : start + _CHUNK]
        part.mul_(_unpack(memoryview(data)[start // 8 :], part.numel()))
    return grad


def divide(grad: Tensor, bits: Bits, chosen: Tensor, rest: Tensor) -> None:
    """Write `grad` into `chosen` where the mask is set and into `rest` where it is not, zero elsewhere."""
    grad, chosen, rest = (tensor.view(_WHOLE[tensor.itemsize]) for tensor in (grad, chosen, rest))
    torch.mul(grad, unpack(bits, grad), out=chosen)
    torch.sub(grad, chosen, out=rest)


def _unpack(data: memoryview, count: int) -> Tensor:
    """The first `count` bits as uint8."""
    return torch.from_numpy(np.unpackbits(np.frombuffer(data, np.uint8, (count + 7) // 8), count=count))


def _pack_on_device(flat: Tensor) -> Tensor:
    """Zeros and ones (n,) uint8 as ceil(n / 8) bytes, the first of eight as the lowest bit.

    Eight of them are one integer of 64 bits. Times 2^56 + 2^49 + ... + 2^7 the i-th of them lands on bit 56 + i, and nothing else
    reaches the highest byte.
    """
    if flat.numel() % 8 or flat.storage_offset() % 8:
        flat = torch.nn.functional.pad(flat, (0, -flat.numel() % 8))
    spread = flat.view(torch.int64)
    return (spread * 0x0102040810204080 >> 56).to(torch.uint8)


def _unpack_on_device(data: Tensor, count: int) -> Tensor:
    """The first `count` bits that `_pack_on_device` made, (count,) uint8: zero, or a power of two where the bit is set."""
    copies = data.to(torch.int64) * 0x0101010101010101
    # the i-th byte keeps bit i; the constant is 0x8040201008040201 as a signed integer
    return copies.bitwise_and_(0x8040201008040201 - 2**64).view(torch.uint8)[:count]
