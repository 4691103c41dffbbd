"""From the passes over a region to saliency maps, by each method: what `PreparedRun.explain` does in one attempt."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamview.inference.changes import Change, HiddenPatch, Noise, PathPoint
from streamview.inference.methods import last_features, passes_of, patch_counts
from streamview.inference.passes import ForwardResult, backward_pass, score_gradients, score_of
from streamview.inference.reader import PixelReader
from streamview.inference.strips import Strip, Watch
from streamview.inference.sums import Sums, legendre_points, patch_rows, patches_over
from streamview.progress import Progress, Report
from streamview.results import ExplanationMethod, MapWriter, Method, Plane, Prediction, Saliency, SaliencyMap, Target
from streamview.slides.padding import flat_part
from streamview.streaming.run.run import Run
from streamview.streaming.step import Span

if TYPE_CHECKING:
    from streamview.inference.prepared import PreparedRun

__all__ = ["Asked", "explained"]

_KINDS: tuple[Method, ...] = ("absolute", "signed")
_ROWS = 512  # handed out at a time
_WriteRows = Callable[[int, NDArray[np.float32]], None]


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What is to be explained, and for whom.

    Parameters
    ----------
    targets
        None: `Prediction.usual_target`.
    outs
        Folders of the maps; None: they are kept in memory.
    report, watch
        As for `PreparedRun.explain`.
    """

    targets: Sequence[Target | None]
    outs: Sequence[str | os.PathLike[str]] | None
    report: Report | None
    watch: Watch | None


@dataclass(frozen=True, slots=True, eq=False)
class _Explained:
    """What is known of one target before its rows are handed out."""

    prediction: Prediction
    target: Target
    evidence: SaliencyMap | None = None
    completeness: float | None = None


def explained(prepared: PreparedRun, asked: Asked, run: Run, reader: PixelReader, notes: tuple[str, ...]) -> list[Saliency]:
    """All passes of one attempt; nothing is left of them unless all succeed.

    Parameters
    ----------
    prepared, asked
        What is explained, and how.
    run, reader
        Not yet run; methods of several passes make a run of each, of the same call and plan.
    notes
        For the reader of the result.
    """
    method = prepared.compute.method
    if method.name == "gradient":
        return _by_gradient(prepared, asked, run, reader, notes)
    (height, width), targets = prepared.inside, len(asked.targets)
    passes = passes_of(method, targets, prepared.inside)
    progress = Progress(f"{method.title}, {passes}", run.steps * passes.all, asked.report)
    series = _Series(prepared, run, reader, progress)
    if method.name == "grad-cam":
        return _by_features(series, asked, notes)
    clean = series.forward()
    prediction = _noted(prepared.prediction_of(clean.logits, reader, notes), method)
    fixed = [target or prediction.usual_target for target in asked.targets]
    logits = _exact(clean)
    del clean
    if method.name == "occlusion":
        return _by_patches(series, asked, prediction, fixed, logits)
    if method.name == "smoothgrad":
        sums = [Sums(2, (height, width)) for _ in fixed]
        for sample in range(method.samples):
            series.backward(Noise(method.seed, sample, method.noise * reader.range), fixed, sums, 1 / method.samples)
        facts = [_Explained(prediction, target) for target in fixed]
        maps = [each.values for each in sums]
    else:
        baseline = reader.background if method.baseline == "glass" else reader.black
        begin = _exact(series.forward(PathPoint(baseline, 0.0)))
        sums = [Sums(3, (height, width)) for _ in fixed]
        attribute = partial(reader.attribute, baseline)
        for share, weight in legendre_points(method.steps):
            series.backward(PathPoint(baseline, share), fixed, sums, weight, attribute)
        differences = [float(score_of(logits - begin, target)) for target in fixed]
        facts = [_complete(prediction, *each) for each in zip(fixed, sums, differences, strict=True)]
        maps = [each.reduce_channels() for each in sums]
    parts = [partial(_strips, values) for values in maps]
    return _placed_in_order(prepared, asked, facts, parts, maps)


def _by_gradient(prepared: PreparedRun, asked: Asked, run: Run, reader: PixelReader, notes: tuple[str, ...]) -> list[Saliency]:
    """One forward pass, and a backward pass for each target, whose rows are handed out as they are finished."""
    result = prepared.forward_of(run, reader, Progress("forward pass", run.steps, asked.report), explain=True)
    prediction = prepared.prediction_of(result.logits, reader, notes)
    fixed = [target or prediction.usual_target for target in asked.targets]
    task = "backward pass" if len(fixed) == 1 else f"{len(fixed)} backward passes"
    progress = Progress(task, run.steps * len(fixed), asked.report)
    facts = [_Explained(prediction, target, prepared.evidence_of(result, target)) for target in fixed]
    backs = [
        partial(backward_pass, run, reader, result, target, progress=progress, last=number + 1 == len(fixed))
        for number, target in enumerate(fixed)
    ]
    return _placed_in_order(prepared, asked, facts, backs)


def _placed_in_order(
    prepared: PreparedRun,
    asked: Asked,
    facts: Sequence[_Explained],
    parts: Sequence[Callable[[_WriteRows], None]],
    maps: Sequence[NDArray[np.float32]] | None = None,
) -> list[Saliency]:
    """Have the rows of each target handed out, to files that take their places together or to memory, where `maps` may be already."""
    (height, width), (step, origin) = prepared.inside, prepared.placed(0)
    std, glass = prepared.model.card.std, prepared.slide.background
    writers: list[MapWriter] = []
    in_memory: list[Saliency] = []
    with contextlib.ExitStack() as unplaced:
        for number, (fact, hand_out) in enumerate(zip(facts, parts, strict=True)):
            blank = Strip(fact.prediction, fact.target, height, np.empty((2, 0, width), np.float32), step, origin, fact.evidence)
            show = partial(_show, asked.watch, blank)
            show()
            if asked.outs is None:
                values = np.empty((2, height, width), np.float32) if maps is None else maps[number]
                write = partial(_copy_rows, values) if maps is None else _keep_rows
                hand_out(partial(_hand_out, prepared, write, show))
                named = {
                    kind: SaliencyMap(kind, Plane(plane), step, origin, (), fact.prediction.identity.method)
                    for kind, plane in zip(_KINDS, values, strict=True)
                }
                named = named if fact.evidence is None else named | {"evidence": fact.evidence}
                in_memory.append(Saliency(fact.prediction, fact.target, std, glass, named, completeness=fact.completeness))
            else:
                writer = unplaced.enter_context(MapWriter(asked.outs[number], (height, width), step=step, origin=origin, channels=_KINDS))
                hand_out(partial(_hand_out, prepared, writer.write, show))
                writer.complete(
                    fact.prediction,
                    target=fact.target,
                    std=std,
                    glass=glass,
                    evidence=fact.evidence,
                    completeness=fact.completeness,
                )
                writers.append(writer)
        return [replace(one, slide=prepared.slide) for one in (*in_memory, *(writer.place() for writer in writers))]


class _Series:
    """Passes over a region, one after the other: each in a run of its own, so that the memory is that of one."""

    def __init__(self, prepared: PreparedRun, run: Run, reader: PixelReader, progress: Progress) -> None:
        self.prepared, self.reader, self.progress = prepared, reader, progress
        self.call, self._plan = run.call, run.plan

    def run(self) -> Run:
        """A run that is not yet run."""
        return Run(self.call, self._plan)

    def forward(self, change: Change | None = None, **options: Any) -> ForwardResult:
        """The answer for changed pixels."""
        with self.reader.changed_by(change):
            return self.prepared.forward_of(self.run(), self.reader, self.progress, **options)

    def backward(
        self,
        change: Change,
        targets: Sequence[Target],
        sums: Sequence[Sums],
        weight: float,
        reduce: Callable[[Tensor, Span, Span, float], Tensor] | None = None,
    ) -> None:
        """Add the maps of each target, of changed pixels, to its sums."""
        run = self.run()
        with self.reader.changed_by(change):
            result = self.prepared.forward_of(run, self.reader, self.progress)
            for number, (target, each) in enumerate(zip(targets, sums, strict=True)):
                last, channels = number + 1 == len(targets), len(each.values)
                backward_pass(
                    run, self.reader, result, target, partial(each.add, weight),
                    progress=self.progress, last=last, reduce=reduce, channels=channels,
                )  # fmt: skip


def _by_patches(series: _Series, asked: Asked, prediction: Prediction, targets: Sequence[Target], logits: Tensor) -> list[Saliency]:
    """Hide one patch after the other: what each takes from the scores."""
    prepared, method = series.prepared, series.prepared.compute.method
    counts = patch_counts(method, prepared.inside)
    spans = [patches_over(side, method.patch, method.stride, count) for side, count in zip(prepared.inside, counts, strict=True)]
    differences_by_patch = torch.empty((*counts, len(logits)), dtype=torch.float64)
    for i, rows in enumerate(spans[0]):
        for j, cols in enumerate(spans[1]):
            differences_by_patch[i, j] = logits - _exact(series.forward(HiddenPatch(series.reader.background, rows, cols)))
    parts = []
    for target in targets:
        differences = score_of(differences_by_patch.movedim(2, 0), target).numpy()
        parts.append(partial(_strips_of, partial(patch_rows, differences, (spans[0], spans[1])), prepared.inside[0]))
    return _placed_in_order(prepared, asked, [_Explained(prediction, target) for target in targets], parts)


def _by_features(series: _Series, asked: Asked, notes: tuple[str, ...]) -> list[Saliency]:
    """Grad-CAM: features weighted by the mean of their gradients, from the head's backward pass alone."""
    prepared = series.prepared
    sinks = last_features(series.call.bound.graph)
    if sinks is None:
        raise AssertionError("the method was not checked")
    value, card = sinks[0].value, prepared.model.card
    size = series.call.bound.sizes[value]
    features: list[NDArray[np.float32]] = []

    def gather(passed: int, piece: Tensor, rows: Span, cols: Span) -> None:
        if passed == value:
            if not features:
                features.append(np.empty((piece.shape[1], *size), np.float32))
            features[0][:, rows[0] : rows[1], cols[0] : cols[1]] = piece[0].to("cpu", torch.float32).numpy()

    run = series.run()
    result = prepared.forward_of(run, series.reader, series.progress, watch=gather, head_grad=True)
    prediction = _noted(prepared.prediction_of(result.logits, series.reader, notes), prepared.compute.method)
    fixed = [target or prediction.usual_target for target in asked.targets]
    results = []
    for number, target in enumerate(fixed):
        grads, scale = score_gradients(run, result, target, retain=number + 1 < len(fixed))
        weights = np.zeros(len(features[0]))
        for sink in sinks:
            grad = grads.get(sink)
            if grad is not None:
                # of a sum every position has the gradient; of a mean or a maximum the positions share it
                spread = math.prod(size) if sink.kind in ("mean", "max") else 1
                weights += grad[0].mean((1, 2)).double().cpu().numpy() / (spread * scale)
        cam = np.maximum(np.einsum("c,chw->hw", weights, features[0], optimize=False), 0).astype(np.float32)
        results.append(_Explained(prediction, target, prepared.feature_map(value, cam)))
    return _feature_maps(prepared, asked, results, card.std)


def _feature_maps(prepared: PreparedRun, asked: Asked, facts: Sequence[_Explained], std: tuple[float, ...]) -> list[Saliency]:
    """Results that are a map of features alone."""
    (height, width), (step, origin) = prepared.inside, prepared.placed(0)
    glass, results = prepared.slide.background, []
    writers: list[MapWriter] = []
    with contextlib.ExitStack() as unplaced:
        for number, fact in enumerate(facts):
            _show(
                asked.watch, Strip(fact.prediction, fact.target, height, np.empty((2, 0, width), np.float32), step, origin, fact.evidence)
            )
            assert fact.evidence is not None
            if asked.outs is None:
                results.append(Saliency(fact.prediction, fact.target, std, glass, {"evidence": fact.evidence}))
                continue
            shape = fact.evidence.values.shape
            writer = MapWriter(asked.outs[number], shape, step=fact.evidence.step, origin=fact.evidence.origin, channels=("evidence",))
            unplaced.enter_context(writer).write(0, np.asarray(fact.evidence.values)[None])
            writer.complete(fact.prediction, target=fact.target, std=std, glass=glass)
            writers.append(writer)
        return [replace(one, slide=prepared.slide) for one in (*results, *(writer.place() for writer in writers))]


def _exact(result: ForwardResult) -> Tensor:
    """The logits (K,) of a pass, in double precision, of which differences are taken."""
    return result.logits.detach().to("cpu", torch.float64)


def _noted(prediction: Prediction, method: ExplanationMethod) -> Prediction:
    """A prediction whose identity and warnings name the method of its maps."""
    note = f"The maps are by {method.described}, not the gradient at the region itself."
    return replace(prediction, identity=replace(prediction.identity, method=str(method)), warnings=(*prediction.warnings, note))


def _complete(prediction: Prediction, target: Target, sums: Sums, difference: float) -> _Explained:
    """What is known of a target by integrated gradients: also how far the sum of its attributions is from the difference of scores."""
    error = abs(sums.total - difference)
    share = f" ({error / abs(difference):.2%} of it)" if difference else ""
    note = (
        f"Completeness for {target}: the attributions sum to {sums.total:.4g}, the scores of region and baseline differ by "
        f"{difference:.4g}; the error is {error:.3g}{share}."
    )
    return _Explained(replace(prediction, warnings=(*prediction.warnings, note)), target, completeness=error)


def _strips(values: NDArray[np.float32], write: _WriteRows) -> None:
    """Hand out finished maps (2, h, w)."""
    for y in _starts(values.shape[1]):
        write(y, values[:, y : y + _ROWS])


def _strips_of(make: Callable[[Span], NDArray[np.float32]], height: int, write: _WriteRows) -> None:
    """Hand out maps that are made strip by strip."""
    for y in _starts(height):
        write(y, make((y, min(y + _ROWS, height))))


def _starts(height: int) -> Iterator[int]:
    """First rows of strips, the last first, as a backward pass has them."""
    return iter(reversed(range(0, height, _ROWS)))


def _hand_out(prepared: PreparedRun, write: _WriteRows, show: Callable[..., None], y: int, rows: NDArray[np.float32]) -> None:
    """Write finished rows of the maps, without what was padded and NaN on flat glass, and show them."""
    inside, flat = prepared.inside, flat_part(prepared.sampler)
    if y < inside[0]:
        part = rows[:, : inside[0] - y, : inside[1]]
        if flat is not None:
            np.copyto(part, np.nan, where=~flat.near_tissue(y, y + part.shape[1], 0, part.shape[2]))
        write(y, part)
        show(y=y, rows=part)


def _show(watch: Watch | None, strip: Strip, **rows: Any) -> None:
    """Hand a strip to whoever watches, with other `rows` at another `y` where they are given."""
    if watch is not None:
        watch(replace(strip, **rows))


def _copy_rows(maps: NDArray[np.float32], y: int, rows: NDArray[np.float32]) -> None:
    maps[:, y : y + rows.shape[1]] = rows


def _keep_rows(y: int, rows: NDArray[np.float32]) -> None:
    """Leave rows that are in their place already."""
