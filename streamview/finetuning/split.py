"""Which regions train and which validate: whole patients, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from streamview.errors import LabelError
from streamview.labels.regions import Example
from streamview.networks.cards import Task

__all__ = ["CASES", "Split", "batches", "divide", "scarcity"]

CASES = 10
"""Patients of every class below which fine-tuning is refused unless it is forced."""


@dataclass(frozen=True, slots=True)
class Split:
    """Indices of the examples that train and of those that validate."""

    train: tuple[int, ...]
    validation: tuple[int, ...]


def divide(examples: Sequence[Example], share: float, seed: int, task: Task = "class") -> Split:
    """Divide examples by patient: as they state it, or a share of the patients of every mix of labels, drawn with a seed.

    Parameters
    ----------
    examples
        All of them, or none, state a split.
    share
        Of the patients that validate; at least one where a mix of labels has two, unless it is 0.
    seed
        Of the draw; the order of the examples does not matter.
    task
        Of the network: values of a regression are not kept apart, and neither are mixes that a multilabel network meets once.

    Raises
    ------
    LabelError
        When a patient stands on both sides, some examples state no split, or none trains or validates although it should.
    """
    if any(example.split for example in examples):
        return _stated(examples)
    cases: dict[str, set[str]] = {}
    for example in examples:
        cases.setdefault(example.case, set()).add("" if task == "regression" else example.label)
    mixes: dict[tuple[str, ...], list[str]] = {}
    for case in sorted(cases):
        mix = tuple(sorted(cases[case]))
        rare = task == "multilabel" and sum(cases[other] == cases[case] for other in cases) == 1
        mixes.setdefault(() if rare else mix, []).append(case)
    draw, validating = random.Random(seed), set[str]()
    for mix in sorted(mixes):
        patients = mixes[mix]
        draw.shuffle(patients)
        count = min(max(1, round(share * len(patients))), len(patients) - 1) if share else 0
        validating.update(patients[:count])
    if share and not validating:
        raise LabelError(
            f"{len(cases)} patients cannot be divided so that one validates and every label still trains; label regions of more patients, "
            "or set the share for validation to 0, which leaves nothing to judge the network by"
        )
    return Split(*(tuple(i for i, e in enumerate(examples) if (e.case in validating) is side) for side in (False, True)))


def _stated(examples: Sequence[Example]) -> Split:
    silent = [example for example in examples if not example.split]
    if silent:
        raise LabelError(f"{silent[0]} states no split, but others do; expected train or validation for every region, or for none")
    sides: dict[str, set[str]] = {}
    for example in examples:
        sides.setdefault(example.case, set()).add(example.split)
    both = [case for case, found in sides.items() if len(found) > 1]
    if both:
        raise LabelError(f"patient {both[0]!r} stands in both splits, train and validation; put all regions of a patient on one side")
    split = Split(*(tuple(i for i, e in enumerate(examples) if e.split == side) for side in ("train", "validation")))
    if not split.train:
        raise LabelError("no region is in the split train; expected some to train with")
    return split


def batches(split: Split, size: int, seed: int, epoch: int) -> list[tuple[int, ...]]:
    """Return the training examples in the order of an epoch, in batches; the last may be smaller."""
    order = list(split.train)
    random.Random(f"{seed} {epoch}").shuffle(order)
    return [tuple(order[start : start + size]) for start in range(0, len(order), size)]


def scarcity(examples: Sequence[Example], *, regression: bool) -> str | None:
    """Say which labels have fewer than ten patients (of a regression: whether there are so few at all); None where all have enough."""
    labels = {""} if regression else {part.strip() for example in examples for part in example.label.split(";") if part.strip()}
    found = []
    for label in sorted(labels):
        count = len({e.case for e in examples if regression or label in map(str.strip, e.label.split(";"))})
        if count < CASES:
            found.append(f"{label or 'the table'} has {count}")
    return f"patients: {', '.join(found)}" if found else None
