"""From a source, a model and a region to a prediction and its saliency map, computed step by step.

The region never exists as a whole float image (see `streamview.inference.session`); gradients are reduced over channels and handed out as
rows finish.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamview.errors import ModelError
from streamview.geometry import Region
from streamview.inference.evidence import pooled_sink
from streamview.inference.session import NotFinite, Passed, Session, Source
from streamview.networks import Model, as_model
from streamview.progress import Progress, Report
from streamview.results import MapWriter, Method, Plane, Precision, Prediction, Saliency, SaliencyMap, Target
from streamview.streaming.plan.plan import Plan
from streamview.streaming.run.run import Run
from streamview.streaming.step import Span

__all__ = ["Strip", "Watch", "explain", "find_target", "find_targets", "predict", "saliency"]

_Maps = NDArray[np.float32]
_METHODS: tuple[Method, ...] = ("absolute", "signed")


@dataclass(frozen=True, slots=True, eq=False)
class Strip:
    """Finished rows of the maps of one target, for whoever watches while the rest is computed.

    The first of every target has no rows: it says that prediction and evidence are known. Rows come from the last to the first. Where
    memory ran out all begins anew, in smaller steps.

    Parameters
    ----------
    prediction
        The answer that the maps explain.
    target
        What they explain.
    y
        First row, px of the network's grid.
    rows
        float32 (2, n, width) of the maps ``"absolute"`` and ``"signed"``; not to be changed.
    step, origin
        ``(y, x)`` in level-0 pixels, of the whole maps; see `SaliencyMap`.
    evidence
        The evidence map, where the network offers it.
    """

    prediction: Prediction
    target: Target
    y: int
    rows: _Maps
    step: tuple[float, float]
    origin: tuple[float, float]
    evidence: SaliencyMap | None


Watch = Callable[[Strip], None]


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
    precision: Precision = "float32",
    pad_to: int | None = None,
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
        That of a `streamview.inference.forecast.forecast` of the same run, instead of `memory` and `tile`.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    mpp
        Micrometres per level-0 pixel of the source, where it does not say itself.
    precision
        Arithmetic of the streamed part, ``"float32"``, ``"bf16"`` or ``"fp16"``; the head runs in float32.
    pad_to
        Side in px of the square, on the network's grid, that the region is zero-padded to at the right and below, as in the paper's data
        preparation; default as it is. Maps leave out what was padded.
    report
        Called after every step; may raise `Cancelled`.

    Returns
    -------
    Prediction

    Raises
    ------
    SlideError, RegionError, ModelError, NotStreamableError, MemoryBudgetError
        When source, region, model or budget do not fit; see each.

    Examples
    --------
    >>> import streamview
    >>> with streamview.open_slide("slide.svs") as slide:
    ...     prediction = streamview.predict(streamview.load_model("demo"), slide, streamview.Region(0, 256, 512, 256))
    >>> prediction.label, prediction.class_names
    ('lesion', ('normal', 'lesion'))
    """
    session = Session.prepare(model, source, region, mpp, device, precision, pad_to)

    def attempt(plan: Plan, warnings: tuple[str, ...]) -> Prediction:
        return session.prediction(session.forward(session.run(plan, None), report).logits, warnings)

    return session.complete(plan or session.plan(None, memory, tile, 0), None, attempt, report)


def saliency(
    model: Model,
    source: Source,
    region: Region | None = None,
    target: int | str | Target | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    memory: str | int | None = None,
    tile: tuple[int, int] | None = None,
    plan: Plan | None = None,
    device: str = "auto",
    mpp: float | None = None,
    precision: Precision = "float32",
    pad_to: int | None = None,
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
    model, source, region, memory, tile, plan, device, mpp, precision, pad_to, report
        As for `predict`.

    Returns
    -------
    Saliency
        With the maps ``"absolute"``, max over channels of ``|d logit / d normalised input|`` (Simonyan et al., 2014,
        https://arxiv.org/abs/1312.6034), ``"signed"``, the sum over channels of gradient x (input - glass), and where the head
        is pooling and a linear layer ``"evidence"`` (see `streamview.inference.evidence`).

    Raises
    ------
    SlideError, RegionError, ModelError, NotStreamableError, MemoryBudgetError
        As for `predict`; ModelError also for an unknown target.

    Examples
    --------
    >>> import streamview
    >>> with streamview.open_slide("slide.svs") as slide:
    ...     result = streamview.saliency(streamview.load_model("demo"), slide, target="lesion", out="map.ome.zarr")
    >>> list(result.maps), result.maps["absolute"].values.shape
    (['absolute', 'signed', 'evidence'], (512, 768))
    """
    outs = None if out is None else [out]
    (found,) = explain(
        model, source, region, [target], outs=outs, memory=memory, tile=tile, plan=plan, device=device, mpp=mpp, precision=precision,
        pad_to=pad_to, report=report,
    )  # fmt: skip
    return found


def explain(
    model: Model,
    source: Source,
    region: Region | None = None,
    targets: Sequence[int | str | Target | None] = (None,),
    *,
    outs: Sequence[str | os.PathLike[str]] | None = None,
    memory: str | int | None = None,
    tile: tuple[int, int] | None = None,
    plan: Plan | None = None,
    device: str = "auto",
    mpp: float | None = None,
    precision: Precision = "float32",
    pad_to: int | None = None,
    report: Report | None = None,
    watch: Watch | None = None,
) -> list[Saliency]:
    """Explain a prediction for several targets, from one forward pass and one backward pass for each.

    Parameters
    ----------
    targets
        Each as `target` of `saliency`; ``model.card.class_names`` for every class.
    outs
        One folder ``NAME.ome.zarr`` for each target; all take their places when the last pass is done. Default keeps the maps in memory.
    watch
        Called with every `Strip` as it is finished, in the thread that computes.
    model, source, region, memory, tile, plan, device, mpp, precision, pad_to, report
        As for `predict`.

    Returns
    -------
    list of Saliency
        In the order of the targets, each as `saliency` would give it.

    Raises
    ------
    SlideError, RegionError, ModelError, NotStreamableError, MemoryBudgetError
        As for `saliency`.
    ValueError
        When `targets` is empty or a bare string, or `outs` does not have a folder of its own for each.

    Examples
    --------
    >>> import streamview
    >>> with streamview.open_slide("slide.svs") as slide:
    ...     results = streamview.explain(streamview.load_model("demo"), slide, targets=["lesion", "lesion-normal"])
    >>> [str(result.target) for result in results]
    ['lesion', 'lesion-normal']
    """
    if isinstance(targets, str) or not targets:
        raise ValueError(f"targets {targets!r}: expected a list of one target or more")
    if outs is not None and len({os.path.abspath(out) for out in outs}) != len(targets):
        raise ValueError(f"{len(targets)} targets, but {len(outs)} folders: give each a folder of its own")
    as_model(model)
    wanted = [None if target is None else find_target(model, target) for target in targets]
    session = Session.prepare(model, source, region, mpp, device, precision, pad_to)
    height, width = session.sampler.shape
    plan = plan or session.plan(session.needs, memory, tile, 0 if outs is not None else 8 * height * width * len(wanted))
    return session.complete(plan, session.needs, partial(_explained, session, wanted, outs, report, watch), report)


def _explained(
    session: Session,
    wanted: Sequence[Target | None],
    outs: Sequence[str | os.PathLike[str]] | None,
    report: Report | None,
    watch: Watch | None,
    plan: Plan,
    warnings: tuple[str, ...],
) -> list[Saliency]:
    """All passes by a plan; nothing is left of them unless all succeed."""
    model, (height, width) = session.model, session.kept
    with contextlib.ExitStack() as unplaced:
        run = session.run(plan, session.needs)
        passed = session.forward(run, report, explain=True)
        prediction = session.prediction(passed.logits, warnings)
        likeliest = int(prediction.logits.argmax()) if model.card.task != "regression" else 0
        fixed = [target or find_target(model, likeliest) for target in wanted]
        task = "backward pass" if len(fixed) == 1 else f"{len(fixed)} backward passes"
        progress = Progress(task, run.steps * len(fixed), report)
        (std, glass), (step, origin) = (model.card.std, session.slide.background), session.placed(0)
        writers: list[MapWriter] = []
        kept: list[Saliency] = []
        for number, target in enumerate(fixed):
            evidence = _evidence(session, passed, target)
            tell = partial(_tell, watch, partial(Strip, prediction, target, step=step, origin=origin, evidence=evidence))
            tell(height, np.empty((2, 0, width), np.float32))
            back = partial(_reverse, session, run, passed, target, tell=tell, progress=progress, last=number + 1 == len(fixed))
            if outs is None:
                maps = np.empty((2, height, width), np.float32)
                back(partial(_keep, maps))
                planes = {method: SaliencyMap(method, Plane(values), step, origin) for method, values in zip(_METHODS, maps, strict=True)}
                kept.append(Saliency(prediction, target, std, glass, planes if evidence is None else planes | {"evidence": evidence}))
            else:
                writer = unplaced.enter_context(MapWriter(outs[number], (height, width), step=step, origin=origin, channels=_METHODS))
                back(writer.write)
                writer.complete(prediction, target=target, std=std, glass=glass, evidence=evidence)
                writers.append(writer)
        return [*kept, *(writer.place() for writer in writers)]


def _evidence(session: Session, passed: Passed, target: Target) -> SaliencyMap | None:
    """The evidence map of a target, where the network offers it; that of a difference is the difference of both."""
    pooled = pooled_sink(session.bound.graph)
    if passed.evidence is None or pooled is None:
        return None
    values = passed.evidence.of(target.index)
    if target.against is not None:
        values = values - passed.evidence.of(target.against)
    step, origin = session.placed(pooled.value)
    if session.kept == session.sampler.shape:
        return SaliencyMap("evidence", Plane(values), step, origin)
    # of a padded region the cells centred on the slide
    inside = session.sampler.region.y_stop, session.sampler.region.x_stop
    rows, columns = (max(math.ceil((stop - 0.5 - first) / pitch), 1) for stop, first, pitch in zip(inside, origin, step, strict=True))
    return SaliencyMap("evidence", Plane(np.ascontiguousarray(values[:rows, :columns])), step, origin)


def _reverse(
    session: Session,
    run: Run,
    passed: Passed,
    target: Target,
    write: Callable[[int, _Maps], None],
    *,
    tell: Callable[[int, _Maps], None],
    progress: Progress,
    last: bool,
) -> None:
    """Run one reverse pass; hand out the maps of each row of steps, float32 (2, rows, width), from the last to the first.

    The `last` one lets go of the forward pass as it proceeds.
    """
    grads, scale = session.gradients(run, passed, target, retain=not last)
    strip: _Maps = np.empty(0, np.float32)
    width = session.sampler.shape[1]

    def read(rows: Span, cols: Span) -> Tensor:
        progress.advance(0)  # steps that are computed again can be cancelled too
        return session.pixels(rows, cols)

    def take(grad: Tensor | None, rows: Span, cols: Span) -> None:
        nonlocal strip
        reduced = None if grad is None else session.reduce(grad, rows, cols, scale)
        if reduced is not None and not np.isfinite(reduced).all():
            raise NotFinite(f"gave a gradient of {target}", target)
        if reduced is not None and cols == (0, width):
            strip = reduced
        else:
            if cols[1] == width:
                strip = np.zeros((2, rows[1] - rows[0], width), np.float32)
            if reduced is not None:
                strip[:, :, cols[0] : cols[1]] = reduced
        if cols[0] == 0 and rows[0] < session.kept[0]:
            kept = strip[:, : session.kept[0] - rows[0], : session.kept[1]]
            write(rows[0], kept)
            tell(rows[0], kept)

    with torch.no_grad(), session.reading(run.plan, backwards=True):
        run.backward(read, grads, take, done=progress.advance, release=last)


def _tell(watch: Watch | None, strip: Callable[[int, _Maps], Strip], y: int, rows: _Maps) -> None:
    if watch is not None:
        watch(strip(y, rows))


def _keep(maps: _Maps, y: int, rows: _Maps) -> None:
    maps[:, y : y + rows.shape[1]] = rows


def find_target(model: Model, target: int | str | Target) -> Target:
    """What to explain: a class by name or index, or the difference of two logits as ``"a-b"``.

    A class of just that name comes first. Where hyphens in names leave more than one difference, spaces show which hyphen is the minus:
    ``"grade-1 - grade-2"``.

    Raises
    ------
    ModelError
        When the model has no such class, or several differences may be meant.
    """
    names = model.card.class_names
    if isinstance(target, Target):
        if all(index is None or 0 <= index < len(names) for index in (target.index, target.against)):
            return target
    elif isinstance(target, str):
        if target in names:
            return Target(target, names.index(target))
        found = _differences(target, names)
        if len(found) > 1:
            listed = " or ".join(f'"{first} - {second}"' for first, second in found)
            raise ModelError(f"target {target!r}: may be {listed}; write the one you mean, with spaces around the minus")
        if found:
            ((first, second),) = found
            short = f"{first}-{second}"
            clear = short not in names and len(_differences(short, names)) == 1
            return Target(short if clear else f"{first} - {second}", names.index(first), names.index(second))
    elif not isinstance(target, bool) and 0 <= target < len(names):
        return Target(names[target], int(target))
    known = f"{', '.join(names[:10])}{f' and {len(names) - 10} more' if len(names) > 10 else ''}"
    raise ModelError(
        f"target {target if isinstance(target, int) else str(target)!r}: the model {model.card.name} has {known}; name one of them, or two "
        "as a-b for the difference of their logits"
    )


def find_targets(model: Model, targets: Sequence[str]) -> list[Target]:
    """What a user named, each once: as `find_target`, or every class for the word ``"all"`` unless a class is called so.

    Raises
    ------
    ModelError
        As `find_target`.
    """
    names = model.card.class_names
    found: list[Target] = []
    for target in targets:
        every = target == "all" and target not in names
        found += [Target(name, index) for index, name in enumerate(names)] if every else [find_target(model, target)]
    return list(dict.fromkeys(found))


def _differences(text: str, names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of different classes that a text may subtract, by the hyphens with spaces around them if these give any."""
    for minus in (" - ", "-"):
        places = [at for at in range(len(text)) if text.startswith(minus, at)]
        pairs = [(text[:at].strip(), text[at + len(minus) :].strip()) for at in places]
        found = [(first, second) for first, second in pairs if first in names and second in names and first != second]
        if found:
            return found
    return []
