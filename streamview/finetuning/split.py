"""Split regions into training and validation by patient, reproducibly from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamview.errors import LabelError
from streamview.labels.regions import Example

if TYPE_CHECKING:
    from streamview.networks.cards import Task

__all__ = ["CASES", "Split", "batches", "divide", "scarcity"]

CASES = 10
"""Patients per class below which fine-tuning is refused unless forced."""


@dataclass(frozen=True, slots=True)
class Split:
    """Indices of the training and validation examples."""

    train: tuple[int, ...]
    validation: tuple[int, ...]


def divide(examples: Sequence[Example], share: float, seed: int, task: Task = "class") -> Split:
    """Split examples by patient: as they state, or by drawing a share of the patients of every combination of labels.

    Parameters
    ----------
    examples
        All or none of them state a split.
    share
        Share of the patients for validation; unless 0, at least one of every combination of labels with two or more patients.
    seed
        Seed of the draw; the order of the examples does not matter.
    task
        Task of the network. Regression is not stratified; multilabel combinations of only one patient are pooled.

    Raises
    ------
    LabelError
        If a patient is on both sides, some examples state no split, or one side would be empty although it is required.
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
            f"{len(cases)} patients cannot be split so that one is left for validation and every label for training; label regions of "
            "more patients, or set the validation share to 0, which leaves the network without validation"
        )
    return Split(*(tuple(i for i, e in enumerate(examples) if (e.case in validating) is side) for side in (False, True)))


def _stated(examples: Sequence[Example]) -> Split:
    missing = [example for example in examples if not example.split]
    if missing:
        raise LabelError(f"{missing[0]} states no split, but others do; expected train or validation for every region, or for none")
    sides: dict[str, set[str]] = {}
    for example in examples:
        sides.setdefault(example.case, set()).add(example.split)
    both = [case for case, splits in sides.items() if len(splits) > 1]
    if both:
        raise LabelError(f"patient {both[0]!r} is in both splits, train and validation; put all regions of a patient on one side")
    split = Split(*(tuple(i for i, e in enumerate(examples) if e.split == side) for side in ("train", "validation")))
    if not split.train:
        raise LabelError("no region is in the split train; expected one or more")
    return split


def batches(split: Split, size: int, seed: int, epoch: int) -> list[tuple[int, ...]]:
    """Return the shuffled training examples of an epoch in batches; the last may be smaller."""
    order = list(split.train)
    random.Random(f"{seed} {epoch}").shuffle(order)
    return [tuple(order[start : start + size]) for start in range(0, len(order), size)]


def scarcity(examples: Sequence[Example], *, regression: bool) -> str | None:
    """Name the labels with fewer than ten patients (for regression: the table, if it has fewer); None if there are none."""
    labels = {""} if regression else {part.strip() for example in examples for part in example.label.split(";") if part.strip()}
    scarce = []
    for label in sorted(labels):
        count = len({e.case for e in examples if regression or label in map(str.strip, e.label.split(";"))})
        if count < CASES:
            scarce.append(f"{label or 'the table'} has {count}")
    return f"patients: {', '.join(scarce)}" if scarce else None
