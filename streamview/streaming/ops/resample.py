"""Operations whose output is finer than their input: transposed convolution and interpolation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamview.errors import RegionError
from streamview.streaming.ops.registry import (
    Extent,
    Local,
    NotLocal,
    OtherChannels,
    Piece,
    Size,
    Sized,
    Value,
    Wants,
    Weight,
    fits,
    local_vjp,
    lowers,
    lowers_module,
)
from streamview.streaming.ops.window import pair
from streamview.streaming.schedule import Spread, Table, Window

__all__ = ["PixelShuffle", "PixelUnshuffle", "Resample", "Taps", "TransposedConvolution", "one_tap"]

Gradients = tuple[list[Tensor | None], list[Tensor | None]]
Taps = tuple[tuple[tuple[int, ...], tuple[float, ...]], ...]


@dataclass(frozen=True, slots=True)
class TransposedConvolution:
    """``F.conv_transpose2d``; weights: kernel (I, O / groups, h, w), bias."""

    rows: Spread
    cols: Spread
    groups: int

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], piece: Piece, wants: Wants | None) -> tuple[Tensor, Any]:
        """Spread the piece's inputs and cut the piece out; save them only where the kernel's gradient is wanted."""
        out = self._call(piece, inputs[0], *weights)
        return out, None if wants is None else inputs[0] if any(wants.weights) else inputs[0].shape

    def vjp(self, grad: Tensor, saved: Any, weights: Sequence[Tensor], piece: Piece, wants: Wants) -> Gradients:
        """By torch; the input's values matter only for the kernel's gradient."""
        x = saved if isinstance(saved, Tensor) else grad.new_zeros(saved)
        return local_vjp(lambda *tensors: self._call(piece, *tensors), [x.to(grad.dtype)], weights, grad, wants)

    def _call(self, piece: Piece, x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
        stride, dilation = (self.rows.stride, self.cols.stride), (self.rows.dilation, self.cols.dilation)
        shape = (x.shape[0], kernel.shape[1] * self.groups, *piece.shape)
        if 0 in x.shape:
            out = x.new_zeros(shape) + 0 * kernel.sum()
        else:
            out = F.conv_transpose2d(x, kernel, None, stride, 0, 0, self.groups, dilation)
            # where the first of these outputs lies, seen from the piece
            top = piece.origin[0] * self.rows.stride - self.rows.before - piece.rows[0]
            left = piece.origin[1] * self.cols.stride - self.cols.before - piece.cols[0]
            out = F.pad(out, (left, shape[3] - left - out.shape[3], top, shape[2] - top - out.shape[2]))
        return out if bias is None else out + bias[:, None, None]


@dataclass(frozen=True, slots=True)
class PixelShuffle:
    """``F.pixel_shuffle``: channels become blocks of `factor` x `factor` positions."""

    factor: int
    rows: Spread
    cols: Spread

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], piece: Piece, wants: Wants | None) -> tuple[Tensor, Any]:
        """Shuffle the piece's inputs and cut the piece out of their blocks."""
        top, left = self._corner(piece)
        whole = F.pixel_shuffle(inputs[0], self.factor)
        return whole[:, :, top : top + piece.shape[0], left : left + piece.shape[1]], None if wants is None else inputs[0].shape

    def vjp(self, grad: Tensor, saved: Any, weights: Sequence[Tensor], piece: Piece, wants: Wants) -> Gradients:
        """Zero around the piece, shuffled back."""
        top, left = self._corner(piece)
        (height, width), (rows, cols) = (self.factor * n for n in saved[2:]), grad.shape[2:]
        whole = F.pad(grad, (left, width - left - cols, top, height - top - rows))
        return [F.pixel_unshuffle(whole, self.factor)], []

    def _corner(self, piece: Piece) -> Size:
        """Where the piece lies within the blocks of its inputs."""
        return piece.rows[0] - piece.origin[0] * self.factor, piece.cols[0] - piece.origin[1] * self.factor


@dataclass(frozen=True, slots=True)
class PixelUnshuffle:
    """``F.pixel_unshuffle``: blocks of `factor` x `factor` positions become channels."""

    factor: int
    rows: Window
    cols: Window

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], piece: Piece, wants: Wants | None) -> tuple[Tensor, Any]:
        """Shuffle the piece, which is made of whole blocks."""
        return F.pixel_unshuffle(inputs[0], self.factor), None

    def vjp(self, grad: Tensor, saved: Any, weights: Sequence[Tensor], piece: Piece, wants: Wants) -> Gradients:
        """Shuffle back."""
        return [F.pixel_shuffle(grad, self.factor)], []


@dataclass(frozen=True, slots=True)
class Resample:
    """Every output row is a weighted sum of a few input rows, and every column of columns.

    Parameters
    ----------
    rows, cols
        Geometry, for one size of the input.
    row_taps, col_taps
        For every tap the input that each output reads, and its weight.
    double
        The taps of rows and columns for maps of float64, where torch takes others.
    cuda
        Those for maps on CUDA, likewise.
    """

    rows: Table
    cols: Table
    row_taps: Taps
    col_taps: Taps
    double: tuple[Taps, Taps] | None = None
    cuda: tuple[Taps, Taps] | None = None

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], piece: Piece, wants: Wants | None) -> tuple[Tensor, Any]:
        """Gather and weigh; the gradient needs the shape alone."""
        x = inputs[0]
        for dim, taps in self._parts(piece, x):
            found = [x.index_select(dim, index) if weight is None else x.index_select(dim, index) * weight for index, weight in taps]
            x = sum(found[1:], found[0])
        return x, None if wants is None else inputs[0].shape

    def vjp(self, grad: Tensor, saved: Any, weights: Sequence[Tensor], piece: Piece, wants: Wants) -> Gradients:
        """The transposed sums."""
        for dim, taps in reversed(self._parts(piece, grad)):
            shape = list(grad.shape)
            shape[dim] = saved[dim]
            found = grad.new_zeros(shape)
            for index, weight in taps:
                found.index_add_(dim, index, grad if weight is None else grad * weight)
            grad = found
        return [grad], []

    def _parts(self, piece: Piece, like: Tensor) -> list[tuple[int, list[tuple[Tensor, Tensor | None]]]]:
        """For both dimensions the indices into the piece's input, and the weights, of each tap."""
        found = []
        special = self.cuda if like.device.type == "cuda" else self.double if like.dtype == torch.float64 else None
        both = (self.row_taps, self.col_taps) if special is None else special
        for axis, ((start, stop), taps) in enumerate(zip((piece.rows, piece.cols), both, strict=True)):
            shape = (-1, 1) if axis == 0 else (-1,)
            part: list[tuple[Tensor, Tensor | None]] = []
            for indices, weights in taps:
                index = torch.tensor(indices[start:stop], device="cpu" if like.device.type == "meta" else like.device) - piece.origin[axis]
                weight = None
                if len(taps) > 1:
                    weight = torch.tensor(weights[start:stop], dtype=like.dtype, device=index.device).view(shape).to(like.device)
                part.append((index.to(like.device), weight))
            found.append((2 + axis, part))
        return found


def one_tap(indices: Sequence[int], step: float, centre: float) -> tuple[Table, Taps]:
    """Every output copies one input."""
    return Table.of(indices, indices, step, centre), ((tuple(indices), ()),)


def _linear_taps(n: int, m: int, scale: float | None, align_corners: bool) -> tuple[Table, Taps]:
    """As torch's ``area_pixel_compute_source_index`` does in double precision."""
    if align_corners:
        step = (n - 1) / (m - 1) if m > 1 else 0.0
        centres = [o * step for o in range(m)]
    else:
        step = 1 / scale if scale is not None else n / m
        centres = [max((o + 0.5) * step - 0.5, 0.0) for o in range(m)]
    low = [min(math.floor(c), n - 1) for c in centres]
    high = [min(i + 1, n - 1) for i in low]
    weights = [min(max(c - i, 0.0), 1.0) for c, i in zip(centres, low, strict=True)]
    taps = ((tuple(low), tuple(1 - w for w in weights)), (tuple(high), tuple(weights)))
    return Table.of(low, high, step, 0.0 if align_corners else step / 2 - 0.5), taps


def _nearest_taps(n: int, m: int, scale: float | None, mode: str, other: int) -> tuple[Table, Taps, Taps, Taps]:
    """By torch itself: rounding decides its index for many sizes, and differs with the map's precision, its size and the device.

    Taps for float32 and float64 on a processor, and for CUDA, where there is one.
    """
    # `other` is the output's other side; torch has one kernel for sides that sum up to 128 and one for longer sides
    other = 1 if m + other <= 128 else max(129 - m, 1)

    def indices(dtype: torch.dtype, device: str = "cpu") -> tuple[int, ...]:
        ramp = torch.arange(n, dtype=dtype, device=device).view(1, 1, n, 1)
        if scale is None:
            found = F.interpolate(ramp, size=(m, other), mode=mode)
        else:
            found = F.interpolate(ramp, scale_factor=(scale, float(other)), mode=mode)
        return tuple(int(i) for i in found[0, 0, :, 0].tolist())

    single, double = indices(torch.float32), indices(torch.float64)
    cuda = indices(torch.float32, "cuda") if torch.cuda.is_available() else single
    step = 1 / scale if scale is not None else n / m
    table = Table.of(list(map(min, single, double, cuda)), list(map(max, single, double, cuda)), step, step / 2 - 0.5)
    return table, ((single, ()),), ((double, ()),), ((cuda, ()),)


def _area_taps(n: int, m: int) -> tuple[Table, Taps]:
    """Means of the windows of ``adaptive_avg_pool2d``, which may overlap by one and differ in length by one."""
    spans = [(o * n // m, -(-(o + 1) * n // m)) for o in range(m)]
    taps = tuple(
        (tuple(min(a + t, b - 1) for a, b in spans), tuple(1 / (b - a) if a + t < b else 0.0 for a, b in spans))
        for t in range(max(b - a for a, b in spans))
    )
    step = n / m
    return Table.of([a for a, _ in spans], [b - 1 for _, b in spans], step, step / 2 - 0.5), taps


def _interpolated(
    input: Value, lengths: Sequence[Callable[[Sequence[Size], int], tuple[int, float | None]]], mode: str, align: bool
) -> Local:
    """`lengths` gives for rows and columns the output's length, and the scale that torch computes coordinates with."""

    def sized(sizes: Sequence[Size]) -> Resample:
        found = []
        wanted = [lengths[axis](sizes, sizes[input.index][axis]) for axis in (0, 1)]
        for axis, (m, scale) in enumerate(wanted):
            n = sizes[input.index][axis]
            if min(m, wanted[1 - axis][0]) < 1:
                table, single = one_tap([], 1.0, 0.0)
                found.append((table, single, single, single))
            elif mode.startswith("nearest"):
                found.append(_nearest_taps(n, m, scale, mode, wanted[1 - axis][0]))
            else:
                table, single = _area_taps(n, m) if mode == "area" else _linear_taps(n, m, scale, align)
                found.append((table, single, single, single))
        (rows, row_taps, row_double, row_cuda), (cols, col_taps, col_double, col_cuda) = found
        return Resample(rows, cols, row_taps, col_taps, (row_double, col_double), (row_cuda, col_cuda))

    return Local(Sized(sized), (input,))


@lowers(F.interpolate, F.upsample)
def _interpolate(
    input: Value, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None, antialias: bool = False,
) -> Local:  # fmt: skip
    if mode not in ("nearest", "nearest-exact", "bilinear", "area") or antialias:
        how = f"mode={mode!r}{' and antialias' if antialias else ''}"
        raise NotLocal(f"interpolation with {how}: nearest, bilinear and area can be streamed")
    targets = pair(size) if size is not None else pair(scale_factor)

    def of(axis: int) -> Callable[[Sequence[Size], int], tuple[int, float | None]]:
        target = targets[axis]
        if size is None:
            factor = float(target)
            return lambda sizes, n: (math.floor(n * factor), None if recompute_scale_factor else factor)
        if isinstance(target, Extent):
            extent = target
            if extent.axis != axis:
                raise NotLocal("rows interpolated to a number of columns")
            return lambda sizes, n: (int(extent.of([s[axis] for s in sizes])), None)
        if not isinstance(target, int):
            raise NotLocal(f"interpolation to the size {size}")
        return lambda sizes, n: (target, None)

    return _interpolated(input, [of(0), of(1)], mode, bool(align_corners))


@lowers_module(nn.Upsample)
def _upsample_module(module: nn.Upsample, input: Value) -> Local:
    return _interpolate(input, module.size, module.scale_factor, module.mode, module.align_corners, module.recompute_scale_factor)


@lowers(torch.ops.aten.upsample_nearest2d.vec)
def _aten_nearest(input: Value, output_size: Any, scale_factors: Any) -> Local:
    return _interpolate(input, output_size, scale_factors if output_size is None else None)


@lowers(torch.ops.aten.upsample_bilinear2d.vec)
def _aten_bilinear(input: Value, output_size: Any, align_corners: bool, scale_factors: Any) -> Local:
    return _interpolate(input, output_size, scale_factors if output_size is None else None, "bilinear", align_corners)


@lowers(F.conv_transpose2d, torch.conv_transpose2d)
def _conv_transpose2d(
    input: Value, weight: Weight, bias: Weight | None = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0, groups: int = 1,
    dilation: Any = 1,
) -> Local:  # fmt: skip
    if not isinstance(weight, Weight) or not isinstance(bias, Weight | None):
        raise NotLocal("a transposed convolution whose kernel depends on the image")
    shape = weight.shape
    fits(input, shape[0])
    strides, paddings, extras, dilations = pair(stride), pair(padding), pair(output_padding), pair(dilation)
    rows, cols = (Spread(shape[2 + a], strides[a], dilations[a], paddings[a], paddings[a] - extras[a]) for a in (0, 1))
    outputs = shape[1] * groups
    return Local(TransposedConvolution(rows, cols, groups), (input,), (weight,) if bias is None else (weight, bias), outputs)


@lowers_module(nn.ConvTranspose2d)
def _conv_transpose2d_module(module: nn.ConvTranspose2d, input: Value, output_size: Any = None) -> Local:
    if output_size is not None:
        raise NotLocal("a transposed convolution to a given size")
    bias = None if module.bias is None else Weight.of(module, "bias")
    return _conv_transpose2d(
        input, Weight.of(module, "weight"), bias, module.stride, module.padding, module.output_padding, module.groups, module.dilation
    )


@lowers(F.pixel_shuffle, torch.pixel_shuffle, "pixel_shuffle")
def _pixel_shuffle(input: Value, upscale_factor: int) -> Local:
    channels, rest = divmod(input.channels, upscale_factor**2)
    if rest:
        raise OtherChannels(f"it takes a multiple of {upscale_factor**2} channels, its map has {input.channels}")
    blocks = Spread(upscale_factor, upscale_factor)
    return Local(PixelShuffle(upscale_factor, blocks, blocks), (input,), (), channels)


@lowers_module(nn.PixelShuffle)
def _pixel_shuffle_module(module: nn.PixelShuffle, input: Value) -> Local:
    return _pixel_shuffle(input, module.upscale_factor)


@lowers(F.pixel_unshuffle, torch.pixel_unshuffle, "pixel_unshuffle")
def _pixel_unshuffle(input: Value, downscale_factor: int) -> Local:
    blocks = Window(downscale_factor, downscale_factor)

    def sized(sizes: Sequence[Size]) -> PixelUnshuffle:
        height, width = sizes[input.index]
        if height % downscale_factor or width % downscale_factor:
            raise RegionError(f"pixel_unshuffle by {downscale_factor} of a map of {height} x {width}: use a region that it divides")
        return PixelUnshuffle(downscale_factor, blocks, blocks)

    return Local(Sized(sized), (input,), (), input.channels * downscale_factor**2)


@lowers_module(nn.PixelUnshuffle)
def _pixel_unshuffle_module(module: nn.PixelUnshuffle, input: Value) -> Local:
    return _pixel_unshuffle(input, module.downscale_factor)
