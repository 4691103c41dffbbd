"""Which calls reduce a whole map to one number per channel: running reductions (see `streamview.streaming.sinks`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamview.streaming.ops.mixing import over_channels
from streamview.streaming.ops.registry import Local, NotLocal, Reduction, Value, lowers, lowers_module

__all__ = ["positions", "spread"]


def spread(map: Tensor, dim: Any, keepdim: bool) -> Tensor:
    """Variance over some dimensions in float64, which no gradient runs through; `dim` and `keepdim` as for ``torch.var``."""
    return map.detach().double().var(dim, correction=0, keepdim=keepdim)


def positions(map: Tensor, dim: Any, keepdim: bool) -> Tensor:
    """How many numbers of a map `spread` takes together, in its shape."""
    return torch.ones_like(map, dtype=torch.float64).sum(dim, keepdim)


@lowers(spread, any_layout=True)
def _spread(input: Value, dim: Any, keepdim: bool) -> Any:
    return _over_map("spread", input, dim, keepdim)


@lowers(positions, any_layout=True)
def _positions(input: Value, dim: Any, keepdim: bool) -> Any:
    return _over_map("positions", input, dim, keepdim)


def _over_map(kind: str, input: Value, dim: Any, keepdim: bool) -> Any:
    reduction = _reduction("mean", input, dim, keepdim, torch.float64)
    if not isinstance(reduction, Reduction):
        raise NotLocal(f"a variance over dimensions {dim} rather than over rows and columns")
    return replace(reduction, kind=kind)


def _is_one(output_size: Any) -> bool:
    return output_size in (1, (1, 1), [1, 1], (1,), [1])


@lowers(F.adaptive_avg_pool2d, torch._C._nn.adaptive_avg_pool2d)
def _adaptive_avg_pool2d(input: Value, output_size: Any) -> Reduction:
    if not _is_one(output_size):
        raise NotLocal(f"adaptive pooling to {output_size} depends on the size of the whole map")
    return Reduction("mean", input, True)


@lowers(F.adaptive_max_pool2d)
def _adaptive_max_pool2d(input: Value, output_size: Any, return_indices: bool = False) -> Reduction:
    if not _is_one(output_size) or return_indices:
        raise NotLocal(f"adaptive pooling to {output_size} depends on the size of the whole map")
    return Reduction("max", input, True)


@lowers_module(nn.AdaptiveAvgPool2d)
def _adaptive_avg_pool2d_module(module: nn.AdaptiveAvgPool2d, input: Value) -> Reduction:
    return _adaptive_avg_pool2d(input, module.output_size)


@lowers_module(nn.AdaptiveMaxPool2d)
def _adaptive_max_pool2d_module(module: nn.AdaptiveMaxPool2d, input: Value) -> Reduction:
    return _adaptive_max_pool2d(input, module.output_size, module.return_indices)


def _reduction(kind: str, input: Value, dim: Sequence[int] | int | None, keepdim: bool, dtype: torch.dtype | None) -> Reduction | Local:
    dims = [dim] if isinstance(dim, int) else list(dim or [])
    count = len(input.layout)
    reduced = sorted(str(input.layout[d]) for d in dims if -count <= d < count)
    if reduced in (["H", "W"], ["HW"]):
        return Reduction(kind, input, keepdim, dtype)
    if len(dims) == 1 and len(reduced) == 1 and isinstance(input.layout[dims[0]], tuple) and dtype is None:
        return over_channels(torch.mean if kind == "mean" else torch.sum, input, dims[0], keepdim)
    raise NotLocal(f"a {kind} over dimensions {dim} rather than over rows and columns")


@lowers(torch.mean, "mean", any_layout=True)
def _mean(input: Value, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Reduction | Local:
    return _reduction("mean", input, dim, keepdim, dtype)


@lowers(torch.sum, "sum", any_layout=True)
def _sum(input: Value, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Reduction | Local:
    return _reduction("sum", input, dim, keepdim, dtype)
