"""``predict`` and ``saliency``: a run over the slides of a job."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from streamview.cli.console import Bars, warn
from streamview.cli.talk import JsonLines, Talk, Terse

if TYPE_CHECKING:
    from streamview.cohort.forecast import CohortForecast
    from streamview.cohort.settings import Settings
    from streamview.cohort.work import Work
    from streamview.cohort.worklist import Case
    from streamview.jobs import Run
    from streamview.networks import Model

__all__ = ["parse_tile", "predict", "saliency"]


def predict(options: Namespace, arguments: list[str]) -> int:
    """Predict for every slide, or with a network made for patches, for each of its patches."""

    def unit(model: Model) -> tuple[Literal["region", "patch"], str | None]:
        if (options.per or model.card.answers) == "patch":
            return "patch", _check_patches(model, options)
        return "region", None

    return _run(options, arguments, unit)


def saliency(options: Namespace, arguments: list[str]) -> int:
    """Predict for every slide and compute saliency maps."""
    from streamview.cohort.run import check_display
    from streamview.inference.targets import find_targets
    from streamview.results import ExplanationMethod

    method = ExplanationMethod.parse(options.method)

    def maps(model: Model) -> tuple[Literal["maps"], str | None]:
        check_display(model, options.display, method)
        find_targets(model, options.target or ())
        if "all" in (options.target or ()) and "all" in model.card.class_names:
            warn("--target all means the class of that name; to explain every class, name each")
        return "maps", None if method.name == "gradient" else f"maps: by {method.described}"

    return _run(options, arguments, maps)


def _check_patches(model: Model, options: Namespace) -> str:
    """Describe the answers for patches; refuse options that do not apply to them."""
    from streamview.errors import StreamviewError
    from streamview.inference.patches import patch_side

    side = patch_side(model.card)
    streamed = {
        "--tile": options.tile is not None,
        "--pad-to": options.pad_to is not None,
        "--precision": options.precision != "float32",
        "--glass": options.glass != "as-scanned",
    }
    for option, used in streamed.items():
        if used:
            raise StreamviewError(f"{option} applies only to streamed regions: leave it out, or use --per region for one answer per region")
    um = side * (model.card.mpp or 0.0)
    return f"answers: one for each patch of {um:g} x {um:g} um ({side} px) with tissue (--per region: one for the whole region)"


def _run(options: Namespace, arguments: list[str], unit: Callable[[Model], tuple[Literal["region", "patch", "maps"], str | None]]) -> int:
    """Check what all slides share, then process each of them."""
    from streamview.cohort.work import Work
    from streamview.cohort.worklist import read_worklist
    from streamview.jobs import Job, new_run_id
    from streamview.networks import load_model
    from streamview.system.machine import describe_device, find_device

    device = find_device(options.device)
    settings = _settings(options, str(device))
    job = Job(options.output)
    model = load_model(options.model, weights=options.weights, card=options.card, untrained=options.untrained)
    with _talk(options, model) as talk:
        untrained = "" if model.card.trained else " (untrained, random weights)"
        precision = "" if options.precision == "float32" else f" in {options.precision}"
        talk.say(f"network: {model.card.name}{untrained} on {describe_device(device)}{precision}")
        talk.say(f"use: {model.card.use}")
        answer, remark = unit(model)
        if remark is not None:
            talk.say(remark)
        settings = _fitted(settings, options, model, answer)
        for note in model.notes:
            warn(note)
        cases = read_worklist(options.slides, pattern=options.pattern, limit=options.limit, shuffle=options.shuffle)
        talk.start(len(cases))
        work = Work(
            model, job, new_run_id(), settings, options.skip_errors, options.redo, options.retry_failed,
            talk.announce, talk.answered, talk.report,
        )  # fmt: skip
        if options.dry_run:
            return _show_cohort(work, cases, talk)
        run = _process(options, work, cases, arguments, talk)
        return talk.end(run, job.folder)


def _talk(options: Namespace, model: Model) -> Talk:
    kind = JsonLines if options.json_progress else Terse if options.quiet else Talk
    return kind(Bars(), model.notes, place=options.regions != "whole")


def _process(options: Namespace, work: Work, cases: Sequence[Case], arguments: list[str], talk: Talk) -> Run:
    """Run the slides in this process, or on the workers of a cluster."""
    if options.workers is None and options.scheduler is None:
        from streamview.cohort.run import run_slides

        return run_slides(work, cases, command=arguments, told=talk.told)
    from streamview.cohort.cluster import ModelChoice, run_on_cluster

    choice = ModelChoice(options.model, options.weights, options.card, options.untrained)
    return run_on_cluster(
        work, choice, cases, workers=options.workers, scheduler=options.scheduler, command=arguments, told=talk.told, tell=talk.say
    )  # fmt: skip


def _settings(options: Namespace, device: str) -> Settings:
    """What is asked of every slide, as far as it is known without the network."""
    from streamview.cohort.policy import RegionPolicy
    from streamview.cohort.settings import Settings
    from streamview.geometry import RegionText
    from streamview.inference.compute import Compute
    from streamview.streaming.memory import parse_bytes
    from streamview.system.machine import find_device, total_memory

    return Settings(
        region=None if options.region is None else RegionText.parse(options.region),
        policy=RegionPolicy(options.regions, options.grid, options.overlap, options.least_tissue, options.max_regions),
        compute=Compute(
            device,
            None if options.memory is None else parse_bytes(options.memory, total_memory(find_device(device))),
            None if options.tile is None else parse_tile(options.tile),
            options.precision,
            glass=options.glass,
        ),
        mpp=options.mpp,
    )


def _fitted(settings: Settings, options: Namespace, model: Model, answer: Literal["region", "patch", "maps"]) -> Settings:
    """The settings with what depends on the network."""
    from dataclasses import replace

    from streamview.jobs import find_aggregation
    from streamview.results import ExplanationMethod

    named = None if options.aggregation is None else find_aggregation(options.aggregation, model.card.task, model.card.class_names)
    padding = None if options.pad_to is None else _side(options.pad_to, model)
    settings = replace(settings, answer=answer, policy=settings.policy.on(model.card), aggregation=named, pad_to=padding)
    if answer != "maps":
        return settings
    settings = replace(settings, compute=replace(settings.compute, method=ExplanationMethod.parse(options.method)))
    return replace(settings, targets=tuple(options.target or ()), displays=(options.display,) if options.display else ())


def _show_cohort(work: Work, cases: Sequence[Case], talk: Talk) -> int:
    """Print the forecast of all slides."""
    from streamview.cohort.forecast import forecast_cohort

    ahead: CohortForecast = forecast_cohort(work, cases)
    talk.foresee(ahead)
    return 1 if ahead.refused else 0


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
