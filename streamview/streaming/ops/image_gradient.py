"""The gradient of an image through the first convolution, whose few input channels leave most of a vector register empty.

A kernel that computes a gradient of three channels computes sixteen and throws thirteen away. Here the rows and columns of a block,
two by two at stride 1 or 2, become channels: twelve of sixteen are used, and it is twice as fast. That is the subpixel convolution of
https://arxiv.org/abs/1609.05158, for a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from streamview.streaming.ops.registry import Size, finite

__all__ = ["image_gradient"]

_LANES = 16  # float32 in a vector register of 512 bits


def image_gradient(grad: Tensor, kernel: Tensor, stride: Size, padding: Size, size: Sequence[int]) -> Tensor | None:
    """The gradient of a convolution's input on a processor, as one convolution.

    Along an axis, ``dx[i] = sum of g[o] w[i + p - s o] over o``. With ``i + p = b q + r``, a block of b = n s elements and
    ``o = n q + t``, this is for each r a convolution of g over t, of stride n, by ``w[r - s t]``.

    Parameters
    ----------
    grad
        Of the output, (N, O, h, w).
    kernel
        (O, C, kernel rows, kernel columns), without groups or dilation.
    stride, padding
        Of the convolution, rows and columns.
    size
        Rows and columns of the input.

    Returns
    -------
    Tensor or None
        (N, C, rows, columns), channels last; None where torch's own kernel does better, or where a gradient is not finite: the zeros
        with which the kernels of a block are filled up would make it NaN.
    """
    out_channels, channels, *lengths = kernel.shape
    block = [s if s > 1 else 2 for s in stride]
    if grad.dtype.itemsize < 4 or out_channels < _LANES or channels * math.prod(block) > _LANES:
        return None
    if any(length <= s for length, s in zip(lengths, stride, strict=True)):
        return None
    ahead = [(length - 1) // s for length, s in zip(lengths, stride, strict=True)]
    step = [b // s for b, s in zip(block, stride, strict=True)]
    blocks = [math.ceil((p + n) / b) for p, n, b in zip(padding, size, block, strict=True)]
    convolved = [(g + a - n) // n + 1 for g, a, n in zip(grad.shape[2:], ahead, step, strict=True)]
    if any(m < b for m, b in zip(convolved, blocks, strict=True)) or not finite(grad):
        return None
    kernels = kernel.new_zeros(*block, channels, out_channels, *(n + a for n, a in zip(step, ahead, strict=True)))
    for y in range(block[0]):
        taps_y, place_y = _phase(y, lengths[0], stride[0], ahead[0])
        for x in range(block[1]):
            taps_x, place_x = _phase(x, lengths[1], stride[1], ahead[1])
            kernels[y, x, :, :, place_y, place_x] = kernel[:, :, taps_y, taps_x].flip(2, 3).transpose(0, 1)
    kernels = kernels.flatten(0, 2).contiguous(memory_format=torch.channels_last)
    by_block = F.conv2d(grad, kernels, stride=step, padding=ahead)[:, :, : blocks[0], : blocks[1]]
    apart = by_block.permute(0, 2, 3, 1).unflatten(3, (*block, channels)).permute(0, 1, 3, 2, 4, 5)
    whole = apart.reshape(len(grad), blocks[0] * block[0], blocks[1] * block[1], channels).permute(0, 3, 1, 2)
    cut: Tensor = whole[:, :, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]
    return cut


def _phase(offset: int, length: int, stride: int, ahead: int) -> tuple[slice, slice]:
    """The elements of a kernel that an element of a block meets, and their places in the block's kernel, in reverse order."""
    first = offset % stride
    taps = range(first, length, stride)
    start = (offset - taps[-1]) // stride + ahead
    return slice(first, None, stride), slice(start, start + len(taps))
