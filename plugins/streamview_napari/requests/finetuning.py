"""What the panel asks of fine-tuning, and what it says of the answers; pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamview.errors import TrainingError
from streamview.finetuning.settings import PRESETS, Settings
from streamview.finetuning.split import scarcity
from streamview.progress import Report, Step

if TYPE_CHECKING:
    from streamview.finetuning import FinetuneResult, History
    from streamview.finetuning.forecast import TrainingForecast
    from streamview.labels.regions import Example
    from streamview.networks.cards import ModelCard
    from streamview_napari.requests.models import Loaded

__all__ = [
    "NUMBERS",
    "PARTS",
    "TITLES",
    "FinetuningRequest",
    "command",
    "describe_end",
    "describe_forecast",
    "describe_heads",
    "describe_training",
    "find_obstacle",
    "forecast_finetuning",
    "is_begun",
    "is_unfinished",
    "needs_new_head",
    "parse_settings",
    "propose_folder",
    "train",
    "write_settings",
]

TITLES = {"head": "Head only", "careful": "Careful: the last stage", "all": "All layers"}
"""The presets, for people."""

PARTS = {"head": "Head", "last stage": "Last stage and head", "all": "All layers"}
"""What can be trained, for people."""

NUMBERS = {
    "learning_rate": "Learning rate",
    "weight_decay": "Weight decay",
    "batch": "Batch",
    "validation": "Validation",
    "epochs": "Epochs",
    "patience": "Patience",
}
"""The numbers among the controls, for people."""

_STATE = "training.safetensors"
_FLAGS = {"class_weights": "--no-class-weights", "flips": "--no-flips"}


@dataclass(frozen=True, slots=True, eq=False)
class FinetuningRequest:
    """A fine-tuning as the user has set it up.

    Parameters
    ----------
    loaded
        The base.
    labels
        What it is tuned on.
    settings
        How.
    out
        Folder of the tuned network.
    device, memory, force, new_head, restart
        As for `streamview.finetuning.finetune`.
    """

    loaded: Loaded
    labels: tuple[Example, ...]
    settings: Settings
    out: Path
    device: str = "auto"
    memory: str | None = None
    force: bool = False
    new_head: bool = False
    restart: bool = False


def parse_settings(preset: str, train: str, texts: Mapping[str, str]) -> Settings:
    """Return a preset with the user's values in place of its own.

    Parameters
    ----------
    preset
        Key of `PRESETS`.
    train
        Key of `PARTS`.
    texts
        Of `NUMBERS`, as they were written; the share of the patients in per cent.

    Raises
    ------
    TrainingError
        When a text is no number, or a value is outside its range.
    """
    values: dict[str, Any] = {"train": train}
    for name, text in texts.items():
        whole = name in ("batch", "epochs", "patience")
        try:
            values[name] = int(text) if whole else float(text.strip().removesuffix("%"))
        except ValueError:
            expected = "a whole number" if whole else "a number such as 25" if name == "validation" else "a number such as 1e-4"
            raise TrainingError(f"{NUMBERS[name].lower()} {text!r}: expected {expected}") from None
    if "validation" in values:
        values["validation"] /= 100
    return replace(PRESETS[preset], **values)


def write_settings(settings: Settings) -> dict[str, str]:
    """Inverse of `parse_settings` for its numbers."""
    texts = {name: f"{getattr(settings, name):g}" for name in NUMBERS if name != "validation"}
    return {name: texts.get(name) or f"{100 * settings.validation:g} %" for name in NUMBERS}


def needs_new_head(labels: Sequence[Example], card: ModelCard) -> bool:
    """Whether some labels are no classes of the network."""
    return card.task != "regression" and not _classes(labels, card.task) <= set(card.class_names)


def describe_heads(labels: Sequence[Example], card: ModelCard) -> str:
    """Say which classes the network has, and which it will have; empty where they stay."""
    if not needs_new_head(labels, card):
        return ""
    return f"New head for {', '.join(sorted(_classes(labels, card.task)))}: the network's own classes are {', '.join(card.class_names)}."


def find_obstacle(labels: Sequence[Example], card: ModelCard) -> str | None:
    """Say why fine-tuning is refused unless the user insists: fewer than ten patients of a class; None where there are enough."""
    return scarcity(labels, regression=card.task == "regression") if labels else None


def forecast_finetuning(tuning: FinetuningRequest) -> TrainingForecast:
    """Forecast what fine-tuning takes; times a sample, so it takes seconds.

    Raises
    ------
    StreamviewError
        As `streamview.finetuning.forecast_training`.
    """
    from streamview.finetuning import forecast_training

    return forecast_training(
        tuning.loaded.model,
        tuning.labels,
        tuning.settings,
        memory=tuning.memory,
        device=tuning.device,
        force=tuning.force,
        new_head=tuning.new_head,
    )


def describe_forecast(forecast: TrainingForecast) -> str:
    """Say what fine-tuning takes, and how the regions are split."""
    from streamview.streaming.memory import format_bytes
    from streamview.streaming.run.timing import format_seconds

    seconds, memory = format_seconds(forecast.seconds).capitalize(), format_bytes(forecast.peak_bytes)
    epoch = "features computed once" if forecast.cached else f"an epoch {format_seconds(forecast.epoch_seconds)}"
    (regions, patients), (others, of) = forecast.train, forecast.validation
    return (
        f"{seconds} at most, {epoch}, peak memory {memory} on {forecast.device}\n"
        f"{regions} regions ({patients} patients) train, {f'{others} ({of})' if others else 'none'} validate"
    )


def train(
    tuning: FinetuningRequest,
    forecast: TrainingForecast | None,
    report: Report,
    watch: Callable[[History], None],
    tell: Callable[[str], None],
) -> FinetuneResult:
    """Fine-tune a copy of the base, within the memory of the forecast that was shown; None: none was.

    Raises
    ------
    StreamviewError
        As `streamview.finetuning.finetune`.
    """
    from streamview.finetuning import finetune

    return finetune(
        tuning.loaded.model,
        tuning.labels,
        tuning.settings,
        out=tuning.out,
        memory=tuning.memory,
        ahead=forecast,
        device=tuning.device,
        force=tuning.force,
        new_head=tuning.new_head,
        restart=tuning.restart,
        report=report,
        watch=watch,
        tell=tell,
    )


def command(tuning: FinetuningRequest, table: Path, preset: str) -> str:
    """Return the command line that does the same."""
    base, settings = Path(tuning.loaded.spec), tuning.settings
    spec = str(base.parent) if base.name in ("card.json", "config.json") else tuning.loaded.spec
    words = ["streamview", "finetune", "-i", str(table), "-m", spec, "-o", str(tuning.out), "--preset", preset]
    for field in fields(Settings):
        value = getattr(settings, field.name)
        if value == getattr(PRESETS[preset], field.name):
            continue
        if field.name in _FLAGS:
            words += [] if value else [_FLAGS[field.name]]
        else:
            word = repr(value) if isinstance(value, float) else str(value).replace(" ", "-")
            words += [f"--{field.name.replace('_', '-')}", word]
    options = {"--memory": tuning.memory, "--device": None if tuning.device == "auto" else tuning.device}
    for option, text in options.items():
        words += [] if text is None else [option, text]
    flags = {
        "--new-head": tuning.new_head,
        "--force": tuning.force,
        "--restart": tuning.restart,
        "--untrained": not tuning.loaded.model.card.trained,
    }
    return shlex.join([*words, *(flag for flag, present in flags.items() if present)])


def propose_folder(table: Path | None, home: Path, name: str) -> Path:
    """Return where a tuned network can go: beside its table of labels, else in a folder of the user's.

    A name that is free, or where a training was left unfinished, which then goes on.
    """
    folder = home if table is None else table.parent
    stem = re.sub(r"[^\w.-]+", "-", name.strip()).lower()
    stem = stem if stem.endswith("-tuned") else f"{stem}-tuned"
    number = 1
    while True:
        place = folder / (stem if number == 1 else f"{stem}-{number}")
        if not place.exists() or is_unfinished(place):
            return place
        number += 1


def is_unfinished(folder: Path) -> bool:
    """Whether a training was left unfinished there."""
    return (folder / _STATE).is_file()


def is_begun(folder: Path) -> bool:
    """Whether a training, finished or not, lies there already."""
    return is_unfinished(folder) or (folder / "finetuning.json").is_file()


def describe_training(step: Step, history: History | None, epochs: int) -> str:
    """Say where a training is, and how long it will take at most: it may end before its last epoch."""
    from streamview.streaming.run.timing import format_seconds

    left = "" if step.remaining is None else f" · {format_seconds(step.remaining)} left at most"
    if history is None or not history.epochs:
        return f"{step.task[0].upper()}{step.task[1:]}, {step.done / max(step.total, 1):.0%}{left}"
    epoch = min(history.epochs[-1].number + 1, epochs)
    return f"Epoch {epoch} of {epochs}, step {len(history.losses) % history.per_epoch + 1} of {history.per_epoch}{left}"


def describe_end(history: History | None, out: Path) -> str:
    """Say what a training that was stopped leaves."""
    steps = 0 if history is None else len(history.losses)
    if not is_unfinished(out):
        return "Stopped. The base is unchanged, and nothing is kept."
    epochs = 0 if history is None else sum(epoch.number > 0 for epoch in history.epochs)
    done = f"{epochs} epoch{'s' * (epochs != 1)}, {steps} step{'s' * (steps != 1)}"
    return f"Stopped after {done}. The base is unchanged; {out} keeps what was learnt, and Go on starts from there."


def _classes(labels: Sequence[Example], task: str) -> set[str]:
    parts = (part.strip() for example in labels for part in (example.label.split(";") if task == "multilabel" else [example.label]))
    return {part for part in parts if part}
