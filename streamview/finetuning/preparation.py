"""Everything that is checked and chosen before fine-tuning begins, and nothing of it changes a network."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from streamview.errors import LabelError, MemoryBudgetError, RegionError, SlideError
from streamview.finetuning.objective import Objective, make_objective
from streamview.finetuning.parts import choose_weights, head_dropout
from streamview.finetuning.settings import Settings
from streamview.finetuning.split import CASES, Split, divide, scarcity
from streamview.labels.regions import Example, find_targets, identify_slides, labels_digest, unite_slides
from streamview.networks import Model, as_model
from streamview.networks.cards import Task
from streamview.networks.heads import with_classes
from streamview.slides.sampling import Sampler
from streamview.streaming import Streamed, stream
from streamview.streaming.capture.capture import capture
from streamview.streaming.cuda import free_memory_of, reserved_memory
from streamview.streaming.graph import Sink, bind, gathered
from streamview.streaming.memory import format_bytes, parse_bytes, return_freed_blocks
from streamview.system.machine import find_device, resident_memory, total_memory

__all__ = ["Prepared", "prepare"]

_DECODING = 128 << 20  # bytes for decoding tiles
_ROWS = 256  # of a step, for the buffers of rows
_SIDES = 8  # ways to turn and mirror a region
_SLOTS = {"adam": 2, "sgd": 1}  # tensors that an optimiser keeps for a weight


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """What fine-tuning works with.

    Parameters
    ----------
    base
        The model, with a fresh head where that was asked for; never changed.
    module
        A copy of its network on `device`, in eval mode; the parameters `names` require gradients.
    names
        Of the parameters that are trained.
    dropout
        Layers that draw during training.
    examples, targets, shapes
        Labelled regions, what should be answered, and (height, width) in px of the network's grid.
    split
        Which of them train and which validate.
    objective
        The loss.
    settings, device, tile
        As given.
    making
        All that decides the result, as JSON.
    cached
        Whether features are computed once and kept.
    kept_bytes
        What gradients, the optimiser, the best weights and cached features take.
    limit_bytes
        Bound on the memory of the process; None: half of what is free may be taken.
    doubt
        What makes the figures on the validation regions doubtful, for people; empty: nothing that is known.
    """

    base: Model
    module: nn.Module
    names: tuple[str, ...]
    dropout: tuple[nn.Module, ...]
    examples: tuple[Example, ...]
    targets: NDArray[np.float64] | NDArray[np.int64]
    shapes: tuple[tuple[int, int], ...]
    split: Split
    objective: Objective
    settings: Settings
    device: torch.device
    tile: tuple[int, int] | None
    making: Mapping[str, Any]
    cached: bool
    kept_bytes: int
    limit_bytes: int | None
    doubt: str

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, pixels and gradients."""
        return next(p.dtype for p in self.module.parameters() if p.is_floating_point())

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        found = dict(self.module.named_parameters())
        return {name: found[name] for name in self.names}

    @property
    def largest(self) -> tuple[int, int]:
        """Height and width of the region with the most pixels."""
        return max(self.shapes, key=lambda shape: (shape[0] * shape[1], shape))

    @property
    def reserve(self) -> int:
        """Bytes for decoding, and for rows as they are read."""
        return _DECODING + 24 * _ROWS * self.largest[1]

    def budget(self) -> int:
        """Bytes by which a pass may grow now.

        Raises
        ------
        MemoryBudgetError
            When nothing is left for it.
        """
        return_freed_blocks()  # what earlier work of the process freed would count against the limit
        if self.limit_bytes is None:
            return max(1, free_memory_of(self.device) // 2 - self.kept_bytes)
        needed = self.base_bytes() + self.kept_bytes + self.reserve
        if needed >= self.limit_bytes:
            remedy = "give more, or train a smaller part"
            raise MemoryBudgetError(
                f"memory {format_bytes(self.limit_bytes)}: the process needs {format_bytes(needed)} before the first step; {remedy}"
            )
        return self.limit_bytes - needed

    def base_bytes(self) -> int:
        """Bytes resident in the process now (on CUDA: reserved on the device)."""
        return reserved_memory(self.device) if self.device.type == "cuda" else resident_memory()

    def streamed(self, budget: int) -> Streamed:
        """The network in its present mode, streamed within a budget."""
        return stream(self.module, memory=budget, tile=self.tile)


def prepare(
    model: Model,
    examples: Sequence[Example],
    settings: Settings,
    *,
    memory: str | int | None = None,
    tile: tuple[int, int] | None = None,
    device: str = "auto",
    force: bool = False,
    new_head: bool = False,
) -> Prepared:
    """Check that model, examples and settings fit together, before anything long begins.

    Parameters
    ----------
    model, examples, settings, memory, tile, device, force, new_head
        As for `streamview.finetuning.finetune`.

    Raises
    ------
    StreamviewError
        As `streamview.finetuning.finetune`, but for what happens during training.
    """
    as_model(model)
    if not examples:
        raise LabelError("there is no labelled region; expected some of every class")
    where = find_device(device)
    base = with_classes(model, _new_classes(examples, model.card.task), settings.seed) if new_head else model
    targets = find_targets(examples, base.card)
    _refuse_one_class(examples)
    examples = unite_slides(examples, *identify_slides(examples))
    split = divide(examples, settings.validation, settings.seed, base.card.task)
    scarce = scarcity(examples, regression=base.card.task == "regression")
    if scarce and not force:
        said = f"{scarce} (without patient_id a slide counts as one); expected {CASES} or more of each"
        raise LabelError(f"{said}: what is learned from fewer is chance (--force trains anyway)")
    training = targets[list(split.train)]
    doubt = _check_classes(examples, split) if base.card.task == "class" else ""
    shapes, identities = _look(examples, base)
    module = copy.deepcopy(base.module).to(where).eval()
    _refuse_small(module, examples, shapes)
    names = choose_weights(module, settings.train, max(shapes))
    module.requires_grad_(False)
    for name, parameter in module.named_parameters():
        if name in names:
            parameter.requires_grad_(True)
    objective = make_objective(base.card.task, training, len(base.card.class_names), balanced=settings.class_weights)
    making = {
        "base": model.sha256,
        "card": model.card.sha256,
        "classes": list(base.card.class_names),
        "labels": labels_digest(examples),
        "slides": hashlib.sha256("\n".join(sorted(set(identities))).encode()).hexdigest(),
        "settings": asdict(settings),
        "device": where.type,
        "tile": tile,
    }
    trained = sum(p.nbytes for name, p in module.named_parameters() if name in names)
    kept = trained * (2 + _SLOTS[settings.optimiser])
    features = _feature_bytes(module, shapes) * (_SIDES if settings.flips else 1)
    limit = None if memory is None else parse_bytes(memory, total_memory(where))
    room = free_memory_of(where) // 4 if limit is None else limit // 4
    cached = settings.train == "head" and settings.jitter == 0 and features <= room
    return Prepared(
        base, module, names, tuple(head_dropout(module)), tuple(examples), targets, shapes, split, objective, settings, where, tile,
        making, cached, kept + (features if cached else 0), limit, doubt,
    )  # fmt: skip


def _new_classes(examples: Sequence[Example], task: Task) -> list[str]:
    """The classes of a fresh head: all that the labels name."""
    if task == "regression":
        raise LabelError("a new head is for classes, and this network is a regression; leave --new-head out, or give another --card")
    labels = [example.label.split(";") if task == "multilabel" else [example.label] for example in examples]
    return sorted({part.strip() for parts in labels for part in parts if part.strip()})


def _check_classes(examples: Sequence[Example], split: Split) -> str:
    """Refuse a training split that lacks a class; say where the validation split does."""
    training, validation = ({examples[i].label for i in part} for part in (split.train, split.validation))
    absent = sorted(validation - training)
    if absent or len(training) < 2:
        found = f"no region of {absent[0]!r}" if absent else f"nothing but {examples[split.train[0]].label!r}"
        raise LabelError(f"the training split holds {found}; label regions of more patients, or divide them with a column split")
    missing = sorted(training - validation) if validation else []
    return f"no region of {', '.join(missing)} validates, so the figures say little; label regions of more patients" if missing else ""


def _refuse_small(module: nn.Module, examples: Sequence[Example], shapes: Sequence[tuple[int, int]]) -> None:
    """Name the region that is too small for the network."""
    graph = capture(module, channels=3)
    for shape in sorted(set(shapes)):
        try:
            bind(graph, shape)
        except RegionError as error:
            raise RegionError(f"{examples[shapes.index(shape)]}: {error}") from None


def _refuse_one_class(examples: Sequence[Example]) -> None:
    labels = {example.label for example in examples}
    if len(labels) == 1:
        raise LabelError(f"all {len(examples)} regions are labelled {labels.pop()!r}; expected two different labels or more to learn from")


def _look(examples: Sequence[Example], model: Model) -> tuple[tuple[tuple[int, int], ...], list[str]]:
    """Open every slide once: the size of each region on the network's grid, and what identifies the slides."""
    shapes: dict[int, tuple[int, int]] = {}
    identities = []
    slides: dict[object, list[int]] = {}
    for index, example in enumerate(examples):
        key = id(example.source) if not isinstance(example.source, str) else example.source
        slides.setdefault((key, example.mpp), []).append(index)
    for indices in slides.values():
        with examples[indices[0]].open() as slide:
            identities.append(slide.identity)
            for index in indices:
                try:
                    shapes[index] = Sampler(slide, examples[index].region, model.card.mpp).shape
                except (RegionError, SlideError) as error:
                    raise type(error)(f"{examples[index]}: {error}") from None
    return tuple(shapes[index] for index in range(len(examples))), identities


def _feature_bytes(module: nn.Module, shapes: Sequence[tuple[int, int]]) -> int:
    """Bytes of what the head takes of all regions."""
    graph = capture(module, channels=3)
    total = 0
    for shape in shapes:
        bound = bind(graph, shape)
        for sink in graph.head.takes:
            if isinstance(sink, Sink) and sink.kind != "shape":
                channels, (height, width) = gathered(bound, sink)
                total += 8 * channels * height * width
    return total
