"""What one reader answered for one case, once: the input of every statistic of a review."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from streamview.errors import ReviewError

__all__ = ["Modality", "Read", "Truth", "as_classes", "group_reads"]

Modality = Literal["unaided", "aided"]
Truth = Mapping[str, str | None]
"""From case to its true class; None where it is unknown."""


@dataclass(frozen=True, slots=True)
class Read:
    """One reader's answer for one case.

    Parameters
    ----------
    reader, case
        Their ids.
    modality
        ``"unaided"``: before or without the network's output. ``"aided"``: with it.
    verdict
        The answered class.
    score
        Confidence or rating; higher means more likely positive. None if not given.
    seconds
        Reading time in seconds; None if not measured.

    Raises
    ------
    ReviewError
        If the modality is unknown, the score is not finite, or the time is negative or not finite.

    Examples
    --------
    >>> from streamview.review.reads import Read
    >>> Read("reader-1", "case-7", "aided", "lesion", score=80, seconds=41.5).verdict
    'lesion'
    """

    reader: str
    case: str
    modality: Modality
    verdict: str
    score: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.modality not in get_args(Modality):
            raise ReviewError(f"{self.place}: modality {self.modality!r}; expected unaided or aided")
        if self.score is not None and not math.isfinite(self.score):
            raise ReviewError(f"{self.place}: score {self.score}; expected a finite number, or None where there is no score")
        if self.seconds is not None and not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise ReviewError(f"{self.place}: {self.seconds} seconds; expected 0 or more, or None where no time was measured")

    @property
    def place(self) -> str:
        """Reader and case, as messages name them."""
        return f"reader {self.reader}, case {self.case}"


def group_reads(reads: Iterable[Read]) -> dict[tuple[str, Modality], dict[str, Read]]:
    """Group reads by reader and modality, unaided first, then by case; readers and cases in the order of ids.

    Raises
    ------
    ReviewError
        If a reader has two reads of one case in one modality.
    """
    groups: dict[tuple[str, Modality], dict[str, Read]] = {}
    for read in sorted(reads, key=lambda read: (read.reader, read.modality != "unaided", read.case)):
        group = groups.setdefault((read.reader, read.modality), {})
        if read.case in group:
            raise ReviewError(f"{read.place}: two {read.modality} reads; expected one, so pass the final one alone")
        group[read.case] = read
    return groups


def as_classes(positive: str | Collection[str]) -> frozenset[str]:
    """Return one class name, or several, as a set."""
    return frozenset([positive] if isinstance(positive, str) else positive)
