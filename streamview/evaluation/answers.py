"""Every labelled region predicted one after the other, and the answers measured."""

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
from streamview.inference.explain import predict
from streamview.labels.regions import Example, find_targets, identify_slides, labels_digest, unite_slides
from streamview.networks import Model, as_model
from streamview.networks.cards import ModelCard
from streamview.progress import Report, Step
from streamview.results import Precision, Prediction
from streamview.slides import Slide

__all__ = ["Evaluation", "Row", "evaluate"]

_FEW = 10  # patients below which an interval is too narrow to lean on
_PARTS = 100  # steps of the progress that a region counts for


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One labelled region and what became of it.

    Parameters
    ----------
    example
        As labelled.
    prediction
        The answer; None where the region failed.
    mpp
        Um per level-0 pixel of the slide, across; None when unknown.
    error
        Why it failed, in one line; empty where it did not.
    """

    example: Example
    prediction: Prediction | None
    mpp: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """How good a network is on labelled regions.

    Parameters
    ----------
    rows
        One a region, in the order they were given.
    metrics
        Of the regions that were answered; None where all failed.
    card, weights_sha256
        Of the network: with the labels, what the figures follow from.
    labels_sha256
        `streamview.labels.regions.labels_digest` of the examples.
    precision
        Arithmetic of the streamed part.
    warnings
        What the reader must know, one sentence each.
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
        """The regions without an answer."""
        return tuple(row for row in self.rows if row.prediction is None)

    def __str__(self) -> str:
        """The figures, a line each."""
        said = "no region was answered" if self.metrics is None else str(self.metrics)
        return f"{said}\n{len(self.failed)} of {len(self.rows)} regions failed" if self.failed else said


def evaluate(
    model: Model,
    examples: Sequence[Example],
    *,
    memory: str | int | None = None,
    tile: tuple[int, int] | None = None,
    device: str = "auto",
    precision: Precision = "float32",
    resamples: int = 2000,
    seed: int = 0,
    skip_errors: bool = False,
    report: Report | None = None,
) -> Evaluation:
    """Predict for every labelled region, and measure the answers.

    Parameters
    ----------
    model
        From `streamview.load_model`.
    examples
        Labelled regions, as from `streamview.labels.regions.read_labels`; those of one slide are
        answered together, so that it is opened once.
    memory, tile, device, precision
        As for `streamview.predict`.
    resamples, seed
        As for `measure`.
    skip_errors
        Whether to go on past a region whose slide cannot be read or that does not fit; its row then says why.
    report
        Called after every step of the engine with the progress over all regions, a hundred steps each; may raise `Cancelled`.

    Raises
    ------
    LabelError
        When there is no example, a label is no class of the network, or examples of one slide contradict each other; nothing was
        computed then.
    SlideError, RegionError
        When a region fails and `skip_errors` is not set; the message names it.
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
        raise LabelError("there is no labelled region to evaluate on; expected one or more")
    targets = find_targets(examples, model.card)
    examples = unite_slides(examples, *identify_slides(examples))
    answer = partial(predict, model, memory=memory, tile=tile, device=device, precision=precision)
    start, count = time.monotonic(), len(examples)

    def tell(regions: int, inside: Step | None = None) -> None:
        # a region's last step is told when its row is there
        parts = 0 if inside is None else (_PARTS - 1) * inside.done // max(inside.total, 1)
        if report is not None:
            report(Step("evaluation", _PARTS * regions + parts, _PARTS * count, time.monotonic() - start))

    rows: dict[int, Row] = {}
    for together in _by_slide(examples):
        with contextlib.ExitStack() as open_while:
            slide: Slide | None = None
            for number in together:
                example = examples[number]
                try:
                    slide = slide or open_while.enter_context(example.open())
                    prediction = answer(slide, example.region, report=partial(tell, len(rows)))
                except (SlideError, RegionError) as error:
                    said = f"{example}: {error}"
                    if not skip_errors:
                        raise type(error)(said) from error
                    rows[number] = Row(example, None, error=" ".join(said.split()))
                else:
                    rows[number] = Row(example, prediction, None if slide.mpp is None else slide.mpp[1])
                tell(len(rows))
    ordered = tuple(rows[number] for number in range(count))
    answers = {number: row.prediction.logits for number, row in enumerate(ordered) if row.prediction is not None}
    metrics = None
    if answers:
        patients = [examples[number].case for number in answers]
        metrics = measure(np.stack(list(answers.values())), targets[list(answers)], patients, model.card, resamples=resamples, seed=seed)
    warnings = (*model.notes, *_warnings(ordered, metrics))
    return Evaluation(ordered, metrics, model.card, model.sha256, labels_digest(examples), precision, warnings)


def _by_slide(examples: Sequence[Example]) -> list[list[int]]:
    """Numbers of the examples, those of one slide together, slides as they come."""
    groups: dict[tuple[object, float | None], list[int]] = {}
    for number, example in enumerate(examples):
        source = example.source
        key = os.path.abspath(source) if isinstance(source, str | os.PathLike) else id(source)
        groups.setdefault((key, example.mpp), []).append(number)
    return list(groups.values())


def _warnings(rows: Sequence[Row], metrics: Metrics | None) -> list[str]:
    """What the predictions warn of, each once, and what the figures cannot bear."""
    found = Counter(warning for row in rows if row.prediction is not None for warning in row.prediction.warnings)
    said = [warning if times == len(rows) else f"{warning} ({times} of {len(rows)} regions)" for warning, times in found.items()]
    if metrics is None:
        return said
    if metrics.shortfall:
        said.append(f"On these regions the network is of no use: {metrics.shortfall}.")
    if metrics.patients == 1:
        said.append("All regions are of one patient, so there are no intervals: name patients in the column patient_id.")
    elif metrics.patients < _FEW and metrics.resamples:
        said.append(f"The intervals rest on {metrics.patients} patients: with fewer than {_FEW} they tend to be too narrow.")
    absent = [output.name for output in metrics.outputs if not output.regions]
    if absent:
        said.append(f"No region is of {', '.join(absent)}: nothing is known of how well it is found.")
    return said
