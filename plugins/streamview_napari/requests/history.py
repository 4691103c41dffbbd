"""What the user can undo in a window; pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

__all__ = ["History"]

_KEPT = 100  # steps


class History:
    """The latest changes of the user, and how each is undone; what changes while one is undone is no change of the user."""

    def __init__(self) -> None:
        self._steps: deque[tuple[Callable[[], object], object]] = deque(maxlen=_KEPT)
        self._undoing = False

    def add(self, undo: Callable[[], object], of: object = None) -> None:
        """Remember how a change is undone, and of what it is, for `forget`."""
        if not self._undoing:
            self._steps.append((undo, of))

    def undo(self) -> bool:
        """Undo the latest change; return whether there was one."""
        if not self._steps:
            return False
        undo, _ = self._steps.pop()
        self._undoing = True
        try:
            undo()
        finally:
            self._undoing = False
        return True

    def forget(self, of: object) -> None:
        """Forget the changes of something that is gone."""
        self._steps = deque((step for step in self._steps if step[1] is not of), _KEPT)
