"""What a call will cost before it runs: the shape of the steps, what is kept, predicted peak bytes and operations.

The peak is not guessed from formulas: the very code of a step runs on torch's ``meta`` device, which computes shapes alone, under
a mode that follows every allocation.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from streamview.errors import MemoryBudgetError
from streamview.streaming.execute import Carry, Grid, Step, build_grid, reverse_step, run_step
from streamview.streaming.graph import Program
from streamview.streaming.ops import Wants
from streamview.streaming.schedule import AxisSchedule

__all__ = ["Plan", "format_bytes", "free_memory", "make_plan", "parse_bytes", "return_freed_blocks"]

_UNITS = {"": 1, "B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}
_STRIP_ROWS = (256, 128, 64, 32, 16, 8)
_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_ELEMENTS = 2**31  # several of torch's kernels fail beyond


def parse_bytes(text: str | int) -> int:
    """Bytes of ``"2GB"``, ``"512 MB"`` or a plain number; GB = 2^30.

    Raises
    ------
    MemoryBudgetError
        When it is not a positive amount.
    """
    compact = str(text).upper().replace(" ", "").replace("IB", "B")
    number = compact.rstrip("KMGTB")
    try:
        amount = int(float(number) * _UNITS[compact[len(number) :]])
    except (ValueError, KeyError, OverflowError):
        amount = 0
    if amount <= 0:
        raise MemoryBudgetError(f"memory {text!r}: expected an amount such as 2GB or 500MB")
    return amount


def format_bytes(amount: float) -> str:
    """Bytes for people: ``"1.9 GB"``."""
    for unit in ("TB", "GB", "MB", "KB"):
        if amount >= _UNITS[unit]:
            return f"{amount / _UNITS[unit]:.{0 if unit in ('KB', 'MB') else 1}f} {unit}"
    return f"{amount:.0f} B"


@dataclass(frozen=True, slots=True)
class Plan:
    """How a call will run.

    Parameters
    ----------
    tile
        Rows and columns of a step, in pixels of the image.
    steps
        Number of steps.
    tapes
        How many of them keep what their reverse pass needs, which saves computing them again.
    peak_bytes
        Predicted growth of memory over the call, without the image and its gradient.
    """

    tile: tuple[int, int]
    steps: int
    tapes: int
    peak_bytes: int


def return_freed_blocks() -> None:
    """Have glibc give freed blocks of a megabyte and more back to the system at once, for the rest of the process.

    By default it keeps blocks of up to 32 MB and lets them fragment: a run then grows by up to three times what it uses, and no
    budget can be kept. Costs the page faults of fresh memory. Does nothing with other allocators.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, 2**20)


def free_memory() -> int:
    """Bytes of memory that the machine has available."""
    try:
        with open("/proc/meminfo") as info:
            return next(int(line.split()[1]) * 1024 for line in info if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def make_plan(
    program: Program,
    shape: Sequence[int],
    dtype: torch.dtype,
    wants: Sequence[Wants] | None,
    weights: Sequence[Tensor],
    *,
    memory: int | None = None,
    tile: tuple[int, int] | None = None,
) -> Plan:
    """Choose the steps for an image.

    Parameters
    ----------
    program
        The captured network.
    shape, dtype
        Of the image, (N, C, H, W).
    wants
        Gradients that will be asked for, or None.
    weights
        The program's weights, for their shapes.
    memory
        Bytes by which the call may grow; default half of what the machine has free.
    tile
        Rows and columns of a step, instead of choosing them.

    Returns
    -------
    Plan
        Of those that fit, the one of the widest strips with as many kept tapes as fit.

    Raises
    ------
    MemoryBudgetError
        When no step fits; the message names the least that would do.
    """
    height, width = shape[2], shape[3]
    budget = free_memory() // 2 if memory is None else memory
    if tile is not None:
        return _plan(program, shape, dtype, wants, weights, tile, budget if memory is not None else None)
    candidates = [(rows, width) for rows in _STRIP_ROWS if rows <= max(height, _STRIP_ROWS[-1])]
    columns = width
    while columns > 256:
        columns = -(-columns // 2)
        candidates += [(rows, columns) for rows in (512, 256, 128, 64) if rows <= max(height, 64)]
    least = None
    for candidate in candidates:
        plan = _plan(program, shape, dtype, wants, weights, candidate, budget)
        if plan.peak_bytes <= budget:
            return plan
        least = plan if least is None or plan.peak_bytes < least.peak_bytes else least
    if least is None:
        raise AssertionError("there is always a candidate")
    raise MemoryBudgetError(
        f"an image of {height} x {width} px needs at least {format_bytes(least.peak_bytes)} more memory with this network, but the budget "
        f"leaves {format_bytes(budget)}: give more memory or a smaller region"
    )


def _plan(
    program: Program,
    shape: Sequence[int],
    dtype: torch.dtype,
    wants: Sequence[Wants] | None,
    weights: Sequence[Tensor],
    tile: tuple[int, int],
    budget: int | None,
) -> Plan:
    """The cost of one shape of the steps, with as many tapes as the budget allows (none without a budget)."""
    grid = build_grid(program, (shape[2], shape[3]), tile)
    steps = grid.rows.steps * grid.cols.steps
    sinks = sum(
        shape[0] * program.channels[sink.value] * grid.size(sink.value)[0] * grid.size(sink.value)[1] * dtype.itemsize * (2 if wants else 1)
        for sink in program.sinks
        if sink.kind == "map"
    )
    if budget is None:
        return Plan(tile, steps, 0, sinks)
    cost = _step_cost(program, grid, shape, dtype, wants, weights)
    largest = shape[0] * max(c * _longest(grid.rows, v) * _longest(grid.cols, v) for v, c in enumerate(program.channels))
    fixed = sinks + cost.peak + (sum(w.nbytes for w in weights) if wants and any(any(w.weights) for w in wants) else 0)
    if largest >= _ELEMENTS:
        fixed = max(fixed, budget + 1)
    if wants is None:
        return Plan(tile, steps, 0, fixed)
    extra = cost.tape - cost.carry
    rest = budget - fixed - steps * cost.carry
    tapes = steps if extra <= 0 else min(steps, max(rest // extra, 0))
    return Plan(tile, steps, tapes, fixed + (steps - tapes) * cost.carry + tapes * cost.tape)


def _longest(axis: AxisSchedule, value: int) -> int:
    """Most elements of a value along one axis that a step has at hand."""
    return max(stop - start for start, stop in (axis.block(value, step) for step in range(axis.steps)))


@dataclass(frozen=True, slots=True)
class _StepCost:
    """Bytes of an inner step: the peak over its forward and reverse passes, its carry, its tape."""

    peak: int
    carry: int
    tape: int


def _step_cost(
    program: Program, grid: Grid, shape: Sequence[int], dtype: torch.dtype, wants: Sequence[Wants] | None, weights: Sequence[Tensor]
) -> _StepCost:
    """Run a few inner steps on the meta device."""
    blank = [torch.empty_like(w, device="meta") for w in weights]
    middle, j = grid.rows.steps // 2, grid.cols.steps // 2
    peak, carries, tapes = 0, [], []
    steps = range(middle, min(middle + _CYCLE, grid.rows.steps))
    for i in steps:
        step = Step(program, grid, i, j)
        above, left, below, right = ([_blank(step, v, side, shape, dtype) for v in range(len(program.channels))] for side in _SIDES)
        carries.append(sum(t.nbytes for t in (*above, *left) if t is not None))
        # outside of the caller's modes, which would count these operations as real
        with _disable_current_modes(), torch.no_grad(), _Meter() as meter:
            rows, cols = step.new(0)
            pixels = torch.empty(
                (*shape[:2], rows[1] - rows[0], cols[1] - cols[0]), dtype=dtype, device="meta", memory_format=torch.channels_last
            )
            made = run_step(step, pixels, Carry(above, left), blank, None, None)
            del made
            if wants is not None:
                tape = run_step(step, pixels, Carry(above, left), blank, wants, None)[2]
                del pixels
                tapes.append(meter.live())
                if tape is not None:
                    reverse_step(step, tape, blank, wants, (below, right), lambda *_: None, _ignore, [None] * len(weights))
        peak = max(peak, meter.peak)
    return _StepCost(peak, sum(carries) // len(steps), sum(tapes) // len(steps))


_SIDES = ("above", "left", "below", "right")
_CYCLE = 4


def _ignore(grad: Tensor, rows: tuple[int, int], cols: tuple[int, int]) -> None:
    """Take a finished gradient and forget it."""


def _blank(step: Step, value: int, side: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor | None:
    """What a step exchanges with its neighbour on one side, without memory."""
    (r0, r1), (c0, c1) = step.block(value)
    (n0, _), (m0, _) = step.new(value)
    if side in ("below", "right"):
        (r0, r1), (c0, c1) = step.below(value) if side == "below" else step.right(value)
    else:
        r1, c0, c1 = (n0, m0, c1) if side == "above" else (r1, c0, m0)
    if r0 >= r1 or c0 >= c1:
        return None
    size = (shape[0], step.program.channels[value], r1 - r0, c1 - c0)
    return torch.empty(size, dtype=dtype, device="meta", memory_format=torch.channels_last)


class _Meter(TorchDispatchMode):
    """Follows the bytes of all storages that operations allocate."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._live: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._live.setdefault(StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, self.live())
        return out

    def live(self) -> int:
        """Bytes alive now."""
        self._live = {ref: size for ref, size in self._live.items() if not ref.expired()}
        return sum(self._live.values())
