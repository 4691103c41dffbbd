"""The section of what leaves the window: files for other programs, the script that computes the map again, and what the map is."""

from __future__ import annotations

import html
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtWidgets import (
    QApplication,
    QDialog,
    QDialogButtonBox,
    QFileDialog,
    QHBoxLayout,
    QMenu,
    QProgressBar,
    QPushButton,
    QTextBrowser,
    QVBoxLayout,
)

from streamview.errors import StreamviewError
from streamview_napari.panels.forms import Form
from streamview_napari.panels.section import Section, error_label, quiet_label
from streamview_napari.panels.theme import Colour, colours, set_role
from streamview_napari.records import MapLayer
from streamview_napari.requests.answers import describe_certificate
from streamview_napari.requests.export import FORMATS, ExportControls, Format, write
from streamview_napari.requests.script import about, command, find_origin, python

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

    from streamview.progress import Step
    from streamview_napari.state import State
    from streamview_napari.tasks import Work

__all__ = ["ExportSection"]


class ExportSection(Section):
    """Files, script and facts of the map worked on."""

    title = "Export"
    opens = "room"

    def __init__(self, viewer: ViewerModel, state: State) -> None:
        super().__init__(viewer, state)
        self.controls = Form(ExportControls)
        self.controls.changed.connect(self._describe)
        self.save = QPushButton("Save…")
        self.save.setToolTip("Choose where to write the file.")
        self.save.clicked.connect(self._choose)
        self.cancel = QPushButton("Cancel")
        self.cancel.setToolTip("Stop writing; nothing is left of the file.")
        self.cancel.clicked.connect(self._stop)
        self.column.addLayout(self.controls.row("format", beside=(self.save, self.cancel)))
        self.about = QPushButton("About this map")
        self.about.setToolTip("Network, weights, target, reduction, precision, plan.")
        self.about.clicked.connect(self._about)
        self.copy = QPushButton("Copy as script")
        self.copy.setToolTip("Copy what computes this map again, bit for bit, to the clipboard.")
        menu = QMenu(self.copy)
        menu.addAction("Python", self.copy_python)
        menu.addAction("Command line", self.copy_command)
        self.copy.setMenu(menu)
        row = QHBoxLayout()
        row.addWidget(self.about, 1)
        row.addWidget(self.copy, 1)
        self.column.addLayout(row)
        self.bar = QProgressBar()
        self.bar.setFixedHeight(8)
        self.bar.setTextVisible(False)
        set_role(self.bar, "progress")
        self.message = quiet_label()
        self.problem = error_label()
        for widget in (self.bar, self.message, self.problem):
            self.column.addWidget(widget)
        self._set_writing(False)
        self.message.hide()
        self._describe()
        self.sheet: QDialog | None = None
        self._work: Work | None = None
        state.events.map_selected.connect(self._select)
        self._select(state.map_layer)

    def release(self) -> None:
        """Close what was opened."""
        if self.sheet is not None:
            self.sheet.close()

    def export(self, format: Format, path: str | os.PathLike[str], done: Callable[[Path], Any] | None = None) -> None:
        """Write the map worked on in a thread, and say so; errors are shown as text."""
        record = self.state.map
        if record is None or (self._work is not None and self._work.running):
            return
        saliency, recipe, slide, glass = record.saliency, record.recipe, self.state.slide, record.shown.glass
        canvas = self.viewer.screenshot(canvas_only=True, flash=False) if format == "view" else None
        what = f"{FORMATS[format].title} of {saliency.target.name} to {Path(path).name}"
        self._set_writing(True)
        self._say(f"Writing {what}…")

        def show(step: Step) -> None:
            self.bar.setRange(0, step.total)
            self.bar.setValue(step.done)
            self._say(f"Writing {what}, {step.done / max(step.total, 1):.0%}")

        def written(place: Path) -> None:
            self._set_writing(False)
            self._say(f"Written: {place}")
            self.state.saved(answer for answer in self.state.answers if answer.saliency is saliency)
            if done is not None:
                done(place)

        def cancelled() -> None:
            self._set_writing(False)
            self._say(f"Cancelled: {Path(path).name} is not written.")

        self._work = self.state.start(
            lambda report: write(format, path, saliency, recipe, slide=slide, canvas=canvas, glass=glass, report=report),
            done=written,
            failed=self._fail,
            cancelled=cancelled,
            progress=show,
        )

    def _stop(self) -> None:
        if self._work is not None:
            self._work.cancel()
            self.cancel.setEnabled(False)

    def _set_writing(self, writing: bool) -> None:
        self.save.setVisible(not writing)
        self.cancel.setVisible(writing)
        self.cancel.setEnabled(writing)
        self.bar.setVisible(writing)
        self.bar.setRange(0, 0)

    def _describe(self, name: str = "format") -> None:
        self.controls["format"].tooltip = FORMATS[self.controls.value.format].tip

    def copy_python(self) -> None:
        """Copy the Python script to the clipboard."""
        self._copy(python)

    def copy_command(self) -> None:
        """Copy the command line to the clipboard."""
        self._copy(command)

    def _copy(self, make: Callable[..., str]) -> None:
        record = self.state.map
        if record is None:
            return
        try:
            text = make(record.saliency, find_origin(record.saliency, record.run), record.recipe)
        except StreamviewError as error:
            self._fail(str(error))
            return
        QApplication.clipboard().setText(text)
        self._say("Copied.")

    def _choose(self) -> None:
        record = self.state.map
        if record is None:
            return
        format = self.controls.value.format
        saliency, ending, title = record.saliency, FORMATS[format].ending, FORMATS[format].title
        name = f"{Path(saliency.prediction.slide_name).stem}-{saliency.target.name}-{record.recipe.method}{ending}".replace("/", "_")
        chosen, _ = QFileDialog.getSaveFileName(self, title, name, f"{title} (*{ending})")
        if chosen:
            self.export(format, chosen if chosen.endswith(ending) else chosen + ending)

    def _about(self) -> None:
        record = self.state.map
        if record is None:
            return
        self.release()
        self.sheet = QDialog(self)
        self.sheet.setWindowTitle("About this map")
        description = describe_map(record)
        text = QTextBrowser()
        text.setHtml(_as_table(description, colours(self.viewer.theme).quiet))
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Close)
        buttons.rejected.connect(self.sheet.close)
        copy = buttons.addButton("Copy", QDialogButtonBox.ButtonRole.ActionRole)
        copy.clicked.connect(lambda: QApplication.clipboard().setText(description))
        column = QVBoxLayout(self.sheet)
        column.addWidget(text)
        column.addWidget(buttons)
        self.sheet.resize(640, 380)
        self.sheet.show()

    def _select(self, layer: Image | None) -> None:
        self.fill(layer is not None)

    def _say(self, text: str) -> None:
        self.problem.hide()
        self.message.setText(text)
        self.message.show()

    def _fail(self, text: str) -> None:
        self._set_writing(False)
        self.message.hide()
        self.problem.setText(text)
        self.problem.show()


def describe_map(record: MapLayer) -> str:
    """Say what a map is; see `streamview_napari.requests.script.about`."""
    try:
        origin = find_origin(record.saliency, record.run)
    except StreamviewError:
        origin = None
    verified = "" if record.certificate is None else describe_certificate(record.certificate)
    return about(record.saliency, record.recipe, origin, verified)


def _as_table(text: str, quiet: Colour) -> str:
    rows = []
    for line in text.splitlines():
        name, colon, value = line.partition(": ")
        name, value = (name, value) if colon and len(name) < 12 else ("", line)
        rows.append(f"<tr><td style='padding: 2px 14px 2px 0; color: rgb{quiet}'>{name}</td><td>{html.escape(value)}</td></tr>")
    return f"<table>{''.join(rows)}</table>"
