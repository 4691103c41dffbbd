"""Convolutions of 3 x 3 and many channels with 4 multiplications where the sum itself takes 9.

Two by two outputs need 4 x 4 inputs. Along an axis, with inputs d, kernel g and outputs y,

    y[0] = m0 + m1 + m2,  y[1] = m1 - m2 - m3,
    m0 = (d0 - d2) g0,  m1 = (d1 + d2) (g0 + g1 + g2) / 2,  m2 = (d2 - d1) (g0 - g1 + g2) / 2,  m3 = (d1 - d3) g2

so that 4 products stand for 6, and on both axes 16 for 36; over channels, each of the 16 is one matrix product. This is F(2 x 2, 3 x 3)
of https://arxiv.org/abs/1509.09308. In exact arithmetic it is the convolution; its constants are 1 and 1/2 alone, so that in float32
its rounding error is two to three times that of the sum itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from streamview.streaming.ops.registry import Size
from streamview.streaming.schedule import Window

__all__ = ["AVX512", "convolve", "input_gradient", "kernel_gradient", "scratch", "suits", "transformed", "transformed_bytes"]

# The least channels for which the products save more than the sums around them cost: of a convolution, and of its input's and its
# kernel's gradient. oneDNN's own kernels are twice as fast with AVX-512; without, its gradient of a kernel is slow in channels last.
AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
_CHANNELS = {"output": 512, "input": 512, "kernel": 256} if AVX512 else {"output": 128, "input": 256, "kernel": 32}
_TILES = 32  # with fewer, reading the kernels does
_ELEMENTS = 2**20  # of transformed inputs at once: what stays in the caches

_STRAIGHT, _TURNED = (0, 1, 2, 3), (3, 1, 2, 0)
_transformed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def suits(kernel: Tensor, window: tuple[Window, Window], outputs: Size, wanted: Literal["output", "input", "kernel"]) -> bool:
    """Whether a convolution without groups is faster so on a processor, for as many rows and columns of outputs.

    `kernel` is (O, C, rows, columns), `window` that of its rows and of its columns; `wanted` is ``"output"``, or the gradient of the
    ``"input"`` or the ``"kernel"``.
    """
    out_channels, channels = kernel.shape[:2]
    return (
        kernel.dtype.itemsize >= 4
        and all(axis.kernel == 3 and axis.stride == axis.dilation == 1 for axis in window)
        and min(out_channels, channels) >= _CHANNELS[wanted]
        and outputs[0] * outputs[1] >= 4 * _TILES
    )


def transformed(kernel: Tensor) -> Tensor:
    """The sixteen matrices (16, C, O) of a kernel (O, C, 3, 3); they are kept as long as it lives and does not change."""
    version = 0 if kernel.is_inference() else kernel._version
    known = _transformed.get(kernel)
    if known is None or known[0] != version:
        taps = kernel.permute(2, 3, 0, 1).reshape(9, -1)  # a view: in the order (C, O) it would be a slow copy
        known = version, (_both_axes(kernel) @ taps).view(16, *kernel.shape[:2]).transpose(1, 2)
        _transformed[kernel] = known
    matrices: Tensor = known[1]
    return matrices


def transformed_bytes(kernel: Tensor) -> int:
    """Bytes of `transformed`."""
    return 16 * kernel.nbytes // 9


def scratch(x: Tensor, kernel: Tensor, outputs: Size) -> Tensor:
    """An empty tensor of what any of the three takes besides its operands, its result and the transformed kernel."""
    out_channels, channels = kernel.shape[:2]
    across = (outputs[1] + 1) // 2
    tiles = len(x) * across * min((outputs[0] + 1) // 2, _rows_at_once(len(x), across, channels))
    return x.new_empty(tiles * (24 * channels + 28 * out_channels) + 16 * channels * out_channels)


def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None, padding: Size) -> Tensor:
    """``F.conv2d(x, kernel, bias, padding=padding)``."""
    return _convolve(x, transformed(kernel), bias, padding)


def input_gradient(grad: Tensor, kernel: Tensor, padding: Size) -> Tensor:
    """The gradient of `convolve`'s input: the convolution of its output's with the transposed kernel, turned by 180 degrees.

    To turn the kernel exchanges g0 and g2, and with them the first and the last of the four products of an axis.
    """
    return _convolve(grad, transformed(kernel).transpose(1, 2), None, (2 - padding[0], 2 - padding[1]), _TURNED)


def kernel_gradient(x: Tensor, grad: Tensor, padding: Size) -> Tensor:
    """The gradient (O, C, 3, 3) of `convolve`'s kernel: every product's own, and back through the sums."""
    channels, out_channels = x.shape[1], grad.shape[1]
    total = x.new_zeros(16, channels, out_channels)
    for rows, tiles in _tiles(x, padding, grad.shape[2:]):
        total.baddbmm_(tiles.flatten(1, -2).transpose(1, 2), _spread(grad, rows, tiles.shape[3]).flatten(1, -2))
    taps = _both_axes(x, -1).t() @ total.view(16, -1)
    return taps.view(3, 3, channels, out_channels).permute(3, 2, 0, 1)


def _convolve(x: Tensor, matrices: Tensor, bias: Tensor | None, padding: Size, order: Sequence[int] = _STRAIGHT) -> Tensor:
    """Convolve with a transformed kernel (16, C, O) whose matrices are in this order along each axis."""
    rows, cols = (n + 2 * pad - 2 for n, pad in zip(x.shape[2:], padding, strict=True))
    out = x.new_empty(len(x), rows + rows % 2, cols + cols % 2, matrices.shape[2])
    for (first, last), tiles in _tiles(x, padding, (rows, cols), order):
        products = torch.bmm(tiles.flatten(1, -2), matrices).unflatten(1, tiles.shape[1:-1]).unflatten(0, (4, 4))
        if bias is not None:
            products[1, 1] += bias  # of this one there is one in every output
        across = x.new_empty(4, *tiles.shape[1:-1], 2, matrices.shape[2])
        _sums([products[:, i] for i in order], across.unbind(-2))
        _sums([across[i].flatten(-3, -2) for i in order], out[:, 2 * first : 2 * last].unflatten(1, (-1, 2)).unbind(2))
    return out[:, :rows, :cols].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _tiles(x: Tensor, padding: Size, outputs: Sequence[int], order: Sequence[int] = _STRAIGHT) -> Iterator[tuple[Size, Tensor]]:
    """The inputs of all tiles (16, N, rows of tiles, tiles in a row, C) as the products take them, a few rows at once: which, and they.

    `order` is that of an axis's four products.
    """
    x = x.permute(0, 2, 3, 1)
    images, height, width, channels = x.shape
    down, across = ((n + 1) // 2 for n in outputs)
    left, at_once = padding[1], _rows_at_once(images, across, channels)
    for first in range(0, down, at_once):
        last = min(first + at_once, down)
        start, stop = 2 * first - padding[0], 2 * last + 2 - padding[0]
        part = x[:, max(0, start) : stop]
        if start < 0 or stop > height:
            part = F.pad(part, (0, 0, 0, 0, max(0, -start), max(0, stop - height)))
        by_rows = x.new_empty(4, images, last - first, 2 * across + 2, channels)
        by_rows[:, :, :, :left].zero_()
        by_rows[:, :, :, left + width :].zero_()
        _differences(_every_second(part, 1, last - first), [by_rows[i, :, :, left : left + width] for i in order])
        tiles = x.new_empty(4, 4, images, last - first, across, channels)
        _differences(_every_second(by_rows, 3, across), [tiles[:, i] for i in order])
        yield (first, last), tiles.flatten(0, 1)


def _rows_at_once(images: int, across: int, channels: int) -> int:
    return max(1, _ELEMENTS // (16 * images * across * channels))


def _every_second(x: Tensor, dim: int, count: int) -> list[Tensor]:
    """The elements d0, d1, d2, d3 of all tiles along an axis."""
    return [x.narrow(dim, i, 2 * count - 1)[(slice(None),) * dim + (slice(None, None, 2),)] for i in range(4)]


def _differences(d: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """What the four products of an axis take of the inputs."""
    torch.sub(d[0], d[2], out=out[0])
    torch.add(d[1], d[2], out=out[1])
    torch.sub(d[2], d[1], out=out[2])
    torch.sub(d[1], d[3], out=out[3])


def _sums(m: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """The two outputs of an axis."""
    inner = m[1] + m[2]
    torch.add(m[0], inner, out=out[0])
    torch.sub(m[1], m[2], out=inner)
    torch.sub(inner, m[3], out=out[1])


def _spread(grad: Tensor, rows: Size, across: int) -> Tensor:
    """The gradients (16, N, rows of tiles, tiles in a row, O) of the products, from that of the outputs; of m3 with the other sign."""
    grad = grad.permute(0, 2, 3, 1)[:, 2 * rows[0] : 2 * rows[1]]
    bottom, right = 2 * (rows[1] - rows[0]) - grad.shape[1], 2 * across - grad.shape[2]
    if bottom or right:
        grad = F.pad(grad, (0, 0, 0, right, 0, bottom))
    upper, lower = grad.unflatten(1, (-1, 2)).unbind(2)
    spread = grad.new_empty(4, 4, *upper.shape[:2], across, grad.shape[3])
    for part, into in zip((upper, upper + lower, upper - lower, lower), spread, strict=True):
        first, second = part.unflatten(2, (-1, 2)).unbind(3)
        into[0], into[3] = first, second
        torch.add(first, second, out=into[1])
        torch.sub(first, second, out=into[2])
    return spread.flatten(0, 1)


def _both_axes(like: Tensor, last: int = 1) -> Tensor:
    """The matrix (16, 9) that makes the products' factors of the taps of a kernel; `last`: sign of the last product of an axis."""
    axis = torch.tensor([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2 * last]], dtype=like.dtype, device=like.device) / 2
    return torch.kron(axis, axis)
