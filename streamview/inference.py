"""From a source, a model and a region to a prediction and its saliency map, computed step by step.

The region never exists as a whole float image (see `streamview.session`); gradients are reduced over channels and handed out as
rows finish.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamview.errors import ModelError
from streamview.evidence import linear_head
from streamview.geometry import Region
from streamview.loading import Model
from streamview.progress import Progress, Report
from streamview.results import MapWriter, Method, Prediction, Saliency, SaliencyMap
from streamview.session import Session, Source
from streamview.streaming.execute import Backward, Forward, SinkGrads, Span, build_grid
from streamview.streaming.plan import Plan

__all__ = ["find_target", "predict", "saliency"]

_Maps = NDArray[np.float32]


def predict(
    model: Model,
    source: Source,
    region: Region | None = None,
    *,
    memory: str | int | None = None,
    tile: tuple[int, int] | None = None,
    plan: Plan | None = None,
    device: str = "auto",
    mpp: float | None = None,
    report: Report | None = None,
) -> Prediction:
    """Predict for a region.

    Parameters
    ----------
    model
        From `load_model`.
    source
        A slide, a pyramid or a uint8 (H, W, 3) array.
    region
        In level-0 pixels; None for all.
    memory
        Bound on the peak resident memory of the process (CUDA: of the device), bytes or ``"2GB"``; default half of what is free.
    tile
        Rows and columns of a step on the network's grid, instead of choosing them.
    plan
        That of a `streamview.forecasts.forecast` of the same run, instead of `memory` and `tile`.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    mpp
        Micrometres per level-0 pixel of the source, where it does not say itself.
    report
        Called after every step; may raise `Cancelled`.

    Returns
    -------
    Prediction

    Raises
    ------
    SlideError, RegionError, ModelError, NotStreamableError, MemoryBudgetError
        When source, region, model or budget do not fit; see each.
    """
    session = Session.prepare(model, source, region, mpp, device)
    plan = plan or session.plan(None, memory, tile, 0)
    with session.running(plan):
        grid = build_grid(session.program, session.sampler.shape, plan.tile)
        logits, _, _ = session.forward(Forward(session.program, grid, session.weights, None), grid, None, report)
    return session.prediction(logits)


def saliency(
    model: Model,
    source: Source,
    region: Region | None = None,
    target: int | str | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    memory: str | int | None = None,
    tile: tuple[int, int] | None = None,
    plan: Plan | None = None,
    device: str = "auto",
    mpp: float | None = None,
    report: Report | None = None,
) -> Saliency:
    """Explain a prediction at the full resolution of the network's grid, from one forward and one backward pass.

    Parameters
    ----------
    target
        Class to explain, by name or index; default the predicted one (regression: the first output).
    out
        Folder ``NAME.ome.zarr`` to write the maps to as they finish; default keeps them in memory.
    model, source, region, memory, tile, plan, device, mpp, report
        As for `predict`.

    Returns
    -------
    Saliency
        With the maps ``"absolute"``, max over channels of |d logit / d normalised input| (Simonyan et al., 2014,
        https://arxiv.org/abs/1312.6034), ``"signed"``, the sum over channels of gradient x (input - glass), and where the head
        is pooling and a linear layer ``"evidence"`` (see `streamview.evidence`).

    Raises
    ------
    SlideError, RegionError, ModelError, NotStreamableError, MemoryBudgetError
        As for `predict`; ModelError also for an unknown target.
    """
    session = Session.prepare(model, source, region, mpp, device)
    fixed = None if target is None else find_target(model, target)
    height, width = session.sampler.shape
    plan = plan or session.plan(session.wants, memory, tile, 0 if out is not None else 8 * height * width)
    with session.running(plan):
        grid = build_grid(session.program, session.sampler.shape, plan.tile)
        passed = Forward(session.program, grid, session.weights, session.wants, plan.tapes)
        logits, sinks, evidence = session.forward(passed, grid, linear_head(session.program), report)
        prediction = session.prediction(logits)
        chosen = fixed if fixed is not None else int(logits.argmax()) if model.card.task != "regression" else 0
        gradient = partial(sinks.gradient, torch.autograd.grad(logits[chosen], sinks.results(), allow_unused=True))
        step, origin = session.placed(0)
        found = None if evidence is None else SaliencyMap("evidence", evidence.of(chosen), *session.placed(session.program.sinks[0].value))
        progress = Progress("backward pass", plan.steps, report)
        std, glass = model.card.std, session.slide.background
        if out is not None:
            with MapWriter(out, (height, width), step=step, origin=origin) as writer:
                _reverse(session, Backward(passed, release=True), gradient, writer.write, progress)
                return writer.finish(prediction, target_index=chosen, std=std, glass=glass, evidence=found)
        maps = np.empty((2, height, width), np.float32)
        _reverse(session, Backward(passed, release=True), gradient, partial(_keep, maps), progress)
        planes: dict[Method, SaliencyMap] = {
            "absolute": SaliencyMap("absolute", maps[0], step, origin),
            "signed": SaliencyMap("signed", maps[1], step, origin),
        }
        if found is not None:
            planes["evidence"] = found
        return Saliency(prediction, prediction.class_names[chosen], chosen, std, glass, planes)


def _reverse(session: Session, backward: Backward, gradient: SinkGrads, write: Callable[[int, _Maps], None], progress: Progress) -> None:
    """Run the reverse pass; hand out the maps of each row of steps, float32 (2, rows, width), from the last to the first."""
    grid = backward.forward.grid
    width = grid.cols.sizes[0]
    steps = iter(reversed(grid.steps()))
    strip: _Maps = np.empty(0, np.float32)

    def take(grad: Tensor, rows: Span, cols: Span) -> None:
        strip[:, :, cols[0] : cols[1]] = session.reduce(grad, rows, cols)

    def begin(i: int) -> None:
        nonlocal strip
        first, last = grid.rows.new(0, i)
        strip = np.zeros((2, last - first, width), np.float32)  # a step whose gradient is zero hands out nothing

    def done() -> None:
        i, j = next(steps)
        if j == 0:
            write(grid.rows.new(0, i)[0], strip)
            if i:
                begin(i - 1)
        progress.advance()

    begin(grid.rows.steps - 1)
    with torch.no_grad():
        backward.run(session.read, gradient, take, done)


def _keep(maps: _Maps, y: int, rows: _Maps) -> None:
    maps[:, y : y + rows.shape[1]] = rows


def find_target(model: Model, target: int | str) -> int:
    """Index of a class given by name or index.

    Raises
    ------
    ModelError
        When the model has no such class.
    """
    names = model.card.class_names
    if isinstance(target, str) and target in names:
        return names.index(target)
    if isinstance(target, int) and not isinstance(target, bool) and 0 <= target < len(names):
        return target
    raise ModelError(
        f"target {target!r}: the model {model.card.name} has {', '.join(names[:10])}{' ...' if len(names) > 10 else ''}; name one of them"
    )
