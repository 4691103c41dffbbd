"""Which calls reduce a whole map to numbers per channel: running reductions (see `streamview.streaming.run.sinks`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamview.streaming.ops.mixing import over_channels, over_positions
from streamview.streaming.ops.partials import Along, Picked
from streamview.streaming.ops.pointwise import elementwise
from streamview.streaming.ops.registry import Local, NotLocal, Partial, Reduction, Value, lowers, lowers_module

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


@lowers(F.adaptive_max_pool2d_with_indices, torch.ops.aten.adaptive_max_pool2d.default)
def _adaptive_max_pool2d_with_indices(input: Value, output_size: Any, return_indices: bool = False) -> Partial:
    return Picked(_adaptive_max_pool2d(input, output_size))


@lowers_module(nn.AdaptiveAvgPool2d)
def _adaptive_avg_pool2d_module(module: nn.AdaptiveAvgPool2d, input: Value) -> Reduction:
    return _adaptive_avg_pool2d(input, module.output_size)


@lowers_module(nn.AdaptiveMaxPool2d)
def _adaptive_max_pool2d_module(module: nn.AdaptiveMaxPool2d, input: Value) -> Reduction | Partial:
    return (_adaptive_max_pool2d_with_indices if module.return_indices else _adaptive_max_pool2d)(input, module.output_size)


def _flattened(kind: str, input: Value, output_size: Any) -> Reduction:
    if output_size not in (1, (1,), [1]) or input.layout[-1] != "HW" or len(input.layout) != 3:
        raise NotLocal(f"adaptive pooling of {len(input.layout) - 1} dimensions to {output_size}")
    return Reduction(kind, input, True)


@lowers(F.adaptive_avg_pool1d, torch.adaptive_avg_pool1d, any_layout=True)
def _adaptive_avg_pool1d(input: Value, output_size: Any) -> Reduction:
    return _flattened("mean", input, output_size)


@lowers(F.adaptive_max_pool1d, any_layout=True)
def _adaptive_max_pool1d(input: Value, output_size: Any, return_indices: bool = False) -> Reduction | Partial:
    reduction = _flattened("max", input, output_size)
    return Picked(reduction) if return_indices else reduction


@lowers(F.adaptive_max_pool1d_with_indices, torch.ops.aten.adaptive_max_pool1d.default, any_layout=True)
def _adaptive_max_pool1d_with_indices(input: Value, output_size: Any, return_indices: bool = False) -> Partial:
    return Picked(_flattened("max", input, output_size))


@lowers_module(nn.AdaptiveAvgPool1d, any_layout=True)
def _adaptive_avg_pool1d_module(module: nn.AdaptiveAvgPool1d, input: Value) -> Reduction:
    return _flattened("mean", input, module.output_size)


@lowers_module(nn.AdaptiveMaxPool1d, any_layout=True)
def _adaptive_max_pool1d_module(module: nn.AdaptiveMaxPool1d, input: Value) -> Reduction | Partial:
    return _adaptive_max_pool1d(input, module.output_size, module.return_indices)


def _reduction(
    kind: str, input: Value, dim: Sequence[int] | int | None, keepdim: bool, dtype: torch.dtype | None
) -> Reduction | Partial | Local:
    dims = [dim] if isinstance(dim, int) else list(dim or [])
    count = len(input.layout)
    if not all(isinstance(d, int) and -count <= d < count for d in dims):
        raise NotLocal(f"a {kind} over dimensions {dim} rather than over rows and columns")
    reduced = sorted(str(input.layout[d]) for d in dims)
    if reduced in (["H", "W"], ["HW"]):
        return Reduction(kind, input, keepdim, dtype)
    if reduced in (["H"], ["W"]) and dtype is None:
        at = dims[0] % count
        rest = (*input.layout[:at], *([None] if keepdim else []), *input.layout[at + 1 :])
        return Along(kind, input, rest, keepdim)
    if len(dims) == 1 and len(reduced) == 1 and isinstance(input.layout[dims[0]], tuple) and dtype is None:
        return over_channels(torch.mean if kind == "mean" else torch.sum, input, dims[0], keepdim)
    raise NotLocal(f"a {kind} over dimensions {dim} rather than over rows and columns")


@lowers(torch.mean, "mean", any_layout=True)
def _mean(input: Value, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Reduction | Partial | Local:
    return _reduction("mean", input, dim, keepdim, dtype)


@lowers(torch.sum, "sum", any_layout=True)
def _sum(input: Value, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Reduction | Partial | Local:
    return _reduction("sum", input, dim, keepdim, dtype)


def _largest(x: Tensor, dim: int, keepdim: bool) -> Tensor:
    return torch.max(x, dim, keepdim)[0]


@lowers("max", torch.max, any_layout=True)
def _max(input: Value, dim: Any = None, keepdim: bool = False) -> list[Local] | Local | Partial:
    if isinstance(dim, Value):
        return elementwise(torch.maximum, (input, dim), {}, True)
    if over_positions(input, dim):
        return Picked(Reduction("max", input, keepdim))
    if isinstance(dim, int) and dim in (-1, len(input.layout) - 1) and input.layout[-2:] == ("H", "W"):
        # then along the columns: the first of equals row by row, as a reduction takes it
        return Picked(Along("max", input, (*input.layout[:-1], *([None] if keepdim else [])), keepdim))
    if not isinstance(dim, int):
        raise NotLocal(f"a reduction over dimensions {dim}")
    return [over_channels(_largest, input, dim, keepdim)]


@lowers("topk", torch.topk, any_layout=True)
def _topk(input: Value, k: Any, dim: int = -1, largest: bool = True, sorted: bool = True) -> Partial:
    if not isinstance(k, int) or k < 1 or not over_positions(input, dim):
        raise NotLocal(f"the {k} largest over dimension {dim}: a fixed number over all positions (after flatten) can be streamed")
    return Picked(Reduction("top" if largest else "bottom", input, True, count=k))
