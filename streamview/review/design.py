"""Who reads what in which order, with or without the network's answer. Pure.

A *step* is one reading of one case by one reader: ``unaided``, or ``aided`` with the network's answer in sight. A
crossover has two periods, with each case once in each, aided in one and unaided in the other; the other designs have one.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from streamview.errors import ReviewError
from streamview.review.reads import Modality

__all__ = ["DESIGNS", "Design", "Modality", "Step", "worklist"]

Design = Literal["staged", "concurrent", "crossover", "unaided"]
DESIGNS: tuple[Design, ...] = get_args(Design)


@dataclass(frozen=True, slots=True)
class Step:
    """One reading of one case.

    Parameters
    ----------
    case
        Its id in the session.
    modality
        Whether the network's answer is in sight.
    period
        1, or in a crossover also 2.
    """

    case: str
    modality: Modality
    period: int = 1


def worklist(design: Design, cases: Sequence[str], reader: int, readers: int, seed: int) -> tuple[Step, ...]:
    """Return the steps of a reader in their order.

    Every reader has an order of their own, which depends on the seed alone. Staged: each case unaided, then at once aided. Concurrent: each
    case aided. Unaided: each case without the network. Crossover: half the cases aided in the first period and the others unaided, and the
    other way round in the second; readers of even and odd number begin with different halves, so that every case is read both ways round.

    Parameters
    ----------
    design
        Of the session.
    cases
        Their ids.
    reader
        Number of the reader, from 0.
    readers
        How many there are.
    seed
        Of the session.

    Raises
    ------
    ReviewError
        When the design is unknown, or a crossover has fewer than two cases.
    """
    if design not in DESIGNS:
        raise ReviewError(f"the design {design!r}: expected one of {', '.join(DESIGNS)}")
    if not 0 <= reader < readers:
        raise ReviewError(f"reader {reader} of {readers}: expected a number from 0")
    order = _shuffled(cases, f"{seed}/{reader}/1")
    if design == "concurrent":
        return tuple(Step(case, "aided") for case in order)
    if design == "unaided":
        return tuple(Step(case, "unaided") for case in order)
    if design == "staged":
        return tuple(Step(case, modality) for case in order for modality in get_args(Modality))
    if len(cases) < 2:
        raise ReviewError("a crossover: expected two cases or more")
    halves = _shuffled(cases, f"{seed}/halves")
    half = set(halves[: len(halves) // 2]) if reader % 2 == 0 else set(halves[len(halves) // 2 :])
    first = [Step(case, "aided" if case in half else "unaided", 1) for case in order]
    second = [Step(case, "unaided" if case in half else "aided", 2) for case in _shuffled(cases, f"{seed}/{reader}/2")]
    return (*first, *second)


def _shuffled(cases: Sequence[str], key: str) -> list[str]:
    """The cases in an order that depends on the key alone, on every machine and version."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    order = sorted(cases)
    random.Random(number).shuffle(order)
    return order
