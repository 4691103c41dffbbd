"""What a pass costs before it runs: operations and bytes, of the whole pass and step by step.

The peak is not guessed from formulas: the very code of a step runs on torch's ``meta`` device, which computes shapes alone, under
a mode that follows every allocation. What steps hand to one another follows from the schedule's integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from streamview.streaming.graph import Program
from streamview.streaming.ops import Wants
from streamview.streaming.schedule import AxisSchedule
from streamview.streaming.step import Carry, Grid, Span, Step, backward_step, build_grid, run_step

__all__ = ["Batch", "PassCosts", "Totals", "block_sizes", "pass_costs", "totals"]


@dataclass(frozen=True, slots=True)
class Batch:
    """What runs through a program.

    Parameters
    ----------
    images
        Their number.
    dtype
        Of their pixels.
    blank
        The graph's operands on the meta device.
    wants
        Per node what the backward pass will ask; None when there is none.
    """

    images: int
    dtype: torch.dtype
    blank: Sequence[Tensor]
    wants: Sequence[Wants] | None


@dataclass(frozen=True, slots=True)
class Totals:
    """A pass as a whole, however it is divided.

    Parameters
    ----------
    forward, backward
        Floating point operations of convolutions and matrix products.
    maps
        Whether steps save maps; if not, a bit or so for every element.
    """

    forward: int
    backward: int
    maps: bool


@dataclass(frozen=True, slots=True)
class PassCosts:
    """A pass over a grid, in bytes.

    Parameters
    ----------
    working
        The most that a step takes, forward and backward, beside what it saves and what it takes over.
    saved
        What all steps save.
    states
        For every row of steps what it takes over from the rows above, in all columns.
    left
        What steps take over from the left, all steps together.
    rows, columns
        Fractions of all output elements that each row of steps makes, and each column; a large receptive field delays them.
    """

    working: int
    saved: float
    states: tuple[int, ...]
    left: int
    rows: tuple[float, ...]
    columns: tuple[float, ...]


def totals(program: Program, batch: Batch) -> Totals:
    """The costs of a program's pass as a whole."""
    longest = max(h for h, _ in program.sources), max(w for _, w in program.sources)
    step = Step(program, build_grid(program, longest), 0, 0)
    forward, backward, maps = _Meter(), _Meter(), False
    nothing: list[Tensor | None] = [None] * len(program.values)
    with _disable_current_modes(), torch.no_grad():
        with forward:
            saved = run_step(step, _sources(step, batch), Carry(nothing, nothing), batch.blank, batch.wants, None)[2]
        if saved is not None and batch.wants is not None:
            maps = any(isinstance(t, Tensor) and t.dim() == 4 for t in tree_leaves(saved.activations))
            with backward:
                grads: list[Tensor | None] = [None] * len(batch.blank)
                backward_step(
                    step, saved, batch.blank, batch.wants, (nothing, nothing), partial(_sink_gradient, step, batch), _ignore, grads
                )
    return Totals(forward.operations, backward.operations, maps)


def pass_costs(program: Program, grid: Grid, batch: Batch) -> PassCosts:
    """The costs of a program's pass in the steps of a grid."""
    rows, cols = grid.rows, grid.cols
    item = batch.images * batch.dtype.itemsize
    channels = program.channels

    def carried(axis: AxisSchedule, value: int, step: int) -> int:
        return axis.produced[value][step] - axis.kept[value][step]

    states = tuple(sum(item * c * carried(rows, v, i) * cols.sizes[v] for v, c in enumerate(channels)) for i in range(rows.steps))
    left = 0
    if cols.steps > 1:
        for v, c in enumerate(channels):
            heights = sum(stop - start for start, stop in (rows.block(v, i) for i in range(rows.steps)))
            left += item * c * heights * sum(carried(cols, v, j) for j in range(cols.steps))

    down, across = _shares(rows, channels, cols.sizes), _shares(cols, channels, rows.sizes)
    heaviest = {(rows.steps // 2, cols.steps // 2), (down.index(max(down)), across.index(max(across)))}
    peaks, saved = zip(*(_step_peak(Step(program, grid, i, j), batch) for i, j in heaviest), strict=True)
    working = max(peak - after for peak, after in zip(peaks, saved, strict=True))
    saved_by_all = sum(saved) / sum(down[i] * across[j] for i, j in heaviest)
    return PassCosts(working, saved_by_all, states, left, down, across)


def _shares(axis: AxisSchedule, channels: Sequence[int], across: Sequence[int]) -> tuple[float, ...]:
    """Of the elements of all values, the share that each step along an axis makes, given the values' lengths along the other one."""
    ends = [pairwise(made) for made in axis.produced]
    steps = [[c * n * (stop - start) for start, stop in pairs] for c, n, pairs in zip(channels, across, ends, strict=True)]
    made = [sum(step) for step in zip(*steps, strict=True)]
    return tuple(step / max(sum(made), 1) for step in made)


def block_sizes(program: Program, grid: Grid, images: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Elements of the tensors that steps have at hand, and how many tensors of all steps have that size; both int64 (sizes,)."""

    def lengths(axis: AxisSchedule, value: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        starts, stops = np.array(axis.kept[value][: axis.steps], np.int64), np.array(axis.produced[value][1:], np.int64)
        return np.unique(stops - starts, return_counts=True)

    sizes, counts = [], []
    for value, channels in enumerate(program.channels):
        (heights, of_rows), (widths, of_columns) = lengths(grid.rows, value), lengths(grid.cols, value)
        sizes.append(images * channels * np.outer(heights, widths).ravel())
        counts.append(np.outer(of_rows, of_columns).ravel())
    return np.concatenate(sizes), np.concatenate(counts)


def _step_peak(step: Step, batch: Batch) -> tuple[int, int]:
    """Bytes of a step, forward and backward, and those that it saves."""
    above, left, below, right = ([_blank(step, v, side, batch) for v in range(len(step.program.channels))] for side in _SIDES)
    pixels, saved_bytes = _sources(step, batch), 0
    # outside of the caller's modes, which would count these operations as real
    with _disable_current_modes(), torch.no_grad(), _Meter() as meter:
        saved = run_step(step, pixels, Carry(above, left), batch.blank, batch.wants, None)[2]
        if saved is not None and batch.wants is not None:
            saved_bytes = meter.live()
            grads: list[Tensor | None] = [None] * len(batch.blank)
            backward_step(step, saved, batch.blank, batch.wants, (below, right), partial(_sink_gradient, step, batch), _ignore, grads)
    return int(meter.peak), saved_bytes


def _sources(step: Step, batch: Batch) -> list[Tensor]:
    spans = [step.new(v) for v in range(step.first)]
    return [_empty(step, batch, v, r1 - r0, c1 - c0) for v, ((r0, r1), (c0, c1)) in enumerate(spans)]


def _empty(step: Step, batch: Batch, value: int, rows: int, cols: int) -> Tensor:
    size = (batch.images, step.program.channels[value], rows, cols)
    return torch.empty(size, dtype=batch.dtype, device="meta", memory_format=torch.channels_last)


def _sink_gradient(step: Step, batch: Batch, value: int, rows: Span, cols: Span) -> Tensor:
    """Gradient of a piece of a sink, without memory."""
    return _empty(step, batch, value, rows[1] - rows[0], cols[1] - cols[0])


_SIDES = ("above", "left", "below", "right")


def _ignore(source: int, grad: Tensor | None, rows: Span, cols: Span) -> None:
    """Take a finished gradient and forget it."""


def _blank(step: Step, value: int, side: str, batch: Batch) -> Tensor | None:
    """What a step exchanges with its neighbour on one side, without memory."""
    (r0, r1), (c0, c1) = step.block(value)
    (n0, _), (m0, _) = step.new(value)
    if side in ("below", "right"):
        (r0, r1), (c0, c1) = step.below(value) if side == "below" else step.right(value)
    else:
        r1, c0, c1 = (n0, m0, c1) if side == "above" else (r1, c0, m0)
    return None if r0 >= r1 or c0 >= c1 else _empty(step, batch, value, r1 - r0, c1 - c0)


class _Meter(TorchDispatchMode):
    """Follows the bytes of all storages that operations allocate, and counts floating point operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self.operations = 0
        self._live: dict[StorageWeakRef, int] = {}
        self._at_most = 0  # bytes of all that `_live` holds, some of which may be gone

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        count = flop_registry.get(function._overloadpacket)
        if count is not None:
            self.operations += count(*args, **(kwargs or {}), out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if (ref := StorageWeakRef(storage)) not in self._live:
                    self._live[ref] = storage.nbytes()
                    self._at_most += storage.nbytes()
        if self._at_most > self.peak:  # else it is no peak, whatever is gone
            self.peak = max(self.peak, self.live())
        return out

    def live(self) -> int:
        """Bytes alive now."""
        self._live = {ref: size for ref, size in self._live.items() if not ref.expired()}
        self._at_most = sum(self._live.values())
        return self._at_most
