"""``predict`` and ``saliency``: a run over the slides of a job."""

from __future__ import annotations

import os
import re
import time
from argparse import Namespace
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from streamview.cli.console import Bars, amount, complain, one_line, say, warn

if TYPE_CHECKING:
    from streamview.cohort.run import Answer, Work
    from streamview.errors import StreamviewError
    from streamview.inference.forecast import Forecast
    from streamview.inference.patches import PatchPlan
    from streamview.networks import Model
    from streamview.slides import Slide

__all__ = ["parse_tile", "predict", "saliency", "show_answer", "show_cost", "show_forecast"]


def predict(options: Namespace, arguments: list[str]) -> int:
    """Predict for every slide, or with a network made for patches, for each of its patches."""
    from streamview.cohort.run import patch_slide, predict_slide

    def is_per_patch(model: Model) -> bool:
        return (options.per or model.card.answers) == "patch"

    def answer(work: Work, path: str | os.PathLike[str]) -> Answer:
        return (patch_slide if is_per_patch(work.model) else predict_slide)(work, path)

    def check(model: Model) -> str | None:
        return _check_patches(model, options) if is_per_patch(model) else None

    return _run(options, arguments, answer, check)


def saliency(options: Namespace, arguments: list[str]) -> int:
    """Predict for every slide and compute saliency maps."""
    from streamview.cohort.run import check_display, explain_slide
    from streamview.inference.targets import find_targets

    def explain(work: Work, path: str | os.PathLike[str]) -> Answer:
        return explain_slide(work, path, targets=options.target or (), displays=[options.display] if options.display else None)

    def check(model: Model) -> None:
        check_display(model, options.display)
        find_targets(model, options.target or ())
        if "all" in (options.target or ()) and "all" in model.card.class_names:
            warn("--target all means the class of that name; to explain every class, name each")

    return _run(options, arguments, explain, check)


def _check_patches(model: Model, options: Namespace) -> str:
    """Describe the answers for patches; refuse options that do not apply to them."""
    from streamview.errors import StreamviewError
    from streamview.inference.patches import patch_side

    side = patch_side(model.card)
    for option, used in (("--tile", options.tile), ("--pad-to", options.pad_to), ("--precision", options.precision != "float32")):
        if used:
            raise StreamviewError(f"{option} applies only to streamed regions: leave it out, or use --per region for one answer per region")
    um = side * (model.card.mpp or 0.0)
    return f"answers: one for each patch of {um:g} x {um:g} um ({side} px) with tissue (--per region: one for the whole region)"


def show_forecast(slide: Slide, ahead: Forecast | PatchPlan) -> None:
    """Print the next slide and its forecast."""
    scale = slide.mpp_source if slide.mpp is None else f"{slide.mpp[1]:.4g} um/px, {slide.mpp_source}"
    say(f"\n{slide.name}: {slide.shape[1]} x {slide.shape[0]} px ({scale})")
    say(f"forecast: {ahead}")
    if ahead.disk_free is not None and ahead.disk_bytes > ahead.disk_free:
        warn("the disk may be too small for the maps: free some space, write to another disk, or name fewer targets")


def show_answer(answer: Answer, said: Collection[str] = (), *, place: bool = False) -> None:
    """Print the answer (with its region if `place`), its warnings except those already `said`, and the paths of its files."""
    from streamview.jobs import in_words

    prediction = answer.prediction
    for warning in prediction.warnings:
        if warning not in said:
            warn(warning)
    say(f"prediction{f' for the region {prediction.region}' if place else ''}: {in_words(prediction)}")
    for maps in answer.maps:
        explained = f"{maps.target}, {prediction.answer_for(maps.target)}" if len(answer.maps) > 1 else maps.target
        say(f"maps of {explained}: {', '.join(maps.maps)} in {os.path.relpath(str(maps.path))}")
    for table in answer.tables:
        say(f"patches: {os.path.relpath(table)}")
    for picture in answer.pictures:
        say(f"picture: {os.path.relpath(picture)}")
    for reason in answer.empty:
        warn(reason)


def show_cost(seconds: float) -> None:
    """Print the time and memory that the command took."""
    from streamview.system.machine import peak_device_memory, peak_memory

    device = peak_device_memory()
    reserved = "" if device is None else f", {amount(device)} on the device"
    say(f"took {seconds:.1f} s, peak memory {amount(peak_memory())}{reserved}")


def _run(
    options: Namespace,
    arguments: list[str],
    answer: Callable[[Work, str | os.PathLike[str]], Answer],
    check: Callable[[Model], str | None] | None = None,
) -> int:
    """Check what all slides share, then process each of them."""
    from streamview.cohort.run import Work, run_slides
    from streamview.geometry import RegionText
    from streamview.inference.compute import Compute
    from streamview.jobs import Job, new_run_id
    from streamview.networks import load_model
    from streamview.streaming.memory import parse_bytes
    from streamview.streaming.run.timing import format_seconds
    from streamview.system.machine import describe_device, find_device, total_memory

    region = None if options.region is None else RegionText.parse(options.region)
    tile = None if options.tile is None else parse_tile(options.tile)
    device = find_device(options.device)
    memory = None if options.memory is None else parse_bytes(options.memory, total_memory(device))
    job = Job(options.output)
    model = load_model(options.model, weights=options.weights, card=options.card, untrained=options.untrained)
    padding = None if options.pad_to is None else _side(options.pad_to, model)
    remark = None if check is None else check(model)
    untrained = "" if model.card.trained else " (untrained, random weights)"
    precision = "" if options.precision == "float32" else f" in {options.precision}"
    say(f"network: {model.card.name}{untrained} on {describe_device(device)}{precision}")
    say(f"use: {model.card.use}")
    if remark is not None:
        say(remark)
    for note in model.notes:
        warn(note)
    start, places = time.monotonic(), {os.path.basename(path): number for number, path in enumerate(options.slides) if number}

    def announce(slide: Slide, ahead: Forecast | PatchPlan) -> None:
        done, of = places.pop(slide.name, 0), len(options.slides)
        if done:
            left = (time.monotonic() - start) / done * (of - done)
            complain(f"{done} of {of} slides done, about {format_seconds(left)} left")
        show_forecast(slide, ahead)

    with Bars() as bars:

        def answered(slide_answer: Answer) -> None:
            show_answer(slide_answer, model.notes, place=options.crop_tissue)

        def failed(name: str, error: StreamviewError) -> None:
            bars.close()
            complain(f"error: {one_line(error)}")

        work = Work(
            model, job, new_run_id(), announce, bars, region, Compute(str(device), memory, tile, options.precision), options.mpp, padding,
            options.crop_tissue,
        )  # fmt: skip
        run = run_slides(work, options.slides, answer, command=arguments, answered=answered, failed=failed, skip_errors=options.skip_errors)
    done = len(run.plan)
    left = len(options.slides) - done - len(run.failed)
    written = job.folder / "predictions.csv"
    say(f"\n{done} of {len(options.slides)} slides answered{f': {os.path.relpath(written)}' if written.exists() else ''}")
    if left and not done:
        warn(f"nothing was computed, {left} slides left: --skip-errors continues after a slide that fails")
    elif left:
        warn(f"stopped at {run.failed[-1]} with {left} slides left: --skip-errors continues after a slide that fails")
    show_cost(run.seconds or 0.0)
    return 1 if run.failed else 0


def _side(text: str, model: Model) -> int:
    """Parse ``--pad-to``: px, or ``card`` for the one size in the card."""
    from streamview.errors import StreamviewError

    if text == "card":
        low, high = model.card.input_size or (0, 0)
        if not low or low != high:
            size = f"sides of {low} to {high} px" if low else "no size"
            raise StreamviewError(f"--pad-to card: the card of the model {model.card.name} states {size}; give the side in px")
        return low
    if not text.isascii() or not text.isdecimal() or not int(text):
        raise StreamviewError(f"--pad-to {text}: expected a whole number of px above 0, such as 8192, or card")
    return int(text)


def parse_tile(text: str) -> tuple[int, int]:
    """Parse ``--tile``.

    Raises
    ------
    StreamviewError
        If it is not two positive whole numbers.
    """
    from streamview.errors import StreamviewError

    parts = re.fullmatch(r"\s*([0-9]{1,9})\s*[,x×]\s*([0-9]{1,9})\s*", text)
    numbers = [] if parts is None else [int(part) for part in parts.groups()]
    if not numbers or min(numbers) < 1:
        raise StreamviewError(f"--tile {text}: expected ROWS,COLUMNS in px of the network's grid, such as 1024,2048")
    return numbers[0], numbers[1]
