"""The command ``finetune``: train a network further on labelled regions."""

from __future__ import annotations

import os
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from streamview.cli.console import Bars, complain, say, warn
from streamview.cli.run import parse_tile
from streamview.cli.talk import show_cost
from streamview.errors import Cancelled

if TYPE_CHECKING:
    from streamview.finetuning import Epoch, FinetuneResult, History, Settings

__all__ = ["finetune"]

_NAMED = 20  # labels up to which each is listed with its count
_CONTROLS = (
    "train", "learning_rate", "weight_decay", "batch", "epochs", "patience", "validation", "optimiser", "decay", "jitter", "seed",
    "initialise",
)  # fmt: skip


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
    untrained = "" if model.card.trained else " (untrained, random weights)"
    say(f"base: {model.card.name}{untrained} on {describe_device(device)}")
    for note in model.notes:
        warn(note)
    counts = count_labels(examples)
    if model.card.task != "regression" and len(counts) <= _NAMED:
        listed = ", ".join(f"{label or 'none'} {regions} ({patients})" for label, (regions, patients) in counts.items())
        say(f"labels, regions (patients): {listed}")
    how = {
        "memory": options.memory,
        "tile": None if options.tile is None else parse_tile(options.tile),
        "device": str(device),
        "force": options.force,
        "new_head": options.new_head,
    }
    forecast = finetuning.forecast_training(model, examples, settings, **how)
    say(f"forecast: {forecast}")
    with Bars() as bars:
        shown = 0

        def watch(history: History) -> None:
            nonlocal shown
            resumed = not shown and len(history.epochs) > 1  # the earlier run already printed its epochs
            for epoch in () if resumed else history.epochs[shown:]:
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
                ahead=forecast,
                restart=options.restart,
                report=bars,
                watch=watch,
                tell=say,
                **how,
            )
        except Cancelled:
            if os.path.isdir(options.output):
                complain(f"the best network so far is in {options.output}; the same command resumes from there")
            raise
    _show(result)
    show_cost(time.monotonic() - start)
    return 0


def _settings(options: Namespace) -> Settings:
    """The preset, changed by the options."""
    from streamview.finetuning import PAPER, PRESETS

    changes = {name: getattr(options, name) for name in _CONTROLS if getattr(options, name) is not None}
    if "train" in changes:
        changes["train"] = changes["train"].replace("-", " ")
    changes |= {"class_weights": False} if options.no_class_weights else {}
    changes |= {"flips": False} if options.no_flips else {}
    changes |= {"augmentation": PAPER} if options.augment == "paper" else {}
    return replace(PRESETS[options.preset], **changes)


def _line(epoch: Epoch, of: int) -> str:
    """An epoch in one line."""
    line = "the base" if epoch.loss is None else f"epoch {epoch.number} of {of}: training loss {epoch.loss:.4g}"
    if epoch.validation_loss is not None:
        line += f"{':' if epoch.loss is None else ','} validation loss {epoch.validation_loss:.4g}"
    if epoch.validation is not None:
        line += f", {epoch.validation.brief}"
    return line


def _show(result: FinetuneResult) -> None:
    """Print the metrics of the base and the tuned network."""
    for title, metrics in (("the base", result.before), ("the tuned network", result.after)):
        if metrics is not None:
            say(f"\n{title} on the validation regions:\n{metrics}")
    epoch = result.history.epochs[-1].number
    if result.before is not None and result.best:
        say(f"\nkept: epoch {result.best} of {epoch}, which has the lowest validation loss")
    for warning in result.warnings:
        warn(warning)
    assert result.out is not None
    out = os.path.relpath(result.out)
    say(f"tuned network: {out} (use: streamview predict -i slide.svs -o job -m {out}; curves: {os.path.join(out, 'curves.png')})")
