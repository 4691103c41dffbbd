"""How much of a run is work: steps on even background repeat earlier ones, and most steps behind a maximum get no gradient.

Both are estimated before the run from a region at the size of a picture, which is checked on a few steps' own pixels.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamview.slides import Slide
from streamview.slides.padding import AnySampler
from streamview.slides.thumbnail import thumbnail
from streamview.streaming.busy import Reach
from streamview.streaming.call import Call
from streamview.streaming.graph import Bound, Program, Sink, placed
from streamview.streaming.ops import Statistic
from streamview.streaming.plan.plan import Plan
from streamview.streaming.run.background import REMEMBERED, alike_everywhere
from streamview.streaming.step import Grid, Step, build_grid

__all__ = ["Shares", "step_shares"]

_SIDE = 1024  # px a side of the picture
_CHECKED = 6  # steps whose own pixels are read
_CHECKED_SIDE = 64  # px
_TISSUE = 25  # grey levels lost against the brightest
_POSITIONS = 512  # maxima that are placed


@dataclass(frozen=True, slots=True)
class Shares:
    """Shares of the steps of a pass, 0 to 1.

    Parameters
    ----------
    computed
        Those that a forward pass computes; the others repeat an earlier one.
    differentiated
        Those that a backward pass computes.
    """

    computed: float = 1.0
    differentiated: float = 1.0


def step_shares(slide: Slide, sampler: AnySampler, inside: tuple[int, int], call: Call, plan: Plan) -> Shares:
    """Estimate how many steps of a plan will be computed.

    Parameters
    ----------
    slide, sampler
        What is read, and how.
    inside
        Height and width of the region on the sampler's grid, without what is padded.
    call, plan
        What is computed of it, and in which steps.

    Raises
    ------
    SlideError
        When a part of the slide cannot be read.
    """
    bound = call.bound
    graph = bound.graph
    program = bound.program(0, plan.stored(graph))
    grid = build_grid(program, plan.passes[0].tile)
    height, width = sampler.shape
    shape = max(min(_SIDE, inside[0]), 1), max(min(_SIDE, inside[1]), 1)
    picture = _padded(thumbnail(slide, sampler.region, shape), inside, (height, width))
    sink = max((value for value, _ in program.sinks), default=0)
    reach, weights = Reach(bound, program), iter(call.weights)
    operands = [None if isinstance(operand, Statistic) else next(weights) for operand in graph.operands]
    even = np.zeros((grid.rows.steps, grid.cols.steps), bool)
    if alike_everywhere(program, operands):
        even = _even_steps(picture, grid, [reach.steps(grid, axis) for axis in (0, 1)], (height, width))
        even &= _confirmed(sampler, grid, even)
    computed = 1 - _repeated(program, grid, even) / even.size
    kinds = {key.kind for key in graph.head.takes if isinstance(key, Sink)}
    if graph.passes > 1 or kinds != {"max"}:
        # repeated in reverse too where steps keep their saved activations, or several are recomputed together
        again = plan.passes[0].saved_steps < plan.passes[0].steps and not plan.passes[0].segment
        return Shares(computed, 1.0 if again else computed)
    channels = sum(graph.channels[key.value] for key in graph.head.takes if isinstance(key, Sink))
    return Shares(computed, _reached(picture, bound, reach, program.values[sink], sink, grid, channels))


def _padded(picture: NDArray[np.uint8], inside: tuple[int, int], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The picture of a padded region, whose rest is black."""
    rows, cols = (round(side * n / k) for side, n, k in zip(picture.shape[:2], shape, inside, strict=True))
    whole = np.zeros((max(rows, picture.shape[0]), max(cols, picture.shape[1]), 3), np.uint8)
    whole[: picture.shape[0], : picture.shape[1]] = picture
    return whole


def _even_steps(picture: NDArray[np.uint8], grid: Grid, reach: Sequence[Sequence[int]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Which steps see one colour alone, as far as the picture shows."""
    rows, cols = picture.shape[:2]
    differs = np.zeros((rows + 1, cols + 1), np.int64)
    differs[1:rows, 1:] |= (picture[1:] != picture[:-1]).any(-1)
    differs[1:, 1:cols] |= (picture[:, 1:] != picture[:, :-1]).any(-1)
    total = differs.cumsum(0).cumsum(1)
    even = np.zeros((grid.rows.steps, grid.cols.steps), bool)
    for i in range(grid.rows.steps):
        top, bottom = reach[0][i] * rows // shape[0], max(-(-grid.rows.new(0, i)[1] * rows // shape[0]) - 1, 0)
        for j in range(grid.cols.steps):
            left, right = reach[1][j] * cols // shape[1], max(-(-grid.cols.new(0, j)[1] * cols // shape[1]) - 1, 0)
            bottom, right = max(bottom, top), max(right, left)
            even[i, j] = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left] == 0
    return even


def _confirmed(sampler: AnySampler, grid: Grid, even: NDArray[np.bool_]) -> bool:
    """Whether steps that look even are: averaging hides the noise of a scanner."""
    steps = np.argwhere(even)
    for i, j in steps[:: max(len(steps) // _CHECKED, 1)]:
        (top, bottom), (left, right) = grid.rows.new(0, int(i)), grid.cols.new(0, int(j))
        part = sampler.read(top, min(bottom, top + _CHECKED_SIDE), left, min(right, left + _CHECKED_SIDE))
        if (part != part[:1, :1]).any():
            return False
    return True


def _repeated(program: Program, grid: Grid, even: NDArray[np.bool_]) -> int:
    """How many of the even steps repeat one of the latest of other geometry."""
    rows = _numbered([Step(program, grid, i, 0).signature() for i in range(grid.rows.steps)])
    cols = _numbered([Step(program, grid, 0, j).signature() for j in range(grid.cols.steps)])
    remembered: OrderedDict[tuple[int, int], None] = OrderedDict()
    count = 0
    for i, j in np.argwhere(even):
        key = rows[i], cols[j]
        count += key in remembered
        remembered[key] = None
        remembered.move_to_end(key)
        if len(remembered) > REMEMBERED:
            remembered.popitem(last=False)
    return count


def _numbered(signatures: Sequence[Hashable]) -> list[int]:
    """A number for each, the same for equal ones."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(signature, len(numbers)) for signature in signatures]


def _reached(picture: NDArray[np.uint8], bound: Bound, reach: Reach, value: int, local: int, grid: Grid, channels: int) -> float:
    """Share of the steps that gradients of as many maxima reach, these placed at random on what is not background."""
    loss = (np.percentile(picture.reshape(-1, 3), 99, axis=0) - picture).max(-1)
    places = np.argwhere(loss > _TISSUE)
    places = places if len(places) else np.argwhere(loss >= 0)
    chosen = places[np.random.default_rng(0).integers(0, len(places), min(channels, _POSITIONS))]
    reached = np.zeros((grid.rows.steps, grid.cols.steps), bool)
    strides, centres = placed(bound, value)
    ranges: list[dict[int, slice]] = [{}, {}]
    for place in chosen:
        steps = []
        for axis, schedule in enumerate((grid.rows, grid.cols)):
            pixel = (place[axis] + 0.5) * schedule.sizes[0] / picture.shape[axis]
            element = min(max(round((pixel - centres[axis]) / strides[axis]), 0), schedule.sizes[local] - 1)
            if element not in ranges[axis]:
                first = bisect_right(schedule.produced[0], reach.first(value, element, axis)) - 1
                ranges[axis][element] = slice(first, bisect_right(schedule.produced[local], element))
            steps.append(ranges[axis][element])
        reached[steps[0], steps[1]] = True
    return float(reached.mean())
