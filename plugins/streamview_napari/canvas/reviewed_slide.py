"""The one slide of a session that is on the canvas, its maps when their turn comes, and the next one made ready meanwhile. Without Qt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Layer

from streamview.review.session import Sight
from streamview_napari.canvas.ready_slide import ReadySlide, open_answers, open_slide_of

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

    from streamview.progress import Report
    from streamview_napari.canvas.display import ReadyMap
    from streamview_napari.requests.answers import Answer
    from streamview_napari.state import State
    from streamview_napari.tasks import Work

__all__ = ["ReviewedSlide"]

Place = tuple[str, str]
"""Title and file of a sight: what tells slides apart."""


class ReviewedSlide:
    """Brings slides onto the canvas one at a time: the layers of the one before go with it.

    Parameters
    ----------
    viewer, state
        Of the window.
    shown
        Called with the slide's layer when it is there.
    failed
        Called with what went wrong, in words that name no slide.
    """

    def __init__(
        self,
        viewer: ViewerModel,
        state: State,
        *,
        shown: Callable[[Image], None],
        failed: Callable[[str], None],
    ) -> None:
        self._viewer, self._state = viewer, state
        self._shown, self._failed = shown, failed
        self._wanted: Sight | None = None
        self._on_canvas: ReadySlide | None = None
        self._answers_of: Sight | None = None  # whose maps are on the canvas, or being read
        self._coming: dict[Place, Work] = {}
        self._ready: dict[Place, ReadySlide] = {}
        self._next: Place | None = None  # of the slide to have ready
        self._view: Sequence[float] | None = None
        self.layer: Image | None = None

    def show(self, sight: Sight | None, view: Sequence[float] | None = None) -> None:
        """Show what a step may see; None clears the canvas.

        Parameters
        ----------
        sight
            The step's. The same slide stays where it is, and its maps come, or go, with the answer.
        view
            ``(x, y, width, height)`` in level-0 px to look at; None: all of it.
        """
        self._wanted, self._view = sight, view
        if sight is None:
            self._clear()
            return
        if self._on_canvas is not None and _place(self._on_canvas.sight) == _place(sight):
            self._show_answers()
            return
        ready = self._ready.pop(_place(sight), None)
        if ready is not None:
            self._put(ready)
        else:
            self._clear()
            self._open(sight)

    def prepare(self, sight: Sight | None) -> None:
        """Have the next slide ready; what else was made ready is let go."""
        self._next = None if sight is None else _place(sight)
        for place in [place for place in self._ready if place != self._next]:
            self._let_go(self._ready.pop(place))
        if sight is not None and self._next not in self._ready:
            self._open(sight)

    def view(self) -> tuple[float, float, float, float] | None:
        """Return what is in sight, ``(x, y, width, height)`` in level-0 px; None without a slide."""
        if self.layer is None:
            return None
        _, y, x = self._viewer.scene.camera.center
        scale = np.asarray(self.layer.scale[-2:], float)
        height, width = np.asarray(self._viewer.canvas.size, float) / self._viewer.scene.camera.zoom / scale
        return float(x / scale[1] + 0.5 - width / 2), float(y / scale[0] + 0.5 - height / 2), float(width), float(height)

    def close(self) -> None:
        """Take everything off the canvas."""
        self.show(None)
        self.prepare(None)

    def _open(self, sight: Sight) -> None:
        place = _place(sight)
        if place in self._coming:
            return

        def done(ready: ReadySlide) -> None:
            self._coming.pop(place, None)
            if self._wanted is not None and place == _place(self._wanted) and self.layer is None:
                self._put(ready)
            elif place == self._next:
                self._ready[place] = ready
            else:
                self._let_go(ready)

        def failed(text: str) -> None:
            self._coming.pop(place, None)
            if self._wanted is not None and place == _place(self._wanted):
                self._failed(text)

        self._coming[place] = self._state.start(lambda report: open_slide_of(sight), done=done, failed=failed)

    def _put(self, ready: ReadySlide) -> None:
        self._clear()
        data, options, kind = ready.layer
        self._on_canvas = ready
        layer: Image = Layer.create(data, options, kind)
        self.layer = layer
        self._viewer.layers.insert(0, layer)  # below maps, which keep their layers
        if self._view is None:
            self._viewer.reset_view()
        else:
            x, y, width, height = self._view
            scale = np.asarray(layer.scale[-2:], float)
            self._viewer.scene.camera.center = (0.0, (y + height / 2 - 0.5) * scale[0], (x + width / 2 - 0.5) * scale[1])
            self._viewer.scene.camera.zoom = float(min(np.asarray(self._viewer.canvas.size) / (scale * (height, width))))
        self._shown(layer)
        self._show_answers()

    def _show_answers(self) -> None:
        sight, slide = self._wanted, self._on_canvas
        if sight is None or slide is None or sight == self._answers_of:
            return
        self._answers_of = sight
        if sight.job is None:
            self._state.forget_answers()
            return

        def done(answers: list[tuple[Answer, ReadyMap]]) -> None:
            if self._answers_of == sight and self._on_canvas is slide:
                for answer, ready in reversed(answers):  # the first is worked on
                    self._state.answer(answer, ready)

        def failed(text: str) -> None:
            if self._answers_of == sight:
                self._failed(text)

        self._state.start(lambda report: open_answers(sight, slide.slide), done=done, failed=failed)

    def _clear(self) -> None:
        layer, ready, self.layer, self._on_canvas, self._answers_of = self.layer, self._on_canvas, None, None, None
        self._state.forget_answers()
        if layer is not None and layer in self._viewer.layers:
            self._viewer.layers.remove(layer)
        if ready is not None:
            self._let_go(ready)

    def _let_go(self, ready: ReadySlide) -> None:
        """Close a slide when no thread reads it any more, without waiting for that."""

        def close(report: Report | None = None) -> None:
            ready.layer[1]["metadata"]["streamview"].tiles.stop()
            ready.slide.close()

        if self._state.closed:
            close()
        else:
            self._state.start(close, done=lambda nothing: None, failed=lambda text: None)  # no reader can mend a file that stays open


def _place(sight: Sight) -> Place:
    return sight.title, sight.source
