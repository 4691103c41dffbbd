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

__all__ = ["SAMPLE", "Speed", "format_seconds", "measure"]

_Result = TypeVar("_Result")
SAMPLE = (512, 1024)
"""Rows and columns, in px, that are timed on a processor."""
_CUDA_SAMPLE = (2048, 8192)  # less would time the launching of kernels


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds that a network takes for a px of the image.

    Parameters
    ----------
    forward, backward
        Of a forward pass, and of a reverse pass that computes nothing again.
    """

    forward: float
    backward: float

    def seconds(self, plan: Plan, size: Size, computed: float = 1.0, reversed: float = 1.0) -> tuple[float, float]:
        """Seconds of a forward and of a reverse pass over an image of this height and width by a plan.

        `computed` and `reversed` are the shares of the steps that each pass computes: others repeat an earlier step or get no gradient.
        """
        again = (plan.steps - plan.tapes) / plan.steps
        px = size[0] * size[1]
        return self.forward * px * computed, (self.backward + again * self.forward) * px * reversed if self.backward else 0.0


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
    The sample runs twice, since the first run also pays for what torch sets up once; each takes as long as half a megapixel does.
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
    call = replace(call, bound=small, folded_bytes=0, reader_bytes=0)
    generator = torch.Generator(device).manual_seed(0)  # the caller's random state stays as it is
    shape = call.images, small.graph.channels[0], height, width
    image = torch.rand(shape, device=device, generator=generator).to(call.dtype, memory_format=torch.channels_last)

    def read(rows: Span, cols: Span) -> Tensor:
        return image[:, :, rows[0] : rows[1], cols[0] : cols[1]]

    tile = min(plan.tile[0], height), min(plan.tile[1], width)
    plan = make_plan(call, memory=2**40, tile=tile, barriers=plan.barriers)
    write = _drop if needs is not None and needs.values[0] else None
    forward = backward = 0.0
    for _ in range(2):
        run = Run(call, plan)
        forward, tensors = _timed(device, clock, partial(run.forward, read))
        if needs is not None:
            grads: dict[Key, Tensor | None] = {key: torch.ones_like(t) for key, t in tensors.items() if isinstance(key, Sink)}
            backward, _ = _timed(device, clock, partial(run.backward, read, grads, write))
    return Speed(forward / (height * width), backward / (height * width))


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
