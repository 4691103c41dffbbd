"""The verdicts that a reader may give: the classes of a network, or words of one's own, in order where they have one. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from streamview.errors import ReviewError

__all__ = ["DISAGREEMENT", "Vocabulary"]

_MOST = 9  # verdicts: each has a key
_LONGEST = 60  # characters of a verdict
DISAGREEMENT = ("agree", "disagree", "unsure")
"""The verdicts on a network's answer."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The verdicts of a session.

    Parameters
    ----------
    verdicts
        1 to 9 different words, in the order of their keys; for an ordinal scale from least to most.
    ordinal
        Whether their order means something, such as grades.
    confidence
        Steps of the confidence that goes with a verdict, such as 5; 0: none is asked for.

    Raises
    ------
    ReviewError
        When there are none or too many, or two are alike, empty, too long or of several lines.

    Examples
    --------
    >>> from streamview.review import Vocabulary
    >>> Vocabulary(("benign", "malignant")).verdicts
    ('benign', 'malignant')
    """

    verdicts: tuple[str, ...]
    ordinal: bool = False
    confidence: int = 5

    def __post_init__(self) -> None:
        object.__setattr__(self, "verdicts", tuple(self.verdicts))
        if not 1 <= len(self.verdicts) <= _MOST:
            raise ReviewError(f"{len(self.verdicts)} verdicts: expected 1 to {_MOST}")
        for verdict in self.verdicts:
            if not verdict.strip() or verdict != verdict.strip() or len(verdict) > _LONGEST or not verdict.isprintable():
                raise ReviewError(f"the verdict {verdict!r}: expected a word or some, at most {_LONGEST} characters on one line")
        if len({verdict.casefold() for verdict in self.verdicts}) != len(self.verdicts):
            raise ReviewError(f"the verdicts {', '.join(self.verdicts)}: expected different ones")
        if self.confidence not in (0, *range(2, 11)):
            raise ReviewError(f"confidence in {self.confidence} steps: expected 2 to 10, or 0 for none")

    def check(self, verdict: str, confidence: int | None) -> None:
        """Check a verdict before it is stored.

        Raises
        ------
        ReviewError
            When it is none of these, or its confidence is missing or out of range.
        """
        if verdict not in self.verdicts:
            raise ReviewError(f"the verdict {verdict!r}: expected one of {', '.join(self.verdicts)}")
        if self.confidence and (confidence is None or not 1 <= confidence <= self.confidence):
            raise ReviewError(f"confidence {confidence}: expected 1 to {self.confidence}")
        if not self.confidence and confidence is not None:
            raise ReviewError(f"confidence {confidence}: this session asks for none")

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self) | {"verdicts": list(self.verdicts)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Vocabulary:
        """Inverse of `to_dict`; also what a user writes: ``{"verdicts": ["a", "b"], "ordinal": true, "confidence": 5}``.

        Raises
        ------
        ReviewError
            When a key is unknown or a value of the wrong type, or as `Vocabulary`.
        """
        verdicts: Any = values.get("verdicts")
        words = isinstance(verdicts, list | tuple) and all(isinstance(each, str) for each in verdicts)
        if not words or not set(values) <= {"verdicts", "ordinal", "confidence"}:
            raise ReviewError('a vocabulary: expected {"verdicts": ["benign", "malignant"], "ordinal": false, "confidence": 5}')
        ordinal, confidence = values.get("ordinal", False), values.get("confidence", 5)
        if not isinstance(ordinal, bool) or type(confidence) is not int:
            raise ReviewError("a vocabulary: expected true or false for ordinal, and a whole number for confidence")
        return cls(tuple(verdicts), ordinal, confidence)
