"""Convolution and pooling: operations that slide a window over the map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamview.streaming.ops.bits import divide, pack, unpack
from streamview.streaming.ops.registry import (
    Local,
    NotLocal,
    Piece,
    Value,
    Wants,
    Weight,
    fits,
    layout,
    lowers,
    lowers_module,
)
from streamview.streaming.schedule import IDENTITY, Window

__all__ = ["AveragePool", "Convolution", "MaxPool", "pair"]

Gradients = tuple[list[Tensor | None], list[Tensor | None]]


def pair(value: Any) -> tuple[int, int]:
    """Rows and columns of a number or a pair, as torch takes them."""
    if isinstance(value, (tuple, list)):
        return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])
    return value, value


def _extend(x: Tensor, rows: Window, cols: Window, piece: Piece, value: float) -> tuple[Tensor, tuple[int, int]]:
    """Pad the piece's input where the operation cannot do so itself; also the symmetric padding left to the operation."""
    top, bottom, left, right = piece.pad
    row = rows.symmetric(top, bottom, x.shape[2], piece.shape[0])
    col = cols.symmetric(left, right, x.shape[3], piece.shape[1])
    # pooling takes no padding beyond half its kernel
    row = None if row is not None and 2 * row > rows.kernel else row
    col = None if col is not None and 2 * col > cols.kernel else col
    if row is None or col is None:
        pad = (0, 0) if col is not None else (left, right)
        x = F.pad(x, (*pad, 0, 0) if row is not None else (*pad, top, bottom), value=value)
    return x, (row or 0, col or 0)


def _crop(grad: Tensor, piece: Piece, native: tuple[int, int], shape: Sequence[int]) -> Tensor:
    """The part of a padded input's gradient that belongs to the input of this shape."""
    top, left = (0 if native[0] else piece.pad[0]), (0 if native[1] else piece.pad[2])
    if grad.shape[2:] == torch.Size(shape[2:]):
        return grad
    return grad[:, :, top : top + shape[2], left : left + shape[3]]


def _like(shape: Sequence[int], grad: Tensor) -> Tensor:
    """An input of this shape for torch's backward kernels that look at its shape alone; its memory is never touched."""
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout(grad))


@dataclass(frozen=True, slots=True)
class Convolution:
    """``F.conv2d`` with any kernel, stride, dilation, groups and zero padding; weights: kernel (O, I / groups, h, w), bias."""

    rows: Window
    cols: Window
    groups: int
    out_channels: int

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], piece: Piece, wants: Wants | None) -> tuple[Tensor, Any]:
        """Convolve the piece; save the input only where the kernel's gradient is wanted."""
        x, native = _extend(inputs[0], self.rows, self.cols, piece, 0.0)
        stride, dilation = (self.rows.stride, self.cols.stride), (self.rows.dilation, self.cols.dilation)
        out = F.conv2d(x, weights[0], weights[1] if len(weights) > 1 else None, stride, native, dilation, self.groups)
        if wants is None:
            return out, None
        return out, (x if wants.weights[0] else x.shape, inputs[0].shape, native)

    def vjp(self, grad: Tensor, saved: Any, weights: Sequence[Tensor], piece: Piece, wants: Wants) -> Gradients:
        """Both gradients by torch's own kernel, each only if wanted."""
        x, shape, native = saved
        bias = len(weights) > 1 and wants.weights[1]
        x = x.to(grad.dtype) if isinstance(x, Tensor) else _like(x, grad)
        stride, dilation = [self.rows.stride, self.cols.stride], [self.rows.dilation, self.cols.dilation]
        grad_x, grad_w, grad_b = torch.ops.aten.convolution_backward(
            grad,
            x,
            weights[0].to(grad.dtype),
            [self.out_channels],
            stride,
            list(native),
            dilation,
            False,
            [0, 0],
            self.groups,
            [wants.inputs[0], wants.weights[0], bias],
        )
        found = [grad_w if wants.weights[0] else None, grad_b if bias else None]
        return [_crop(grad_x, piece, native, shape) if wants.inputs[0] else None], found[: len(weights)]


@dataclass(frozen=True, slots=True)
class MaxPool:
    """``F.max_pool2d``; padding is minus infinity, so that it never wins."""

    rows: Window
    cols: Window

    @property
    def _halves(self) -> bool:
        """Whether this is the usual 2 x 2 pool, which pairs of comparisons do faster."""
        return (
            self.rows.kernel == self.rows.stride == self.cols.kernel == self.cols.stride == 2
            and self.rows.dilation == 1 == self.cols.dilation
        )

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], piece: Piece, wants: Wants | None) -> tuple[Tensor, Any]:
        """Pool the piece; save where each maximum was found, the first of equals as in torch."""
        if self._halves and not any(piece.pad):
            return self._run_halves(inputs[0], wants)
        x, native = _extend(inputs[0], self.rows, self.cols, piece, -torch.inf)
        kernel, stride, dilation = self._geometry()
        if wants is None:
            return F.max_pool2d(x, kernel, stride, native, dilation), None
        out, where = F.max_pool2d(x, kernel, stride, native, dilation, return_indices=True)
        return out, (where.to(torch.int32), x.shape, inputs[0].shape, native)

    def vjp(self, grad: Tensor, saved: Any, weights: Sequence[Tensor], piece: Piece, wants: Wants) -> Gradients:
        """Send each gradient to where its maximum was."""
        if len(saved) == 3:
            return [self._vjp_halves(grad, *saved)], []
        where, padded, shape, native = saved
        kernel, stride, dilation = self._geometry()
        grad_x = torch.ops.aten.max_pool2d_with_indices_backward(
            grad, _like(padded, grad), list(kernel), list(stride), list(native), list(dilation), False, where.to(torch.int64)
        )
        return [_crop(grad_x, piece, native, shape)], []

    def _geometry(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        rows, cols = self.rows, self.cols
        return (rows.kernel, cols.kernel), (rows.stride, cols.stride), (rows.dilation, cols.dilation)

    @staticmethod
    def _run_halves(x: Tensor, wants: Wants | None) -> tuple[Tensor, Any]:
        left, right = x[..., 0::2], x[..., 1::2]
        pairs = torch.maximum(left, right)
        top, bottom = pairs[:, :, 0::2], pairs[:, :, 1::2]
        out = torch.maximum(top, bottom)
        return out, None if wants is None else (pack(right > left), pack(bottom > top), x.shape)

    @staticmethod
    def _vjp_halves(grad: Tensor, right: Any, bottom: Any, shape: torch.Size) -> Tensor:
        rows = _like((*shape[:3], shape[3] // 2), grad)
        divide(grad, unpack(bottom, grad), rows[:, :, 1::2], rows[:, :, 0::2])
        found = _like(shape, grad)
        divide(rows, unpack(right, rows), found[..., 1::2], found[..., 0::2])
        return found


@dataclass(frozen=True, slots=True)
class AveragePool:
    """``F.avg_pool2d``: sums of windows over their true divisors, which differ at the borders.

    Parameters
    ----------
    padding
        Padding of the rows and columns, as torch was told; windows may reach further with ``ceil_mode``.
    include_pad
        Whether padded elements count.
    divisor
        ``divisor_override`` or None.
    """

    rows: Window
    cols: Window
    include_pad: bool
    divisor: int | None

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], piece: Piece, wants: Wants | None) -> tuple[Tensor, Any]:
        """Average the piece; the gradient needs the shape alone."""
        x, native = _extend(inputs[0], self.rows, self.cols, piece, 0.0)
        kernel, stride = self._geometry()
        # sums of half precision would overflow
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        out = F.avg_pool2d(wide, kernel, stride, native, divisor_override=1).div_(self._divisors(piece, wide)).to(x.dtype)
        return out, None if wants is None else (x.shape, inputs[0].shape, native)

    def vjp(self, grad: Tensor, saved: Any, weights: Sequence[Tensor], piece: Piece, wants: Wants) -> Gradients:
        """Spread each gradient evenly over its window."""
        padded, shape, native = saved
        kernel, stride = self._geometry()
        grad = grad.div_(self._divisors(piece, grad))
        grad_x = torch.ops.aten.avg_pool2d_backward(grad, _like(padded, grad), list(kernel), list(stride), list(native), False, True, 1)
        return [_crop(grad_x, piece, native, shape)], []

    def _geometry(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return (self.rows.kernel, self.cols.kernel), (self.rows.stride, self.cols.stride)

    def _divisors(self, piece: Piece, like: Tensor) -> Tensor | int:
        """Elements that each output averages, as a number or a tensor (h, w)."""
        if self.divisor is not None:
            return self.divisor
        rows = self._counts(self.rows, piece.rows, piece.size[0])
        cols = self._counts(self.cols, piece.cols, piece.size[1])
        if len({*rows}) == 1 == len({*cols}):
            return rows[0] * cols[0]
        return torch.outer(*(torch.tensor(c, dtype=like.dtype, device=like.device) for c in (rows, cols)))

    def _counts(self, window: Window, outputs: tuple[int, int], n: int) -> list[int]:
        counts = []
        for o in range(*outputs):
            start = o * window.stride - window.before
            stop = min(start + window.kernel, n + window.after)
            counts.append(stop - start if self.include_pad else min(stop, n) - max(start, 0))
        return counts


def _padding(padding: Any, kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Padding before and after, for rows and columns; torch puts the odd element of ``'same'`` behind."""
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return (totals[0] // 2, totals[0] - totals[0] // 2), (totals[1] // 2, totals[1] - totals[1] // 2)
    rows, cols = pair(padding)
    return (rows, rows), (cols, cols)


@lowers(F.conv2d, torch.conv2d)
def _conv2d(
    input: Value, weight: Weight, bias: Weight | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Local:
    if not isinstance(weight, Weight) or not isinstance(bias, Weight | None):
        raise NotLocal("a convolution whose kernel depends on the image")
    shape = weight.shape
    fits(input, shape[1] * groups)
    kernel, stride, dilation = (shape[2], shape[3]), pair(stride), pair(dilation)
    rows, cols = (Window(k, s, d, *p) for k, s, d, p in zip(kernel, stride, dilation, _padding(padding, kernel, dilation), strict=True))
    return Local(Convolution(rows, cols, groups, shape[0]), (input,), (weight,) if bias is None else (weight, bias), shape[0])


@lowers_module(nn.Conv2d)
def _conv2d_module(module: nn.Conv2d, input: Value) -> Local:
    bias = None if module.bias is None else Weight.of(module, "bias")
    found = _conv2d(input, Weight.of(module, "weight"), bias, module.stride, module.padding, module.dilation, module.groups)
    if module.padding_mode != "zeros":
        raise NotLocal(f"Conv2d with padding_mode={module.padding_mode!r}")
    return found


@lowers(F.linear, any_layout=True)
def _linear(input: Value, weight: Weight, bias: Weight | None = None) -> Local:
    if not isinstance(weight, Weight) or not isinstance(bias, Weight | None):
        raise NotLocal("a linear layer whose weights depend on the image")
    if input.layout[-1] != (1, input.channels):
        raise NotLocal("a linear layer over another dimension than the channels")
    outputs, inputs = weight.shape
    fits(input, inputs)
    kernel = Weight(lambda: weight.read()[:, :, None, None])
    weights = (kernel,) if bias is None else (kernel, bias)
    return Local(Convolution(IDENTITY, IDENTITY, 1, outputs), (input,), weights, outputs, (*input.layout[:-1], (1, outputs)))


@lowers_module(nn.Linear, any_layout=True)
def _linear_module(module: nn.Linear, input: Value) -> Local:
    return _linear(input, Weight.of(module, "weight"), None if module.bias is None else Weight.of(module, "bias"))


@lowers(F.max_pool2d, torch.max_pool2d)
def _max_pool2d(
    input: Value, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> Local:  # fmt: skip
    if return_indices:
        raise NotLocal("max pooling that returns indices of the whole map")
    kernel, padding, dilation = pair(kernel_size), pair(padding), pair(dilation)
    stride = pair(stride) if stride else kernel
    rows, cols = (Window(kernel[i], stride[i], dilation[i], padding[i], padding[i], ceil_mode) for i in (0, 1))
    return Local(MaxPool(rows, cols), (input,))


@lowers_module(nn.MaxPool2d)
def _max_pool2d_module(module: nn.MaxPool2d, input: Value) -> Local:
    return _max_pool2d(input, module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode, module.return_indices)


@lowers(F.avg_pool2d, torch._C._nn.avg_pool2d)
def _avg_pool2d(
    input: Value, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Local:  # fmt: skip
    kernel, padding = pair(kernel_size), pair(padding)
    stride = pair(stride) if stride else kernel
    rows, cols = (Window(kernel[i], stride[i], 1, padding[i], padding[i], ceil_mode) for i in (0, 1))
    return Local(AveragePool(rows, cols, count_include_pad, divisor_override), (input,))


@lowers_module(nn.AvgPool2d)
def _avg_pool2d_module(module: nn.AvgPool2d, input: Value) -> Local:
    return _avg_pool2d(
        input, module.kernel_size, module.stride, module.padding, module.ceil_mode, module.count_include_pad, module.divisor_override
    )
