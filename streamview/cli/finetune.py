"""``finetune``: a network changed to answer labelled regions better."""

from __future__ import annotations

import os
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from streamview.cli.console import Bars, complain, say, warn
from streamview.cli.run import parse_tile, show_cost
from streamview.errors import Cancelled

if TYPE_CHECKING:
    from streamview.finetuning import Epoch, FinetuneResult, History, Settings

__all__ = ["finetune"]

_NAMED = 20  # labels that are counted one by one
_CONTROLS = ("train", "learning_rate", "weight_decay", "batch", "epochs", "patience", "validation", "optimiser", "decay", "jitter", "seed")


def finetune(options: Namespace, arguments: list[str]) -> int:
    """Fine-tune a network on labelled regions."""
    from streamview import finetuning
    from streamview.finetuning.checkpoint import check_folder
    from streamview.labels.regions import count_labels, read_labels
    from streamview.networks import load_model
    from streamview.system.machine import describe_device, find_device

    start = time.monotonic()
    settings = _settings(options)
    check_folder(Path(options.output), restart=options.restart)
    examples = read_labels(options.labels, options.slides)
    model = load_model(options.model, weights=options.weights, card=options.card, untrained=options.untrained)
    device = find_device(options.device)
    drawn = "" if model.card.trained else " (untrained, random weights)"
    say(f"base: {model.card.name}{drawn} on {describe_device(device)}")
    for note in model.notes:
        warn(note)
    found = count_labels(examples)
    if model.card.task != "regression" and len(found) <= _NAMED:
        counts = ", ".join(f"{label or 'none'} {regions} ({patients})" for label, (regions, patients) in found.items())
        say(f"labels: {counts}: regions (patients)")
    how = {
        "memory": options.memory,
        "tile": None if options.tile is None else parse_tile(options.tile),
        "device": str(device),
        "force": options.force,
        "new_head": options.new_head,
    }
    ahead = finetuning.forecast_training(model, examples, settings, **how)
    say(f"forecast: {ahead}")
    with Bars() as bars:
        shown = 0

        def watch(history: History) -> None:
            nonlocal shown
            begun = not shown and len(history.epochs) > 1  # the epochs of an earlier run were said then
            for epoch in () if begun else history.epochs[shown:]:
                if epoch.loss is not None or epoch.validation_loss is not None:
                    bars.close()
                    say(_line(epoch, settings.epochs))
            shown = len(history.epochs)

        try:
            result = finetuning.finetune(
                model,
                examples,
                settings,
                out=options.output,
                ahead=ahead,
                restart=options.restart,
                report=bars,
                watch=watch,
                tell=say,
                **how,
            )
        except Cancelled:
            if os.path.isdir(options.output):
                complain(f"the best network so far is in {options.output}; the same command goes on from there")
            raise
    _show(result)
    show_cost(time.monotonic() - start)
    return 0


def _settings(options: Namespace) -> Settings:
    """A preset, and what was stated besides."""
    from streamview.finetuning import PRESETS

    stated = {name: getattr(options, name) for name in _CONTROLS if getattr(options, name) is not None}
    if "train" in stated:
        stated["train"] = stated["train"].replace("-", " ")
    stated |= {"class_weights": False} if options.no_class_weights else {}
    stated |= {"flips": False} if options.no_flips else {}
    return replace(PRESETS[options.preset], **stated)


def _line(epoch: Epoch, of: int) -> str:
    """An epoch in one line."""
    said = "the base" if epoch.loss is None else f"epoch {epoch.number} of {of}: training loss {epoch.loss:.4g}"
    if epoch.validation_loss is not None:
        said += f"{':' if epoch.loss is None else ','} validation loss {epoch.validation_loss:.4g}"
    if epoch.validation is not None:
        said += f", {epoch.validation.brief}"
    return said


def _show(result: FinetuneResult) -> None:
    """What came of it: the base and the tuned network side by side."""
    for title, metrics in (("the base", result.before), ("the tuned network", result.after)):
        if metrics is not None:
            say(f"\n{title} on the validation regions:\n{metrics}")
    epoch = result.history.epochs[-1].number
    if result.before is not None and result.best:
        say(f"\nkept: epoch {result.best} of {epoch}, the one of the lowest validation loss")
    for warning in result.warnings:
        warn(warning)
    assert result.out is not None
    out = os.path.relpath(result.out)
    say(f"tuned network: {out} (use: streamview predict -i slide.svs -o job -m {out}; curves: {os.path.join(out, 'curves.png')})")
