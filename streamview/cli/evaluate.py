"""The command ``evaluate``: metrics on labelled regions."""

from __future__ import annotations

import math
import os
import time
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from streamview.cli.console import Bars, complain, say, warn
from streamview.cli.run import parse_tile
from streamview.cli.talk import show_cost

if TYPE_CHECKING:
    from streamview.inference.compute import Compute
    from streamview.labels.regions import Example
    from streamview.networks import Model

__all__ = ["evaluate"]


def evaluate(options: Namespace, arguments: list[str]) -> int:
    """Predict for labelled regions, measure the predictions, and write the results."""
    from streamview.evaluation import evaluate as run_evaluation
    from streamview.evaluation import write_evaluation
    from streamview.evaluation.report import check_folder
    from streamview.inference.compute import Compute
    from streamview.labels.regions import find_targets, read_labels
    from streamview.networks import load_model
    from streamview.system.machine import describe_device, find_device

    start = time.monotonic()
    tile = None if options.tile is None else parse_tile(options.tile)
    device = find_device(options.device)
    check_folder(options.output)
    examples = read_labels(options.labels, options.slides)
    model = load_model(options.model, weights=options.weights, card=options.card, untrained=options.untrained)
    find_targets(examples, model.card)
    untrained = "" if model.card.trained else " (untrained, random weights)"
    precision = "" if options.precision == "float32" else f" in {options.precision}"
    say(f"network: {model.card.name}{untrained} on {describe_device(device)}{precision}")
    say(f"use: {model.card.use}")
    with Bars() as bars:
        compute = Compute(str(device), options.memory, tile, options.precision)
        _show_largest(model, examples, compute)
        evaluation = run_evaluation(
            model,
            examples,
            compute=compute,
            resamples=options.resamples,
            skip_errors=options.skip_errors,
            report=bars,
        )
    for row in evaluation.failed:
        complain(f"error: {row.error}")
    for warning in evaluation.warnings:
        warn(warning)
    say(f"\n{evaluation}\n")
    for path in write_evaluation(evaluation, options.output):
        say(f"written: {os.path.relpath(path)}")
    show_cost(time.monotonic() - start)
    return 1 if evaluation.failed else 0


def _show_largest(model: Model, examples: Sequence[Example], compute: Compute) -> None:
    """Print the number of regions and the forecast for the largest; if it cannot be read, the error is reported in its turn."""
    from streamview.errors import RegionError, SlideError
    from streamview.inference.explain import forecast

    slides, patients = ({str(getattr(example, what)) for example in examples} for what in ("source", "case"))
    say(f"labels: {len(examples)} regions on {len(slides)} slides of {len(patients)} patients")
    largest = max(examples, key=lambda example: math.inf if example.region is None else example.region.height * example.region.width)
    try:
        with largest.open() as slide:
            largest_forecast = forecast(model, slide, largest.region, compute=compute)
    except (SlideError, RegionError):
        return
    say(f"forecast for {largest}: {largest_forecast}")
