"""Conversions of maps to other types, and to other devices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from streamview.streaming.ops.pointwise import elementwise
from streamview.streaming.ops.registry import Local, NotLocal, Trait, Value, Weight, lowers

__all__ = ["converted"]


def converted(x: Tensor, dtype: torch.dtype | None, device: torch.device | str | None) -> Tensor:
    """A map in another type, or on another device."""
    # forecasts run on the device without memory
    return x.to(dtype=dtype, device=None if x.device.type == "meta" else device)


def _as(x: Tensor, other: Tensor) -> Tensor:
    return converted(x, other.dtype, other.device)


def _convert(input: Value, dtype: Any, device: Any) -> Local | Value:
    """To the type and device that it already has, a tensor is itself: the result may share its memory."""
    if isinstance(dtype, torch.dtype) and not dtype.is_floating_point:
        raise NotLocal(f"a conversion to {dtype}, which has no gradient")
    device = None if isinstance(device, Trait) else device
    if isinstance(dtype, Trait) and dtype.of == input.dtype:
        dtype = None
    elif isinstance(dtype, Trait) and dtype.of is None:
        if dtype.example is None:
            raise NotLocal("a conversion to the type of the image, and the network has no weights that tell it")
        return replace(_type_as(input, dtype.example), to=Trait("dtype"))
    elif isinstance(dtype, Trait):
        dtype = dtype.of
    if dtype is None and device is None:
        return input
    to = Trait("dtype", input.dtype if dtype is None else dtype)
    return replace(elementwise(converted, (input, dtype, device), {}), shares=True, to=to)


@lowers("to", any_layout=True)
def _to(input: Value, *target: Any, **how: Any) -> Local | Value:
    if target and isinstance(target[0], Value | Weight):
        return _type_as(input, target[0])
    kinds = [t.name if isinstance(t, Trait) else "dtype" if isinstance(t, torch.dtype) else "device" for t in target]
    named = {kind: t for kind, t in zip(kinds, target, strict=True) if isinstance(t, torch.dtype | torch.device | str | Trait)} | how
    return _convert(input, named.get("dtype"), named.get("device"))


@lowers(torch.ops.aten.to.dtype, torch.ops.aten.to.dtype_layout, torch.ops.aten.to.device, any_layout=True)
def _aten_to(input: Value, *target: Any, **how: Any) -> Local | Value:
    return _to(input, *target, **how)


@lowers("type_as", any_layout=True)
def _type_as(input: Value, other: Value | Weight) -> Local:
    to = Trait("dtype", other.dtype if isinstance(other, Value) else None)
    return replace(elementwise(_as, (input, other), {}), shares=True, to=to)


@lowers("type", any_layout=True)
def _type(input: Value, dtype: Any) -> Local | Value:
    return _convert(input, dtype, None)


def _lower_named(name: str, dtype: torch.dtype) -> None:
    lowers(name, any_layout=True)(lambda input, **how: _convert(input, dtype, None))


for _name, _dtype in (("float", torch.float32), ("double", torch.float64), ("half", torch.float16), ("bfloat16", torch.bfloat16)):
    _lower_named(_name, _dtype)
