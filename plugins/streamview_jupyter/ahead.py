"""The slides of a session that are open: the one in sight, the one before, and the next, so that its picture comes at once."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from streamview.errors import StreamviewError
from streamview.review.blinding import BlindSlide, open_blind
from streamview.review.session import Sight
from streamview_jupyter.messages import SLIDE, Tile
from streamview_jupyter.sources import SLIDE_TILE, SlidePixels

__all__ = ["OpenSlides"]

_MOST = 3  # slides that are open at a time
_READY = 1024  # px a side that are read ahead of a slide as a whole

Opened = tuple[BlindSlide, SlidePixels]


class OpenSlides:
    """Opens slides under their titles, in one thread: to open one changes the filters of warnings, which all threads share."""

    def __init__(self) -> None:
        self._opened: OrderedDict[str, Future[Opened]] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, "streamview slides")

    def prepare(self, sight: Sight) -> Future[Opened]:
        """Begin to open a slide and to read it as a whole, unless it is open; of more than three the one asked for first is closed."""
        opened = self._opened.pop(sight.title, None)
        if opened is None or (opened.done() and opened.exception() is not None):
            opened = self._thread.submit(_open, sight)
        self._opened[sight.title] = opened
        while len(self._opened) > _MOST:
            self._thread.submit(_close, self._opened.popitem(last=False)[1])
        return opened

    def get(self, sight: Sight) -> Opened:
        """Return an open slide and its tiles.

        Raises
        ------
        ReviewError
            When it cannot be opened; the text has the title alone.
        """
        return self.prepare(sight).result()

    def close(self) -> None:
        """Close all, when no reads are under way."""
        while self._opened:
            self._thread.submit(_close, self._opened.popitem()[1])
        self._thread.shutdown()


def _open(sight: Sight) -> Opened:
    slide = open_blind(sight)
    pixels = SlidePixels(slide)
    factor = 2 ** max(0, (max(slide.shape) - 1) // _READY).bit_length()
    level = max(0, pixels.levels - factor.bit_length() + 1)
    rows, columns = (-(-side // (SLIDE_TILE * factor)) for side in slide.shape)
    with suppress(StreamviewError):  # a part that cannot be read is said when it is in sight
        for row in range(rows):
            for column in range(columns):
                pixels.tile(Tile(SLIDE, 0, level, row, column))
    return slide, pixels


def _close(opened: Future[Opened]) -> None:
    with suppress(StreamviewError):
        opened.result()[0].close()
