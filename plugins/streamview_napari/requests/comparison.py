"""Base and tuned network beside each other: figures and answers of the validation regions; pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.special import expit, softmax

from streamview.results import RESEARCH_USE

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from streamview.evaluation import Figure, Metrics
    from streamview.finetuning import FinetuneResult
    from streamview.labels.regions import Example
    from streamview.networks.cards import ModelCard

__all__ = ["Answers", "Measured", "compare", "describe_result", "measured"]


@dataclass(frozen=True, slots=True)
class Answers:
    """One validation region: what it is, and what base and tuned network say of it.

    Parameters
    ----------
    example
        The region.
    truth, before, after
        In words.
    was_right, is_right
        Whether they are.
    """

    example: Example
    truth: str
    before: str
    after: str
    was_right: bool
    is_right: bool

    @property
    def became(self) -> Literal["right", "wrong", ""]:
        """How the answer changed, where it did."""
        return "" if self.was_right is self.is_right else "right" if self.is_right else "wrong"


@dataclass(frozen=True, slots=True)
class Measured:
    """One figure of the validation regions.

    Parameters
    ----------
    name
        Of the figure.
    before, after
        Of the base and of the tuned network.
    baseline
        Of an answer without a network; empty where there is none.
    """

    name: str
    before: str
    after: str
    baseline: str


def compare(result: FinetuneResult) -> list[Answers]:
    """Put the answers of base and tuned network for every validation region beside each other."""
    card = result.model.card
    rows = []
    for row in result.rows:
        truth = row.example.label
        (before, was), (after, now) = (_answer(logits, truth, card) for logits in (row.before, row.after))
        rows.append(Answers(row.example, truth.replace(";", ", ") or "none", before, after, bool(was), bool(now)))
    return rows


def describe_result(result: FinetuneResult, rows: Sequence[Answers], out: Path) -> str:
    """Say in a few lines what came out."""
    lines = [f"Epoch {result.best} is kept, in {out.name}." if result.best else f"The base did best; it is what {out.name} holds."]
    if rows and result.model.card.task != "regression":
        before, after = sum(row.was_right for row in rows), sum(row.is_right for row in rows)
        lines.append(f"Of {len(rows)} validation regions {before} were right before, {after} are now.")
    return "\n".join([*lines, *(f"⚠ {warning}" for warning in result.warnings), RESEARCH_USE])


def measured(before: Metrics | None, after: Metrics | None) -> list[Measured]:
    """Put the figures of base and tuned network, and the baseline of each, beside each other."""
    if before is None or after is None:
        return []
    rows = []

    def add(name: str, was: Figure | None, now: Figure | None, baseline: float | None) -> None:
        if was is not None and now is not None:
            rows.append(Measured(name, _number(was.value), _number(now.value), "" if baseline is None else _number(baseline)))

    add("Accuracy", before.accuracy, after.accuracy, after.baseline)
    add("Balanced", before.balanced_accuracy, after.balanced_accuracy, _chance(after))
    for was, now in zip(before.outputs, after.outputs, strict=False):
        add(f"AUC {now.name}", was.auc, now.auc, 0.5)
        add(f"Error {now.name}", was.error, now.error, now.baseline)
        add(f"Spearman {now.name}", was.spearman, now.spearman, 0.0)
    return [*rows, Measured("Loss", _number(before.loss), _number(after.loss), "")]


def _chance(metrics: Metrics) -> float | None:
    there = sum(output.regions > 0 for output in metrics.outputs)
    return 1 / there if there else None


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}" if 0.01 <= abs(value) < 100 or value == 0 else f"{value:.2g}"


def _answer(logits: ArrayLike, truth: str, card: ModelCard) -> tuple[str, bool]:
    """An answer in words, and whether it is right."""
    values = np.asarray(logits, np.float64)
    if card.task == "regression":
        return ", ".join(f"{value:.3g}" for value in values), False
    if card.task == "multilabel":
        present = [name for name, value in zip(card.class_names, values, strict=True) if value >= 0]
        text = ", ".join(f"{name} {expit(value):.0%}" for name, value in zip(card.class_names, values, strict=True) if value >= 0)
        return text or "none", set(present) == {part.strip() for part in truth.split(";") if part.strip()}
    name = card.class_names[int(values.argmax())]
    return f"{name} {softmax(values).max():.0%}", name == truth
