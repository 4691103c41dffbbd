"""Masks as one bit an element: the little that the reverse pass of a piecewise-linear operation has to remember."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["Bits", "pack", "unpack"]

Bits = tuple[Tensor, torch.Size, tuple[int, ...]]


def pack(mask: Tensor) -> Bits:
    """A boolean tensor (N, C, H, W) of any dense layout as its bits, shape and strides; on devices other than the CPU as it is."""
    if mask.device.type == "meta":
        return mask.new_empty((mask.numel() + 7) // 8, dtype=torch.uint8), mask.shape, mask.stride()
    if mask.device.type != "cpu":
        return mask, mask.shape, mask.stride()
    flat = mask.as_strided((mask.numel(),), (1,)).view(torch.uint8)
    return torch.from_numpy(np.packbits(flat.numpy())), mask.shape, mask.stride()


def unpack(bits: Bits, like: Tensor) -> Tensor:
    """The mask as zeros and ones of the dtype of `like`."""
    data, shape, stride = bits
    if data.device.type == "cpu":
        flat = torch.from_numpy(np.unpackbits(data.numpy(), count=shape.numel())).to(like.dtype)
        return flat.as_strided(shape, stride)
    if data.device.type == "meta":
        return torch.empty_strided(shape, stride, dtype=like.dtype, device="meta")
    return data.to(like.dtype)
