"""One pass, forward and backward, over the schedule: one step at a time, nothing computed twice on the way forward, or held in vain.

The backward pass visits the steps in reverse order. What it needs of a step was saved (its activations), or is recomputed from
what was carried into it, or from what was carried into the first row of its *segment*.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from streamview.streaming.graph import Program
from streamview.streaming.ops import Wants
from streamview.streaming.run.background import Repeats, alike_everywhere, even
from streamview.streaming.run.stores import Shelf
from streamview.streaming.step import (
    Blocks,
    Carry,
    Emit,
    Grid,
    Read,
    Saved,
    SinkGrads,
    Span,
    Step,
    Write,
    backward_step,
    run_step,
    wants_source,
)

__all__ = ["Backward", "Forward"]

_Pieces = list[tuple[int, Tensor | None]]


class Forward:
    """The forward pass over a grid, remembering what a backward pass needs.

    Parameters
    ----------
    program, grid
        What to run and in which steps.
    weights
        The graph's operands, detached.
    wants
        Per node what the backward pass will ask (see `streamview.streaming.step.wants_of`); None when there is none.
    saved_steps
        How many of the last steps save their activations, so that they are not recomputed.
    segment
        Of the others: 0 remembers each one's own carry, n what every n-th row of steps took over from above.
    spill
        Whether that is kept in a file.
    settle
        Called after every step, forward and backward, so that freed memory can be given back.
    busy
        bool (rows of steps, columns of steps): those that depend on more than even background, which alone save anything and have a
        backward pass; None: all.
    """

    def __init__(
        self,
        program: Program,
        grid: Grid,
        weights: Sequence[Any],
        wants: Sequence[Wants] | None,
        saved_steps: int = 0,
        segment: int = 0,
        spill: bool = False,
        settle: Callable[[], None] = lambda: None,
        busy: NDArray[np.bool_] | None = None,
    ) -> None:
        self.busy = busy
        self.program, self.grid, self.weights, self.wants, self.segment = program, grid, weights, wants, segment
        self.recomputed_steps = grid.rows.steps * grid.cols.steps - saved_steps
        self.carries: dict[tuple[int, int], Carry] = {}
        self.starts: dict[int, list[Blocks]] = {}
        self.shelf = Shelf() if spill else None
        self.settle = settle
        self.saved: dict[tuple[int, int], Saved] = {}
        self._repeats: Repeats[tuple[Blocks, Blocks, Saved | None, _Pieces]] = Repeats()

    def run(self, read: Read, emit: Emit, done: Callable[[], None] = lambda: None, see: Emit | None = None) -> None:
        """Run all steps.

        Parameters
        ----------
        read
            Gives (N, C, rows, columns) of a source: its index, rows, columns.
        emit
            Takes each piece of a sink's value: value, piece, rows, columns.
        done
            Called after every step.
        see
            Sees each piece of every value, as `emit`.
        """
        columns = self.grid.cols.steps
        above = [self._nothing() for _ in range(columns)]
        for i in range(self.grid.rows.steps):
            if self.wants is not None and self.segment and i % self.segment == 0 and i * columns < self.recomputed_steps:
                self._begin(i, above)
            left = self._nothing()
            for j in range(columns):
                carry = Carry(above[j], left)
                keep = self.wants is not None and i * columns + j >= self.recomputed_steps and self.is_busy(i, j)
                above[j], left, saved = self._compute(i, j, carry, keep, read, emit, see)
                self.settle()
                if saved is not None:
                    self.saved[i, j] = saved
                elif self.wants is not None and not self.segment and self.is_busy(i, j):
                    self.carries[i, j] = carry
                done()
        self._repeats = Repeats()

    def is_busy(self, i: int, j: int) -> bool:
        """Whether the backward pass computes a step."""
        return self.busy is None or bool(self.busy[i, j])

    def recompute(self, i: int, j: int, read: Read) -> dict[tuple[int, int], Saved]:
        """What a step would have saved, and those before it in its segment, by step: recomputed."""
        if not self.segment:
            return self._recompute([(i, j)], [self.carries[i, j].above], self.carries[i, j].left, read)
        columns = self.grid.cols.steps
        first = i - i % self.segment
        steps = [(row, column) for row in range(first, i + 1) for column in range(columns) if (row, column) <= (i, j)]
        return self._recompute(steps, self._beginning(first), self._nothing(), read)

    def forget(self, i: int, j: int) -> None:
        """Let go of what was remembered for a step; the steps behind it were forgotten before."""
        self.saved.pop((i, j), None)
        self.carries.pop((i, j), None)
        if j == 0:
            self.starts.pop(i, None)

    def _begin(self, row: int, above: Sequence[Blocks]) -> None:
        """Remember what a row of steps takes over from above."""
        if self.shelf is None:
            self.starts[row] = list(above)
        else:
            self.shelf.put(row, [block for blocks in above for block in blocks])

    def _beginning(self, row: int) -> list[Blocks]:
        if self.shelf is None:
            return list(self.starts[row])
        flat, count = self.shelf.take(row), len(self.program.values)
        return [flat[start : start + count] for start in range(0, len(flat), count)]

    @cached_property
    def may_repeat(self) -> bool:
        """Whether steps of the same geometry may do the same."""
        return alike_everywhere(self.program, self.weights)

    def _recompute(self, steps: Sequence[tuple[int, int]], above: list[Blocks], left: Blocks, read: Read) -> dict[tuple[int, int], Saved]:
        found = {}
        for number, (i, j) in enumerate(steps):
            column = j if len(above) > 1 else 0
            if number and j == 0:
                left = self._nothing()
            above[column], left, saved = self._compute(i, j, Carry(above[column], left), self.is_busy(i, j), read, None, None)
            self.settle()
            if saved is not None:
                found[i, j] = saved
        self._repeats = Repeats()  # it would hold what is let go of step by step
        return found

    def _compute(
        self, i: int, j: int, carry: Carry, keep: bool, read: Read, emit: Emit | None, see: Emit | None
    ) -> tuple[Blocks, Blocks, Saved | None]:
        """Run a step, or hand out again what one that was given the same gave."""
        step = Step(self.program, self.grid, i, j)
        wants = self.wants if keep else None
        pixels = [read(source, *step.new(source)) for source in range(step.first)]
        flat = even(pixels) if see is None and self.may_repeat else None
        if flat is None:
            return run_step(step, pixels, carry, self.weights, wants, emit, see)
        key, given = (keep, step.signature()), [*flat, *carry.above, *carry.left]
        known = self._repeats.find(key, given)
        if known is None:
            gathered: _Pieces = []
            made = run_step(step, pixels, carry, self.weights, wants, partial(_gather, gathered))
            known = *made, gathered
            self._repeats.remember(key, given, known)
        elif known[2] is not None:
            known[2].shared = True
        below, right, saved, pieces = known
        if emit is not None:
            for value, piece in pieces:
                if piece is not None:
                    emit(value, piece, *step.new(value))
        return below, right, saved

    def _nothing(self) -> Blocks:
        return [None] * len(self.program.values)


@dataclass(slots=True)
class Backward:
    """The backward pass of a `Forward`.

    Parameters
    ----------
    forward
        The forward pass.
    release
        Let go of each step's memory once it is done; the pass can then not be repeated.
    weight_grads
        Gradients of the graph's operands, summed as the steps go by.
    """

    forward: Forward
    release: bool = False
    weight_grads: list[Tensor | None] = field(default_factory=list)

    def run(
        self,
        read: Read,
        sink_grads: SinkGrads,
        write: Write,
        done: Callable[[], None] = lambda: None,
        see: Emit | None = None,
    ) -> None:
        """Run the backward pass of all steps.

        Parameters
        ----------
        read
            The same as in the forward pass.
        sink_grads
            Gradient of these rows and columns of a sink's value, or None for zero.
        write
            Takes the finished gradient (N, C, rows, columns) of a source's rows and columns, from the last step to the first; None
            for zero. Its arguments: index of the source, gradient, rows, columns.
        done
            Called after every step.
        see
            Sees the gradient of every value's block: value, gradient, rows, columns.
        """
        forward = self.forward
        program, grid, wants = forward.program, forward.grid, forward.wants
        if wants is None:
            raise ValueError("the forward pass was told that no gradient is wanted")
        count, columns = len(program.values), grid.cols.steps
        sunk = {value for value, _ in program.sinks}
        sources = [source for source in range(len(program.sources)) if source in sunk or wants_source(program, wants, source)]
        # gradients of weights are sums that every step adds to
        alike = see is None and forward.may_repeat and not any(any(want.weights) for want in wants)
        repeats: Repeats[tuple[Saved, Blocks, Blocks, _Pieces]] = Repeats()
        computed: dict[tuple[int, int], Saved] = {}
        self.weight_grads = [None] * len(forward.weights)
        pending_above: list[Blocks] = [[None] * count for _ in range(columns)]
        pending_left: Blocks = [None] * count
        for i, j in reversed(grid.steps()):
            if j == columns - 1:
                pending_left = [None] * count
            step = Step(program, grid, i, j)
            pending = pending_above[j], pending_left
            given = {value: sink_grads(value, *step.new(value)) for value in sunk if _area(*step.new(value))}
            incoming = [*pending[0], *pending[1], *given.values()]
            written: _Pieces = []
            if not forward.is_busy(i, j) or not any(grad is not None and bool(grad.any()) for grad in incoming):
                pending_above[j], pending_left = [None] * count, [None] * count
            else:
                saved = forward.saved.get((i, j)) or computed.pop((i, j), None)
                if saved is None:
                    computed = forward.recompute(i, j, read)
                    saved = computed.pop((i, j))
                key = (id(saved), step.signature()) if alike and saved.shared else None
                known = None if key is None else repeats.find(key, incoming)
                if known is None:
                    take, put = partial(_given, given), partial(_gather, written)
                    above, left = backward_step(step, saved, forward.weights, wants, pending, take, put, self.weight_grads, see)
                    known = saved, above, left, written
                    if key is not None:
                        repeats.remember(key, incoming, known)
                pending_above[j], pending_left, written = known[1:]
                del saved, known  # or it would still be there while the next one is computed
            finished = dict(written)
            for source in sources:
                if _area(*step.new(source)):
                    write(source, finished.get(source), *step.new(source))
            if self.release:
                forward.forget(i, j)
            computed.pop((i, j), None)
            forward.settle()
            done()


def _given(grads: Mapping[int, Tensor | None], value: int, rows: Span, cols: Span) -> Tensor | None:
    return grads.get(value)


def _gather(pieces: _Pieces, value: int, piece: Tensor | None, rows: Span, cols: Span) -> None:
    pieces.append((value, piece))


def _area(rows: Span, cols: Span) -> int:
    return (rows[1] - rows[0]) * (cols[1] - cols[0])
