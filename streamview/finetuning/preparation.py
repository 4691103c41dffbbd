"""Check and prepare the inputs of fine-tuning, without changing the base network."""

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
from streamview.finetuning.ranks import current_ranks
from streamview.finetuning.settings import Augmentation, Settings
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
_ROWS = 256  # rows of a step, for its buffers
_SIDES = 8  # ways to rotate and mirror a region
_SLOTS = {"adam": 2, "sgd": 1}  # tensors of the optimiser per weight


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """The checked inputs of fine-tuning.

    Parameters
    ----------
    base
        The model, with a new head if requested; never changed.
    module
        A copy of its network on `device`, in eval mode; the parameters `names` require gradients.
    names
        Names of the trained parameters.
    dropout
        Dropout layers that are active during training.
    examples, targets, shapes
        Labelled regions, their targets, and their (height, width) in px of the network's grid.
    split
        Indices for training and validation.
    objective
        The loss.
    settings, device, tile
        As passed to `prepare`.
    making
        All inputs that determine the result, as JSON.
    cached
        Whether features are computed once and kept.
    kept_bytes
        Bytes of gradients, optimiser, best weights and cached features.
    limit_bytes
        Memory limit of the process; None: half of the free memory.
    doubt
        Why the metrics on the validation regions are unreliable; empty if no reason is known.
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
        """Type of weights, pixels and gradients."""
        return next(p.dtype for p in self.module.parameters() if p.is_floating_point())

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The trained parameters, by name."""
        parameters = dict(self.module.named_parameters())
        return {name: parameters[name] for name in self.names}

    @property
    def largest(self) -> tuple[int, int]:
        """Height and width of the region with the most pixels."""
        return max(self.shapes, key=lambda shape: (shape[0] * shape[1], shape))

    @property
    def reserve(self) -> int:
        """Bytes for decoding tiles and for buffers of rows."""
        return _DECODING + 24 * _ROWS * self.largest[1]

    def budget(self) -> int:
        """Bytes by which a pass may now grow.

        Raises
        ------
        MemoryBudgetError
            If nothing is left for it.
        """
        return_freed_blocks()  # memory freed earlier would count against the limit
        if self.limit_bytes is None:
            sharing = current_ranks().count if self.device.type == "cpu" else 1  # processes that share the memory
            return max(1, free_memory_of(self.device) // (2 * sharing) - self.kept_bytes)
        needed = self.base_bytes() + self.kept_bytes + self.reserve
        if needed >= self.limit_bytes:
            remedy = "give more memory, or train a smaller part"
            raise MemoryBudgetError(
                f"memory {format_bytes(self.limit_bytes)}: the process needs {format_bytes(needed)} before the first step; {remedy}"
            )
        return self.limit_bytes - needed

    def base_bytes(self) -> int:
        """Bytes resident in the process now (on CUDA: reserved on the device)."""
        return reserved_memory(self.device) if self.device.type == "cuda" else resident_memory()

    def streamed(self, budget: int) -> Streamed:
        """The network in its current mode, streamed within a budget."""
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
    """Check model, examples and settings before any long work.

    Parameters
    ----------
    model, examples, settings, memory, tile, device, force, new_head
        As for `streamview.finetuning.finetune`.

    Raises
    ------
    StreamviewError
        As `streamview.finetuning.finetune` before training starts.
    """
    as_model(model)
    if not examples:
        raise LabelError("there are no labelled regions; expected some of every class")
    where = find_device(device)
    base = with_classes(model, _new_classes(examples, model.card.task), settings.seed) if new_head else model
    targets = find_targets(examples, base.card)
    _refuse_one_class(examples)
    examples = unite_slides(examples, *identify_slides(examples))
    split = divide(examples, settings.validation, settings.seed, base.card.task)
    scarce = scarcity(examples, regression=base.card.task == "regression")
    if scarce and not force:
        counts = f"{scarce} (without patient_id a slide counts as one); expected {CASES} or more of each"
        raise LabelError(f"{counts}: with fewer the result mostly reflects chance (--force trains anyway)")
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
    kept_bytes = trained * (2 + _SLOTS[settings.optimiser])
    features = _feature_bytes(module, shapes) * (_SIDES if settings.flips else 1)
    limit = None if memory is None else parse_bytes(memory, total_memory(where))
    room = free_memory_of(where) // 4 if limit is None else limit // 4
    cached = settings.train == "head" and settings.jitter == 0 and settings.augmentation == Augmentation() and features <= room
    return Prepared(
        base, module, names, tuple(head_dropout(module)), tuple(examples), targets, shapes, split, objective, settings, where, tile,
        making, cached, kept_bytes + (features if cached else 0), limit, doubt,
    )  # fmt: skip


def _new_classes(examples: Sequence[Example], task: Task) -> list[str]:
    """The classes of a new head: all that occur in the labels."""
    if task == "regression":
        raise LabelError("a new head is for classes, but this network is a regression; leave out --new-head, or give another --card")
    labels = [example.label.split(";") if task == "multilabel" else [example.label] for example in examples]
    return sorted({part.strip() for parts in labels for part in parts if part.strip()})


def _check_classes(examples: Sequence[Example], split: Split) -> str:
    """Reject a training split without one of the classes; return a warning if the validation split lacks one."""
    training, validation = ({examples[i].label for i in part} for part in (split.train, split.validation))
    absent = sorted(validation - training)
    if absent or len(training) < 2:
        content = f"no region of {absent[0]!r}" if absent else f"nothing but {examples[split.train[0]].label!r}"
        raise LabelError(f"the training split holds {content}; label regions of more patients, or split them with a column split")
    missing = sorted(training - validation) if validation else []
    if not missing:
        return ""
    return f"the validation split holds no region of {', '.join(missing)}, so its metrics say little; label regions of more patients"


def _refuse_small(module: nn.Module, examples: Sequence[Example], shapes: Sequence[tuple[int, int]]) -> None:
    """Reject regions that are too small for the network."""
    graph = capture(module, channels=3)
    for shape in sorted(set(shapes)):
        try:
            bind(graph, shape)
        except RegionError as error:
            raise RegionError(f"{examples[shapes.index(shape)]}: {error}") from None


def _refuse_one_class(examples: Sequence[Example]) -> None:
    labels = {example.label for example in examples}
    if len(labels) == 1:
        raise LabelError(f"all {len(examples)} regions are labelled {labels.pop()!r}; expected two or more different labels")


def _look(examples: Sequence[Example], model: Model) -> tuple[tuple[tuple[int, int], ...], list[str]]:
    """Open every slide once: return each region's size on the network's grid, and the slides' identities."""
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
    """Bytes of the head's inputs for all regions."""
    graph = capture(module, channels=3)
    total = 0
    for shape in shapes:
        bound = bind(graph, shape)
        for sink in graph.head.takes:
            if isinstance(sink, Sink) and sink.kind != "shape":
                channels, (height, width) = gathered(bound, sink)
                total += 8 * channels * height * width
    return total
