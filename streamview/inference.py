"""From a source, a model and a region to a prediction and its saliency map, computed step by step.

The region never exists as a whole float image (see `streamview.session`); gradients are reduced over channels and handed out as
rows finish.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamview.errors import ModelError
from streamview.evidence import Evidence, pooled_sink
from streamview.geometry import Region
from streamview.loading import Model
from streamview.progress import Progress, Report
from streamview.results import MapWriter, Method, Prediction, Saliency, SaliencyMap, Target
from streamview.session import Session, Source
from streamview.streaming.execute import Span
from streamview.streaming.graph import Key, Sink
from streamview.streaming.plan import Plan
from streamview.streaming.run import Run

__all__ = ["explain", "find_target", "predict", "saliency"]

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
        logits, _ = session.forward(Run(session.bound, plan, session.weights, None), report)
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
        Class to explain, by name or index, or the difference of two logits as ``"a-b"``; default the predicted class (regression:
        the first output).
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
    outs = None if out is None else [out]
    return explain(model, source, region, [target], outs=outs, memory=memory, tile=tile, plan=plan, device=device, mpp=mpp, report=report)[
        0
    ]


def explain(
    model: Model,
    source: Source,
    region: Region | None = None,
    targets: Sequence[int | str | None] = (None,),
    *,
    outs: Sequence[str | os.PathLike[str]] | None = None,
    memory: str | int | None = None,
    tile: tuple[int, int] | None = None,
    plan: Plan | None = None,
    device: str = "auto",
    mpp: float | None = None,
    report: Report | None = None,
) -> list[Saliency]:
    """Explain a prediction for several targets, from one forward pass and one backward pass for each.

    Parameters
    ----------
    targets
        As `target` of `saliency`.
    outs
        One folder for each target; default keeps the maps in memory.
    model, source, region, memory, tile, plan, device, mpp, report
        As for `predict`.

    Returns
    -------
    list of Saliency
        In the order of the targets.

    Raises
    ------
    SlideError, RegionError, ModelError, NotStreamableError, MemoryBudgetError
        As for `saliency`.
    """
    session = Session.prepare(model, source, region, mpp, device)
    fixed = [None if target is None else find_target(model, target) for target in targets]
    if outs is not None and len(outs) != len(fixed):
        raise ValueError(f"{len(outs)} folders for {len(fixed)} targets: give one for each")
    height, width = session.sampler.shape
    plan = plan or session.plan(session.needs, memory, tile, 0 if outs is not None else 8 * height * width * len(fixed))
    with session.running(plan):
        run = Run(session.bound, plan, session.weights, session.needs)
        logits, evidence = session.forward(run, report, explain=True)
        return [
            _explain_target(
                session, run, logits, evidence, target, None if outs is None else outs[number], report, number + 1 == len(fixed)
            )
            for number, target in enumerate(fixed)
        ]


def _explain_target(
    session: Session,
    run: Run,
    logits: Tensor,
    evidence: Evidence | None,
    target: Target | None,
    out: str | os.PathLike[str] | None,
    report: Report | None,
    last: bool,
) -> Saliency:
    """One backward pass; the last one lets go of the forward pass as it proceeds."""
    model, prediction = session.model, session.prediction(logits)
    if target is None:
        target = find_target(model, int(logits.argmax()) if model.card.task != "regression" else 0)
    keys = [key for key in session.bound.graph.head.takes if not isinstance(key, Sink) or key.kind != "shape"]
    score = logits[target.index] if target.against is None else logits[target.index] - logits[target.against]
    grads = torch.autograd.grad(score, [run.tensors[key] for key in keys], retain_graph=not last, allow_unused=True)
    step, origin = session.placed(0)
    found = None
    pooled = pooled_sink(session.bound.graph)
    if evidence is not None and pooled is not None:
        values = evidence.of(target.index)
        values = values if target.against is None else values - evidence.of(target.against)
        found = SaliencyMap("evidence", values, *session.placed(pooled.value))
    progress = Progress("backward pass", run.steps, report)
    std, glass = model.card.std, session.slide.background
    height, width = session.sampler.shape

    def reverse(write: Callable[[int, _Maps], None]) -> None:
        _reverse(session, run, dict(zip(keys, grads, strict=True)), write, progress, release=last)

    if out is not None:
        with MapWriter(out, (height, width), step=step, origin=origin) as writer:
            reverse(writer.write)
            return writer.finish(prediction, target=target, std=std, glass=glass, evidence=found)
    maps = np.empty((2, height, width), np.float32)
    reverse(partial(_keep, maps))
    planes: dict[Method, SaliencyMap] = {
        "absolute": SaliencyMap("absolute", maps[0], step, origin),
        "signed": SaliencyMap("signed", maps[1], step, origin),
    }
    if found is not None:
        planes["evidence"] = found
    return Saliency(prediction, target, std, glass, planes)


def _reverse(
    session: Session,
    run: Run,
    grads: Mapping[Key, Tensor | None],
    write: Callable[[int, _Maps], None],
    progress: Progress,
    release: bool,
) -> None:
    """Run the reverse pass; hand out the maps of each row of steps, float32 (2, rows, width), from the last to the first."""
    strip: _Maps = np.empty(0, np.float32)
    width = session.sampler.shape[1]

    def take(grad: Tensor | None, rows: Span, cols: Span) -> None:
        nonlocal strip
        if cols[1] == width:
            strip = np.zeros((2, rows[1] - rows[0], width), np.float32)
        if grad is not None:
            strip[:, :, cols[0] : cols[1]] = session.reduce(grad, rows, cols)
        if cols[0] == 0:
            write(rows[0], strip)

    with torch.no_grad():
        run.backward(session.read, grads, take, done=progress.advance, release=release)


def _keep(maps: _Maps, y: int, rows: _Maps) -> None:
    maps[:, y : y + rows.shape[1]] = rows


def find_target(model: Model, target: int | str) -> Target:
    """What to explain: a class by name or index, or the difference of two logits as ``"a-b"``.

    Raises
    ------
    ModelError
        When the model has no such class.
    """
    names = model.card.class_names
    if isinstance(target, str) and target in names:
        return Target(target, names.index(target))
    if isinstance(target, int) and not isinstance(target, bool) and 0 <= target < len(names):
        return Target(names[target], target)
    if isinstance(target, str):
        # a name may hold a hyphen itself
        for at in (i for i, letter in enumerate(target) if letter == "-"):
            first, second = target[:at].strip(), target[at + 1 :].strip()
            if first in names and second in names and first != second:
                return Target(f"{first}-{second}", names.index(first), names.index(second))
    raise ModelError(
        f"target {target!r}: the model {model.card.name} has {', '.join(names[:10])}{' ...' if len(names) > 10 else ''}; name one of them, "
        "or two as a-b for the difference of their logits"
    )
