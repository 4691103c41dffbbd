"""The command ``finetune``: train a network further on labelled regions."""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from streamview.cli.console import Bars, complain, say, warn
from streamview.cli.run import parse_tile
from streamview.cli.talk import show_cost
from streamview.errors import Cancelled, TrainingError

if TYPE_CHECKING:
    from streamview.finetuning import Epoch, FinetuneResult, History, Settings, Watch

__all__ = ["finetune"]

_NAMED = 20  # labels up to which each is listed with its count
_CONTROLS = (
    "train", "learning_rate", "weight_decay", "batch", "epochs", "patience", "validation", "optimiser", "decay", "jitter", "seed",
    "initialise", "precision",
)  # fmt: skip


def finetune(options: Namespace, arguments: list[str]) -> int:
    """Fine-tune a network on labelled regions, alone or as one of several processes, of which the first alone speaks."""
    if not options.distributed:
        return _finetune(options)
    from streamview.system.machine import find_device

    with ExitStack() as stack:
        if stack.enter_context(_joined(find_device(options.device).type)) != 0:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        return _finetune(options)


def _finetune(options: Namespace) -> int:
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
    with Bars() as bars, _events(options.tensorboard) as record:
        shown = 0

        def watch(history: History) -> None:
            nonlocal shown
            resumed = not shown and len(history.epochs) > 1  # the earlier run already printed its epochs
            for epoch in () if resumed else history.epochs[shown:]:
                if epoch.loss is not None or epoch.validation_loss is not None:
                    bars.close()
                    say(_line(epoch, settings.epochs))
            shown = len(history.epochs)
            record(history)

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
    if result.out is not None:  # this process has written it
        _show(result, os.path.relpath(result.out))
    show_cost(time.monotonic() - start)
    return 0


@contextmanager
def _joined(kind: str) -> Iterator[int]:
    """Join the processes that torchrun has started, on CUDA with a GPU for each; the number of this one."""
    import torch
    from torch import distributed

    if not distributed.is_available() or not distributed.is_torchelastic_launched():
        command = "torchrun --nproc-per-node 2 -m streamview.cli finetune --distributed ..."
        raise TrainingError(f"this process was not started by torchrun; run `{command}`")
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield distributed.get_rank()
    finally:
        distributed.destroy_process_group()


@contextmanager
def _events(folder: str | None) -> Iterator[Watch]:
    """What records the history for TensorBoard, if it is wanted."""
    from streamview.finetuning.ranks import current_ranks

    if folder is None or not current_ranks().first:
        yield lambda history: None
    else:
        from streamview.finetuning.events import event_writer

        with event_writer(folder) as watch:
            yield watch


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


def _show(result: FinetuneResult, out: str) -> None:
    """Print the metrics of the base and the tuned network."""
    for title, metrics in (("the base", result.before), ("the tuned network", result.after)):
        if metrics is not None:
            say(f"\n{title} on the validation regions:\n{metrics}")
    epoch = result.history.epochs[-1].number
    if result.before is not None and result.best:
        say(f"\nkept: epoch {result.best} of {epoch}, which has the lowest validation loss")
    for warning in result.warnings:
        warn(warning)
    say(f"tuned network: {out} (use: streamview predict -i slide.svs -o job -m {out}; curves: {os.path.join(out, 'curves.png')})")
