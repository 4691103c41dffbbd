"""The review of a session in a notebook: one reader, one slide at a time, blind until the network's answer has its turn."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from streamview.errors import ReviewError, StreamviewError
from streamview.export.hotspots import Hotspot, find_hotspots, no_hotspots
from streamview.review.blinding import BlindSlide, open_maps
from streamview.review.design import Step
from streamview.review.session import Session, Sight
from streamview.review.sitting import GRACE, Sheet, Sitting
from streamview_jupyter.actions import Action, Decide, Draw, Go, Hold, Judge, Note, Open, Rest, Reveal, Undo, parse_action
from streamview_jupyter.ahead import OpenSlides
from streamview_jupyter.layers import MapLayer
from streamview_jupyter.messages import MessageError
from streamview_jupyter.slide_widget import SlideWidget

__all__ = ["Review"]

_LOG = logging.getLogger(__name__)
_HOTSPOTS = 20  # that are gone through at most
_DRAWN = "#39d353"
_LOST = "{}: a part of it cannot be read; tell whoever leads the session, and go on with another"


class Review(SlideWidget):
    """One reader's part of a session in a notebook; made by `streamview_jupyter.review`.

    The session's file belongs to one thread, that of `_worker`; messages come on others.

    Parameters
    ----------
    session, reader, height, theme
        As `streamview_jupyter.review`.
    """

    _ended = False

    def __init__(self, session: str | os.PathLike[str], reader: str, height: str = "560px", theme: str = "auto") -> None:
        self._name = f"{Path(session).name}, reader {reader}"
        self._turn = self._performed = 0
        self._step: Step | None = None
        self._hotspots: list[Hotspot] = []
        self._countdown: threading.Timer | None = None
        self._opened = OpenSlides()
        self._worker, self._reader = ThreadPoolExecutor(1, "streamview review"), ThreadPoolExecutor(1, "streamview maps")
        super().__init__(height, theme)
        self._show(None, None)
        try:
            self._worker.submit(self._begin, session, reader).result()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Review of {self._name}>"

    def close(self) -> None:
        """Store the time that was not stored yet, and remove it from the page."""
        if self._ended:
            return
        self._ended = True
        self._worker.submit(self._end).result()
        self._worker.shutdown()
        self._reader.shutdown(cancel_futures=True)
        super().close()  # its threads read slides
        self._opened.close()

    # on the threads of messages

    def _answer(self, content: Any) -> dict[str, Any] | None:
        action = parse_action(content)
        if action is not None:
            self._submit(self._perform, action)
            return None
        self._submit(lambda: self._sitting.act())
        return super()._answer(content)

    def _submit(self, work: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # it was closed
            self._worker.submit(work, *arguments)

    def _explain(self, error: Exception) -> str:
        """What is said of an error: that of a file, or of its reader, may name the file."""
        if isinstance(error, MessageError | ReviewError):
            return str(error)
        if not isinstance(error, StreamviewError):
            _LOG.error("unexpected internal error: %s", type(error).__name__)
        slide = self.slide
        return _LOST.format("the slide" if slide is None else slide.name)

    # on the session's thread

    def _begin(self, session: str | os.PathLike[str], reader: str) -> None:
        self._session = Session(session)
        self._sitting = Sitting(self._session.reader(reader))
        self._refresh()

    def _end(self) -> None:
        self._stop_countdown()
        if hasattr(self, "_sitting"):
            with suppress(StreamviewError):
                self._sitting.close()
        if hasattr(self, "_session"):
            self._session.close()

    def _perform(self, action: Action) -> None:
        error = ""
        try:
            if action.turn == self._turn:  # else meant for what was in sight before: a second press of a key, as a rule
                self._do_action(action)
                if isinstance(action, Rest):
                    return
        except Exception as problem:  # noqa: BLE001  # a shell's boundary
            error = _words(problem)
        self._performed += 1
        try:
            self._refresh(error)
        except Exception as problem:  # noqa: BLE001  # the session cannot be read any more
            self._review = self._review | {"performed": self._performed, "error": _words(problem)}

    def _do_action(self, action: Action) -> None:
        sitting = self._sitting
        match action:
            case Decide():
                verdicts = sitting.vocabulary.verdicts
                if not 1 <= action.verdict <= len(verdicts):
                    raise MessageError(f"verdict {action.verdict}: expected 1 to {len(verdicts)}")
                self._decide(verdicts[action.verdict - 1], action.confidence)
            case Note():
                self._write(action.text)
            case Go(way="undone"):
                sitting.next_undone()
            case Go():
                sitting.move(1 if action.way == "next" else -1)
            case Open():
                if action.number >= len(sitting.sheet().rows):
                    raise MessageError(f"slide {action.number + 1}: expected one of the list")
                sitting.open(action.number)
            case Undo():
                self._stop_countdown()
                if not sitting.undo():
                    raise ReviewError("there is no verdict to take back")
            case Hold():
                self._stop_countdown()
            case Reveal():
                self._reveal()
            case Judge():
                if action.hotspot >= len(self._hotspots):
                    raise MessageError(f"hotspot {action.hotspot + 1}: expected one of {len(self._hotspots)}")
                sitting.judge(action.hotspot + 1, action.right)
            case Draw():
                self._draw(action.region)
            case Rest():
                sitting.act()
                sitting.rest(action.view)

    def _decide(self, verdict: str, confidence: int | None) -> None:
        sitting, step = self._sitting, self._sitting.step
        sheet = sitting.sheet()
        if self.slide is None and sheet.sight is not None:
            raise ReviewError(f"{sheet.sight.title} is not shown, and a verdict is of what was seen; go on with another")
        if confidence is None and sitting.vocabulary.confidence:
            confidence = sheet.confidence
        self._stop_countdown()
        sitting.decide(verdict, confidence, sheet.reading.note)
        if sitting.step == step and sitting.sheet().revealing:
            self._countdown = threading.Timer(GRACE, self._submit, (self._count_down, self._turn))
            self._countdown.daemon = True
            self._countdown.start()

    def _count_down(self, turn: int) -> None:
        if self._countdown is not None and turn == self._turn:
            self._perform(Reveal(turn))

    def _stop_countdown(self) -> None:
        if self._countdown is not None:
            self._countdown.cancel()
            self._countdown = None

    def _reveal(self) -> None:
        self._stop_countdown()
        self._sitting.reveal()
        if self.viewport is not None:
            self._sitting.rest(self.viewport)

    def _write(self, text: str) -> None:
        """Store a note, with or without a verdict."""
        if self._step is not None and text != self._sitting.sheet().reading.note:
            self._sitting.remark(text)

    def _draw(self, region: tuple[int, int, int, int] | None) -> None:
        drawn = list(self._sitting.sheet().reading.regions)
        if region is None:
            drawn = drawn[:-1]
        elif self.slide is None:
            raise ReviewError("no slide is in sight")
        else:
            height, width = self.slide.shape
            left, top, right, bottom = region[0], region[1], min(region[0] + region[2], width), min(region[1] + region[3], height)
            if right <= left or bottom <= top:
                raise MessageError("region: expected one inside the slide")
            ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
            geometry = {"type": "Polygon", "coordinates": [ring]}
            drawn.append({"type": "Feature", "geometry": geometry, "properties": {"objectType": "annotation"}})
        self._sitting.draw(drawn)

    # what is shown

    def _refresh(self, error: str = "") -> None:
        """Show what is in sight now. One message: a slide never appears with the panel, or the maps, of another."""
        sheet = self._sitting.sheet()
        with self._changing, self.hold_sync():
            if self._sitting.step != self._step or not self._turn:
                error = self._turn_to(sheet) or error
            self._regions = [_outline(feature) for feature in sheet.reading.regions]
            self._review = self._description(sheet, error)
        upcoming = self._sitting.upcoming()
        if upcoming is not None:
            self._opened.prepare(upcoming)

    def _turn_to(self, sheet: Sheet) -> str:
        """Another step is in sight; return why its slide cannot be shown."""
        self._stop_countdown()
        before, self._step, self._turn, self._hotspots = self._step, self._sitting.step, self._turn + 1, []
        sight, error = sheet.sight, ""
        same = before is not None and self._step is not None and (before.case, before.period) == (self._step.case, self._step.period)
        if not same or self.slide is None or self.layers:
            try:
                self._show(*((None, None) if sight is None else self._opened.get(sight)))
            except StreamviewError as problem:
                error = str(problem)
                self._show(None, None, "" if sight is None else sight.title)
            self.viewport = None if sheet.reading.view is None else list(sheet.reading.view)
        if sight is not None and sight.job is not None and self.slide is not None:
            self._reader.submit(self._read_maps, self._turn, sight, self.slide)
        return error

    def _read_maps(self, turn: int, sight: Sight, slide: BlindSlide) -> None:
        """On a thread of its own: maps and hotspots may take a while, and the reader need not wait for them."""
        layers: list[MapLayer] = []
        hotspots: list[Hotspot] = []
        error = ""
        try:
            for saliency in open_maps(sight) if turn == self._turn else ():
                layers.append(self._make_layer(slide, saliency, None, {}))
                if no_hotspots(saliency) is None:
                    hotspots += find_hotspots(saliency, layers[-1].recipe, _HOTSPOTS, layers[-1].source.shown.glass)
        except Exception as problem:  # noqa: BLE001  # a thread's boundary
            error = self._explain(problem)
        self._submit(self._add_maps, turn, layers, hotspots, error)

    def _add_maps(self, turn: int, layers: list[MapLayer], hotspots: list[Hotspot], error: str) -> None:
        if turn != self._turn:
            return
        for layer in layers:
            self._attach(layer)
        self._hotspots = hotspots[:_HOTSPOTS]
        self._refresh(error or self._review["error"])  # what was said of an action meanwhile stays

    def _description(self, sheet: Sheet, error: str) -> dict[str, Any]:
        """What the browser has to know beside the pixels; nothing that `Sitting.sheet` does not show."""
        vocabulary, reading = self._sitting.vocabulary, sheet.reading
        return {
            "turn": self._turn,
            "performed": self._performed,
            "title": "" if sheet.sight is None else sheet.sight.title,
            "stage": sheet.stage,
            "message": sheet.message,
            "error": error,
            "undone": sheet.undone,
            "verdicts": list(vocabulary.verdicts),
            "steps": vocabulary.confidence,
            "verdict": reading.verdict,
            "confidence": sheet.confidence,
            "note": sheet.reading.note,
            "before": sheet.before,
            "answer": None if sheet.sight is None else sheet.sight.answer,
            "revealing": sheet.revealing,
            "countdown": GRACE if self._countdown is not None else None,
            "rows": [[row.title, row.verdict, row.noted, row.done, row.answer, row.current] for row in sheet.rows],
            "hotspots": [_place(hotspot) | {"right": reading.hotspots.get(number)} for number, hotspot in enumerate(self._hotspots, 1)],
        }


def _words(error: Exception) -> str:
    if isinstance(error, StreamviewError):
        return str(error)
    _LOG.error("unexpected internal error: %s", type(error).__name__)
    return f"unexpected internal error ({type(error).__name__}): nothing was stored"


def _outline(feature: Any) -> dict[str, Any]:
    return {"name": "", "colour": _DRAWN, "points": [list(point) for point in feature["geometry"]["coordinates"][0]]}


def _place(hotspot: Hotspot) -> dict[str, Any]:
    ring = hotspot.polygon.exterior
    (top, left), (bottom, right) = ring.min(0), ring.max(0)
    size = f"{hotspot.area:.0f} px²" if hotspot.area_mm2 is None else f"{hotspot.area_mm2:.3g} mm²"
    return {"box": [float(left), float(top), float(right - left), float(bottom - top)], "text": f"{size} · {hotspot.mass:.0%}"}
