"""What a run will take, said before it starts: its plan by the shapes alone, its time from a sample."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch

from streamview.geometry import Region
from streamview.inference.session import Session, Source
from streamview.inference.shares import step_shares
from streamview.networks import Model
from streamview.results import Precision
from streamview.streaming.cuda import full_float32
from streamview.streaming.memory import format_bytes
from streamview.streaming.plan.plan import Plan
from streamview.streaming.run.timing import SAMPLE, format_seconds, measure
from streamview.system.machine import free_disk

__all__ = ["Forecast", "forecast"]

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
    maps
        Targets that will be explained, each in a backward pass of its own.
    disk_bytes
        What they will take on disk at most.
    disk_free
        What is free there; None where nothing is written.
    """

    plan: Plan
    shape: tuple[int, int]
    peak_bytes: int
    seconds: float | None
    device: str
    maps: int = 0
    disk_bytes: int = 0
    disk_free: int | None = None

    def __str__(self) -> str:
        """One line for people."""
        rows, cols = self.plan.tile
        step = f"{self.plan.steps} steps of {min(rows, self.shape[0])} x {min(cols, self.shape[1])} px"
        if len(self.plan.passes) > 1:
            step = f"{len(self.plan.passes)} passes, maps between them {self.plan.barriers}, of {self.plan.steps} steps in all"
        duration = "a few seconds" if self.seconds is None else f"about {format_seconds(self.seconds)}"
        said = f"{self.shape[1]} x {self.shape[0]} px in {step} on {self.device}: peak memory {format_bytes(self.peak_bytes)}, {duration}"
        if self.maps > 1:
            said += f" for {self.maps} targets"
        if self.disk_free is not None:
            said += f"; writes at most {format_bytes(self.disk_bytes)}, {format_bytes(self.disk_free)} are free"
        return said


def forecast(
    model: Model,
    source: Source,
    region: Region | None = None,
    *,
    explain: bool = False,
    maps: int = 1,
    out: str | os.PathLike[str] | None = None,
    memory: str | int | None = None,
    tile: tuple[int, int] | None = None,
    device: str = "auto",
    mpp: float | None = None,
    precision: Precision = "float32",
    pad_to: int | None = None,
) -> Forecast:
    """Say what `predict` (or, with `explain`, `saliency`) will take: the plan by its shapes, the time from a sample of the region.

    Parameters
    ----------
    explain
        Whether the gradient is wanted too.
    maps
        For how many targets.
    out
        Where the maps will be written; None: they are kept in memory.
    model, source, region, memory, tile, device, mpp, precision, pad_to
        As for `predict`.

    Raises
    ------
    SlideError, RegionError, ModelError, NotStreamableError, MemoryBudgetError
        As for `predict`.

    Examples
    --------
    >>> import streamview
    >>> with streamview.open_slide("slide.svs") as slide:
    ...     forecast = streamview.forecast(streamview.load_model("demo"), slide)
    >>> forecast.shape, forecast.peak_bytes > 0  # print(forecast) says it in a line
    ((512, 768), True)
    """
    session = Session.prepare(model, source, region, mpp, device, precision, pad_to)
    height, width = session.sampler.shape
    needs = session.needs if explain else None
    plan = session.plan(needs, memory, tile, 0 if out is not None or not explain else 8 * height * width * maps)
    base = session.base()  # before the sample, which leaves memory with the allocator that the run will use again
    seconds = None
    if height * width >= 4 * SAMPLE[0] * SAMPLE[1]:
        with full_float32(session.device):
            speed = measure(session.bound, plan, needs, session.weights, 1, session.dtype, torch.float32)
        shares = step_shares(session.slide, session.sampler, session.kept, session.bound, plan, session.weights)
        forward, backward = speed.seconds(plan, (height, width), shares.computed, shares.reversed)
        seconds = forward + (maps * backward if explain else 0) + _reading_seconds(session) * (1 + maps if explain else 1)
    peak = base + plan.peak_bytes + session.reserve(plan.tile)
    made = maps if explain else 0
    if out is None:
        return Forecast(plan, (height, width), peak, seconds, str(session.device), made)
    coarse = session.evidence_size
    stored = round(_STORED * made * (2 * height * width + coarse[0] * coarse[1]))
    return Forecast(plan, (height, width), peak, seconds, str(session.device), made, stored, free_disk(out))


def _reading_seconds(session: Session) -> float:
    """Seconds that all pixels take to be read once, from a sample of the middle."""
    shape = session.sampler.shape
    height, width = (min(side, n) for side, n in zip(SAMPLE, shape, strict=True))
    top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
    start = time.perf_counter()
    session.sampler.read(top, top + height, left, left + width)
    return (time.perf_counter() - start) * (shape[0] * shape[1]) / (height * width)
