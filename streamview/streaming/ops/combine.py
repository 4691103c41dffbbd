"""Operations that join or split values: sums and differences, concatenation, slices."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from streamview.streaming.ops.layouts import Layout, is_canonical, split
from streamview.streaming.ops.margins import Pad
from streamview.streaming.ops.pointwise import Pointwise, Slot, elementwise, of_its_type
from streamview.streaming.ops.registry import Local, NotLocal, OtherChannels, Piece, Value, Wants, Weight, lowers
from streamview.streaming.ops.reshape import Shuffle
from streamview.streaming.schedule import IDENTITY, Window

__all__ = ["Add", "Channels", "Concatenate"]

Gradients = tuple[list[Tensor | None], list[Tensor | None]]


@dataclass(frozen=True, slots=True)
class Add:
    """``a + factor * b`` of two values; the gradient needs nothing of either."""

    factor: float
    rows: Window = field(default=IDENTITY, init=False)
    cols: Window = field(default=IDENTITY, init=False)

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], piece: Piece, wants: Wants | None) -> tuple[Tensor, Any]:
        """Add the pieces."""
        return torch.add(*inputs, alpha=self.factor), None if wants is None else [x.shape for x in inputs]

    def vjp(self, grad: Tensor, saved: Any, weights: Sequence[Tensor], piece: Piece, wants: Wants) -> Gradients:
        """The gradient itself for both, summed over channels where one of them had a single one."""
        second = (grad * self.factor).sum_to_size(saved[1]) if wants.inputs[1] else None
        return [grad.sum_to_size(saved[0]) if wants.inputs[0] else None, second], []


@dataclass(frozen=True, slots=True)
class Concatenate:
    """``torch.cat`` over channels."""

    rows: Window = field(default=IDENTITY, init=False)
    cols: Window = field(default=IDENTITY, init=False)

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], piece: Piece, wants: Wants | None) -> tuple[Tensor, Any]:
        """Concatenate the pieces."""
        return torch.cat(list(inputs), 1), None if wants is None else [x.shape[1] for x in inputs]

    def vjp(self, grad: Tensor, saved: Any, weights: Sequence[Tensor], piece: Piece, wants: Wants) -> Gradients:
        """To each input its channels."""
        return list(grad.split(saved, 1)), []


@dataclass(frozen=True, slots=True)
class Channels:
    """Channels [start, stop) of a value."""

    start: int
    stop: int
    rows: Window = field(default=IDENTITY, init=False)
    cols: Window = field(default=IDENTITY, init=False)

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], piece: Piece, wants: Wants | None) -> tuple[Tensor, Any]:
        """A copy, so that the rest of the channels can go."""
        return inputs[0][:, self.start : self.stop].clone(), None if wants is None else inputs[0].shape

    def vjp(self, grad: Tensor, saved: Any, weights: Sequence[Tensor], piece: Piece, wants: Wants) -> Gradients:
        """Zero for the other channels."""
        whole = grad.new_zeros(saved)
        whole[:, self.start : self.stop] = grad
        return [whole], []


def _sum(a: Any, b: Any, factor: float, changes: bool = False) -> Local:
    same_type = isinstance(a, Value) and isinstance(b, Value) and (a.dtype == b.dtype or not changes)
    if same_type and (a.layout == b.layout or (is_canonical(a.layout) and is_canonical(b.layout))):
        channels = max(a.channels, b.channels)
        return Local(Add(factor), (a, b), (), channels, a.layout if a.channels == channels else b.layout)
    function = torch.sub if factor < 0 else torch.add
    named = {"alpha": abs(factor)} if abs(factor) != 1 else {}
    return elementwise(of_its_type(function) if changes else function, (a, b), named, True)


@lowers(operator.add, torch.add, "add", any_layout=True)
def _add(input: Any, other: Any, *, alpha: float = 1) -> Local:
    return _sum(input, other, alpha)


@lowers(operator.iadd, "add_", any_layout=True)
def _add_in_place(input: Any, other: Any, *, alpha: float = 1) -> Local:
    return _sum(input, other, alpha, changes=True)


@lowers(operator.sub, torch.sub, torch.subtract, "sub", "subtract", any_layout=True)
def _sub(input: Any, other: Any, *, alpha: float = 1) -> Local:
    return _sum(input, other, -alpha)


@lowers(operator.isub, "sub_", "subtract_", any_layout=True)
def _sub_in_place(input: Any, other: Any, *, alpha: float = 1) -> Local:
    return _sum(input, other, -alpha, changes=True)


@lowers(torch.cat, torch.concat, torch.concatenate, any_layout=True)
def _cat(tensors: Sequence[Any], dim: int = 0, axis: int | None = None) -> Local:
    if not all(isinstance(t, Value) for t in tensors):
        raise NotLocal("concatenation with a tensor that is not a map")
    first: Layout = tensors[0].layout
    at = (dim if axis is None else axis) % len(first)
    if len(first) != 4 or not isinstance(first[at], tuple) or any(_places(t.layout) != _places(first) for t in tensors):
        raise NotLocal("concatenation over other dimensions than channels")
    _one_dimension(tensors[0])
    channels = sum(t.channels for t in tensors)
    return Local(Concatenate(), tuple(tensors), (), channels, tuple((1, channels) if isinstance(d, tuple) else d for d in first))


@lowers(torch.stack)
def _stack(tensors: Sequence[Any], dim: int = 0) -> Local:
    if dim % 5 != 1 or len({t.channels if isinstance(t, Value) else None for t in tensors}) != 1:
        raise NotLocal("stacking over another dimension than in front of the channels")
    found = _cat(tensors, 1)
    channels = tensors[0].channels
    return replace(found, layout=("N", *split((1, channels * len(tensors)), (len(tensors), channels)), "H", "W"))


def _places(layout: Layout) -> list[str]:
    return ["C" if isinstance(d, tuple) else d for d in layout]


def _one_dimension(input: Value) -> None:
    """Refuse a map whose channels are split in several dimensions."""
    if sum(isinstance(d, tuple) for d in input.layout) != 1:
        raise NotLocal("a part of the channels of a map that are split in several dimensions")


def _channels(input: Value, start: int, stop: int) -> Local:
    """Channels [start, stop) of a map with one dimension of channels."""
    _one_dimension(input)
    found = len(range(*slice(start, stop).indices(input.channels)))
    layout: Layout = tuple((1, found) if isinstance(d, tuple) else d for d in input.layout)
    return Local(Channels(start, stop), (input,), (), found, layout, shares=True)


def _reordered(input: Value, order: Sequence[int]) -> Local:
    """A map's channels by number, some of them several times or not at all."""
    _one_dimension(input)
    count = input.channels
    if not all(-count <= i < count for i in order):
        raise OtherChannels(f"it picks channels {list(order)}, its map has {count}")
    layout: Layout = tuple((1, len(order)) if isinstance(d, tuple) else d for d in input.layout)
    return Local(Shuffle(tuple(i % count for i in order)), (input,), (), len(order), layout)


def _picked(x: Tensor, index: Tensor) -> Tensor:
    return x[:, index]


def _channels_by(input: Value, index: Any) -> Local:
    """A map's channels by a list of numbers, or by a tensor of them that belongs to the network."""
    if isinstance(index, range | tuple | list) and all(isinstance(i, int) and not isinstance(i, bool) for i in index):
        return _reordered(input, list(index))
    if not isinstance(index, Weight) or len(index.shape) != 1 or not is_canonical(input.layout):
        raise NotLocal("channels picked by what depends on the image")
    numbers = index.read()
    if numbers.is_floating_point():
        raise NotLocal("channels picked by numbers that are not whole")
    if numbers.dtype == torch.bool:
        if len(numbers) != input.channels:
            raise OtherChannels(f"it picks from {len(numbers)} channels, its map has {input.channels}")
        mask, index = index, Weight(lambda: mask.read().nonzero().flatten())
    return Local(Pointwise(_picked, (Slot(0), Slot(1)), {}), (input,), (index,), len(index.read()))


@lowers("index_select", torch.index_select)
def _index_select(input: Value, dim: int, index: Any) -> Local:
    if dim % 4 != 1:
        raise NotLocal("picking images, rows or columns of a map by number")
    return _channels_by(input, index)


@lowers(torch.ops.aten.index.Tensor)
def _aten_index(input: Value, indices: Sequence[Any]) -> Local:
    if len(indices) < 2 or any(i is not None for i in (indices[0], *indices[2:])):
        raise NotLocal("picking images, rows or columns of a map by number")
    return _channels_by(input, indices[1])


@lowers("flip", torch.flip, any_layout=True)
def _flip(input: Value, *given: Any, dims: Any = None) -> Local:
    dims = given if dims is None else (dims,)
    axes = dims[0] if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims
    if len(axes) != 1 or len(input.layout) != 4 or not isinstance(input.layout[axes[0]], tuple):
        raise NotLocal(f"a flip over dimensions {tuple(axes)}: rows and columns would be read from their ends; channels can be flipped")
    return _reordered(input, range(input.channels)[::-1])


@lowers("roll", torch.roll, any_layout=True)
def _roll(input: Value, shifts: Any, dims: Any = ()) -> Local:
    (shift, *more), (dim, *others) = ((a if isinstance(a, tuple | list) else (a,)) or (None,) for a in (shifts, dims))
    if more or others or not isinstance(shift, int) or dim is None or len(input.layout) != 4 or not isinstance(input.layout[dim], tuple):
        raise NotLocal(f"a roll over dimensions {dims}: what leaves at one border enters at the other; channels can be rolled")
    return _reordered(input, [(i - shift) % input.channels for i in range(input.channels)])


@lowers("narrow", torch.narrow)
def _narrow(input: Value, dim: int, start: int, length: int) -> Local | Value:
    if dim % 4 != 1 or not isinstance(start, int) or not isinstance(length, int):
        raise NotLocal("a part of a map's rows or columns by their numbers")
    first = start % input.channels if start < 0 else start
    return _channels(input, first, first + length)


@lowers("unbind", torch.unbind)
def _unbind(input: Value, dim: int = 0) -> list[Local]:
    if dim % 4 != 1:
        raise NotLocal("images, rows or columns of a map apart")
    return [_select(input, 1, index) for index in range(input.channels)]


@lowers(operator.getitem)
def _getitem(input: Value, index: Any) -> Local | Value:
    index = index if isinstance(index, tuple) else (index,)
    if len(index) > 1 and index[0] == slice(None) and isinstance(index[1], list | Weight) and all(_is_whole(i) for i in index[2:]):
        return _channels_by(input, index[1])
    steps = len(index) > 1 and isinstance(index[1], slice) and index[1].step not in (None, 1)
    if steps and all(map(_is_whole, (index[0], *index[2:]))) and isinstance(index[1].step, int):
        return _reordered(input, range(input.channels)[index[1]])
    if len(index) == 2 and index[0] == slice(None) and isinstance(index[1], int):
        return _select(input, 1, index[1])
    if not all(i is Ellipsis or (isinstance(i, slice) and i.step in (None, 1)) for i in index) or index.count(Ellipsis) > 1:
        raise NotLocal(f"indexing a map by {index}")
    if Ellipsis in index:
        at = index.index(Ellipsis)
        index = (*index[:at], *[slice(None)] * (5 - len(index)), *index[at + 1 :])
    batch, channels, rows, cols = (*index, *[slice(None)] * 4)[:4]
    crops = [s.start or 0 for s in (rows, cols)], [s.stop or 0 for s in (rows, cols)]
    if batch != slice(None) or not all(isinstance(b, int) for b in (*crops[0], *crops[1])) or min(*crops[0]) < 0 or max(*crops[1]) > 0:
        raise NotLocal("slices of a map other than channels and margins counted from its borders")
    if channels == slice(None):
        (top, left), (bottom, right) = crops
        return Local(Pad(Window(before=-top, after=bottom), Window(before=-left, after=right), 0.0), (input,), shares=True)
    if any(crops[0]) or any(crops[1]) or not all(isinstance(b, int | None) for b in (channels.start, channels.stop)):
        raise NotLocal("slicing channels together with rows or columns")
    return _channels(input, channels.start or 0, channels.stop if channels.stop is not None else input.channels)


def _is_whole(index: Any) -> bool:
    return index is Ellipsis or (isinstance(index, slice) and index == slice(None))


@lowers("select", torch.select)
def _select(input: Value, dim: int, index: int) -> Local:
    if dim % 4 != 1 or not isinstance(index, int):
        raise NotLocal("picking an image, a row or a column of a map")
    if not -input.channels <= index < input.channels:
        raise OtherChannels(f"it picks channel {index}, its map has {input.channels}")
    found = _channels(input, index % input.channels, index % input.channels + 1)
    return replace(found, layout=("N", "H", "W"))


@lowers(torch.ops.aten.slice.Tensor)
def _slice(input: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Local | Value:
    stop = None if isinstance(end, int) and end >= 2**62 else end
    if start in (None, 0) and stop is None and step == 1:
        return input
    return _getitem(input, (*[slice(None)] * (dim % 4), slice(start, stop, None if step == 1 else step)))


def _split_at(input: Value, sizes: Sequence[int], dim: int, call: str) -> list[Local]:
    if len(input.layout) != 4 or not -4 <= dim < 4 or not isinstance(input.layout[dim], tuple):
        raise NotLocal(f"{call} over dimension {dim} rather than over channels")
    stops = list(itertools.accumulate(sizes))
    return [_channels(input, stop - size, stop) for size, stop in zip(sizes, stops, strict=True)]


@lowers("split", torch.split, "split_with_sizes", torch.split_with_sizes, torch.functional.split, any_layout=True)
def _split(tensor: Value, split_size_or_sections: Any, dim: int = 0) -> list[Local]:
    if isinstance(split_size_or_sections, int):
        size = split_size_or_sections
        sizes = [min(size, tensor.channels - start) for start in range(0, tensor.channels, size)]
    else:
        sizes = list(split_size_or_sections)
    return _split_at(tensor, sizes, dim, "split")


@lowers("chunk", torch.chunk, any_layout=True)
def _chunk(input: Value, chunks: int, dim: int = 0) -> list[Local]:
    return _split(input, -(-input.channels // chunks), dim)
