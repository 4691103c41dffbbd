"""What a call will cost before it runs: the shape of the steps, what is kept, predicted peak bytes, operations and time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from streamview.errors import MemoryBudgetError
from streamview.progress import format_steps
from streamview.streaming.busy import Reach, busy_steps, summed
from streamview.streaming.call import Call
from streamview.streaming.cuda import free_memory_of
from streamview.streaming.graph import Graph, Program
from streamview.streaming.memory import format_bytes
from streamview.streaming.ops import Size, Statistic
from streamview.streaming.ops.window import Convolution
from streamview.streaming.ops.winograd import transformed_bytes
from streamview.streaming.plan.costs import Batch, PassCosts, Totals, block_sizes, pass_costs, totals
from streamview.streaming.plan.remembering import PassPlan, choose_saved, options_of
from streamview.streaming.step import Grid, build_grid, wants_of

__all__ = ["CostModel", "PassPlan", "Plan", "make_plan"]

_STRIP_ROWS = (256, 128, 64, 32, 16, 8)
_TILE_ROWS = (512, 256, 128, 64)
_TILE_COLUMNS = 256  # wider tiles are halved
_COLUMN_UNIT = 64  # whole strides of most networks, so that steps on even background are alike
_CUDA_ROWS = tuple(2**n for n in reversed(range(5, 14)))
_CUDA_COLUMNS = 2048  # wider tiles are halved
_ELEMENTS = 2**31  # several of torch's kernels fail beyond


class HeldBack(NamedTuple):
    """Memory that the C library holds back for reuse, in units of what the heaviest step takes.

    Parameters
    ----------
    most, expected
        At most, and as a rule.
    between
        Between two steps, relative to the peak of what is used: what is more is given back.
    """

    most: float
    expected: float
    between: float


_REUSED, _REUSED_TRAINING, _RETURNED = HeldBack(5, 2, 4), HeldBack(5, 1.6, 4), HeldBack(0.4, 0.15, -1)


@dataclass(frozen=True, slots=True)
class CostModel:
    """The measured constants by which plans are compared; a machine of another kind may want others.

    Parameters
    ----------
    best_log2_px
        log2 of the px of a step that stays in the processor's caches and still fills its threads. With the weights of `step_time` fitted to
        networks of 18 and 22 layers at widths of 2048 and 8192 px.
    returned_time
        Time, relative to memory that is reused, where every block of a step comes from the system anew.
    reused, reused_training, returned
        What is held back where freed memory is reused, where it is reused for gradients of weights, and where it is returned to the
        system. Fitted to the combinations of `benchmarks.forecasts`.
    reused_block
        Bytes from which a tensor comes from the system every time, whatever was freed: glibc keeps no more.
    cuda_largest_px
        Px of a step on CUDA beyond which a few percent of time are gained, for twice the memory.
    cuda_launch_px
        Px that a GPU computes while the host launches the kernels of one step.
    cuda_reserved
        What the CUDA allocator reserves relative to what is allocated: its blocks are larger, and cuDNN takes workspaces.
    """

    best_log2_px: float = 17.5
    returned_time: float = 1.25
    reused: HeldBack = _REUSED
    reused_training: HeldBack = _REUSED_TRAINING
    returned: HeldBack = _RETURNED
    reused_block: int = 2**25
    cuda_largest_px: int = 2**23
    cuda_launch_px: int = 2**20
    cuda_reserved: float = 1.75

    def held_back(self, freed: str, training: bool) -> HeldBack:
        """What is held back under this treatment of freed memory (`Plan.freed`), with or without gradients of weights."""
        if freed == "as ever":
            return HeldBack(0, 0, 0)
        return self.returned if freed == "returned" else self.reused_training if training else self.reused

    def step_time(self, tile: Size, width: int) -> float:
        """Time of steps of this shape on a processor, relative to large ones, for an image of this width."""
        away = abs(math.log2(tile[0] * min(tile[1], width)) - self.best_log2_px)
        return 1 + 0.02 * away + 2 / tile[0] + (0 if tile[1] >= width else 20 / tile[1])

    def cuda_step_time(self, tile: Size, size: Size) -> float:
        """As `step_time` on a GPU for an image of this height and width: the fewer kernels are launched the better."""
        # what a step takes over from its left neighbour is one more copy
        return 1 + 0.1 * (tile[1] < size[1]) + self.cuda_launch_px / (min(tile[0], size[0]) * tile[1])


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
        Predicted growth of memory over the call, without the image; that of a `Streamed` counts the image's gradient.
    saves
        What a step saves: ``"nothing"`` (no gradient is wanted), ``"bits"`` (of a network that is linear piece by piece, for the
        image's gradient) or ``"maps"``.
    operations
        Floating point operations of convolutions and matrix products, forward and backward.
    overhead
        The same relative to conventional autograd, which computes nothing twice.
    computed
        Share of the steps that are computed; the others lie on even background, see `Call.parts`.
    seconds
        Predicted time on this machine; None where it was not asked for.
    freed
        What becomes of freed memory during the call: ``"reused"``, which is faster and costs overhead, a multiple of the step's size;
        ``"returned"`` to the system at once; or ``"as ever"``, the allocator's own way, of a given step without a budget and on CUDA.
    block_bytes
        The largest tensor of a step.
    step_bytes
        What the heaviest step takes of `peak_bytes` besides what it saves.
    kept_bytes
        Bytes by which the process may have grown between two steps, once the weights are computed, before freed memory that is kept
        for reuse is given back.
    budget
        Bytes by which the call may grow; None where nothing was said.
    """

    passes: tuple[PassPlan, ...]
    barriers: str
    peak_bytes: int = 0
    saves: str = "nothing"
    operations: int = 0
    overhead: float = 1.0
    computed: float = 1.0
    seconds: float | None = None
    freed: str = "as ever"
    block_bytes: int = 0
    step_bytes: int = 0
    kept_bytes: int = 0
    budget: int | None = None

    @property
    def tile(self) -> Size:
        """Rows and columns of a step of the first pass, in px of the image."""
        return self.passes[0].tile

    @property
    def steps(self) -> int:
        """Steps of all passes."""
        return sum(p.steps for p in self.passes)

    @property
    def saved_steps(self) -> int:
        """Steps that save their activations for the backward pass."""
        return sum(p.saved_steps for p in self.passes)

    def stored(self, graph: Graph) -> list[int]:
        """The graph's values that are stored between passes."""
        return graph.crossing if self.barriers in ("kept", "spilled") else []

    def __str__(self) -> str:
        """One line for people."""
        rows, cols = self.tile
        text = f"{format_steps(self.steps)} of {rows} x {cols} px"
        if len(self.passes) > 1:
            rerun = " by running earlier passes again" if self.barriers == "regenerated" else ""
            text += f" in {len(self.passes)} passes, maps between them {self.barriers}{rerun}"
        if self.saves != "nothing":
            recomputed = "none" if self.saved_steps == self.steps else self.steps - self.saved_steps
            text += f", activations of {self.saved_steps} saved{' as bits' if self.saves == 'bits' else ''}, {recomputed} recomputed"
        text += f": peak memory {format_bytes(self.peak_bytes)}, {self.overhead:.3f} of conventional operations"
        return text


MEASURED = CostModel()
"""As measured on processors of two kinds, and on an H100."""


def make_plan(
    call: Call,
    *,
    memory: int | None = None,
    tile: Size | None = None,
    barriers: str = "auto",
    forecast: bool = True,
    costs: CostModel = MEASURED,
) -> Plan:
    """Choose the steps of a call.

    Parameters
    ----------
    call
        What is computed.
    memory
        Bytes by which the call may grow; default half of what the machine has free.
    tile
        Rows and columns of a step in px of the image, instead of choosing them; without `memory` no step saves anything.
    barriers
        ``"kept"``, ``"spilled"`` or ``"regenerated"`` (see `Plan`); ``"auto"``: the first of them that fits.
    forecast
        Whether the plan of a given `tile` without `memory` says what it takes.
    costs
        By which plans are compared.

    Returns
    -------
    Plan
        Of those that fit, the one of the least work.

    Raises
    ------
    MemoryBudgetError
        When no step fits; the message names the least that would do.
    """
    height, width = call.size
    cuda = call.device.type == "cuda"
    budget = free_memory_of(call.device) // 2 if memory is None else memory
    if not call.bound.graph.crossing:
        ways: Sequence[str] = ("none",)
    else:
        ways = ("kept", "spilled", "regenerated") if barriers == "auto" else (barriers,)
    least = None
    for way in ways:
        planner = _Planner(call, way, costs)
        if tile is not None and memory is None:
            return planner.bare(tile, forecast)
        candidates = [(tile, 1.0)] if tile is not None else (_cuda_candidates if cuda else _candidates)(call.size, costs)
        best, best_work = None, float("inf")
        for candidate, work in candidates if cuda else _least_first(candidates, planner.slower):
            if best is not None and work * planner.least_overhead(candidate, budget) >= best_work:
                continue
            # the treatments of freed memory are of the host's allocator
            for freed in ("as ever",) if cuda else ("reused", "returned"):
                plan = planner.plan(candidate, round(budget / costs.cuda_reserved) if cuda else budget, freed)
                if plan.block_bytes >= _ELEMENTS * call.dtype.itemsize:
                    continue
                if cuda:
                    plan = replace(plan, peak_bytes=round(plan.peak_bytes * costs.cuda_reserved))
                slower = costs.returned_time / planner.slower(candidate) if freed == "returned" else 1.0
                held = costs.held_back(freed, planner.training)
                most = plan.peak_bytes + round((held.most - held.expected) * plan.step_bytes)
                if most <= budget and work * slower * plan.overhead < best_work:
                    best, best_work = plan, work * slower * plan.overhead
                least = most if least is None else min(least, most)
        if best is not None:
            return replace(best, budget=memory)
    if least is None:
        raise MemoryBudgetError(
            f"an image of {height} x {width} px: every step would hold a tensor of {_ELEMENTS} elements or more, where torch's kernels "
            "fail: give a smaller tile or fewer images"
        )
    raise MemoryBudgetError(
        f"an image of {height} x {width} px needs at least {format_bytes(least)} more memory with this network, but the budget "
        f"leaves {format_bytes(budget)}: give more memory or a smaller region"
    )


def _candidates(size: Size, costs: CostModel) -> list[tuple[Size, float]]:
    """Shapes of a step, strips and tiles, with the work that they cost relative to large ones, the least first."""
    height, width = size
    tiles = [(rows, width) for rows in _STRIP_ROWS]
    columns = width
    while columns > _TILE_COLUMNS:
        columns = -(-columns // (2 * _COLUMN_UNIT)) * _COLUMN_UNIT
        tiles += [(rows, columns) for rows in _TILE_ROWS]
    candidates = [(tile, costs.step_time(tile, width)) for tile in tiles if tile[0] <= max(height, _STRIP_ROWS[-1])]
    return sorted(candidates, key=lambda candidate: candidate[1])


def _least_first(candidates: Sequence[tuple[Size, float]], slower: Callable[[Size], float]) -> Iterator[tuple[Size, float]]:
    """The candidates with their work times what `slower` says of their shape, the least first; it is asked as late as that allows."""
    heap = [(work, False, tile) for tile, work in candidates]
    heapify(heap)
    while heap:
        work, final, tile = heappop(heap)
        if final:
            yield tile, work
        else:
            heappush(heap, (work * slower(tile), True, tile))


def _cuda_candidates(size: Size, costs: CostModel) -> list[tuple[Size, float]]:
    """As `_candidates` for a GPU, where nothing but the number of kernels matters: the larger a step the better."""
    tiles, columns = [], 2 * size[1]
    while columns > min(size[1], _CUDA_COLUMNS):
        columns = -(-columns // 2)
        tiles += [(rows, columns) for rows in _CUDA_ROWS if rows * columns <= max(costs.cuda_largest_px, _CUDA_ROWS[-1] * columns)]
    candidates = [(tile, costs.cuda_step_time(tile, size)) for tile in tiles]
    return sorted(candidates, key=lambda candidate: candidate[1])


class _Planner:
    """Plans of one way with barriers."""

    def __init__(self, call: Call, way: str, costs: CostModel) -> None:
        self.call, self.way, self.cost_model = call, way, costs
        self.bound, self.images, self.dtype, self.needs = call.bound, call.images, call.dtype, call.needs
        self.gathered = call.gathered or call.dtype
        graph, weights = call.bound.graph, call.weights
        self.maps = [sink.value for sink in graph.sinks if sink.kind == "map"] if call.holds_maps else []
        self.stored = Plan((), way).stored(graph)
        self.programs = [call.bound.program(phase, self.stored) for phase in range(graph.passes)]
        self.training = call.needs is not None and any(call.needs.operands)
        # convolutions lay a weight out anew for the processor, and its gradient twice
        laid_out = max((w.nbytes for w in weights), default=0) * (2 if self.training else 1)
        self.weights = call.folded_bytes + laid_out + (sum(w.nbytes for w in weights) if self.training else 0)
        given = iter(weights)
        self.blank = [
            torch.empty([n or call.images for n in o.shape], dtype=self.gathered, device="meta") if isinstance(o, Statistic)
            else torch.empty_like(next(given), device="meta")
            for o in graph.operands
        ]  # fmt: skip
        self.weights += self._transformed_bytes()
        self.batches = [self._batch(program) for program in self.programs]
        self._totals: tuple[list[Totals], int] | None = None
        self._laid: dict[Size, list[tuple[Size, Grid]]] = {}
        self._costs: dict[Size, list[PassCosts]] = {}
        self._reach = Reach(self.bound, self.programs[0]) if call.parts is not None and graph.passes == 1 else None
        self._parts = None if self._reach is None or call.parts is None else summed(call.parts)
        self._busy: dict[Size, NDArray[np.bool_]] = {}
        self._blocks: dict[Size, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def _batch(self, program: Program) -> Batch:
        wants = None if self.needs is None else wants_of(program, self.needs.values, self.needs.operands)
        return Batch(self.images, self.dtype, self.blank, wants)

    def _transformed_bytes(self) -> int:
        """Bytes of the kernels that are held in another form during the call."""
        if self.call.device.type != "cpu":
            return 0
        transformed = {}
        for program in self.programs:
            for value, node in enumerate(program.nodes, len(program.sources)):
                op, size = program.op(value), self.bound.sizes[program.values[value]]
                if isinstance(op, Convolution) and op.transforms(self.blank[node.weights[0]], size):
                    transformed[node.weights[0]] = transformed_bytes(self.blank[node.weights[0]])
        return sum(transformed.values())

    def totals(self) -> tuple[list[Totals], int]:
        """The costs of each pass as a whole, and the operations of conventional autograd."""
        if self._totals is None:
            found = [totals(program, batch) for program, batch in zip(self.programs, self.batches, strict=True)]
            once = found
            if self.way == "regenerated":
                graph = self.bound.graph
                plain = [self.bound.program(phase, graph.crossing) for phase in range(graph.passes)]
                once = [totals(program, self._batch(program)) for program in plain]
            self._totals = found, sum(t.forward + t.backward for t in once)
        return self._totals

    def busy(self, tile: Size) -> NDArray[np.bool_]:
        """The steps of the first pass that are computed, bool (rows of steps, columns of steps)."""
        if tile not in self._busy:
            grid = self._grids(tile)[0][1]
            if self._reach is not None and self._parts is not None:
                self._busy[tile] = busy_steps(self._reach, grid, self._parts)
            else:
                self._busy[tile] = np.ones((grid.rows.steps, grid.cols.steps), bool)
        return self._busy[tile]

    def block_bytes(self, tile: Size) -> int:
        """Bytes of the largest tensor of a step."""
        return int(self._block_sizes(tile)[0].max())

    def slower(self, tile: Size) -> float:
        """Time on a processor relative to steps whose blocks can all be kept for reuse."""
        sizes, counts = self._block_sizes(tile)
        total = sizes * counts
        return 1 + (self.cost_model.returned_time - 1) * float(total[sizes >= self.cost_model.reused_block].sum() / total.sum())

    def _block_sizes(self, tile: Size) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Bytes of the tensors of all steps, and how many have that size."""
        if tile not in self._blocks:
            sized = [block_sizes(program, grid, self.images) for program, (_, grid) in zip(self.programs, self._grids(tile), strict=True)]
            sizes, counts = (np.concatenate(part) for part in zip(*sized, strict=True))
            self._blocks[tile] = sizes * self.dtype.itemsize, counts
        return self._blocks[tile]

    def least_overhead(self, tile: Size, budget: int) -> float:
        """A bound below the operations of any plan with this step, relative to conventional autograd.

        What is saved takes nearly the same in all of one pass, however it is divided.
        """
        share = float(self.busy(tile).mean())
        if self.needs is None or len(self.programs) > 1 or not self._costs:
            return share
        (whole,), conventional = self.totals()
        saved = 0.95 * share * next(iter(self._costs.values()))[0].saved
        recomputed = 0.0 if saved <= budget else 1 - budget / saved
        return share * (whole.forward * (1 + recomputed) + whole.backward) / max(conventional, 1)

    def bare(self, tile: Size, forecast: bool) -> Plan:
        """One shape of the steps with nothing saved; each step is recomputed from its carry."""
        return self.plan(tile, None) if forecast else Plan(self._lean(self._grids(tile)), self.way)

    def plan(self, tile: Size, budget: int | None, freed: str = "as ever") -> Plan:
        """One shape of the steps, with as many saved steps as the budget allows; without a budget as `bare`."""
        laid = self._grids(tile)
        grids = [grid for _, grid in laid]
        wholes, conventional = self.totals()
        if tile not in self._costs:
            self._costs[tile] = [pass_costs(*of) for of in zip(self.programs, grids, self.batches, strict=True)]
        costs = self._costs[tile]
        step_bytes = max(cost.working for cost in costs)
        held = self.cost_model.held_back(freed, self.training)
        most, expected, between = (round(steps * step_bytes) for steps in held)
        sinks = sum(self._bytes(value, self.gathered) for value in self.maps) * (2 if self.needs else 1)
        outside = self.call.reader_bytes * min(tile[0], self.bound.sizes[0][0]) * min(tile[1], self.bound.sizes[0][1])
        peaks = [outside + cost.working + max(cost.states) + self._held_bytes(p) for p, cost in enumerate(costs)]
        used = self.weights + sinks + max(peaks)
        busy = self.busy(tile)
        computed = float(busy.mean())
        operations = round(computed * sum(whole.forward + whole.backward for whole in wholes))
        passes = self._lean(laid)
        if self.needs is not None:
            options = [list(options_of(cost, busy if self._reach else None)) for cost in costs]
            passes, peak = choose_saved(passes, options, peaks, self.weights + sinks + most, budget)
            used = max(used, peak - most)
            for chosen, whole in zip(passes, wholes, strict=True):
                recomputed = (
                    float(busy.flat[: chosen.steps - chosen.saved_steps].sum()) / busy.size
                    if self._reach
                    else 1 - chosen.saved_steps / chosen.steps
                )
                operations += round(whole.forward * (recomputed + chosen.rerun))
        return Plan(
            passes,
            self.way,
            used + expected,
            "nothing" if self.needs is None else "maps" if any(whole.maps for whole in wholes) else "bits",
            operations,
            operations / max(conventional, 1),
            computed,
            freed=freed,
            block_bytes=self.block_bytes(tile),
            step_bytes=step_bytes,
            kept_bytes=used - self.call.folded_bytes + between,
        )

    def _grids(self, tile: Size) -> list[tuple[Size, Grid]]:
        """Rows and columns of a step, and the schedule, of every pass."""
        if tile not in self._laid:
            tiles = [self._scaled(tile, program) for program in self.programs]
            self._laid[tile] = [(scaled, build_grid(program, scaled)) for scaled, program in zip(tiles, self.programs, strict=True)]
        return self._laid[tile]

    def _lean(self, laid: Sequence[tuple[Size, Grid]]) -> tuple[PassPlan, ...]:
        """All passes with nothing saved."""
        # passes from the image grow and grow: they are run again one by one rather than remembered all at once
        return tuple(PassPlan(tile, grid.rows.steps * grid.cols.steps, rerun=self.way == "regenerated") for tile, grid in laid)

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

    def _bytes(self, value: int, dtype: torch.dtype | None = None) -> int:
        height, width = self.bound.sizes[value]
        return self.images * self.bound.graph.channels[value] * height * width * (dtype or self.dtype).itemsize

    def _held_bytes(self, phase: int) -> int:
        """Bytes of maps between passes that are in memory during a pass, and of their gradients."""
        graph = self.bound.graph
        held = [v for v in self.stored if self.way == "kept"]
        during = [v for v in held if graph.phases[v] <= phase <= graph.last_reader(v)]
        if self.needs is None:
            return sum(map(self._bytes, during))
        image = self.needs.values[0] and self.way == "kept" and sum(0 in p.values[: len(p.sources)] for p in self.programs) > 1
        return sum(map(self._bytes, held)) + sum(map(self._bytes, during)) + (self._bytes(0) if image else 0)
