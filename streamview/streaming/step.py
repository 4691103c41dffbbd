"""One step: the geometry of its blocks, its forward and its backward pass, operation by operation.

Step (i, j) of the grid has at hand, for every value, the *block* [kept, produced) in rows and columns. It is put together from
the carry of the step above, the carry of the step to the left, and what the step itself computes. In the backward pass, the gradient
of a block is gathered in one buffer from all that read it, then its parts go back to the step above, to the step to the left, and
through the operation that made the new part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamview.streaming.graph import Program
from streamview.streaming.ops import Piece, Size, Wants, layout
from streamview.streaming.schedule import AxisSchedule, schedule_axis

__all__ = [
    "Blocks",
    "Carry",
    "Emit",
    "Grid",
    "Read",
    "SinkGrads",
    "Span",
    "Step",
    "Saved",
    "Write",
    "build_grid",
    "backward_step",
    "run_step",
    "wants_of",
    "wants_source",
]

Span = tuple[int, int]
Read = Callable[[int, Span, Span], Tensor]
Emit = Callable[[int, Tensor, Span, Span], None]
SinkGrads = Callable[[int, Span, Span], Tensor | None]
Write = Callable[[int, Tensor | None, Span, Span], None]
Blocks = list[Tensor | None]
_WIDE = 4  # stride from which an operation never waits
_WORTHWHILE = 512  # positions that a convolution of a deep value should have at once


@dataclass(frozen=True, slots=True)
class Grid:
    """The schedule of rows and that of columns."""

    rows: AxisSchedule
    cols: AxisSchedule

    def size(self, value: int) -> tuple[int, int]:
        """Height and width of a whole value."""
        return self.rows.sizes[value], self.cols.sizes[value]

    def steps(self) -> list[tuple[int, int]]:
        """All steps in forward order."""
        return [(i, j) for i in range(self.rows.steps) for j in range(self.cols.steps)]


def build_grid(program: Program, tile: Size) -> Grid:
    """Schedule a program in steps of this many rows and columns of its largest source.

    Deep values are small: they wait until they can produce rows of `_WORTHWHILE` positions at once, since a convolution of few
    positions costs mostly the reading of its kernel.
    """
    ops = [program.op(value) for value in range(len(program.sources), len(program.values))]
    cols = schedule_axis([op.cols for op in ops], program.inputs, [w for _, w in program.sources], tile[1])
    # an operation of wide steps does enough for every position, and would wait for much of its input
    wide = [False] * len(program.sources) + [op.rows.place(1)[0] > _WIDE for op in ops]
    granules = [1 if w else max(1, _WORTHWHILE * cols.steps // length) for w, length in zip(wide, cols.sizes, strict=True)]
    rows = schedule_axis([op.rows for op in ops], program.inputs, [h for h, _ in program.sources], tile[0], granules)
    return Grid(rows, cols)


def wants_of(program: Program, values: Sequence[bool], operands: Sequence[bool]) -> list[Wants]:
    """For every node, which gradients the backward pass asks of it, given those that are needed of the graph's values and operands."""
    return [
        Wants(tuple(values[program.values[v]] for v in node.inputs), tuple(operands[w] for w in node.weights)) for node in program.nodes
    ]


@dataclass(slots=True)
class Saved:
    """What one step saves for its backward pass.

    Parameters
    ----------
    activations
        Per node, what the operation saved: its input, bits of it, or nothing.
    blocks
        Per value, shape and dtype of its block.
    shared
        Whether several steps that did the same share it.
    """

    activations: list[Any]
    blocks: list[tuple[torch.Size, torch.dtype] | None]
    shared: bool = False


@dataclass(slots=True)
class Carry:
    """Blocks that a step takes over: from the step above (rows kept, its own new columns) and from the step to the left."""

    above: Blocks
    left: Blocks


def _join(parts: Sequence[Tensor | None], dim: int) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return present[0] if len(present) == 1 else torch.cat(present, dim) if present else None


def _part(block: Tensor, rows: Span, cols: Span) -> Tensor | None:
    """Rows and columns of a block, as a view; None where there are none."""
    if rows[0] >= rows[1] or cols[0] >= cols[1]:
        return None
    return block[:, :, rows[0] : rows[1], cols[0] : cols[1]]


def _copy(part: Tensor | None) -> Tensor | None:
    return None if part is None else part.clone()


class Step:
    """Geometry of one step: where the parts of every block lie."""

    def __init__(self, program: Program, grid: Grid, i: int, j: int) -> None:
        self.program, self.grid, self.i, self.j = program, grid, i, j
        self.first = len(program.sources)

    def new(self, value: int) -> tuple[Span, Span]:
        """Rows and columns of the value that this step makes."""
        return self.grid.rows.new(value, self.i), self.grid.cols.new(value, self.j)

    def block(self, value: int) -> tuple[Span, Span]:
        """Rows and columns of the value that this step has at hand."""
        return self.grid.rows.block(value, self.i), self.grid.cols.block(value, self.j)

    def below(self, value: int) -> tuple[Span, Span]:
        """Within the block: what the step below takes over."""
        (r0, r1), (c0, c1) = self.block(value)
        return (self.grid.rows.kept[value][self.i + 1] - r0, r1 - r0), (self.grid.cols.produced[value][self.j] - c0, c1 - c0)

    def right(self, value: int) -> tuple[Span, Span]:
        """Within the block: what the step to the right takes over."""
        (r0, r1), (c0, c1) = self.block(value)
        return (0, r1 - r0), (self.grid.cols.kept[value][self.j + 1] - c0, c1 - c0)

    def piece(self, value: int) -> Piece | None:
        """The piece of a value that its operation makes; None where it makes nothing."""
        rows, cols = self.new(value)
        if rows[0] == rows[1] or cols[0] == cols[1]:
            return None
        op = self.program.op(value)
        size = self.grid.size(self.program.nodes[value - self.first].inputs[0])
        y, _, top, bottom = op.rows.need(*rows, size[0])
        x, _, left, right = op.cols.need(*cols, size[1])
        return Piece(rows, cols, size, (top, bottom, left, right), (y, x))

    def need(self, value: int, source: int, piece: Piece) -> tuple[Span, Span]:
        """Within the block of an input of a value's operation: what the piece reads."""
        op = self.program.op(value)
        (r, _), (c, _) = self.block(source)
        r0, r1, *_ = op.rows.need(*piece.rows, piece.size[0])
        c0, c1, *_ = op.cols.need(*piece.cols, piece.size[1])
        return (r0 - r, r1 - r), (c0 - c, c1 - c)

    def signature(self) -> tuple[Any, ...]:
        """The geometry relative to the blocks: two steps of the same signature do the same wherever they lie."""
        found = []
        for value in range(len(self.program.values)):
            block, new = self.block(value), self.new(value)
            relative = tuple((stop - start, n0 - start, n1 - start) for (start, stop), (n0, n1) in zip(block, new, strict=True))
            piece = None if value < self.first else self.piece(value)
            reads = [] if piece is None else [self.need(value, v, piece) for v in self.program.nodes[value - self.first].inputs]
            found.append((relative, self.below(value), self.right(value), None if piece is None else piece.pad, *reads))
        return tuple(found)


def run_step(
    step: Step,
    sources: Sequence[Tensor],
    carry: Carry,
    weights: Sequence[Any],
    wants: Sequence[Wants] | None,
    emit: Emit | None,
    see: Emit | None = None,
) -> tuple[Blocks, Blocks, Saved | None]:
    """Compute one step from the new part of every source; return its carries, below and right, and what it saves if asked.

    `emit` takes the pieces of sinks, `see` those of every value.
    """
    program = step.program
    count = len(program.values)
    blocks: Blocks = [None] * count
    below: Blocks = [None] * count
    right: Blocks = [None] * count
    saved = Saved([None] * len(program.nodes), [None] * count) if wants is not None else None
    readers = _readers(program)
    sunk = {value for value, _ in program.sinks}
    for value in range(count):
        if value < step.first:
            new: Tensor | None = sources[value] if sources[value].numel() else None
            read: tuple[int, ...] = ()
        else:
            index, node = value - step.first, program.nodes[value - step.first]
            piece, read, new = step.piece(value), node.inputs, None
            if piece is not None:
                parts = [_needed(blocks[v], step.need(value, v, piece), sources[0], program.channels[v]) for v in read]
                want = wants[index] if wants is not None and wants[index] else None
                new, activations = program.op(value).run(parts, [weights[w] for w in node.weights], piece, want)
                if saved is not None:
                    saved.activations[index] = activations
                del parts, activations
        if new is not None and see is not None:
            see(value, new, *step.new(value))
        if new is not None and emit is not None and value in sunk:
            emit(value, new, *step.new(value))
        block = _join([carry.left[value], _join([carry.above[value], new], 2)], 3)
        blocks[value] = block
        if block is not None:
            below[value] = _copy(_part(block, *step.below(value)))
            right[value] = _copy(_part(block, *step.right(value)))
            if saved is not None:
                saved.blocks[value] = block.shape, block.dtype
        del new, block
        for source in {value, *read}:
            if readers[source] <= value:
                blocks[source] = None
    return below, right, saved


def _readers(program: Program) -> list[int]:
    """For every value, the last value computed from it (itself if none)."""
    last = list(range(len(program.values)))
    for index, node in enumerate(program.nodes):
        for value in node.inputs:
            last[value] = index + len(program.sources)
    return last


def _needed(block: Tensor | None, part: tuple[Span, Span], like: Tensor, channels: int) -> Tensor:
    """The part of a block that an operation reads; empty where it reads padding alone."""
    rows, cols = part
    found = None if block is None else _part(block, rows, cols)
    if found is None:
        return like.new_empty((like.shape[0], channels, max(rows[1] - rows[0], 0), max(cols[1] - cols[0], 0)))
    return found


def backward_step(
    step: Step,
    saved: Saved,
    weights: Sequence[Any],
    wants: Sequence[Wants],
    pending: tuple[Blocks, Blocks],
    sink_grads: SinkGrads,
    write: Write,
    weight_grads: list[Tensor | None],
    see: Emit | None = None,
) -> tuple[Blocks, Blocks]:
    """The backward pass of one step.

    Parameters
    ----------
    pending
        Gradients of what the steps below and to the right took over from this one.
    sink_grads, write, see
        As in `Backward.run`.
    weight_grads
        Sums of the weights' gradients, which this step adds to.

    Returns
    -------
    tuple
        Gradients of what this step took over from the steps above and to the left.
    """
    count = len(step.program.values)
    sunk = {value for value, _ in step.program.sinks}
    grads: Blocks = [None] * count
    to_above: Blocks = [None] * count
    to_left: Blocks = [None] * count
    for value in reversed(range(count)):
        source = value < step.first
        info = saved.blocks[value]
        # a source that is itself gathered has a gradient even where nothing in this pass reads it
        if info is None or not (value in sunk or wants_source(step.program, wants, value) if source else wants[value - step.first]):
            continue
        (r0, _), (c0, _) = step.block(value)
        rows, cols = step.new(value)
        fresh = (rows[0] - r0, rows[1] - r0), (cols[0] - c0, cols[1] - c0)
        _accumulate(grads, value, pending[0][value], step.below(value), info, owned=False)
        _accumulate(grads, value, pending[1][value], step.right(value), info, owned=False)
        if value in sunk and rows[0] < rows[1] and cols[0] < cols[1]:
            _accumulate(grads, value, sink_grads(value, rows, cols), fresh, info, owned=False)
        grad, grads[value] = grads[value], None
        if grad is None:
            if source and rows[0] < rows[1] and cols[0] < cols[1]:
                write(value, None, rows, cols)
            continue
        if see is not None:
            see(value, grad, *step.block(value))
        to_above[value] = _copy(_part(grad, (0, fresh[0][0]), fresh[1]))
        to_left[value] = _copy(_part(grad, (0, info[0][2]), (0, fresh[1][0])))
        new = _part(grad, *fresh)
        del grad
        if new is not None and source:
            write(value, new, rows, cols)
        elif new is not None:
            _backward_node(step, value, new, saved, weights, wants[value - step.first], grads, weight_grads)
    return to_above, to_left


def wants_source(program: Program, wants: Sequence[Wants], source: int) -> bool:
    """Whether the gradient of a source is wanted."""
    read = zip(program.nodes, wants, strict=True)
    return any(want for node, of_node in read for value, want in zip(node.inputs, of_node.inputs, strict=True) if value == source)


def _backward_node(
    step: Step,
    value: int,
    grad: Tensor,
    saved: Saved,
    weights: Sequence[Any],
    wants: Wants,
    grads: Blocks,
    weight_grads: list[Tensor | None],
) -> None:
    """Through one operation: gradients of its inputs' blocks and of its weights."""
    node, piece = step.program.nodes[value - step.first], step.piece(value)
    if piece is None:
        raise AssertionError("a node without a piece has no gradient")
    activations = saved.activations[value - step.first]
    found_inputs, found_weights = step.program.op(value).vjp(grad, activations, [weights[w] for w in node.weights], piece, wants)
    for source, found, want in zip(node.inputs, found_inputs, wants.inputs, strict=True):
        info = saved.blocks[source]
        if want and found is not None and info is not None:
            _accumulate(grads, source, found, step.need(value, source, piece), info)
    for weight, found in zip(node.weights, found_weights, strict=True):
        if found is not None:
            total = weight_grads[weight]
            # sums over many steps would lose digits in half precision
            found = found.to(torch.promote_types(weights[weight].dtype, torch.float32))
            weight_grads[weight] = found if total is None else total.add_(found)


def _accumulate(
    grads: Blocks,
    value: int,
    part: Tensor | None,
    where: tuple[Span, Span],
    block: tuple[torch.Size, torch.dtype],
    owned: bool = True,
) -> None:
    """Add the gradient of a part to that of its block."""
    if part is None or part.numel() == 0:
        return
    shape, dtype = block
    total = grads[value]
    if total is None:
        if owned and part.shape == shape and part.dtype == dtype:
            grads[value] = part
            return
        grads[value] = _placed(part, where, shape, dtype)
    else:
        (r0, r1), (c0, c1) = where
        total[:, :, r0:r1, c0:c1] += part


def _placed(part: Tensor, where: tuple[Span, Span], shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A block of this shape that holds a part and is zero around it."""
    (r0, r1), (c0, c1) = where
    block = torch.empty(shape, dtype=dtype, device=part.device, memory_format=layout(part))
    rows = block[:, :, r0:r1]
    for around in (block[:, :, :r0], block[:, :, r1:], rows[:, :, :, :c0], rows[:, :, :, c1:]):
        if around.numel():
            around.zero_()
    rows[:, :, :, c0:c1] = part
    return block
