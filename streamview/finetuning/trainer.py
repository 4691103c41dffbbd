"""The state of fine-tuning and its transitions: an optimiser step, or the end of an epoch."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from streamview.errors import ModelError, TrainingError
from streamview.evaluation import Metrics, measure
from streamview.finetuning.checkpoint import Checkpoint
from streamview.finetuning.history import Epoch, History
from streamview.finetuning.initialisation import he_weights, unit_variance
from streamview.finetuning.preparation import Prepared
from streamview.finetuning.ranks import Ranks
from streamview.finetuning.settings import Settings
from streamview.finetuning.split import batches
from streamview.finetuning.variation import PLAIN, Variation, lazy_image, vary
from streamview.labels.regions import Example
from streamview.progress import Progress, Report
from streamview.slides import Slide, as_slide, open_slide
from streamview.slides.sampling import Sampler
from streamview.streaming import LazyImage, Streamed

__all__ = ["Trainer"]

_OPEN = 16  # slides kept open
_MOMENTUM = 0.9
_INITIAL_BATCHES = 10  # that unit variance is measured on, as in the paper
_UNIT = 128 * 128  # px per unit of progress


class Trainer:
    """Fine-tuning between two steps; a context manager that closes its slides.

    Attributes
    ----------
    prepared
        The inputs.
    history
        The history so far.
    logits
        Logits of the validation regions, ``"before"`` (the base) and ``"after"`` (the best epoch): lists (M, K).
    best
        Trained parameters of the best epoch, by name.

    Parameters
    ----------
    prepared
        The inputs; training changes its network.
    checkpoint
        The checkpoint of an earlier run to resume.
    budget
        Bytes by which a pass may grow, unless the checkpoint has one; None: as much as fits.
    report
        Called after every step of the engine.
    ranks
        The processes that train together; all of them call the same methods in the same order.
    """

    def __init__(self, prepared: Prepared, checkpoint: Checkpoint | None, budget: int | None, report: Report | None, ranks: Ranks) -> None:
        self.prepared, self._ranks = prepared, ranks
        self._budget = (budget or prepared.budget()) if checkpoint is None else checkpoint.budget
        # one per mode of the head's dropout, so that switching it captures nothing again
        self._streams: dict[bool, Streamed] = {}
        self._features: dict[tuple[int, int, bool], list[Tensor]] = {}
        self._slides = _OpenSlides()
        self._began = time.monotonic()
        self._optimiser = _optimiser(list(prepared.trained.values()), prepared.settings)
        per_epoch = -(-len(prepared.split.train) // prepared.settings.batch)
        self.history = History((), (), per_epoch)
        self.logits: dict[str, Any] = {}
        self.best = self._weights()
        if checkpoint is not None:
            self._resume(checkpoint)
        self._progress = Progress("fine-tuning", self._work(), report)

    def _resume(self, checkpoint: Checkpoint) -> None:
        self.history, self.logits, self.best = checkpoint.history, dict(checkpoint.logits), dict(checkpoint.best)
        with torch.no_grad():
            for name, parameter in self.prepared.trained.items():
                parameter.copy_(checkpoint.weights[name])
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in checkpoint.optimiser.items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = tensor
        self._optimiser.load_state_dict({**self._optimiser.state_dict(), "state": state})

    def checkpoint(self) -> Checkpoint:
        """Return the state from which training resumes."""
        state = self._optimiser.state_dict()["state"]
        tensors = {f"{i}.{name}": t for i, entry in state.items() for name, t in entry.items() if isinstance(t, Tensor)}
        return Checkpoint(self.prepared.making, self._budget, self.history, self.logits, self.prepared.trained, self.best, tensors)

    @property
    def over(self) -> bool:
        """Whether the last epoch is done, or patience is exhausted."""
        settings, done = self.prepared.settings, self.history.epochs[-1].number
        impatient = settings.patience and self.prepared.split.validation and done - self.history.best >= settings.patience
        return bool(done >= settings.epochs or impatient)

    @property
    def epoch_is_complete(self) -> bool:
        """Whether all steps of the epoch are done and `end_epoch` is due."""
        return len(self.history.losses) >= (self.history.epochs[-1].number + 1) * self.history.per_epoch

    def begin(self) -> None:
        """Draw the first weights if they are not those of the base, and validate the network."""
        self._initialise()
        self._end(Epoch(0, 0.0, None, None, None, 0.0))

    def _initialise(self) -> None:
        prepared, settings = self.prepared, self.prepared.settings
        if settings.initialise != "base":
            he_weights(prepared.module, torch.Generator().manual_seed(settings.seed))
        if settings.initialise == "lsuv":
            drawn = batches(prepared.split, settings.batch, settings.seed, 1)[:_INITIAL_BATCHES]
            images = [self._pixels(index, PLAIN) for batch in drawn for index in batch]
            unit_variance(prepared.module, images, memory=self._budget, tile=prepared.tile)
        self._ranks.copy_from_first([*prepared.trained.values()])  # the same, but for rounding on another machine

    def step(self) -> None:
        """One optimiser step over a batch, region by region.

        Raises
        ------
        TrainingError
            If a loss or gradient is not finite; the weights are then unchanged.
        """
        prepared, settings, history = self.prepared, self.prepared.settings, self.history
        epoch, number = divmod(len(history.losses), history.per_epoch)
        batch = batches(prepared.split, settings.batch, settings.seed, epoch + 1)[number]
        targets = {index: torch.as_tensor(prepared.targets[index], device=prepared.device) for index in batch}
        share = sum(prepared.objective.share(target) for target in targets.values())
        self._optimiser.zero_grad()
        losses, problem = self._accumulate(batch, targets, share, epoch)
        gathered = self._ranks.gather((losses, problem))
        for _, problem in gathered:
            if problem:
                raise self._not_finite(problem)
        self._ranks.add_gradients(list(prepared.trained.values()))
        for name, parameter in prepared.trained.items():
            if parameter.grad is not None and not parameter.grad.isfinite().all():
                raise self._not_finite(f"the gradient of {name} is not finite")
        for group in self._optimiser.param_groups:
            group["lr"] = settings.rate(epoch + 1)
        self._optimiser.step()
        total = sum(losses for losses, _ in gathered)
        self.history = History((*history.losses, total), history.epochs, history.per_epoch)

    def _accumulate(self, batch: Sequence[int], targets: Mapping[int, Tensor], share: float, epoch: int) -> tuple[float, str]:
        """Add the gradients of this rank's part of a batch; return its part of the loss, and what went wrong."""
        prepared, settings, total = self.prepared, self.prepared.settings, 0.0
        for index in self._ranks.part(batch):
            variation = vary(settings, epoch + 1, index, prepared.shapes[index])
            logits = self._answer(index, variation, drawing=f"{settings.seed} {epoch + 1} {index}")
            loss = prepared.objective.loss(logits, targets[index]) / share
            if not loss.isfinite():
                return total, f"the loss of {prepared.examples[index]} is {loss.item()}"
            loss.backward()
            total += loss.item()
        return total, ""

    def end_epoch(self) -> None:
        """Validate the network after an epoch, and keep its weights if they are the best."""
        history, number = self.history, self.history.epochs[-1].number + 1
        losses = history.losses[(number - 1) * history.per_epoch :]
        rate = self.prepared.settings.rate(number)
        self._end(Epoch(number, rate, sum(losses) / len(losses), None, None, time.monotonic() - self._began))
        self._began = time.monotonic()

    def _end(self, epoch: Epoch) -> None:
        loss, metrics, logits = self._validate()
        validated = Epoch(epoch.number, epoch.learning_rate, epoch.loss, loss, metrics, epoch.seconds)
        self.history = History(self.history.losses, (*self.history.epochs, validated), self.history.per_epoch)
        if self.history.best == epoch.number:
            self.best = self._weights()
            self.logits = {"before": self.logits.get("before", logits), "after": logits}

    def _validate(self) -> tuple[float | None, Metrics | None, list[list[float]]]:
        """Loss, metrics and logits of the validation regions."""
        prepared = self.prepared
        indices = prepared.split.validation
        if not indices:
            return None, None, []
        answers: list[list[float]] = [[]] * len(indices)
        for part in self._ranks.gather(self._answers(self._ranks.part(range(len(indices))))):
            for place, logits in part.items():
                answers[place] = logits
        loss = share = 0.0
        for index, logits in zip(indices, answers, strict=True):
            if not all(map(math.isfinite, logits)):
                raise self._not_finite(f"the answer for {prepared.examples[index]} is {logits}")
            target = torch.as_tensor(prepared.targets[index])
            loss += float(prepared.objective.loss(torch.tensor([logits], dtype=torch.float64), target))
            share += prepared.objective.share(target)
        cases = [prepared.examples[index].case for index in indices]
        training = prepared.targets[list(prepared.split.train)]
        metrics = measure(answers, prepared.targets[list(indices)], cases, prepared.base.card, reference=training, resamples=0)
        return loss / share, metrics, answers

    def _answers(self, places: Sequence[int]) -> dict[int, list[float]]:
        """Logits of the validation regions at some places of their list."""
        indices = self.prepared.split.validation
        with torch.no_grad():
            return {place: self._answer(indices[place], PLAIN)[0].double().cpu().tolist() for place in places}

    def _answer(self, index: int, variation: Variation, drawing: str | None = None) -> Tensor:
        """Logits (1, K) of a region; with `drawing`, its seed, the head's dropout is active."""
        prepared = self.prepared
        with _drawing(prepared.dropout if drawing is not None else (), drawing or ""):
            streamed = self._streamed(drawing is not None and bool(prepared.dropout))
            if not prepared.cached:
                return _checked(streamed(*self._image(streamed, index, variation)), prepared)
            key = index, variation.turns, variation.mirrored
            if key not in self._features:
                with torch.no_grad():
                    self._features[key] = streamed.features(*self._image(streamed, index, variation))
            self._progress.advance()
            return _checked(streamed.head(self._features[key]), prepared)

    def _streamed(self, drawing: bool) -> Streamed:
        if drawing not in self._streams:
            self._streams[drawing] = self.prepared.streamed(self._budget)
        return self._streams[drawing]

    def _image(self, streamed: Streamed, index: int, variation: Variation) -> tuple[LazyImage, Callable[[], None]]:
        """A region as the engine reads it, and a callback that counts the engine's steps."""
        prepared, image = self.prepared, self._pixels(index, variation)
        passes = 2 if torch.is_grad_enabled() and prepared.settings.train != "head" else 1
        steps = streamed.plan(image.shape, image_gradient=False, seconds=False).steps * passes
        ends = (passes * self._units(index) * (step + 1) // steps - passes * self._units(index) * step // steps for step in range(steps))
        return image, lambda: self._progress.advance(next(ends, 0))

    def _pixels(self, index: int, variation: Variation) -> LazyImage:
        prepared, example = self.prepared, self.prepared.examples[index]
        sampler = Sampler(self._slides.open(example), example.region, prepared.base.card.mpp)
        half = torch.is_grad_enabled() and prepared.settings.precision == "bf16"
        dtype = torch.bfloat16 if half else prepared.dtype
        return lazy_image(sampler, prepared.base.card, variation, dtype, prepared.device)

    def _units(self, index: int) -> int:
        """Units of progress of one pass over a region."""
        height, width = self.prepared.shapes[index]
        return max(1, height * width // _UNIT)

    def _work(self) -> int:
        """Units of progress from here to the last epoch."""
        split, settings = self.prepared.split, self.prepared.settings
        training, validation = (sum(map(self._units, part)) // self._ranks.count for part in (split.train, split.validation))
        left = settings.epochs - max(0, len(self.history.epochs) - 1)
        if self.prepared.cached:
            return training * (8 if settings.flips else 1) + validation + left * (len(split.train) + len(split.validation))
        passes = 1 if settings.train == "head" else 2
        return left * (passes * training + validation) + (0 if self.history.epochs else validation)

    def _weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.prepared.trained.items()}

    def _not_finite(self, problem: str) -> TrainingError:
        if not self.history.epochs:
            return TrainingError(f"the base: {problem}; use other weights, and check their normalisation")
        remedy = "check the labels and the slide, or start over with a lower learning rate (--restart)"
        return TrainingError(f"epoch {len(self.history.epochs)}: {problem}; the best network so far is kept; {remedy}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._slides.close()


def _optimiser(parameters: Sequence[torch.nn.Parameter], settings: Settings) -> torch.optim.Optimizer:
    if settings.optimiser == "adam":
        return torch.optim.Adam(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return torch.optim.SGD(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, momentum=_MOMENTUM)


@contextmanager
def _drawing(dropout: Sequence[torch.nn.Module], seed: str) -> Iterator[None]:
    """Activate dropout layers with a seed, and restore them and torch's generators afterwards."""
    if not dropout:
        yield
        return
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(random.Random(seed).getrandbits(63))
        try:
            for layer in dropout:
                layer.train()
            yield
        finally:
            for layer in dropout:
                layer.eval()


def _checked(logits: Any, prepared: Prepared) -> Tensor:
    expected = (1, len(prepared.base.card.class_names))
    if isinstance(logits, Tensor) and tuple(logits.shape) == expected:
        return logits
    output = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
    raise ModelError(f"the model {prepared.base.card.name} returned {output}: expected one logit for each of its classes")


class _OpenSlides:
    """A cache of the most recently read slides, kept open."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, float | None], Slide] = {}

    def open(self, example: Example) -> Slide:
        """The slide of an example."""
        if not isinstance(example.source, str | os.PathLike):
            return as_slide(example.source, example.mpp)
        key = os.fspath(example.source), example.mpp
        slide = self._open.pop(key, None) or open_slide(*key)
        self._open[key] = slide
        if len(self._open) > _OPEN:
            self._open.pop(next(iter(self._open))).close()
        return slide

    def close(self) -> None:
        """Close them all."""
        for slide in self._open.values():
            slide.close()
        self._open.clear()
