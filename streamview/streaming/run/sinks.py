"""Where the pieces of a pass go: maps that are held or spilled to disk, and running reductions that never hold the map.

Sums run in float64 (a float32 sum over a slide's positions loses percents), maxima with the position of the first of equals, as
in torch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from streamview.errors import RegionError
from streamview.streaming.graph import Program, Sink
from streamview.streaming.run.stores import Held, Store
from streamview.streaming.step import Grid

__all__ = ["RunningAttention", "RunningMax", "RunningMean", "RunningSpread", "RunningTop", "Sinks"]

Span = tuple[int, int]


class RunningMean:
    """Sum over a map (N, C, H, W) that arrives in pieces, divided by `count`; the result has shape (N, C, 1, 1)."""

    def __init__(self, count: int, dtype: torch.dtype | None = None) -> None:
        self._count, self._result_dtype = count, dtype
        self._total: Tensor | None = None
        self._dtype = torch.float32

    def add(self, piece: Tensor, rows: Span, cols: Span) -> None:
        """Take the piece of these rows and columns."""
        self._dtype = piece.dtype
        total = piece.sum((2, 3), keepdim=True, dtype=torch.float64)
        self._total = total if self._total is None else self._total.add_(total)

    def result(self) -> Tensor:
        """The reduced map."""
        if self._total is None:
            raise AssertionError("no piece was added")
        return (self._total / self._count).to(self._result_dtype or self._dtype)

    def vjp(self, grad: Tensor, rows: Span, cols: Span) -> Tensor:
        """Gradient of the piece of these rows and columns; a view, not to be changed."""
        return (grad / self._count).to(self._dtype).expand(-1, -1, rows[1] - rows[0], cols[1] - cols[0])


class RunningSpread:
    """Variance of a map (N, C, H, W) that arrives in pieces, or with `count` None the number of its positions; the result has shape
    (N, C, 1, 1), and no gradient.

    Sums are those of differences from the first position, so that a map far from zero loses no digits.
    """

    def __init__(self, count: int | None, dtype: torch.dtype | None = None) -> None:
        self._count, self._dtype = count, dtype or torch.float64
        self._first: Tensor | None = None
        self._sums: tuple[Tensor, Tensor] | None = None
        self._seen = 0

    def add(self, piece: Tensor, rows: Span, cols: Span) -> None:
        """Take the piece of these rows and columns."""
        self._seen += piece.shape[2] * piece.shape[3]
        if self._first is None:
            self._first = piece[:, :, :1, :1].to(torch.promote_types(piece.dtype, torch.float32))
        if self._count is None:
            return
        away = piece - self._first
        total = away.sum((2, 3), keepdim=True, dtype=torch.float64)
        square = away.square_().sum((2, 3), keepdim=True, dtype=torch.float64)
        self._sums = (total, square) if self._sums is None else (self._sums[0] + total, self._sums[1] + square)

    def result(self) -> Tensor:
        """The reduced map."""
        if self._first is None:
            raise AssertionError("no piece was added")
        if self._count is None or self._sums is None:
            return torch.full_like(self._first, self._seen, dtype=self._dtype)
        total, square = self._sums
        mean = total / self._count
        return (square / self._count - mean * mean).clamp(min=0).to(self._dtype)


class RunningMax:
    """Maximum over a map (N, C, H, W) that arrives in pieces, and where it was; the result has shape (N, C, 1, 1)."""

    def __init__(self, size: tuple[int, int], dtype: torch.dtype | None = None) -> None:
        self._width, self._result_dtype = size[1], dtype
        self._best: Tensor | None = None
        self._where: Tensor | None = None

    def add(self, piece: Tensor, rows: Span, cols: Span) -> None:
        """Take the piece of these rows and columns; pieces may come in any order."""
        if piece.device.type == "cuda":  # where the pooling kernel runs one thread a channel
            value, index = (t[..., None, None] for t in piece.flatten(2).max(2))
        else:
            value, index = F.adaptive_max_pool2d(piece, 1, return_indices=True)
        width = cols[1] - cols[0]
        where = (index // width + rows[0]) * self._width + index % width + cols[0]
        if self._best is None or self._where is None:
            self._best, self._where = value, where
            return
        better = (value > self._best) | value.isnan() | ((value == self._best) & (where < self._where))
        self._best, self._where = torch.where(better, value, self._best), torch.where(better, where, self._where)

    def result(self) -> Tensor:
        """The reduced map."""
        if self._best is None:
            raise AssertionError("no piece was added")
        return self._best.to(self._result_dtype or self._best.dtype)

    def vjp(self, grad: Tensor, rows: Span, cols: Span) -> Tensor:
        """Gradient of the piece of these rows and columns: zero but at the maxima."""
        if self._where is None:
            raise AssertionError("no piece was added")
        return _scattered(grad.flatten(2), self._where.flatten(2), self._width, rows, cols)


class RunningTop:
    """The `count` largest (or smallest) numbers of each channel of a map (N, C, H, W), falling (or rising); the result has shape (N, C,
    count, 1)."""

    def __init__(self, size: tuple[int, int], count: int, largest: bool, dtype: torch.dtype | None = None) -> None:
        self._size, self._count, self._largest, self._result_dtype = size, count, largest, dtype
        self._best: Tensor | None = None
        self._where: Tensor | None = None  # positions, row by row

    def add(self, piece: Tensor, rows: Span, cols: Span) -> None:
        """Take the piece of these rows and columns; pieces may come in any order."""
        values = piece.flatten(2)
        values, index = values.topk(min(self._count, values.shape[2]), 2, self._largest)
        width = cols[1] - cols[0]
        where = (index // width + rows[0]) * self._size[1] + index % width + cols[0]
        if self._best is not None and self._where is not None:
            values, where = torch.cat([self._best, values], 2), torch.cat([self._where, where], 2)
            values, index = values.topk(min(self._count, values.shape[2]), 2, self._largest)
            where = where.gather(2, index)
        self._best, self._where = values, where

    def result(self) -> Tensor:
        """The reduced map."""
        if self._best is None:
            raise AssertionError("no piece was added")
        if self._best.shape[2] < self._count:
            height, width = self._size
            raise RegionError(f"the network asks for {self._count} positions of a map of {height} x {width}: use a larger region")
        return self._best.unsqueeze(3).to(self._result_dtype or self._best.dtype)

    def vjp(self, grad: Tensor, rows: Span, cols: Span) -> Tensor:
        """Gradient of the piece of these rows and columns: zero but where the numbers were."""
        if self._where is None:
            raise AssertionError("no piece was added")
        return _scattered(grad.flatten(2), self._where, self._size[1], rows, cols)


class RunningAttention:
    """Sum of a map's positions by the softmax of scores over all of them; the pieces are those of `Scored`.

    Parameters
    ----------
    channels
        Of the pieces: C of the map, S of the scores and 2 S that are not read. The result has shape (N, C, 1, 1).
    scores
        S.
    """

    def __init__(self, channels: int, scores: int, dtype: torch.dtype | None = None) -> None:
        self._split, self._result_dtype = [channels - 3 * scores, scores, 2 * scores], dtype
        self._dtype = torch.float32
        self._greatest: Tensor | None = None
        self._weight: Tensor | None = None  # sum of exp(score - greatest)
        self._total: Tensor | None = None  # and the sum that it weighs

    def add(self, piece: Tensor, rows: Span, cols: Span) -> None:
        """Take the piece of these rows and columns."""
        self._dtype = piece.dtype
        map, score, _ = piece.to(torch.float64).split(self._split, 1)
        greatest = score.amax((2, 3), keepdim=True)
        if self._greatest is not None:
            greatest = torch.maximum(greatest, self._greatest)
        share = (score - greatest).exp()
        weight, total = share.sum((2, 3), keepdim=True), (share * map).sum((2, 3), keepdim=True)
        if self._greatest is not None and self._weight is not None and self._total is not None:
            shrunk = (self._greatest - greatest).exp()
            weight, total = weight + shrunk * self._weight, total + shrunk * self._total
        self._greatest, self._weight, self._total = greatest, weight, total

    def result(self) -> Tensor:
        """The weighted sum."""
        if self._weight is None or self._total is None:
            raise AssertionError("no piece was added")
        return (self._total / self._weight).to(self._result_dtype or self._dtype)

    def vjp(self, grad: Tensor, rows: Span, cols: Span) -> Tensor:
        """What `Scored` needs for the gradient of the piece of these rows and columns; a view, not to be changed."""
        if self._greatest is None or self._weight is None or self._total is None:
            raise AssertionError("no piece was added")
        product = grad * (self._total / self._weight)
        if self._split[1] < self._split[0]:
            product = product.sum(1, keepdim=True)
        logarithm = self._greatest + self._weight.log()
        rounded = logarithm.to(self._dtype)
        parts = torch.cat([grad.to(self._dtype), rounded, (logarithm - rounded).to(self._dtype), product.to(self._dtype)], 1)
        return parts.expand(-1, -1, rows[1] - rows[0], cols[1] - cols[0])


def _scattered(grad: Tensor, where: Tensor, width: int, rows: Span, cols: Span) -> Tensor:
    """Gradients (N, C, k) sent to positions of a map of this width, within these rows and columns."""
    y, x = where // width - rows[0], where % width - cols[0]
    height, across = rows[1] - rows[0], cols[1] - cols[0]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < across)
    flat = torch.zeros((*grad.shape[:2], height * across), dtype=grad.dtype, device=grad.device)
    flat.scatter_add_(2, torch.where(inside, y * across + x, 0), torch.where(inside, grad, 0))
    return flat.view(*flat.shape[:2], height, across)


_Running = RunningMean | RunningMax | RunningSpread | RunningTop | RunningAttention


class Sinks:
    """Gathers the pieces of all sinks of a program in one pass, and gives their gradients back piece by piece.

    Parameters
    ----------
    program, grid
        Of the pass.
    stores
        Where maps for later passes go, by the graph's value.
    hold
        Whether maps for the head are assembled.
    dtype
        Of the results, if not that of the maps.
    """

    def __init__(
        self, program: Program, grid: Grid, stores: Mapping[int, Store], hold: bool = True, dtype: torch.dtype | None = None
    ) -> None:
        self._program = program
        self._gathered: list[tuple[int, Sink | None, Store | _Running]] = []
        for value, sink in program.sinks:
            size = grid.size(value)
            found: Store | _Running
            if sink is not None and sink.kind == "map" and not hold:
                continue
            if sink is None:
                found = stores[program.values[value]]
            elif sink.kind == "map":
                found = Held(size, dtype)
            elif sink.kind == "max":
                found = RunningMax(size, dtype)
            elif sink.kind in ("spread", "positions"):
                found = RunningSpread(size[0] * size[1] if sink.kind == "spread" else None, sink.dtype)
            elif sink.kind in ("top", "bottom"):
                found = RunningTop(size, sink.count, sink.kind == "top", dtype)
            elif sink.kind == "attention":
                found = RunningAttention(
                    program.channels[value], program.channels[program.nodes[value - len(program.sources)].inputs[1]], dtype
                )
            else:
                found = RunningMean(size[0] * size[1] if sink.kind == "mean" else 1, sink.dtype or dtype)
            self._gathered.append((value, sink, found))

    def add(self, value: int, piece: Tensor, rows: Span, cols: Span) -> None:
        """Take a piece of a value: its rows and columns."""
        for owner, _, found in self._gathered:
            if owner == value:
                found.add(piece, rows, cols)

    def results(self) -> dict[Sink, Tensor]:
        """The gathered tensors, but for stored maps."""
        return {sink: found.result() for _, sink, found in self._gathered if sink is not None}

    def gradient(
        self, grads: Mapping[Sink, Tensor | None], stored: Mapping[int, Store], value: int, rows: Span, cols: Span
    ) -> Tensor | None:
        """Gradient of a piece of a value, from the gradients of `results` and of stored maps; None for zero."""
        total = None
        for owner, sink, found in self._gathered:
            if owner != value:
                continue
            part = None
            if sink is None:
                store = stored.get(self._program.values[value])
                part = None if store is None else store.read(rows, cols)
            else:
                grad = grads.get(sink)
                if grad is not None:
                    part = grad[:, :, rows[0] : rows[1], cols[0] : cols[1]] if sink.kind == "map" else found.vjp(grad, rows, cols)  # type: ignore[union-attr]
            if part is not None:
                total = part if total is None else total + part
        return total
