"""The gradient of a convolution's kernel on a processor, where something is faster than torch's own."""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from streamview.streaming.ops import winograd
from streamview.streaming.ops.registry import Size, finite
from streamview.streaming.schedule import Window

__all__ = ["kernel_gradient"]

# The least channels with which a product for each element of the kernel is faster. oneDNN's gradient of a kernel is slow in channels last:
# of 1 x 1 kernels at stride 1; of larger ones without AVX-512, and with it at a stride. With fewer channels copies of the input cost more.
_ONE, _SEVERAL = 128, 128 if winograd.AVX512 else 32  # of kernels of one element, and of several


def kernel_gradient(x: Tensor, grad: Tensor, kernel: Tensor, window: tuple[Window, Window], padding: Size) -> Tensor | None:
    """The gradient (O, C, rows, columns) of a kernel without groups; None where torch's own kernel does better.

    Parameters
    ----------
    x, grad
        The convolution's input (N, C, h, w) and the gradient of its output (N, O, h', w').
    kernel
        (O, C, rows, columns).
    window
        Of the rows and of the columns.
    padding
        With which `x` was convolved: rows and columns.
    """
    strides = any(axis.stride > 1 for axis in window)
    if x.device.type != "cpu" or not x.dtype == grad.dtype == kernel.dtype or x.dtype.itemsize < 4:
        return None
    if winograd.suits(kernel, window, (grad.shape[2], grad.shape[3]), "kernel"):
        gradient = winograd.kernel_gradient(x, grad, padding)
    elif _suits(kernel, strides):
        gradient = _by_element(x, grad, window, padding)
    else:
        return None
    # torch's own kernels do not meet the padding, whose zeros an infinity would make NaN
    return gradient if finite(gradient) else None


def _suits(kernel: Tensor, strides: bool) -> bool:
    """Whether products are faster than torch's own kernel."""
    if max(kernel.shape[2:]) == 1:
        return min(kernel.shape[:2]) >= _ONE and not strides
    return min(kernel.shape[:2]) >= _SEVERAL and (strides or not winograd.AVX512)


def _by_element(x: Tensor, grad: Tensor, window: tuple[Window, Window], padding: Size) -> Tensor:
    """One matrix product for each element of the kernel: of the inputs that it meets and the gradients of the outputs."""
    y, x_pad = padding
    x = F.pad(x, (x_pad, x_pad, y, y)).permute(0, 2, 3, 1) if any(padding) else x.permute(0, 2, 3, 1)
    rows, cols = window
    gradient = x.new_empty(rows.kernel, cols.kernel, x.shape[3], grad.shape[1])
    of_outputs = grad.permute(0, 2, 3, 1).flatten(0, 2)
    for i, j in product(range(rows.kernel), range(cols.kernel)):
        down = slice(i * rows.dilation, i * rows.dilation + rows.stride * (grad.shape[2] - 1) + 1, rows.stride)
        across = slice(j * cols.dilation, j * cols.dilation + cols.stride * (grad.shape[3] - 1) + 1, cols.stride)
        torch.mm(x[:, down, across].flatten(0, 2).t(), of_outputs, out=gradient[i, j])
    return gradient.permute(3, 2, 0, 1)
