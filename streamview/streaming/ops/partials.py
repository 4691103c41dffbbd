"""Results that are no maps, and are streamed where later calls complete them to a reduction: pairs, halves, softmax over positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from streamview.streaming.ops.layouts import Layout
from streamview.streaming.ops.registry import Extent, Local, NotLocal, Partial, Piece, Reduction, Value, Wants, lower
from streamview.streaming.schedule import IDENTITY, Window

__all__ = ["PARTIALS", "Along", "Picked", "Scored", "Softmax"]

Gradients = tuple[list[Tensor | None], list[Tensor | None]]


@dataclass(frozen=True, slots=True)
class Picked:
    """Several results of a call, of which the first is a reduction, or leads to one."""

    first: Reduction | Along

    def then(self, name: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reduction | Partial:
        """The first result; positions of maxima are not streamed."""
        if name in ("getitem", "getattr") and args[1] in (0, "values"):
            return self.first
        raise NotLocal("positions within the whole map")


@dataclass(frozen=True, slots=True)
class Along:
    """A map that was reduced along rows or along columns, to this layout; None stands for the dimension that was reduced."""

    kind: str
    value: Value
    layout: tuple[Any, ...]
    keepdim: bool

    def then(self, name: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reduction | Partial:
        """The same reduction along the other axis."""
        given = dict(zip(("input", "dim", "keepdim"), args, strict=False)) | kwargs
        dim, keepdim = given.get("dim"), given.get("keepdim", False)
        dims = dim if isinstance(dim, tuple | list) else [dim]
        if name != self.kind or len(dims) != 1 or not isinstance(dims[0], int) or kwargs.get("dtype") is not None:
            raise NotLocal(f"a {self.kind} along one axis of the map, then {name}")
        if not -len(self.layout) <= dims[0] < len(self.layout) or self.layout[dims[0]] not in ("H", "W") or keepdim != self.keepdim:
            raise NotLocal(f"a {self.kind} along one axis of the map, then along dimension {dim}")
        reduction = Reduction(self.kind, self.value, self.keepdim)
        return Picked(reduction) if self.kind == "max" else reduction


@dataclass(frozen=True, slots=True)
class Softmax:
    """A softmax of scores over all positions: weights that sum a map up."""

    score: Value

    def then(self, name: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reduction | Partial:
        """The weighted sum, the weighted map, or the same weights in another layout."""
        if name in _VIEWS and not any(isinstance(a, Value | Softmax) for a in args[1:]):
            if any(a.like != self.score.like for a in args[1:] if isinstance(a, Extent)):
                raise NotLocal("softmax over positions in a shape that is not its map's own")
            viewed: Any = lower(target, (self.score, *args[1:]), kwargs)
            if isinstance(viewed, Local) and viewed.inputs == (self.score,) and viewed.layout is not None and viewed.shares:
                viewed = replace(self.score, layout=viewed.layout)
            if isinstance(viewed, Value) and viewed.index == self.score.index:
                return Softmax(viewed)
        others = [a for a in args if not isinstance(a, Softmax)]
        if name in ("mul", "multiply", "imul") and len(args) == 2 and len(others) == 1 and isinstance(others[0], Value):
            return Weighted(self.score, others[0])
        if name in ("matmul", "bmm") and len(args) == 2 and len(others) == 1 and isinstance(others[0], Value):
            (map,), last = others, isinstance(args[0], Softmax)
            expected = ("N", (1, 1), "HW") if last else ("N", "HW", (1, 1))
            if self.score.layout == expected and map.layout == (("N", "HW", (1, map.channels)) if last else ("N", (1, map.channels), "HW")):
                return _attention(replace(self.score, layout=map.layout), map, True)
        raise NotLocal(f"softmax over all positions rather than over channels, then {name}: a weighted sum over them can be streamed")


@dataclass(frozen=True, slots=True)
class Weighted:
    """A map times weights of its positions."""

    score: Value
    map: Value

    def then(self, name: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reduction | Partial:
        """The sum over positions."""
        if name == "sum":
            total = lower("sum", (self.map, *args[1:]), {k: v for k, v in kwargs.items() if k != "dtype"})
            if isinstance(total, Reduction) and total.dtype is None and kwargs.get("dtype") is None:
                return _attention(self.score, self.map, total.keepdim)
        raise NotLocal(f"softmax over all positions rather than over channels, times a map, then {name}: the sum over them can be streamed")


PARTIALS = (Picked, Along, Softmax, Weighted)
_VIEWS = {"unsqueeze", "squeeze", "view", "reshape", "permute", "transpose", "flatten", "contiguous", "unflatten", "swapaxes"}


def _attention(score: Value, map: Value, keepdim: bool) -> Reduction:
    """The sum of a map's positions by the softmax of scores, which are one for each position or one for each element."""
    if _shape_of(score.layout) != _shape_of(map.layout) or score.channels not in (1, map.channels):
        raise NotLocal("softmax over positions of a map in another layout than the map that it weighs")
    before = Local(Scored(), (map, score), (), map.channels + 3 * score.channels, None)
    return Reduction("attention", map, keepdim, None, before)


def _shape_of(layout: Layout) -> list[str]:
    return ["C" if isinstance(d, tuple) else d for d in layout]


@dataclass(frozen=True, slots=True)
class Scored:
    """A map (N, C, h, w), its scores (N, S, h, w) three times, for a sum by the softmax of the scores.

    The gradient that comes back is that of no output: at every position it holds the sum's gradient g (C channels), the scores' log of
    summed exponentials (S, and S for what is lost by rounding it), and g times the sum (S), with which the softmax of each position and
    its gradient are local.
    """

    rows: Window = field(default=IDENTITY, init=False)
    cols: Window = field(default=IDENTITY, init=False)

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], piece: Piece, wants: Wants | None) -> tuple[Tensor, Any]:
        """Join both."""
        map, score = inputs
        return torch.cat([map, *[score] * 3], 1), None if wants is None else (map, score)

    def vjp(self, grad: Tensor, saved: Any, weights: Sequence[Tensor], piece: Piece, wants: Wants) -> Gradients:
        """With p the softmax, p g for the map, and p (g map - g sum) for the scores, summed over channels that share a score."""
        map, score = saved
        channels, scores = map.shape[1], score.shape[1]
        g, logarithm, rest, total = grad.split([channels, scores, scores, scores], 1)
        share = (score - logarithm - rest).clamp(max=0).exp()
        product = g * map
        if scores < channels:
            product = product.sum(1, keepdim=True)
        return [share * g if wants.inputs[0] else None, share * (product - total) if wants.inputs[1] else None], []
