"""How long a plan takes on this machine: a sample of the network's own work, timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from streamview.errors import RegionError
from streamview.streaming.call import Call
from streamview.streaming.graph import Key, Sink, bind
from streamview.streaming.ops import Size
from streamview.streaming.plan.plan import Plan, make_plan
from streamview.streaming.run.half import narrowed
from streamview.streaming.run.run import Run
from streamview.streaming.step import Span

__all__ = ["SAMPLE", "Speed", "Timings", "format_seconds", "measure"]

_Result = TypeVar("_Result")
_TIMES, _ENOUGH = 6, 3.0  # times that a sample is run at most; seconds after which two do
SAMPLE = (512, 1024)
"""Rows and columns, in px, that are timed on a processor."""
_CUDA_SAMPLE = (2048, 8192)  # less would time the launching of kernels


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds that a network takes for a px of the image.

    Parameters
    ----------
    forward, backward
        Of a forward pass, and of a backward pass that recomputes nothing.
    """

    forward: float
    backward: float

    def seconds(self, plan: Plan, size: Size, computed: float = 1.0, differentiated: float = 1.0) -> tuple[float, float]:
        """Seconds of a forward and of a backward pass over an image of this height and width by a plan.

        `computed` and `differentiated` are the shares of the steps that each pass computes; others repeat a step or get no gradient.
        """
        recomputed = (plan.steps - plan.saved_steps) / plan.steps
        px = size[0] * size[1]
        return self.forward * px * computed, (self.backward + recomputed * self.forward) * px * differentiated if self.backward else 0.0


def measure(call: Call, plan: Plan, clock: Callable[[], float] = time.perf_counter) -> Speed:
    """Time a sample of a planned call, which runs in steps of the same shape.

    Parameters
    ----------
    call, plan
        What is timed.
    clock
        Gives seconds.

    Notes
    -----
    The sample, of half a megapixel, runs two to six times, and the least counts: the first run also pays for what torch sets up once, and
    whatever else the machine does only adds to the time.
    """
    device, needs = call.device, call.needs
    sample = _CUDA_SAMPLE if device.type == "cuda" else SAMPLE
    height, width = (min(s, n) for s, n in zip(sample, call.size, strict=True))
    try:
        small = bind(call.bound.graph, (height, width))
        if call.gathered not in (None, call.dtype):
            small = narrowed(small)
    except RegionError:
        small, (height, width) = call.bound, call.size
    call = replace(call, bound=small, folded_bytes=0, reader_bytes=0, parts=None)
    generator = torch.Generator(device).manual_seed(0)  # the caller's random state stays as it is
    shape = call.images, small.graph.channels[0], height, width
    image = torch.rand(shape, device=device, generator=generator).to(call.dtype, memory_format=torch.channels_last)

    def read(rows: Span, cols: Span) -> Tensor:
        return image[:, :, rows[0] : rows[1], cols[0] : cols[1]]

    tile = min(plan.tile[0], height), min(plan.tile[1], width)
    sampled = make_plan(call, memory=2**40, tile=tile, barriers=plan.barriers)
    # memory that is returned costs page faults, in the sample as in the call
    plan = replace(sampled, freed=plan.freed, kept_bytes=sampled.kept_bytes if plan.freed == "reused" else 0)
    write = _drop if needs is not None and needs.values[0] else None
    forward: list[float] = []
    backward: list[float] = []
    while len(forward) < 2 or (len(forward) < _TIMES and sum(forward) + sum(backward) < _ENOUGH):
        run = Run(call, plan)
        seconds, tensors = _timed(device, clock, partial(run.forward, read))
        forward.append(seconds)
        if needs is not None:
            grads: dict[Key, Tensor | None] = {key: torch.ones_like(t) for key, t in tensors.items() if isinstance(key, Sink)}
            seconds, _ = _timed(device, clock, partial(run.backward, read, grads, write))
            backward.append(seconds)
    return Speed(min(forward) / (height * width), min(backward, default=0.0) / (height * width))


class Timings:
    """The speeds of a network that were measured in this process: each once, so that forecasts of the same agree."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Speed] = {}

    def __reduce__(self) -> tuple[type[Timings], tuple[()]]:
        """Copies begin anew: another process may run on another machine."""
        return Timings, ()

    def speed(self, call: Call, plan: Plan, clock: Callable[[], float] = time.perf_counter) -> Speed:
        """As `measure`, which runs only where device, precision, gradients, steps or threads differ from what is known."""
        rows, columns = (min(step, side) for step, side in zip(plan.tile, SAMPLE, strict=True))
        key = str(call.device), call.dtype, call.needs is None, rows, columns, plan.barriers, plan.freed, torch.get_num_threads()
        if key not in self._known:
            self._known[key] = measure(call, plan, clock)
        return self._known[key]


def _timed(device: torch.device, clock: Callable[[], float], work: Callable[[], _Result]) -> tuple[float, _Result]:
    start = clock()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start, result


def _drop(grad: Tensor | None, rows: Span, cols: Span) -> None:
    """Take a finished gradient and forget it."""


def format_seconds(seconds: float) -> str:
    """Seconds for people: ``"2 min 5 s"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if whole else "under 1 s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
