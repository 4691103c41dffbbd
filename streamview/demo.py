"""The demo: a synthetic slide with a planted lesion, its prediction and maps, and how well each map finds the lesion.

On a slide of real tissue, where no lesion is known, prediction and maps of the square with most tissue, by the network that was trained
on tissue.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from streamview.cohort.policy import RegionPolicy
from streamview.cohort.run import run_slides
from streamview.cohort.settings import Settings
from streamview.cohort.work import Ahead, Answer, Outcome, Work
from streamview.cohort.worklist import read_worklist
from streamview.errors import StreamviewError
from streamview.faithfulness.localisation import share_inside
from streamview.files import atomic
from streamview.inference.compute import Compute
from streamview.jobs import Job, new_run_id
from streamview.networks import load_model
from streamview.progress import Report
from streamview.results import Plane, Saliency, SaliencyMap
from streamview.results.blurring import blur
from streamview.results.display import PRESETS, Preset
from streamview.slides import Slide, open_slide
from streamview.slides.pyramid import build_pyramid
from streamview.slides.synthetic import write_synthetic_slide

__all__ = ["DemoResult", "Inside", "localise", "run_demo", "run_demo_on"]

_SMALLEST = 512  # px: on a smaller slide the lesion is only a few cells
_TARGET = "lesion"
_TISSUE = "camelyon16-tiles"
_DISPLAYS: tuple[Preset, ...] = ("evidence", "detail", "paper")


@dataclass(frozen=True, slots=True)
class Inside:
    """How much of a map lies on the lesion.

    Parameters
    ----------
    what
        The map and its processing.
    inside
        Share (0..1) of its positive mass inside the lesion; NaN for a map without positive values.
    """

    what: str
    inside: float


@dataclass(frozen=True, slots=True, eq=False)
class DemoResult:
    """What the demo computed.

    Parameters
    ----------
    answer
        Prediction, maps and pictures.
    job
        The job folder.
    lesion_share
        Share (0..1) of the slide's area that is lesion; NaN where no lesion is known.
    localisation
        How much of each map lies on the lesion; empty where none is known.
    seconds
        Time taken.
    """

    answer: Answer
    job: Path
    lesion_share: float
    localisation: tuple[Inside, ...]
    seconds: float


def run_demo(
    folder: str | os.PathLike[str],
    *,
    tell: Callable[[str], None],
    announce: Callable[[Slide, Ahead], None],
    report: Report | None = None,
    size: int = 4096,
    untrained: bool = False,
    compute: Compute = Compute(),
    command: Sequence[str] = ("demo",),
) -> DemoResult:
    """Synthesise a slide, convert it, predict, explain, and measure how well the maps find the lesion.

    Parameters
    ----------
    folder
        Receives ``synthetic.svs``, ``synthetic.ome.zarr``, ``lesion.png`` (the planted lesion, 1 bit per level-0 pixel) and ``job``; the
        output of an earlier demo is replaced.
    tell, announce
        Called with each stage, and with the forecasts.
    report
        Called after every step; may raise `Cancelled`.
    size
        Side of the slide in px, 512 or more.
    untrained, compute
        As for `load_model` and `predict`.
    command
        The command for the run's record.

    Raises
    ------
    StreamviewError
        If the folder cannot be written, the slide would be too small, memory is too small or the device is missing.
    """
    if size < _SMALLEST:
        raise StreamviewError(f"demo slide of {size} px: expected {_SMALLEST} px a side or more")
    start = time.monotonic()
    folder = Path(folder)
    atomic.check_output(folder)
    model = load_model("demo", untrained=untrained)
    slide_path = folder / "synthetic.svs"
    tell(f"painting a synthetic slide of {size} x {size} px with one lesion: {slide_path}")
    with atomic.replacing(slide_path) as temporary:
        painted = temporary.with_suffix(".svs")
        try:
            lesion = write_synthetic_slide(painted, size=(size, size))
            os.replace(painted, temporary)
        finally:
            atomic.discard(painted)
    with atomic.replacing(folder / "lesion.png") as temporary:
        Image.fromarray(lesion).save(temporary, "PNG")
    pyramid_path = folder / "synthetic.ome.zarr"
    tell(f"converting it to a pyramid: {pyramid_path}")
    atomic.discard(pyramid_path)
    with open_slide(slide_path) as slide:
        build_pyramid(slide, pyramid_path, tell=tell, report=report).close()

    job = Job(folder / "job")
    answers: list[Answer] = []
    predicted = Settings(compute=compute)
    explained = Settings("maps", targets=(_TARGET,), displays=_DISPLAYS, compute=compute)
    for said, settings in (("\npredicting", predicted), ("\nexplaining the prediction", explained)):
        tell(said)
        work = Work(model, job, new_run_id(), settings, redo=True, announce=announce, answered=answers.append, report=report)
        run_slides(work, read_worklist([slide_path]), command=command, told=_give_up)
    (maps,) = answers[-1].maps
    return DemoResult(answers[-1], job.folder, float(lesion.mean()), localise(maps, lesion), time.monotonic() - start)


def run_demo_on(
    slide_path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    tell: Callable[[str], None],
    announce: Callable[[Slide, Ahead], None],
    report: Report | None = None,
    compute: Compute = Compute(),
    command: Sequence[str] = ("demo",),
) -> DemoResult:
    """Predict and explain the square of a slide with most tissue, by the network `camelyon16-tiles`.

    Parameters
    ----------
    slide_path
        A slide of H&E-stained tissue, scanned at 0.53 um/px or finer.
    folder
        Receives ``job``.
    tell, announce, report, compute, command
        As for `run_demo`.

    Raises
    ------
    StreamviewError
        As `run_demo`, or if the slide cannot be read, has no tissue, or its mpp is unknown or coarser.
    """
    start = time.monotonic()
    job = Job(Path(folder) / "job")
    atomic.check_output(Path(folder))
    model = load_model(_TISSUE)
    tell(f"explaining the square with most tissue by {_TISSUE}: {model.card.use}")
    answers: list[Answer] = []
    settings = Settings("maps", displays=_DISPLAYS, policy=RegionPolicy("grid", most=1).on(model.card), compute=compute)
    work = Work(model, job, new_run_id(), settings, redo=True, announce=announce, answered=answers.append, report=report)
    run_slides(work, read_worklist([slide_path]), command=command, told=_give_up)
    return DemoResult(answers[-1], job.folder, math.nan, (), time.monotonic() - start)


def localise(saliency: Saliency, lesion: NDArray[np.bool_]) -> tuple[Inside, ...]:
    """Measure how much of each map lies on a lesion.

    Every map is measured raw; the signed one also as the detail display shows it: blurred, then without negative values.

    Parameters
    ----------
    saliency
        Maps of the whole slide.
    lesion
        bool (height, width) of level 0.
    """
    measured = []
    for method, saliency_map in saliency.maps.items():
        measured.append(Inside(f"{method}, positive part of the raw map", share_inside(saliency_map, lesion)))
        mpp = saliency.mpp
        if method == "signed" and mpp is not None:
            width = PRESETS["detail"].blur_um
            sigma = width / (mpp[0] * saliency_map.step[0]), width / (mpp[1] * saliency_map.step[1])
            values = blur(np.asarray(saliency_map.values, np.float32), sigma)
            blurred = SaliencyMap(method, Plane(values), saliency_map.step, saliency_map.origin)
            measured.append(Inside(f"signed, blurred by {width:g} um, then negatives cut", share_inside(blurred, lesion)))
    return tuple(measured)


def _give_up(outcome: Outcome) -> None:
    if outcome.failed:
        raise StreamviewError(outcome.error)
