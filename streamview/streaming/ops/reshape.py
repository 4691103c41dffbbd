"""Calls that permute, split or flatten the dimensions of a map, and questions about its shape.

They cost nothing: only the `Layout` of the value changes. Channels that truly change places (channel shuffle) are an operation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamview.errors import NotStreamableError
from streamview.streaming.ops.layouts import Layout, Part, merged, split
from streamview.streaming.ops.pointwise import Copy
from streamview.streaming.ops.registry import BATCH, Extent, Local, NotLocal, Piece, Size, Sized, Trait, Value, Wants, lowers, lowers_module
from streamview.streaming.schedule import IDENTITY, Window

__all__ = ["Shuffle", "reduced"]

Gradients = tuple[list[Tensor | None], list[Tensor | None]]


@dataclass(frozen=True, slots=True)
class Shuffle:
    """Some channels in another order: output channel ``i`` is input channel ``order[i]``."""

    order: tuple[int, ...]
    rows: Window = field(default=IDENTITY, init=False)
    cols: Window = field(default=IDENTITY, init=False)

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], piece: Piece, wants: Wants | None) -> tuple[Tensor, Any]:
        """Copy the channels in their new order."""
        return inputs[0][:, list(self.order)], None if wants is None else inputs[0].shape

    def vjp(self, grad: Tensor, saved: Any, weights: Sequence[Tensor], piece: Piece, wants: Wants) -> Gradients:
        """Copy them back."""
        if len(self.order) == saved[1] == len(set(self.order)):
            back = sorted(range(len(self.order)), key=self.order.__getitem__)
            return [grad[:, back]], []
        whole = grad.new_zeros(saved)
        return [whole.index_add_(1, torch.tensor(self.order, device=grad.device), grad)], []


@lowers("size", any_layout=True)
def _size(input: Value, dim: int | None = None) -> Any:
    shape = tuple(_length(input, d) for d in input.layout)
    return shape if dim is None else shape[dim]


@lowers(torch.ops.aten.sym_size.int, any_layout=True)
def _sym_size(input: Value, dim: int) -> Any:
    return _size(input, dim)


@lowers(getattr, any_layout=True)
def _getattr(input: Value, name: str) -> Any:
    if name == "shape":
        return _size(input)
    if name == "ndim":
        return len(input.layout)
    if name in ("dtype", "device"):
        return Trait(name, input.dtype)
    raise NotLocal(f"attribute {name} of a map")


@lowers("dim", any_layout=True)
def _dim(input: Value) -> int:
    return len(input.layout)


def _length(input: Value, dim: str | Part) -> Any:
    if isinstance(dim, tuple):
        return dim[1]
    if dim == "N":
        return BATCH
    if dim == "HW":
        raise NotLocal("the number of positions of a map")
    axis, index = int(dim == "W"), input.index
    return Extent(axis, lambda lengths: lengths[index], index, input.like)


@lowers("permute", torch.permute, any_layout=True)
def _permute(input: Value, *given: Any, dims: Any = None) -> Value:
    order = dims if dims is not None else given[0] if len(given) == 1 else given
    return replace(input, layout=tuple(input.layout[d] for d in order))


@lowers("transpose", torch.transpose, "swapaxes", torch.swapaxes, any_layout=True)
def _transpose(input: Value, dim0: int, dim1: int) -> Value:
    found = list(input.layout)
    found[dim0], found[dim1] = found[dim1], found[dim0]
    return replace(input, layout=tuple(found))


@lowers("flatten", torch.flatten, any_layout=True)
def _flatten(input: Value, start_dim: int = 0, end_dim: int = -1) -> Value | Local:
    first, last = start_dim % len(input.layout), end_dim % len(input.layout)
    return _merge(input, [input.layout[:first], input.layout[first : last + 1], input.layout[last + 1 :]])


def _merge(input: Value, groups: Sequence[Layout]) -> Value | Local:
    """The dimensions of the middle group as one."""
    before, group, after = groups
    if len(group) < 2:
        return input
    if group == ("H", "W"):
        return replace(input, layout=(*before, "HW", *after))
    if not all(isinstance(d, tuple) for d in group):
        raise NotLocal("flattening channels or images together with rows or columns")
    return _with_channels_merged(input, before, [d for d in group if isinstance(d, tuple)], after)


def _with_channels_merged(input: Value, before: Layout, group: Sequence[Part], after: Layout) -> Value | Local:
    one = merged(group)
    if one is not None:
        return replace(input, layout=(*before, one, *after))
    if any(isinstance(d, tuple) for d in (*before, *after)):
        raise NotLocal("flattening some of several parts of the channels in another order")
    order = [0]
    for stride, length in group:
        order = [start + stride * step for start in order for step in range(length)]
    return Local(Shuffle(tuple(order)), (input,), (), input.channels, (*before, (1, input.channels), *after))


@lowers("view", "reshape", torch.reshape, any_layout=True)
def _view(input: Value, *shape: Any) -> Value | Local:
    if len(shape) == 1 and isinstance(shape[0], tuple | list):
        shape = tuple(shape[0])
    if not shape or (shape[0] is not BATCH and shape[0] != -1):
        raise NotLocal("a new shape of the map that does not keep the images apart")
    spatial = [d for d in input.layout if d in ("H", "W", "HW")]
    if input.layout[-len(spatial) :] != tuple(spatial) or input.layout[0] != "N":
        raise NotLocal("a new shape of a map whose channels are not in front of rows and columns")
    inner = list(input.layout[1 : -len(spatial)])
    tail: Layout = tuple(spatial)
    checks: list[tuple[Extent, int]] = []
    if len(shape) >= 3 and all(isinstance(s, Extent) and s.axis == a for a, s in enumerate(shape[-2:])):
        checks = [(s, a) for a, s in enumerate(shape[-2:]) if s.value != input.index]
        tail, wanted = ("H", "W"), list(shape[1:-2])
    elif shape[-1] == -1 and len(shape) >= 3 and all(isinstance(s, int) and s > 0 for s in shape[1:-1]):
        tail, wanted = ("HW",), list(shape[1:-1])
    else:
        raise NotLocal("a new shape of the map that does not keep its rows and columns")
    if not all(isinstance(s, int) for s in wanted) or wanted.count(-1) > 1:
        raise NotLocal("a new shape of the map whose channels depend on its size")
    if -1 in wanted:
        wanted[wanted.index(-1)] = input.channels // max(math.prod(s for s in wanted if s != -1), 1)
    if math.prod(wanted) != input.channels:
        raise NotLocal(f"a new shape of the map that turns {input.channels} channels into {wanted}")
    found = _with_channels_merged(input, ("N",), [d for d in inner if isinstance(d, tuple)], tail) if len(inner) > 1 else input
    layout: Layout = ("N", *split((1, input.channels), wanted), *tail)
    if isinstance(found, Value) and len(inner) > 1 and found.layout[1] != (1, input.channels):
        raise NotLocal("a new shape of the map that mixes parts of its channels")
    if not checks:
        return replace(found, layout=layout)
    op = Copy() if isinstance(found, Value) else found.op

    def sized(sizes: Sequence[Size]) -> Any:
        for extent, axis in checks:
            if extent.of([s[axis] for s in sizes]) != sizes[input.index][axis]:
                raise NotStreamableError("a map is given a new shape that is not its own height and width")
        return op

    return Local(Sized(sized), (input,), (), input.channels, layout, shares=isinstance(found, Value))


@lowers("unsqueeze", torch.unsqueeze, any_layout=True)
def _unsqueeze(input: Value, dim: int) -> Value:
    if any(isinstance(d, tuple) for d in input.layout):
        raise NotLocal("another dimension of a map")
    at = dim % (len(input.layout) + 1)
    return replace(input, layout=(*input.layout[:at], (1, 1), *input.layout[at:]))


@lowers("squeeze", torch.squeeze, any_layout=True)
def _squeeze(input: Value, dim: int | None = None) -> Value:
    if dim is None or input.layout[dim] != (1, 1) or input.channels != 1:
        raise NotLocal("squeezing another dimension than that of a single channel")
    at = dim % len(input.layout)
    return replace(input, layout=(*input.layout[:at], *input.layout[at + 1 :]))


@lowers("unflatten", torch.unflatten, any_layout=True)
def _unflatten(input: Value, dim: int, sizes: Sequence[int]) -> Value:
    part = input.layout[dim]
    if not isinstance(part, tuple) or not all(isinstance(s, int) for s in sizes):
        raise NotLocal("unflattening rows or columns")
    lengths = [s if s != -1 else part[1] // max(math.prod(n for n in sizes if n != -1), 1) for s in sizes]
    at = dim % len(input.layout)
    return replace(input, layout=(*input.layout[:at], *split(part, lengths), *input.layout[at + 1 :]))


@lowers(F.channel_shuffle)
def _channel_shuffle(input: Value, groups: int) -> Local:
    order = tuple(g * (input.channels // groups) + i for i in range(input.channels // groups) for g in range(groups))
    return Local(Shuffle(order), (input,))


@lowers_module(nn.ChannelShuffle)
def _channel_shuffle_module(module: nn.ChannelShuffle, input: Value) -> Local:
    return _channel_shuffle(input, module.groups)


@lowers_module(nn.Flatten, any_layout=True)
def _flatten_module(module: nn.Flatten, input: Value) -> Value | Local:
    return _flatten(input, module.start_dim, module.end_dim)


def reduced(layout: Layout, keepdim: bool, channels: int) -> tuple[Layout, tuple[int, ...]]:
    """How the reduction (N, C, 1, 1) of a map looks to the network: its layout, and the dimensions that are then dropped."""
    if "HW" in layout:
        kept: Layout = (*("H" if d == "HW" else d for d in layout), "W")
        return kept, tuple(i for i, d in enumerate(kept) if d == "W" or (d == "H" and not keepdim))
    return layout, () if keepdim else tuple(i for i, d in enumerate(layout) if d in ("H", "W"))
