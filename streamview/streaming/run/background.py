"""Steps that do what an earlier step did: on even background, where pixels, carries and geometry are the same.

What such a step gives is then handed out again instead of computed: exact, since it would be the same to the last bit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from streamview.streaming.graph import Program
from streamview.streaming.ops.pointwise import Around, Pointwise
from streamview.streaming.schedule import Window

__all__ = ["REMEMBERED", "Repeats", "alike_everywhere", "even"]

_Result = TypeVar("_Result")
REMEMBERED = 4  # deep values wait for rows worth computing, so that steps differ in turn
"""Results that are remembered."""


class Repeats(Generic[_Result]):
    """Results of the latest steps of different geometry, each with what it was computed from."""

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, tuple[Sequence[Tensor | None], _Result]] = OrderedDict()

    def find(self, key: Hashable, given: Sequence[Tensor | None]) -> _Result | None:
        """The result of a step of this geometry, if it was given the same."""
        known = self._known.get(key)
        if known is None or not all(map(_same, known[0], given)):
            return None
        self._known.move_to_end(key)
        return known[1]

    def remember(self, key: Hashable, given: Sequence[Tensor | None], result: _Result) -> None:
        """Keep a result in place of that of the same geometry, or of the one that was not asked for longest."""
        self._known[key] = given, result
        self._known.move_to_end(key)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and a.shape == b.shape and torch.equal(a, b))


def even(pixels: Sequence[Tensor]) -> list[Tensor] | None:
    """The first pixel of each source, (N, C, 1, 1), where all its others are equal to it; None if any differs."""
    found = []
    for part in pixels:
        first = part[:, :, :1, :1]
        # most pieces differ in the corners already
        if not part.numel() or not torch.equal(part[:, :, -1:, -1:], first) or not bool((part == first).all()):
            return None
        found.append(first.clone())
    return found


def alike_everywhere(program: Program, weights: Sequence[Any]) -> bool:
    """Whether all operations do the same wherever a piece lies: windows that slide, and no constant with rows or columns."""
    for number, node in enumerate(program.nodes, len(program.sources)):
        op: Any = program.op(number)
        while isinstance(op, Around):
            op = op.inner
        if not isinstance(op.rows, Window) or not isinstance(op.cols, Window):
            return False
        if isinstance(op, Pointwise) and op.broadcasts and any(n > 1 for w in node.weights for n in _dims(weights[w], op)):
            return False
    return True


def _dims(weight: Tensor, op: Pointwise) -> Sequence[int]:
    """Lengths of a constant along what may be rows or columns."""
    return weight.shape[-2:] if op.inputs is None else weight.shape
