"""Read the next part while the current one is processed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from types import TracebackType
from typing import Generic, Self, TypeVar

__all__ = ["ReadAhead"]

Part = tuple[tuple[int, int], tuple[int, int]]
_Read = TypeVar("_Read")


class ReadAhead(Generic[_Read]):
    """Reads parts in a thread, one ahead of the requested one. Use it as a context manager; its thread ends with the context.

    Parameters
    ----------
    fetch
        Reads a part, given its rows and columns; runs in the thread, or in the caller's for a part that was not read ahead. Its
        exceptions are raised by `read` of that part.
    order
        The parts in the expected order of requests.
    """

    def __init__(self, fetch: Callable[[tuple[int, int], tuple[int, int]], _Read], order: Sequence[Part]) -> None:
        self._fetch, self._next = fetch, dict(pairwise(order))
        self._pool = ThreadPoolExecutor(1, "streamview-read")
        self._ahead: tuple[Part, Future[_Read]] | None = None

    def read(self, rows: tuple[int, int], cols: tuple[int, int]) -> _Read:
        """Return the result of `fetch` for these rows and columns, and start reading the next part."""
        part = rows, cols
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] != part:
            ahead[1].cancel()
        result = ahead[1].result() if ahead is not None and ahead[0] == part else self._fetch(rows, cols)
        following = self._next.get(part)
        if following is not None:
            self._ahead = following, self._pool.submit(self._fetch, *following)
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._ahead = None
