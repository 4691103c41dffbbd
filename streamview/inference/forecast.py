"""What a run will take, said before it starts: its plan by the shapes alone, its time from a sample."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from streamview.inference.changes import normal_noise
from streamview.inference.methods import Passes
from streamview.inference.shares import Shares, step_shares
from streamview.progress import format_steps
from streamview.results import GRADIENT, ExplanationMethod
from streamview.slides import Slide
from streamview.slides.padding import AnySampler, flat_part
from streamview.streaming.call import Call
from streamview.streaming.cuda import full_float32
from streamview.streaming.memory import format_bytes
from streamview.streaming.plan.plan import Plan
from streamview.streaming.run.timing import SAMPLE, Timings, format_seconds

__all__ = ["Forecast", "reading_seconds", "seconds_of", "stored_bytes"]

_PLACES = ((0.5, 0.5), (0.25, 0.25), (0.75, 0.75), (0.75, 0.25), (0.25, 0.75))  # of the samples that reading is timed on, (y, x)
_READ = (256, 512)  # px of each
_ONCE = Passes(1)
_EVEN_SECONDS = 15e-9  # for a px of a step that is not computed: its pixels are still normalised and compared
_STORED = 4 * 4 / 3  # bytes a px of a map on disk: float32 and a third more for the coarser levels, before compression


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run will take, said before it starts.

    Parameters
    ----------
    plan
        Its steps.
    shape
        Height and width of the network's grid in px.
    peak_bytes
        Peak of the process's resident memory (on CUDA: of reserved device memory).
    seconds
        Time on this machine; None for a region so small that timing a sample would take as long as the run.
    device
        Where it will run.
    targets
        How many will be explained, each in a backward pass of its own.
    disk_bytes
        What they will take on disk at most.
    disk_free
        What is free there; None where nothing is written.
    passes
        How often it goes over the region.
    """

    plan: Plan
    shape: tuple[int, int]
    peak_bytes: int
    seconds: float | None
    device: str
    targets: int = 0
    disk_bytes: int = 0
    disk_free: int | None = None
    passes: Passes = _ONCE

    def __str__(self) -> str:
        """One line for people."""
        rows, cols = self.plan.tile
        step = f"{format_steps(self.plan.steps)} of {min(rows, self.shape[0])} x {min(cols, self.shape[1])} px"
        if len(self.plan.passes) > 1:
            step = f"{len(self.plan.passes)} passes, maps between them {self.plan.barriers}, of {format_steps(self.plan.steps)} in all"
        duration = "a few seconds" if self.seconds is None else f"about {format_seconds(self.seconds)}"
        said = f"{self.shape[1]} x {self.shape[0]} px in {step} on {self.device}: peak memory {format_bytes(self.peak_bytes)}, {duration}"
        if self.targets > 1:
            said += f" for {self.targets} targets"
        if self.passes.all > 1 + self.targets:
            said += f", {self.passes}"
        if self.disk_free is not None:
            said += f"; writes at most {format_bytes(self.disk_bytes)}, {format_bytes(self.disk_free)} are free"
        return said


def seconds_of(
    call: Call,
    plan: Plan,
    read: tuple[Slide, AnySampler, tuple[int, int]],
    passes: Passes,
    timings: Timings,
    method: ExplanationMethod = GRADIENT,
) -> float | None:
    """Seconds that a planned run takes here, reading included; None where timing a sample would take as long.

    Parameters
    ----------
    call, plan
        What is computed, and in which steps.
    read
        The slide, its sampler, and the height and width of the region without padding.
    passes
        How often it goes over the region.
    timings
        Speeds of the network that are known.
    method
        How it is explained.
    """
    slide, sampler, inside = read
    height, width = sampler.shape
    if height * width * max(1, passes.all // 2) < 4 * SAMPLE[0] * SAMPLE[1]:
        return None
    with full_float32(call.device):
        speed = timings.speed(call, plan)
    # noise leaves no even background
    laid_out = 0.0
    if call.parts is not None:
        shares = Shares(plan.computed, plan.computed)
        laid_out = _EVEN_SECONDS * height * width * (1 - plan.computed)
    else:
        shares = Shares() if method.name == "smoothgrad" else step_shares(slide, sampler, inside, call, plan)
    forward, backward = speed.seconds(plan, (height, width), shares.computed, shares.differentiated)
    seconds = passes.forward * (forward + laid_out) + passes.backward * backward + reading_seconds(sampler) * passes.all
    if method.name == "smoothgrad":
        again = 1 - plan.saved_steps / plan.steps
        seconds += _noise_seconds() * height * width * (passes.forward - 1 + again * passes.backward)
    return seconds


def _noise_seconds(clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds for a px of noise, from as much as is drawn anew."""
    side = 256
    start = clock()
    normal_noise(0, 2**32, (0, side), (0, side))
    return (clock() - start) / side**2


def stored_bytes(shape: tuple[int, int], evidence_size: tuple[int, int], targets: int) -> int:
    """Bytes that the maps of so many targets take on disk at most."""
    return round(_STORED * targets * (2 * shape[0] * shape[1] + evidence_size[0] * evidence_size[1]))


def reading_seconds(sampler: AnySampler, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that all pixels take to be read once: the median of samples at five places, so that no single stall or blank part counts.

    Parameters
    ----------
    sampler
        What is read.
    clock
        Gives seconds.
    """
    flat = flat_part(sampler)
    if flat is not None:  # nothing is decoded beside the tissue
        return float(flat.parts.mean()) * reading_seconds(flat.plain, clock)
    shape = sampler.shape
    height, width = (min(side, n) for side, n in zip(_READ, shape, strict=True))
    seconds = []
    for y, x in _PLACES:
        top, left = round((shape[0] - height) * y), round((shape[1] - width) * x)
        start = clock()
        sampler.read(top, top + height, left, left + width)
        seconds.append(clock() - start)
    return median(seconds) * (shape[0] * shape[1]) / (height * width)
