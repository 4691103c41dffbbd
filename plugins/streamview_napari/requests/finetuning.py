"""What the panel asks of fine-tuning, and what it says of the answers; pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from streamview.finetuning.settings import PRESETS, Part, Settings
from streamview.finetuning.split import scarcity
from streamview.inference.compute import Compute
from streamview.progress import Report, Step
from streamview_napari.requests.controls import Count, Folder, Rate, Share, command_options

if TYPE_CHECKING:
    from streamview.finetuning import FinetuneResult, History
    from streamview.finetuning.forecast import TrainingForecast
    from streamview.labels.regions import Example
    from streamview.networks.cards import ModelCard
    from streamview_napari.requests.models import Loaded

__all__ = [
    "PARTS",
    "TITLES",
    "FinetuningRequest",
    "Preset",
    "TuningControls",
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
    "propose_folder",
    "train",
    "values_of",
]

Preset = Literal["head", "careful", "all"]

TITLES: dict[Preset, str] = {"head": "Head only", "careful": "Careful: the last stage", "all": "All layers"}
"""The presets, for people."""

PARTS: dict[Part, str] = {"head": "Head", "last stage": "Last stage and head", "all": "All layers"}
"""What can be trained, for people."""

_STATE = "training.safetensors"


@dataclass(frozen=True, slots=True)
class TuningControls:
    """How a network is tuned; the preset says all else.

    Parameters
    ----------
    preset
        A starting point for all that follows. The head alone takes seconds an epoch, and few regions.
    train
        Which weights change; statistics of BatchNorm never do.
    learning_rate
        How far each step goes; ten times less where the loss jumps about.
    weight_decay
        Pulls weights towards 0, against learning by heart.
    batch
        Regions whose gradients are summed for one step of the optimiser.
    validation
        Share of the patients that are not trained on and judge the network; 0: none. A split in the table counts first.
    epochs
        Passes over the training regions at most.
    patience
        Ends after so many epochs without a better validation loss; 0: never.
    folder
        Where the tuned network goes: a folder that opens like any other network.
    restart
        A training lies in this folder already; it is overwritten.
    force
        With so few patients the figures below say little of new ones.

    Raises
    ------
    TrainingError
        When a value is outside its range.
    """

    preset: Annotated[Preset, {"label": "Preset"}]
    train: Annotated[Part, {"label": "Train"}]
    learning_rate: Annotated[Rate, {"label": "Learning rate"}]
    weight_decay: Annotated[Rate, {"label": "Weight decay"}]
    batch: Annotated[Count, {"label": "Batch"}]
    validation: Annotated[Share, {"label": "Validation"}]
    epochs: Annotated[Count, {"label": "Epochs"}]
    patience: Annotated[Count, {"label": "Patience"}]
    folder: Annotated[Folder, {"label": "Folder"}]
    restart: Annotated[bool, {"label": "Begin anew"}] = False
    force: Annotated[bool, {"label": "Train anyway"}] = False

    def __post_init__(self) -> None:
        self.settings()  # which checks the values

    def settings(self) -> Settings:
        """The preset, with the user's values in place of its own."""
        return replace(PRESETS[self.preset], **{name: getattr(self, name) for name in values_of(self.preset)})


def values_of(preset: Preset) -> dict[str, Any]:
    """Return what a preset says of the controls."""
    return {field.name: getattr(PRESETS[preset], field.name) for field in fields(TuningControls) if hasattr(PRESETS[preset], field.name)}


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
        f"{seconds} for all epochs, {epoch}, peak memory {memory} on {forecast.device}\n"
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
    words += [word.replace(" ", "-") for word in command_options(settings, PRESETS[preset])]
    words += command_options(Compute(tuning.device, tuning.memory), Compute())
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
    """Say where a training is, and how long all epochs will take: it may end before the last."""
    from streamview.streaming.run.timing import format_seconds

    left = "" if step.remaining is None else f" · {format_seconds(step.remaining)} left for all epochs"
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
