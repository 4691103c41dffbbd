"""Predict for every labelled region, and measure the predictions."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from streamview.errors import LabelError, RegionError, SlideError
from streamview.evaluation.metrics import Metrics, measure
from streamview.inference.compute import Compute
from streamview.inference.explain import predict
from streamview.labels.regions import Example, find_targets, identify_slides, labels_digest, unite_slides
from streamview.networks import Model, as_model
from streamview.networks.cards import ModelCard
from streamview.progress import Report, Step
from streamview.results import Precision, Prediction
from streamview.slides import Slide

__all__ = ["Evaluation", "Row", "evaluate"]

_FEW = 10  # patients below which the intervals tend to be too narrow
_PARTS = 100  # progress steps per region


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One labelled region and its prediction.

    Parameters
    ----------
    example
        The labelled region.
    prediction
        None if the region failed.
    mpp
        Horizontal um per level-0 pixel of the slide; None if unknown.
    error
        Why it failed, in one line; empty if it did not.
    """

    example: Example
    prediction: Prediction | None
    mpp: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """A network's predictions and metrics on labelled regions.

    Parameters
    ----------
    rows
        One per region, in the order of the examples.
    metrics
        Metrics over the regions that did not fail; None if all failed.
    card, weights_sha256
        The network's card and the hash of its weights.
    labels_sha256
        `streamview.labels.regions.labels_digest` of the examples.
    precision
        Precision of the streamed part.
    warnings
        Warnings about the results, one sentence each.
    """

    rows: tuple[Row, ...]
    metrics: Metrics | None
    card: ModelCard
    weights_sha256: str
    labels_sha256: str
    precision: Precision
    warnings: tuple[str, ...]

    @property
    def failed(self) -> tuple[Row, ...]:
        """The rows of the regions that failed."""
        return tuple(row for row in self.rows if row.prediction is None)

    def __str__(self) -> str:
        """The metrics, one per line."""
        text = "no region was answered" if self.metrics is None else str(self.metrics)
        return f"{text}\n{len(self.failed)} of {len(self.rows)} regions failed" if self.failed else text


def evaluate(
    model: Model,
    examples: Sequence[Example],
    *,
    compute: Compute = Compute(),
    resamples: int = 2000,
    seed: int = 0,
    skip_errors: bool = False,
    report: Report | None = None,
) -> Evaluation:
    """Predict for every labelled region, and measure the predictions.

    Parameters
    ----------
    model
        From `streamview.load_model`.
    examples
        Labelled regions, such as from `streamview.labels.regions.read_labels`. Regions of one slide are predicted together, so that
        it is opened once.
    compute
        As for `streamview.predict`.
    resamples, seed
        As for `measure`.
    skip_errors
        Whether to continue after a region that cannot be read or does not fit the network; its row then holds the error.
    report
        Called after every step of the engine with the progress over all regions, a hundred steps each; may raise `Cancelled`.

    Raises
    ------
    LabelError
        If there is no example, a label is not a class of the network, or examples of one slide contradict each other; raised before
        anything is computed.
    SlideError, RegionError
        If a region fails and `skip_errors` is False; the message names it.
    ModelError, NotStreamableError, MemoryBudgetError
        As for `streamview.predict`.

    Examples
    --------
    >>> import streamview
    >>> from streamview.labels.regions import Example
    >>> examples = [Example("slide.svs", "lesion", streamview.Region(0, 256, 512, 256), patient="patient-1")]
    >>> result = streamview.evaluate(streamview.load_model("demo"), examples, resamples=100)
    >>> result.metrics.regions, result.metrics.accuracy.value
    (1, 1.0)
    """
    as_model(model)
    if not examples:
        raise LabelError("there are no labelled regions to evaluate on; expected one or more")
    targets = find_targets(examples, model.card)
    examples = unite_slides(examples, *identify_slides(examples))
    answer = partial(predict, model, compute=compute)
    start, count = time.monotonic(), len(examples)

    def tell(regions: int, inside: Step | None = None) -> None:
        # a region's last step is reported once its row exists
        parts = 0 if inside is None else (_PARTS - 1) * inside.done // max(inside.total, 1)
        if report is not None:
            report(Step("evaluation", _PARTS * regions + parts, _PARTS * count, time.monotonic() - start))

    rows: dict[int, Row] = {}
    for numbers in _by_slide(examples):
        with contextlib.ExitStack() as open_while:
            slide: Slide | None = None
            for number in numbers:
                example = examples[number]
                try:
                    slide = slide or open_while.enter_context(example.open())
                    prediction = answer(slide, example.region, report=partial(tell, len(rows)))
                except (SlideError, RegionError) as error:
                    message = f"{example}: {error}"
                    if not skip_errors:
                        raise type(error)(message) from error
                    rows[number] = Row(example, None, error=" ".join(message.split()))
                else:
                    rows[number] = Row(example, prediction, None if slide.mpp is None else slide.mpp[1])
                tell(len(rows))
    ordered = tuple(rows[number] for number in range(count))
    logits = {number: row.prediction.logits for number, row in enumerate(ordered) if row.prediction is not None}
    metrics = None
    if logits:
        patients = [examples[number].case for number in logits]
        metrics = measure(np.stack(list(logits.values())), targets[list(logits)], patients, model.card, resamples=resamples, seed=seed)
    warnings = (*model.notes, *_warnings(ordered, metrics))
    return Evaluation(ordered, metrics, model.card, model.sha256, labels_digest(examples), compute.precision, warnings)


def _by_slide(examples: Sequence[Example]) -> list[list[int]]:
    """Group the indices of the examples by slide, in order of first appearance."""
    groups: dict[tuple[object, float | None], list[int]] = {}
    for number, example in enumerate(examples):
        source = example.source
        key = os.path.abspath(source) if isinstance(source, str | os.PathLike) else id(source)
        groups.setdefault((key, example.mpp), []).append(number)
    return list(groups.values())


def _warnings(rows: Sequence[Row], metrics: Metrics | None) -> list[str]:
    """The distinct warnings of the predictions, and limits of the metrics."""
    counts = Counter(warning for row in rows if row.prediction is not None for warning in row.prediction.warnings)
    warnings = [warning if count == len(rows) else f"{warning} ({count} of {len(rows)} regions)" for warning, count in counts.items()]
    if metrics is None:
        return warnings
    if metrics.shortfall:
        warnings.append(f"On these regions the network is of no use: {metrics.shortfall}.")
    if metrics.patients == 1:
        warnings.append("All regions are of one patient, so there are no intervals: name patients in the column patient_id.")
    elif metrics.patients < _FEW and metrics.resamples:
        warnings.append(f"The intervals rest on {metrics.patients} patients: with fewer than {_FEW} they tend to be too narrow.")
    absent = [output.name for output in metrics.outputs if not output.regions]
    if absent:
        warnings.append(f"No region is labelled {', '.join(absent)}: these regions do not show how well that class is recognised.")
    return warnings
