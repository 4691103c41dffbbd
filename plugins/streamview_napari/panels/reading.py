"""The section where a session is read: the slide's number, the verdicts, a note, and the way to the next slide."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QSignalBlocker, QTimer, Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QLineEdit,
    QProgressBar,
    QPushButton,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from streamview.errors import StreamviewError
from streamview.labels.annotations import Polygon
from streamview.review import Session
from streamview.review.annotations import is_plain, region_features, region_ring
from streamview.review.design import Step
from streamview.review.session import Reading
from streamview.review.sitting import GRACE, Sheet, Sitting
from streamview_napari.canvas.reader_regions import ReaderRegions
from streamview_napari.canvas.reviewed_slide import ReviewedSlide
from streamview_napari.panels.section import Section, Shortcut, error_label, labelled, plain_table, quiet_label, show_row, show_rows
from streamview_napari.panels.theme import set_role
from streamview_napari.panels.verdicts import VerdictButtons

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

    from streamview_napari.state import State

__all__ = ["ReadingSection"]

_ROWS = 8  # of the table before it scrolls
_NUMBER, _NOTED = 0, 2  # its narrow columns
_SETTLED = 2000  # ms that the view must rest before it is stored
_KEPT_EVERY = 20_000  # ms after which the time is stored
_MOMENT = 0.3  # s
_NOTHING = Sheet(None, "", "", Reading(), None, "", False, 0, ())


class ReadingSection(Section):
    """A session, as one reader reads it."""

    title = "Reading"
    opens = "stays"
    hotspots_called = Signal(object)
    """Emitted with which hotspots of the slide on show the reader called right, by number."""

    def __init__(self, viewer: ViewerModel, state: State) -> None:
        super().__init__(viewer, state)
        self.session: Session | None = None
        self.sitting: Sitting | None = None
        self.verdicts: VerdictButtons | None = None
        self._shown: Step | None = None  # whose note is in the line
        self._sheet = _NOTHING
        self._turned = 0.0  # when another step came into sight, s of the monotonic clock
        self._slide = ReviewedSlide(viewer, state, shown=self._slide_shown, failed=self._fail)
        self._regions = ReaderRegions(viewer, self._drawn)
        self._build_opening()
        self._build_reading()
        self._grace = QTimer(self, singleShot=True, interval=round(1000 * GRACE))
        self._grace.timeout.connect(self.reveal)
        self._settled = QTimer(self, singleShot=True, interval=_SETTLED)
        self._settled.timeout.connect(self._rest)
        self._kept = QTimer(self, interval=_KEPT_EVERY)
        self._kept.timeout.connect(self._keep_time)
        viewer.scene.camera.events.center.connect(self._moved)
        viewer.scene.camera.events.zoom.connect(self._moved)
        viewer.cursor.events.position.connect(self._acted)
        state.events.map_selected.connect(self._map_selected)
        self._show_opening()

    def _build_opening(self) -> None:
        self.open_button = QPushButton("Open a session…")
        self.open_button.setToolTip("A file that was made by `streamview review new`.")
        self.open_button.clicked.connect(self._choose_file)
        set_role(self.open_button, "run")
        self.reader = QComboBox()
        self.begin = QPushButton("Begin")
        self.begin.clicked.connect(lambda: self.read(self.reader.currentText()))
        self.reader_row = labelled("I am", self.reader, self.begin)
        self.column.addWidget(self.open_button)
        self.column.addLayout(self.reader_row)

    def _build_reading(self) -> None:
        self.place = QLabel()
        set_role(self.place, "title")
        self.progress = QProgressBar()
        self.progress.setTextVisible(False)
        self.progress.setFixedHeight(8)
        self.progress.setAccessibleName("Slides read")
        set_role(self.progress, "progress")
        self.stage, self.answer, self.message = quiet_label(), QLabel(), quiet_label()
        self.answer.setWordWrap(True)
        self.verdict_place = QHBoxLayout()
        self.go = QPushButton()
        set_role(self.go, "run")
        self.go.clicked.connect(self.go_on)
        self.note_line = QLineEdit()
        self.note_line.setPlaceholderText("Note")
        self.note_line.setAccessibleName("Note")
        self.note_line.setMaxLength(2000)
        self.note_line.textEdited.connect(self._acted)
        self.note_line.editingFinished.connect(self._noted)
        self.previous = self._button("‹ Previous", "The slide before. Key p", lambda: self.step(-1))
        self.next = self._button("Next ›", "The slide after. Key n", lambda: self.step(1))
        self.next_undone = self._button("Next open", "The next slide that is still to be read. Key u", self.find_undone)
        self.undo_button = self._button("Undo", "Take the last verdict back. Key z", self.undo)
        self.map_shown = QCheckBox("Map")
        self.map_shown.setToolTip("Show the network's map. Key o")
        self.map_shown.setChecked(True)
        self.map_shown.toggled.connect(self._show_map)
        self.draw = QPushButton("Draw")
        self.draw.setCheckable(True)
        self.draw.setToolTip("Draw around an area with the mouse held down; press again to end. Key d")
        self.draw.toggled.connect(self._regions.draw)
        self.table = plain_table(["Slide", "My verdict", "Note", "Network"])
        self.table.setAccessibleName("Slides of the session")
        for column in (_NUMBER, _NOTED):
            self.table.horizontalHeader().setSectionResizeMode(column, QHeaderView.ResizeMode.ResizeToContents)
        self.table.cellClicked.connect(lambda row, column: self._do(lambda sitting: sitting.open(row)))
        self.problem = error_label()
        self.leave = QPushButton("Leave the session")
        set_role(self.leave, "link")
        self.leave.clicked.connect(self.close_session)
        moves, tools = QHBoxLayout(), QHBoxLayout()
        for button in (self.previous, self.next, self.next_undone):
            moves.addWidget(button)
        for tool in (self.undo_button, self.draw, self.map_shown):
            tools.addWidget(tool)
        self.desk = QWidget()
        desk = QVBoxLayout(self.desk)
        desk.setContentsMargins(0, 0, 0, 0)
        parts = (self.place, self.progress, self.stage, self.answer, self.verdict_place, self.go, self.message, self.note_line)
        for part in (*parts, moves, tools, self.table, self.leave):
            if isinstance(part, QWidget):
                desk.addWidget(part)
            else:
                desk.addLayout(part)
        self.column.addWidget(self.desk)
        self.column.addWidget(self.problem)

    def _button(self, text: str, tip: str, act: Callable[[], None]) -> QPushButton:
        button = QPushButton(text)
        button.setToolTip(tip)
        button.clicked.connect(act)
        return button

    def shortcuts(self) -> list[Shortcut]:
        """Keys of a session: they act wherever the focus is, but in the note."""
        first = "The first verdict, and so on to 9; then how sure"
        digits = [Shortcut("", "" if digit != 1 else first, partial(self._press, digit), key=str(digit)) for digit in range(10)]
        return [
            *digits,
            Shortcut("", "Next slide", lambda: self.step(1), key="n"),
            Shortcut("", "Previous slide", lambda: self.step(-1), key="p"),
            Shortcut("", "Next slide that is still to be read", self.find_undone, key="u"),
            Shortcut("", "Show the network's answer; then keep your verdict", self._enter, key="Return"),
            Shortcut("", "Take the last verdict back", self.undo, key="z"),
            Shortcut("", "Show or hide the network's map", self.map_shown.toggle, key="o"),
            Shortcut("", "Draw around an area", self.draw.toggle, key="d"),
            Shortcut("", "Give no verdict after all", self._forget_choice, key="Escape"),
        ]

    def release(self) -> None:
        """Store what was not stored yet, and let go of the viewer."""
        self.close_session()
        self.viewer.scene.camera.events.center.disconnect(self._moved)
        self.viewer.scene.camera.events.zoom.disconnect(self._moved)
        self.viewer.cursor.events.position.disconnect(self._acted)

    # Opening and leaving

    def _choose_file(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Open a session", "", "Sessions (*.sqlite);;All files (*)")
        if path:
            self.open_session(path)

    def open_session(self, path: str | Path, reader: str | None = None) -> None:
        """Open a session's file; ask who reads where that is not said and there are several."""
        self.close_session()
        try:
            self.session = Session(path)
            self.session.store.check()
        except StreamviewError as error:
            self.close_session()
            self._fail(str(error))
            return
        for layer in self.viewer.layers:
            layer.visible = False  # what was open before is no part of the session
        self.problem.hide()
        readers = self.session.readers
        self.reader.clear()
        self.reader.addItems(readers)
        if reader is not None or len(readers) == 1:
            self.read(reader or readers[0])
        else:
            self._show_opening()

    def read(self, reader: str) -> None:
        """Read as one of the readers, from where they left off."""
        if self.session is None:
            return
        try:
            self.sitting = Sitting(self.session.reader(reader))
        except StreamviewError as error:
            self._fail(str(error))
            return
        self.verdicts = VerdictButtons(self.session.vocabulary)
        self.verdicts.decided.connect(self.decide)
        self.verdicts.waiting.connect(self._show_waiting)
        self.verdict_place.addWidget(self.verdicts)
        self._kept.start()
        self.state.warm_up()
        self._show_opening()
        self.show_sheet()

    def close_session(self) -> None:
        """Store what was not stored yet, take the slide off the canvas and close the file."""
        for timer in (self._grace, self._settled, self._kept):
            timer.stop()
        if self.sitting is not None:
            self._noted()
            self._rest()
            self._try(self.sitting.close)
        self._regions.clear()
        self._slide.close()
        if self.session is not None:
            self.session.close()
        if self.verdicts is not None:
            self.verdict_place.removeWidget(self.verdicts)
            self.verdicts.deleteLater()
        self.session = self.sitting = self.verdicts = None
        self._shown = None
        self.note("")
        self._show_opening()

    def _show_opening(self) -> None:
        reading = self.sitting is not None
        self.open_button.setVisible(not reading)
        show_row(self.reader_row, self.session is not None and not reading)
        self.desk.setVisible(reading)

    # What a reader does

    def decide(self, verdict: str, confidence: int | None) -> None:
        """Store a verdict and go on."""
        self._grace.stop()
        note = self.note_line.text().strip()
        if self._do(lambda sitting: sitting.decide(verdict, confidence, note)) and self._sheet.revealing:
            self._grace.start()
            self._show_waiting("")

    def reveal(self) -> None:
        """Show the network's answer, where it follows."""
        self._grace.stop()
        if self.sitting is not None and self._sheet.revealing:
            self._do(Sitting.reveal)

    def undo(self) -> None:
        """Take the last verdict back."""
        self._do(Sitting.undo)

    def step(self, by: int) -> None:
        """Go to the next slide, or the one before."""
        self._do(lambda sitting: sitting.move(by))

    def go_on(self) -> None:
        """Show the network's answer where it follows; where it is shown, keep the own verdict."""
        sheet = self._sheet
        if sheet.revealing:
            self.reveal()
        elif sheet.before and not sheet.reading.done:
            self.decide(sheet.before, sheet.confidence)

    def find_undone(self) -> None:
        """Go to the next slide that is still to be read."""
        self._do(Sitting.next_undone)

    def judge(self, hotspot: int, right: bool) -> bool:
        """Store whether a hotspot is right, by its number from 1; return whether it was stored."""
        return self._do(lambda sitting: sitting.judge(hotspot, right), redraw=False)

    def _press(self, digit: int) -> None:
        self._acted()
        if self.verdicts is not None and self._has_looked():
            self.verdicts.press(digit)

    def _enter(self) -> None:
        """Go on; where a note is written, only end that."""
        if self.note_line.hasFocus():
            self.note_line.clearFocus()
        elif self._has_looked():
            self.go_on()

    def _has_looked(self) -> bool:
        """Whether what is in sight was there for a moment: a key pressed twice was not meant for the step that the first press brought."""
        return time.monotonic() - self._turned > _MOMENT

    def _noted(self) -> None:
        note = self.note_line.text().strip()
        if self.sitting is not None and note != self._sheet.reading.note:
            self._do(lambda sitting: sitting.remark(note), redraw=False)

    def _forget_choice(self) -> None:
        if self.verdicts is not None:
            self.verdicts.forget()
            self.show_sheet()

    def _drawn(self, areas: list[np.ndarray[Any, Any]]) -> None:
        """Store the areas; those with holes, which came from elsewhere and are not on the canvas, stay."""
        if self.session is None:
            return
        verdicts = self.session.vocabulary.verdicts
        with_holes = [region for region in self._sheet.reading.regions if not is_plain(region)]
        features = region_features([Polygon(area) for area in areas], self._sheet.reading.verdict or "region", verdicts)
        self._do(lambda sitting: sitting.draw([*with_holes, *features]), redraw=False)

    def _do(self, action: Callable[[Sitting], Any], *, redraw: bool = True) -> bool:
        """Do what the reader asked for, show what came of it, and say what went wrong; return whether it was done."""
        if self.sitting is None:
            return False
        sitting = self.sitting
        self._grace.stop()
        if redraw and self._settled.isActive():
            self._rest()
        done = self._try(lambda: action(sitting))
        self.show_sheet(redraw=redraw)
        return done

    def _try(self, action: Callable[[], Any]) -> bool:
        try:
            action()
        except StreamviewError as error:
            self._fail(str(error))
            return False
        self.problem.hide()
        return True

    def _fail(self, text: str) -> None:
        self.problem.setText(text)
        self.problem.show()

    # What is shown

    def show_sheet(self, *, redraw: bool = True) -> None:
        """Show where the reader is."""
        if self.sitting is None or self.verdicts is None:
            return
        sheet = self._sheet = self.sitting.sheet()
        done = len(sheet.rows) - sheet.undone
        self.place.setText("Session" if sheet.sight is None else sheet.sight.title.capitalize())
        self.note(f"{sheet.undone} open" if sheet.undone else "all read")
        self.progress.setRange(0, max(len(sheet.rows), 1))
        self.progress.setValue(done)
        self.stage.setText(sheet.stage)
        self._show_answer(sheet)
        self.verdicts.show_given(sheet.reading.verdict, sheet.reading.confidence, sheet.confidence)
        sure = "" if sheet.confidence is None else f", {sheet.confidence}"
        self.go.setText("Show the network's answer (Enter)" if sheet.revealing else f"Keep {sheet.before}{sure} (Enter)")
        self.go.setVisible(sheet.revealing or bool(sheet.before and not sheet.reading.done))
        self._show_waiting("")
        self._list(sheet)
        self.hotspots_called.emit(sheet.reading.hotspots)
        if self.sitting.step != self._shown:
            self._shown, self._turned = self.sitting.step, time.monotonic()
            self.note_line.setText(sheet.reading.note)
            self.draw.setChecked(False)
        if redraw:
            self._slide.show(sheet.sight, sheet.reading.view)
        self._allow()

    def _allow(self) -> None:
        """Take a verdict and a note only of a slide that is there, and while they are not locked."""
        allowed = self._slide.layer is not None and not self._sheet.message
        for widget in (self.verdicts, self.note_line, self.go, self.draw):
            if widget is not None:
                widget.setEnabled(allowed)

    def _show_answer(self, sheet: Sheet) -> None:
        answer = None if sheet.sight is None else sheet.sight.answer
        own = f"You, before: {sheet.before}" if sheet.before else ""
        self.answer.setText("\n".join(filter(None, (f"Network: {answer}" if answer is not None else "", own))))
        self.answer.setVisible(bool(self.answer.text()))
        self.map_shown.setVisible(answer is not None)

    def _show_waiting(self, verdict: str) -> None:
        """Say what is waited for."""
        text = self._sheet.message
        if verdict and self.session is not None:
            text = f"{verdict}: how sure, 1 to {self.session.vocabulary.confidence}? Esc to choose anew"
        elif self._grace.isActive():
            text = f"Stored. The network's answer follows in {GRACE:g} s; z takes your verdict back."
        self.message.setText(text)
        self.message.setVisible(bool(text))

    def _list(self, sheet: Sheet) -> None:
        self.table.setRowCount(len(sheet.rows))
        for number, row in enumerate(sheet.rows):
            texts = (str(number + 1), row.verdict, "✎" if row.noted else "", row.answer)
            for column, text in enumerate(texts):
                item = QTableWidgetItem(text)
                item.setToolTip(row.title if column == 0 else text)
                self.table.setItem(number, column, item)
        show_rows(self.table, _ROWS)
        here = next((number for number, row in enumerate(sheet.rows) if row.current), None)
        with QSignalBlocker(self.table):
            if here is None:
                self.table.clearSelection()
            else:
                self.table.selectRow(here)

    def _slide_shown(self, layer: Image) -> None:
        self._regions.show(layer, [region_ring(region) for region in self._sheet.reading.regions if is_plain(region)])
        self._allow()
        if self.sitting is not None:
            self._slide.prepare(self.sitting.upcoming())

    def _map_selected(self, layer: Any) -> None:
        if self.sitting is not None and layer is not None:
            self._show_map(self.map_shown.isChecked())

    def _show_map(self, shown: bool) -> None:
        layer = self.state.map_layer
        if layer is not None and layer.visible != shown:
            layer.visible = shown

    # Time and view

    def _moved(self, event: Any = None) -> None:
        self._acted()
        if self.sitting is not None:
            self._settled.start()

    def _acted(self, event: Any = None) -> None:
        if self.sitting is not None:
            self.sitting.act()

    def _rest(self) -> None:
        """Store the time and what is in sight."""
        self._settled.stop()
        if self.sitting is not None and self.sitting.step is not None:
            sitting, view = self.sitting, self._slide.view()
            self._try(lambda: sitting.rest(view))

    def _keep_time(self) -> None:
        if self.sitting is not None:
            self._try(self.sitting.rest)
