"""Convolution and pooling: operations that slide a window over the map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamview.streaming.cuda import rounds_to_tf32
from streamview.streaming.ops import winograd
from streamview.streaming.ops.bits import Bits, divide, pack
from streamview.streaming.ops.image_gradient import image_gradient
from streamview.streaming.ops.kernel_gradient import kernel_gradient
from streamview.streaming.ops.registry import (
    Extent,
    Local,
    NotLocal,
    Op,
    Piece,
    Reduction,
    Size,
    Sized,
    Value,
    Wants,
    Weight,
    finite,
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
    """An input of this shape for torch's backward kernels that look at its shape alone; its memory is not initialised."""
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
        scratch = self._scratch(x, weights[0], piece.shape, "output")
        out = self._faster_output(x, weights, native, piece.shape)
        if out is None:
            operands = [t.to(torch.float32) for t in (x, *weights)] if self._unsound(x, piece) else [x, *weights]
            bias = operands[2] if len(operands) > 2 else None
            out = F.conv2d(operands[0], operands[1], bias, stride, native, dilation, self.groups).to(x.dtype)
        del scratch
        if wants is None:
            return out, None
        return out, (x if wants.weights[0] else x.shape, inputs[0].shape, native)

    def vjp(self, grad: Tensor, saved: Any, weights: Sequence[Tensor], piece: Piece, wants: Wants) -> Gradients:
        """Both gradients, each only if wanted: by a faster product where one suits, else by torch's own kernel."""
        x, shape, native = saved
        padded = x.shape if isinstance(x, Tensor) else x
        bias = len(weights) > 1 and wants.weights[1]
        scratch = self._scratch(grad, weights[0], piece.shape, "input" if wants.inputs[0] else None, "kernel" if wants.weights[0] else None)
        grad_x = self._faster_gradient(grad, weights[0], native, padded) if wants.inputs[0] else None
        own = wants.weights[0] and self.groups == 1
        grad_w = kernel_gradient(x, grad, weights[0], (self.rows, self.cols), native) if own else None
        # torch's kernel for the bias alone would compute all
        grad_b = grad.sum((0, 2, 3), dtype=weights[1].dtype) if bias and not (wants.weights[0] and grad_w is None) else None
        asked = [wants.inputs[0] and grad_x is None, wants.weights[0] and grad_w is None, bias and grad_b is None]
        if any(asked):
            wide = grad.to(torch.float32) if self._unsound(grad, piece) else grad
            x = x.to(wide.dtype) if isinstance(x, Tensor) else _like(x, wide)
            stride, dilation = [self.rows.stride, self.cols.stride], [self.rows.dilation, self.cols.dilation]
            theirs = torch.ops.aten.convolution_backward(
                wide, x, weights[0].to(wide.dtype), [self.out_channels], stride, list(native), dilation, False, [0, 0], self.groups, asked
            )
            grad_x, grad_w, grad_b = (b if a is None else a for a, b in zip((grad_x, grad_w, grad_b), theirs, strict=True))
        del scratch
        return [None if grad_x is None else _crop(grad_x, piece, native, shape).to(grad.dtype)], [grad_w, grad_b][: len(weights)]

    def transforms(self, kernel: Tensor, outputs: Size) -> bool:
        """Whether a kernel is held in another form, for fewer products, where as many rows and columns are computed on a processor."""
        return self._by_winograd(kernel, outputs, "output") or self._by_winograd(kernel, outputs, "input")

    def _by_winograd(self, kernel: Tensor, outputs: Size, wanted: Literal["output", "input", "kernel"]) -> bool:
        return self.groups == 1 and winograd.suits(kernel, (self.rows, self.cols), outputs, wanted)

    def _scratch(self, x: Tensor, kernel: Tensor, outputs: Size, *wanted: Literal["output", "input", "kernel"] | None) -> Tensor | None:
        """What Winograd's products take besides, where a plan counts memory: torch's own operations stand for them there.

        `wanted` has None in the place of a gradient that nobody wants.
        """
        if x.device.type != "meta" or not any(self._by_winograd(kernel, outputs, kind) for kind in wanted if kind):
            return None
        return winograd.scratch(x, kernel, outputs)

    def _faster_output(self, x: Tensor, weights: Sequence[Tensor], native: Size, shape: Size) -> Tensor | None:
        """The output of this shape otherwise than by torch's own kernel, where that is faster; else None."""
        if x.device.type != "cpu" or x.dtype != weights[0].dtype or not self._by_winograd(weights[0], shape, "output"):
            return None
        out = winograd.convolve(x, weights[0], weights[1] if len(weights) > 1 else None, native)
        # infinities would make NaN of what lies beside them
        return out if finite(out) else None

    def _faster_gradient(self, grad: Tensor, kernel: Tensor, native: Size, shape: Sequence[int]) -> Tensor | None:
        """The same of the gradient of an input of this shape."""
        if self._transposes(grad):
            return self._input_gradient(grad, kernel, native, shape)
        if grad.device.type not in ("cpu", "meta") or self.groups > 1 or self.rows.dilation > 1 or self.cols.dilation > 1:
            return None
        alike = grad.device.type == "cpu" and grad.dtype == kernel.dtype
        if alike and self._by_winograd(kernel, (grad.shape[2], grad.shape[3]), "input"):
            gradient = winograd.input_gradient(grad, kernel, native)
            return gradient if finite(gradient) else None
        return image_gradient(grad, kernel, (self.rows.stride, self.cols.stride), native, shape[2:])

    def _transposes(self, grad: Tensor) -> bool:
        """Whether the input's gradient is better computed by forward convolutions.

        In float32 without TF32, cuDNN's own kernels for it reach a tenth of the speed of its forward kernels, and take gigabytes.
        """
        if grad.device.type != "cuda" or grad.dtype != torch.float32 or rounds_to_tf32():
            return False
        return all(axis.stride == 1 or axis.dilation == 1 for axis in (self.rows, self.cols))

    def _input_gradient(self, grad: Tensor, kernel: Tensor, native: tuple[int, int], shape: Sequence[int]) -> Tensor:
        """The gradient of an input of this shape, from forward convolutions alone.

        At stride 1 it is the convolution of `grad` with the transposed, flipped kernel. At stride s the rows a, a + s, a + 2s ... of
        the input meet only the rows a, a + s ... of the kernel, so that each of the s phases is such a convolution by itself.
        """
        if self.groups > 1:
            kernel = kernel.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)
        else:
            kernel = kernel.transpose(0, 1)
        axes = self.rows, self.cols
        if all(axis.stride == 1 for axis in axes):
            reach = [axis.dilation * (axis.kernel - 1) - n for axis, n in zip(axes, native, strict=True)]
            # a convolution takes no negative padding: rows that meet nothing but padding are left out instead
            y, x = (max(0, -r) for r in reach)
            grad = grad[:, :, y : grad.shape[2] - y, x : grad.shape[3] - x]
            dilation = self.rows.dilation, self.cols.dilation
            return F.conv2d(grad, kernel.flip(2, 3), None, 1, [max(0, r) for r in reach], dilation, self.groups)
        height, width = (n + 2 * pad for n, pad in zip(shape[2:], native, strict=True))
        padded = _like((*shape[:2], height, width), grad).zero_()
        for a in range(min(self.rows.stride, self.rows.kernel)):
            for b in range(min(self.cols.stride, self.cols.kernel)):
                part = kernel[:, :, a :: self.rows.stride, b :: self.cols.stride].flip(2, 3)
                phase = F.conv2d(grad, part, None, 1, [part.shape[2] - 1, part.shape[3] - 1], 1, self.groups)
                rows = slice(a, a + self.rows.stride * phase.shape[2], self.rows.stride)
                padded[:, :, rows, b : b + self.cols.stride * phase.shape[3] : self.cols.stride] = phase
        return padded[:, :, native[0] : native[0] + shape[2], native[1] : native[1] + shape[3]]

    def _unsound(self, x: Tensor, piece: Piece) -> bool:
        """Whether torch's own kernel may give wrong sums or write beyond its memory.

        In bfloat16 on the CPU it does where windows adjoin along the columns, or where the output has one column (pytorch issue
        163347; still so in torch 2.13).
        """
        adjoin = self.cols.kernel > 1 and (self.cols.kernel == self.cols.stride or piece.shape[1] == 1)
        return adjoin and x.dtype == torch.bfloat16 and x.device.type in ("cpu", "meta")


@dataclass(frozen=True, slots=True)
class MaxPool:
    """``F.max_pool2d``, first along the columns of every row, then along rows; padding is minus infinity, so that it never wins.

    Along an axis the window's elements meet the greatest so far one after the other, and the backward pass needs one bit of each
    meeting: whether the later one was greater. Equals keep the first, row by row, as in torch.
    """

    rows: Window
    cols: Window

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], piece: Piece, wants: Wants | None) -> tuple[Tensor, Any]:
        """Pool the piece; save where each maximum was found."""
        top, bottom, left, right = piece.pad
        x = F.pad(inputs[0], (left, right, top, bottom), value=-torch.inf) if any(piece.pad) else inputs[0]
        across, found_cols = _greatest(x, self.cols, 3, piece.shape[1], wants is not None)
        out, found_rows = _greatest(across, self.rows, 2, piece.shape[0], wants is not None)
        return out, None if wants is None else (found_rows, found_cols, across.shape, x.shape, inputs[0].shape)

    def vjp(self, grad: Tensor, saved: Any, weights: Sequence[Tensor], piece: Piece, wants: Wants) -> Gradients:
        """Send each gradient to where its maximum was."""
        found_rows, found_cols, across, padded, shape = saved
        grad = _to_greatest(grad, found_rows, self.rows, 2, across)
        return [_crop(_to_greatest(grad, found_cols, self.cols, 3, padded), piece, (0, 0), shape)], []


def _meeting(x: Tensor, window: Window, dim: int, outputs: int) -> list[Tensor]:
    """For each element of the window along one axis, a view of what it is for every output."""
    span = (outputs - 1) * window.stride + 1
    starts = range(0, window.extent, window.dilation)
    return [x.narrow(dim, start, span)[(slice(None),) * dim + (slice(None, None, window.stride),)] for start in starts]


def _greatest(x: Tensor, window: Window, dim: int, outputs: int, remember: bool) -> tuple[Tensor, list[Bits]]:
    """The maximum of every window along one axis, and for each meeting the bits of where the later element was greater."""
    best, *others = _meeting(x, window, dim, outputs)
    found = []
    for other in others:
        if remember:
            found.append(pack(other > best))
        best = torch.maximum(best, other)
    # a window of one element is a view, and no piece may be changed through another
    return best if others else best.clone(), found


def _to_greatest(grad: Tensor, found: list[Bits], window: Window, dim: int, shape: Sequence[int]) -> Tensor:
    """Gradient of `_greatest`: of an input of this shape."""
    whole = _like(shape, grad)
    first, *others = _meeting(whole, window, dim, grad.shape[dim])
    # the first `stride` elements of all windows tile the input and are written; the others are added
    tiles = window.dilation == 1 and window.kernel >= window.stride
    covered = grad.shape[dim] * window.stride if tiles else 0
    whole.narrow(dim, covered, shape[dim] - covered).zero_()
    if not others:
        first.copy_(grad)
    added = []
    for offset in reversed(range(len(others))):
        written = tiles and offset + 1 < window.stride
        won = others[offset] if written else torch.empty_like(grad)
        rest = first if tiles and offset == 0 else torch.empty_like(grad)
        divide(grad, found[offset], won, rest)
        added += [] if written else [(others[offset], won)]
        added += [(first, rest)] if offset == 0 and not tiles else []
        grad = rest
    for part, won in added:
        part.add_(won)
    return whole


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


def _of_own_size(input: Value, kernel: Sequence[Any], padding: Sequence[Any], ceil_mode: bool) -> bool:
    """Whether a window is as large as the map, whatever the image: there is one output."""
    own = [isinstance(k, Extent) and k.axis == axis and k.like == input.like for axis, k in enumerate(kernel)]
    return all(own) and not any(padding) and not ceil_mode


def _windows(
    input: Value, kernel: Sequence[Any], stride: Any, padding: Sequence[Any], dilation: Sequence[int], ceil_mode: bool,
    make: Callable[[Window, Window], Op],
) -> Local:  # fmt: skip
    """A pooling whose window and stride may follow from the sizes of maps."""
    strides = pair(stride) if stride is not None and stride != [] else kernel

    def sized(sizes: Sequence[Size]) -> Op:
        def number(a: Any) -> int:
            return int(a.of([s[a.axis] for s in sizes])) if isinstance(a, Extent) else a

        rows, cols = (
            Window(number(kernel[i]), number(strides[i]), dilation[i], number(padding[i]), number(padding[i]), ceil_mode) for i in (0, 1)
        )
        return make(rows, cols)

    known = not any(isinstance(a, Extent) for a in (*kernel, *strides, *padding))
    return Local(sized([]) if known else Sized(sized), (input,))


@lowers(F.max_pool2d, torch.max_pool2d)
def _max_pool2d(
    input: Value, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> Local | Reduction:  # fmt: skip
    if return_indices:
        raise NotLocal("max pooling that returns indices of the whole map")
    kernel, padding, dilation = pair(kernel_size), pair(padding), pair(dilation)
    if _of_own_size(input, kernel, padding, ceil_mode) and dilation == (1, 1):
        return Reduction("max", input, True)
    return _windows(input, kernel, stride, padding, dilation, ceil_mode, MaxPool)


@lowers_module(nn.MaxPool2d)
def _max_pool2d_module(module: nn.MaxPool2d, input: Value) -> Local | Reduction:
    return _max_pool2d(input, module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode, module.return_indices)


@lowers(F.avg_pool2d, torch._C._nn.avg_pool2d)
def _avg_pool2d(
    input: Value, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Local | Reduction:  # fmt: skip
    kernel, padding = pair(kernel_size), pair(padding)
    if isinstance(divisor_override, Extent):
        raise NotLocal("average pooling with a divisor that depends on the size of the map")
    if _of_own_size(input, kernel, padding, ceil_mode) and divisor_override is None:
        return Reduction("mean", input, True)
    return _windows(
        input, kernel, stride, padding, (1, 1), ceil_mode, lambda rows, cols: AveragePool(rows, cols, count_include_pad, divisor_override)
    )


@lowers_module(nn.AvgPool2d)
def _avg_pool2d_module(module: nn.AvgPool2d, input: Value) -> Local | Reduction:
    return _avg_pool2d(
        input, module.kernel_size, module.stride, module.padding, module.ceil_mode, module.count_include_pad, module.divisor_override
    )
