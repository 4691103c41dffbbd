"""What a call will cost before it runs: the shape of the steps, what is kept, predicted peak bytes and operations.

The peak is not guessed from formulas: the very code of a step runs on torch's ``meta`` device, which computes shapes alone, under
a mode that follows every allocation.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from streamview.errors import MemoryBudgetError
from streamview.streaming.execute import Carry, Grid, Step, build_grid, reverse_step, run_step, wanted
from streamview.streaming.graph import Bound, Demands, Graph, Program
from streamview.streaming.ops import Size, Statistic, Wants
from streamview.streaming.schedule import AxisSchedule

__all__ = ["PassPlan", "Plan", "format_bytes", "free_memory", "make_plan", "parse_bytes", "return_freed_blocks"]

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
class PassPlan:
    """How one pass will run.

    Parameters
    ----------
    tile
        Rows and columns of a step, in px of the pass's largest source: of the image in the first pass.
    steps
        Number of steps.
    tapes
        How many of them keep what their reverse pass needs, which saves computing them again.
    again
        Whether the reverse pass first runs the whole pass again, so that nothing of it is remembered in between.
    """

    tile: Size
    steps: int
    tapes: int
    again: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """How a call will run.

    Parameters
    ----------
    passes
        One for each phase of the network.
    barriers
        What becomes of the maps between passes: ``"none"`` (there are none), ``"kept"`` in memory, ``"spilled"`` to disk, or
        ``"regenerated"`` from the image.
    peak_bytes
        Predicted growth of memory over the call, without the image and its gradient.
    """

    passes: tuple[PassPlan, ...]
    barriers: str
    peak_bytes: int

    @property
    def tile(self) -> Size:
        """Rows and columns of a step of the first pass, in px of the image."""
        return self.passes[0].tile

    @property
    def steps(self) -> int:
        """Steps of all passes."""
        return sum(p.steps for p in self.passes)

    @property
    def tapes(self) -> int:
        """Steps that keep what their reverse pass needs."""
        return sum(p.tapes for p in self.passes)

    def stored(self, graph: Graph) -> list[int]:
        """The graph's values that are stored between passes."""
        return graph.crossing if self.barriers in ("kept", "spilled") else []


def return_freed_blocks() -> None:
    """Have glibc give back what was freed so far, and from now on freed blocks of a megabyte and more at once.

    By default it keeps blocks of up to 32 MB and lets them fragment: a run then grows by up to three times what it uses, and no
    budget can be kept; what earlier work of the process left would count against the budget too. Costs the page faults of fresh
    memory. Does nothing with other allocators.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 2**20)
        gc.collect()
        libc.malloc_trim(0)


def free_memory() -> int:
    """Bytes of memory that the machine has available."""
    try:
        with open("/proc/meminfo") as info:
            return next(int(line.split()[1]) * 1024 for line in info if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def make_plan(
    bound: Bound,
    images: int,
    dtype: torch.dtype,
    needs: Demands | None,
    weights: Sequence[Tensor],
    *,
    memory: int | None = None,
    tile: Size | None = None,
    barriers: str = "auto",
    held: bool = True,
) -> Plan:
    """Choose the steps for an image.

    Parameters
    ----------
    bound
        The captured network for the image's size.
    images, dtype
        Number of images, and their type.
    needs
        Gradients that will be asked for, or None.
    weights
        The graph's weights, for their shapes.
    memory
        Bytes by which the call may grow; default half of what the machine has free.
    tile
        Rows and columns of a step in px of the image, instead of choosing them.
    barriers
        ``"kept"``, ``"spilled"`` or ``"regenerated"`` (see `Plan`); ``"auto"``: the first of them that fits.
    held
        Whether maps for the head are assembled.

    Returns
    -------
    Plan
        Of those that fit, the one of the widest strips with as many kept tapes as fit.

    Raises
    ------
    MemoryBudgetError
        When no step fits; the message names the least that would do.
    """
    height, width = bound.sizes[0]
    budget = free_memory() // 2 if memory is None else memory
    if not bound.graph.crossing:
        ways: Sequence[str] = ("none",)
    else:
        ways = ("kept", "spilled", "regenerated") if barriers == "auto" else (barriers,)
    least = None
    for way in ways:
        costs = _Costs(bound, images, dtype, needs, weights, way, held)
        if tile is not None and (memory is None or len(ways) == 1):
            return costs.plan(tile, budget if memory is not None else None)
        for candidate in [tile] if tile is not None else _candidates(height, width):
            plan = costs.plan(candidate, budget)
            if plan.peak_bytes <= budget:
                return plan
            least = plan if least is None or plan.peak_bytes < least.peak_bytes else least
    if least is None:
        raise AssertionError("there is always a candidate")
    raise MemoryBudgetError(
        f"an image of {height} x {width} px needs at least {format_bytes(least.peak_bytes)} more memory with this network, but the budget "
        f"leaves {format_bytes(budget)}: give more memory or a smaller region"
    )


def _candidates(height: int, width: int) -> list[Size]:
    """Shapes of a step, the best first: full strips, then tiles."""
    found = [(rows, width) for rows in _STRIP_ROWS if rows <= max(height, _STRIP_ROWS[-1])]
    columns = width
    while columns > 256:
        columns = -(-columns // 2)
        found += [(rows, columns) for rows in (512, 256, 128, 64) if rows <= max(height, 64)]
    return found


class _Costs:
    """What plans of one way with barriers cost."""

    def __init__(
        self, bound: Bound, images: int, dtype: torch.dtype, needs: Demands | None, weights: Sequence[Tensor], way: str, held: bool
    ) -> None:
        self.bound, self.images, self.dtype, self.needs, self.way = bound, images, dtype, needs, way
        graph = bound.graph
        self.maps = [sink.value for sink in graph.sinks if sink.kind == "map"] if held else []
        self.stored = Plan((), way, 0).stored(graph)
        self.programs = [bound.program(phase, self.stored) for phase in range(graph.passes)]
        self.trained = sum(w.nbytes for w in weights) if needs is not None and any(needs.operands) else 0
        given = iter(weights)
        self.blank = [
            torch.empty([n or images for n in o.shape], dtype=dtype, device="meta") if isinstance(o, Statistic)
            else torch.empty_like(next(given), device="meta")
            for o in graph.operands
        ]  # fmt: skip
        self.wants = [None if needs is None else wanted(p, needs.values, needs.operands) for p in self.programs]

    def plan(self, tile: Size, budget: int | None) -> Plan:
        """The cost of one shape of the steps, with as many tapes as the budget allows (none without a budget)."""
        grids = [build_grid(program, self._scaled(tile, program)) for program in self.programs]
        tiles = [self._scaled(tile, program) for program in self.programs]
        counts = [grid.rows.steps * grid.cols.steps for grid in grids]
        sinks = sum(map(self._bytes, self.maps)) * (2 if self.needs else 1)
        # passes from the image grow and grow: they are run again one by one rather than remembered all at once
        again = self.way == "regenerated"
        lean = tuple(PassPlan(t, n, 0, again) for t, n in zip(tiles, counts, strict=True))
        if budget is None:
            return Plan(lean, self.way, sinks + self._held_bytes(0))
        costs = [
            _step_cost(program, grid, self.images, self.dtype, wants, self.blank)
            for program, grid, wants in zip(self.programs, grids, self.wants, strict=True)
        ]
        largest = max(
            self.images * c * _longest(grid.rows, v) * _longest(grid.cols, v)
            for program, grid in zip(self.programs, grids, strict=True)
            for v, c in enumerate(program.channels)
        )
        peaks = [cost.peak + self._held_bytes(phase) for phase, cost in enumerate(costs)]
        if largest >= _ELEMENTS:
            peaks.append(budget + 1)
        if self.needs is None:
            return Plan(lean, self.way, sinks + max(peaks))
        carries = [n * cost.carry for n, cost in zip(counts, costs, strict=True)]
        fixed = sinks + self.trained + (0 if again else max(peaks) + sum(carries))
        total = fixed
        passes: list[PassPlan] = []
        for t, n, cost, peak, carry in reversed(list(zip(tiles, counts, costs, peaks, carries, strict=False))):
            extra = cost.tape - cost.carry
            used = fixed + peak + carry if again else total
            tapes = n if extra <= 0 else min(n, max((budget - used) // extra, 0))
            total = max(total, used + tapes * extra)
            passes.insert(0, PassPlan(t, n, tapes, again))
        return Plan(tuple(passes), self.way, max(total, sinks + max(peaks)))

    def _scaled(self, tile: Size, program: Program) -> Size:
        """A step of the first pass for a later one: the same share of the columns, and as many rows as hold as much."""
        width, cols = self.bound.sizes[0][1], max(w for _, w in program.sources)
        rows = tile[0] * self._row_elements(self.programs[0]) / self._row_elements(program)
        return max(1, round(rows)), max(1, round(tile[1] * cols / width))

    def _row_elements(self, program: Program) -> float:
        """Elements of a program's largest value for each row of its largest source."""
        sizes = [self.bound.sizes[value] for value in program.values]
        largest = max(c * h * w for c, (h, w) in zip(program.channels, sizes, strict=True))
        return largest / max(h for h, _ in program.sources)

    def _bytes(self, value: int) -> int:
        height, width = self.bound.sizes[value]
        return self.images * self.bound.graph.channels[value] * height * width * self.dtype.itemsize

    def _held_bytes(self, phase: int) -> int:
        """Bytes of maps between passes that are in memory during a pass, and of their gradients."""
        graph = self.bound.graph
        held = [v for v in self.stored if self.way == "kept"]
        during = [v for v in held if graph.phases[v] <= phase <= graph.last_reader(v)]
        if self.needs is None:
            return sum(map(self._bytes, during))
        image = self.needs.values[0] and self.way == "kept" and sum(0 in p.values[: len(p.sources)] for p in self.programs) > 1
        return sum(map(self._bytes, held)) + sum(map(self._bytes, during)) + (self._bytes(0) if image else 0)


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
    program: Program, grid: Grid, images: int, dtype: torch.dtype, wants: Sequence[Wants] | None, blank: Sequence[Tensor]
) -> _StepCost:
    """Run a few inner steps on the meta device."""
    middle, j = grid.rows.steps // 2, grid.cols.steps // 2
    peak, carries, tapes = 0, [], []
    steps = range(middle, min(middle + _CYCLE, grid.rows.steps))

    def empty(value: int, rows: int, cols: int) -> Tensor:
        size = (images, program.channels[value], rows, cols)
        return torch.empty(size, dtype=dtype, device="meta", memory_format=torch.channels_last)

    for i in steps:
        step = Step(program, grid, i, j)
        above, left, below, right = ([_blank(step, v, side, empty) for v in range(len(program.channels))] for side in _SIDES)
        carries.append(sum(t.nbytes for t in (*above, *left) if t is not None))
        # outside of the caller's modes, which would count these operations as real
        with _disable_current_modes(), torch.no_grad(), _Meter() as meter:
            parts = [empty(v, r1 - r0, c1 - c0) for v in range(step.first) for (r0, r1), (c0, c1) in [step.new(v)]]
            made = run_step(step, parts, Carry(above, left), blank, None, None)
            del made
            if wants is not None:
                tape = run_step(step, parts, Carry(above, left), blank, wants, None)[2]
                del parts
                tapes.append(meter.live())
                if tape is not None:
                    reverse_step(step, tape, blank, wants, (below, right), lambda *_: None, _ignore, [None] * len(blank))
        peak = max(peak, meter.peak)
    return _StepCost(peak, sum(carries) // len(steps), sum(tapes) // len(steps) if tapes else 0)


_SIDES = ("above", "left", "below", "right")
_CYCLE = 4


def _ignore(source: int, grad: Tensor | None, rows: tuple[int, int], cols: tuple[int, int]) -> None:
    """Take a finished gradient and forget it."""


def _blank(step: Step, value: int, side: str, empty: Callable[[int, int, int], Tensor]) -> Tensor | None:
    """What a step exchanges with its neighbour on one side, without memory."""
    (r0, r1), (c0, c1) = step.block(value)
    (n0, _), (m0, _) = step.new(value)
    if side in ("below", "right"):
        (r0, r1), (c0, c1) = step.below(value) if side == "below" else step.right(value)
    else:
        r1, c0, c1 = (n0, m0, c1) if side == "above" else (r1, c0, m0)
    return None if r0 >= r1 or c0 >= c1 else empty(value, r1 - r0, c1 - c0)


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
