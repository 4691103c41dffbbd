"""Functions that mix the channels of each position, and nothing else: softmax, LayerNorm, reductions over channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamview.streaming.ops.layouts import Layout, parts
from streamview.streaming.ops.partials import Softmax
from streamview.streaming.ops.pointwise import Pointwise, Slot, elementwise
from streamview.streaming.ops.registry import Local, NotLocal, Partial, Trait, Value, Weight, fits, lowers, lowers_module

__all__ = ["over_channels", "over_positions"]


def _within(function: Callable[[Tensor], Tensor], input: Value, output: Layout, channels: int, weights: Sequence[Weight] = ()) -> Local:
    """A call of a function that mixes channels at each position, from a map in its layout to another layout."""
    slots = tuple(Slot(index) for index in range(1 + len(weights)))
    return Local(Pointwise(function, slots, {}, input.layout, output), (input,), tuple(weights), channels, output)


def _dimension(input: Value, dim: int | None, call: str) -> int:
    """A dimension of a map that must be (a part of) the channels, counted from the front."""
    if dim is None or not -len(input.layout) <= dim < len(input.layout) or not isinstance(input.layout[dim], tuple):
        raise NotLocal(f"{call} over dimension {dim} of the map rather than over channels")
    return dim % len(input.layout)


@lowers_module(nn.Softmax2d, nn.LocalResponseNorm)
def _over_channels(module: nn.Module, input: Value) -> Local:
    return elementwise(module.forward, (input,), {})


def _softmax(function: Callable[..., Tensor], input: Value, dim: int | None, dtype: torch.dtype | None = None) -> Local | Partial:
    if function is torch.softmax and dtype is None and over_positions(input, dim):
        return Softmax(input)
    at = _dimension(input, dim, "softmax")
    lowered = _within(lambda x: function(x, dim=at, dtype=dtype), input, input.layout, input.channels)
    return lowered if dtype is None else replace(lowered, to=Trait("dtype", dtype))


@lowers(F.softmax, torch.softmax, "softmax", any_layout=True)
def _softmax_function(
    input: Value, dim: int | None = None, _stacklevel: int | torch.dtype = 3, dtype: torch.dtype | None = None
) -> Local | Partial:
    return _softmax(torch.softmax, input, dim, _stacklevel if isinstance(_stacklevel, torch.dtype) else dtype)


@lowers(F.log_softmax, torch.log_softmax, "log_softmax", any_layout=True)
def _log_softmax_function(
    input: Value, dim: int | None = None, _stacklevel: int | torch.dtype = 3, dtype: torch.dtype | None = None
) -> Local | Partial:
    return _softmax(torch.log_softmax, input, dim, _stacklevel if isinstance(_stacklevel, torch.dtype) else dtype)


@lowers_module(nn.Softmax, nn.LogSoftmax, any_layout=True)
def _softmax_module(module: nn.Softmax | nn.LogSoftmax, input: Value) -> Local | Partial:
    return _softmax(torch.softmax if isinstance(module, nn.Softmax) else torch.log_softmax, input, module.dim)


@lowers(F.layer_norm, torch.layer_norm, any_layout=True)
def _layer_norm(
    input: Value, normalized_shape: Sequence[int], weight: Weight | None = None, bias: Weight | None = None, eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Local:  # fmt: skip
    if len(normalized_shape) == 1 and isinstance(input.layout[-1], tuple) and len(input.layout) in (3, 4):
        fits(input, normalized_shape[0])
    if tuple(normalized_shape) != (input.channels,) or input.layout[-1] != (1, input.channels):
        raise NotLocal(f"LayerNorm over {tuple(normalized_shape)} rather than over the channels of each position")
    if weight is None and bias is not None:
        raise NotLocal("layer_norm with a shift but no scale")
    weights = [w for w in (weight, bias) if w is not None]

    def call(x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], scale, shift, eps)

    return _within(call, input, input.layout, input.channels, weights)


@lowers_module(nn.LayerNorm, any_layout=True)
def _layer_norm_module(module: nn.LayerNorm, input: Value) -> Local:
    weight, bias = (None if getattr(module, n) is None else Weight.of(module, n) for n in ("weight", "bias"))
    return _layer_norm(input, module.normalized_shape, weight, bias, module.eps)


def over_channels(function: Callable[..., Tensor], input: Value, dim: int, keepdim: bool) -> Local:
    """A reduction over (a part of) the channels of each position."""
    at = _dimension(input, dim, function.__name__)
    part = input.layout[at]
    if len(input.layout) == 4 and keepdim:
        output: Layout = tuple((1, 1) if d == part else d for d in input.layout)
        channels = 1
    elif len(parts(input.layout)) == 2 and not keepdim:
        (rest,) = (p for p in parts(input.layout) if p != part)
        output = tuple((1, rest[1]) if d == rest else d for d in input.layout if d != part)
        channels = rest[1]
    else:
        raise NotLocal(f"{function.__name__} over channels that drops their dimension")
    return _within(lambda x: function(x, dim=at, keepdim=keepdim), input, output, channels)


def over_positions(input: Value, dim: Any) -> bool:
    """Whether a dimension of a map holds all positions."""
    return isinstance(dim, int) and -len(input.layout) <= dim < len(input.layout) and input.layout[dim] == "HW"


@lowers("amax", torch.amax, any_layout=True)
def _amax(input: Value, dim: Any = (), keepdim: bool = False) -> Local:
    return over_channels(torch.amax, input, *_single(dim), keepdim)


@lowers("amin", torch.amin, any_layout=True)
def _amin(input: Value, dim: Any = (), keepdim: bool = False) -> Local:
    return over_channels(torch.amin, input, *_single(dim), keepdim)


def _largest(x: Tensor, dim: int, keepdim: bool) -> Tensor:
    return torch.max(x, dim, keepdim)[0]


def _single(dim: Any) -> tuple[int]:
    dims = dim if isinstance(dim, tuple | list) else (dim,)
    if len(dims) != 1 or not isinstance(dims[0], int):
        raise NotLocal(f"a reduction over dimensions {dim}")
    return (dims[0],)
