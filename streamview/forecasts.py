"""What a run will take, said before it starts: its plan by the shapes alone, its time from a sample."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from streamview.errors import RegionError
from streamview.geometry import Region
from streamview.loading import Model
from streamview.machine import free_disk
from streamview.session import Session, Source
from streamview.streaming.graph import Sink, bind
from streamview.streaming.plan import Plan, format_bytes, make_plan
from streamview.streaming.run import Run

__all__ = ["Forecast", "forecast", "format_seconds"]

_SAMPLE = (512, 1024)  # rows and columns that are timed
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
    model, source, region, memory, tile, device, mpp
        As for `predict`.

    Raises
    ------
    SlideError, RegionError, ModelError, NotStreamableError, MemoryBudgetError
        As for `predict`.
    """
    session = Session.prepare(model, source, region, mpp, device)
    height, width = session.sampler.shape
    needs = session.needs if explain else None
    plan = session.plan(needs, memory, tile, 0 if out is not None or not explain else 8 * height * width * maps)
    base = session.base()  # before the sample, which leaves memory with the allocator that the run will use again
    seconds = None
    if height * width >= 4 * _SAMPLE[0] * _SAMPLE[1]:
        seconds = _seconds(session, plan, maps if explain else 0)
    peak = base + plan.peak_bytes + session.reserve(plan.tile)
    made = maps if explain else 0
    if out is None:
        return Forecast(plan, (height, width), peak, seconds, str(session.device), made)
    coarse = session.evidence_size
    stored = round(_STORED * made * (2 * height * width + coarse[0] * coarse[1]))
    return Forecast(plan, (height, width), peak, seconds, str(session.device), made, stored, free_disk(out))


def format_seconds(seconds: float) -> str:
    """Seconds for people: ``"2 min 5 s"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if whole else "under 1 s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _seconds(session: Session, plan: Plan, maps: int) -> float:
    """Seconds of a whole run, from a sample of the region that runs in the same way."""
    height, width = (min(s, n) for s, n in zip(_SAMPLE, session.sampler.shape, strict=True))
    try:
        bound = bind(session.bound.graph, (height, width))
    except RegionError:
        bound, (height, width) = session.bound, session.sampler.shape
    top, left = (session.sampler.shape[0] - height) // 2, (session.sampler.shape[1] - width) // 2
    image = torch.rand((1, 3, height, width), device=session.device).to(memory_format=torch.channels_last)

    def part(rows: tuple[int, int], cols: tuple[int, int]) -> Tensor:
        return image[:, :, rows[0] : rows[1], cols[0] : cols[1]]

    needs = session.needs if maps else None
    chosen = make_plan(bound, 1, torch.float32, needs, session.weights, memory=2**40, barriers=plan.barriers)
    forward = backward = 0.0
    for _ in range(2):  # the first run also pays for what torch sets up once
        start = time.perf_counter()
        session.sampler.read(top, top + height, left, left + width)
        reading = time.perf_counter() - start
        run = Run(bound, chosen, session.weights, needs)
        start = time.perf_counter()
        run.forward(part)
        session.wait()
        forward = time.perf_counter() - start
        if maps:
            start = time.perf_counter()
            run.backward(part, {key: torch.ones_like(t) for key, t in run.tensors.items() if isinstance(key, Sink)}, _drop)
            session.wait()
            backward = time.perf_counter() - start + reading
        forward += reading
    again = (plan.steps - plan.tapes) / plan.steps * (forward - reading)
    return (forward + maps * (backward + again)) * (session.sampler.shape[0] * session.sampler.shape[1]) / (height * width)


def _drop(grad: Tensor | None, rows: tuple[int, int], cols: tuple[int, int]) -> None:
    """Take a finished gradient and forget it."""
