"""Forecast the memory and time of fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from streamview.finetuning.preparation import Prepared, prepare
from streamview.finetuning.settings import Settings
from streamview.inference.forecast import reading_seconds
from streamview.labels.regions import Example
from streamview.networks import Model
from streamview.progress import format_steps
from streamview.slides.sampling import Sampler
from streamview.streaming.cuda import full_float32
from streamview.streaming.memory import format_bytes
from streamview.streaming.plan.plan import Plan
from streamview.streaming.run.timing import format_seconds

__all__ = ["TrainingForecast", "forecast_training"]


@dataclass(frozen=True, slots=True, eq=False)
class TrainingForecast:
    """The forecast memory and time of fine-tuning.

    Parameters
    ----------
    train, validation
        (regions, patients) of each side of the split.
    parameters
        Number of trained weights.
    largest
        Height and width of the largest region, px of the network's grid.
    plan
        Plan of its forward and backward pass.
    device
        Device of the computation.
    peak_bytes
        Peak memory of the process (on CUDA: of the device).
    region_seconds
        Time for the forward and backward pass of the largest training region.
    epoch_seconds, seconds
        Time of an epoch, and at most of all epochs including the validation of the base.
    cached
        Whether features are computed once and kept.
    budget_bytes
        Bytes by which a pass may grow.
    """

    train: tuple[int, int]
    validation: tuple[int, int]
    parameters: int
    largest: tuple[int, int]
    plan: Plan
    device: str
    peak_bytes: int
    region_seconds: float
    epoch_seconds: float
    seconds: float
    cached: bool
    budget_bytes: int

    def __str__(self) -> str:
        """The forecast in one line."""
        rows, cols = self.plan.tile
        regions, patients = self.train
        validation = "no validation" if not self.validation[0] else f"{self.validation[0]} of {self.validation[1]} for validation"
        epoch = "features computed once" if self.cached else f"an epoch takes {format_seconds(self.epoch_seconds)}"
        return (
            f"{regions} regions of {patients} patients for training, {validation}; {self.parameters:,} weights are trained; up to "
            f"{self.largest[1]} x {self.largest[0]} px in {format_steps(self.plan.steps)} of {min(rows, self.largest[0])} x "
            f"{min(cols, self.largest[1])} px on {self.device}: peak memory {format_bytes(self.peak_bytes)}, {epoch}, at most "
            f"{format_seconds(self.seconds)} in all"
        )


def forecast_training(
    model: Model,
    examples: Sequence[Example],
    settings: Settings,
    *,
    memory: str | int | None = None,
    tile: tuple[int, int] | None = None,
    device: str = "auto",
    force: bool = False,
    new_head: bool = False,
) -> TrainingForecast:
    """Forecast `finetune`: memory from the plan of the largest region, time from a timed sample of it.

    Parameters
    ----------
    model, examples, settings, memory, tile, device, force, new_head
        As for `streamview.finetuning.finetune`.

    Raises
    ------
    StreamviewError
        As `streamview.finetuning.finetune` before training starts.
    """
    prepared = prepare(model, examples, settings, memory=memory, tile=tile, device=device, force=force, new_head=new_head)
    split, shapes = prepared.split, prepared.shapes
    base, budget = prepared.base_bytes(), prepared.budget()
    streamed = prepared.streamed(budget)
    height, width = prepared.largest
    shape = (1, 3, height, width)
    with full_float32(prepared.device):
        plan = streamed.plan(shape, image_gradient=False)
        with torch.no_grad():
            forward_plan = streamed.plan(shape, image_gradient=False)
    peak = base + prepared.kept_bytes + plan.peak_bytes + prepared.reserve
    read = _reading_seconds(prepared)
    px = height * width
    # a pass with gradients reads the image twice
    train, validate = ((plan.seconds or 0.0) + 2 * read) / px, ((forward_plan.seconds or 0.0) + read) / px
    areas = [sum(shapes[index][0] * shapes[index][1] for index in part) for part in (split.train, split.validation)]
    before = validate * areas[1]
    epoch = train * areas[0] + validate * areas[1]
    if prepared.cached:
        before, epoch = validate * (areas[1] + areas[0] * (8 if settings.flips else 1)), 0.0
    regions = [(len(part), len({prepared.examples[index].case for index in part})) for part in (split.train, split.validation)]
    parameters = sum(p.numel() for p in prepared.trained.values())
    return TrainingForecast(
        regions[0], regions[1], parameters, (height, width), plan, str(prepared.device), peak, train * px, epoch,
        before + settings.epochs * epoch, prepared.cached, budget,
    )  # fmt: skip


def _reading_seconds(prepared: Prepared) -> float:
    """Seconds to read the pixels of the largest region once."""
    example = prepared.examples[prepared.shapes.index(prepared.largest)]
    with example.open() as slide:
        sampler = Sampler(slide, example.region, prepared.base.card.mpp)
        return reading_seconds(sampler)
