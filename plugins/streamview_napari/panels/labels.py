"""The section where regions get their class: drawn on the slides, listed, counted, kept as a table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtCore import QItemSelectionModel, QSignalBlocker, Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import (
    QFileDialog,
    QHBoxLayout,
    QHeaderView,
    QPushButton,
    QTableWidget,
    QTableWidgetItem,
)

from streamview.errors import StreamviewError
from streamview.labels.regions import Example, write_labels
from streamview_napari.canvas.camera import fly_to
from streamview_napari.canvas.labelled_regions import LabelledLayers
from streamview_napari.panels.forms import Form
from streamview_napari.panels.section import Section, Shortcut, error_label, plain_table, quiet_label, show_rows
from streamview_napari.records import slide_on
from streamview_napari.requests.controls import LabelControls
from streamview_napari.requests.labels import (
    Mpp,
    class_names,
    colour_of,
    describe_counts,
    find_unsaved,
    free_place,
    join,
    list_rows,
    load,
    of_slide,
    path_of,
    relabel,
)
from streamview_napari.settings import settings

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image, Layer

    from streamview_napari.requests.models import Loaded
    from streamview_napari.state import State

__all__ = ["LabelsSection"]

_ROWS = 6  # of the table before it scrolls
_SLIDE, _CLASS, _PATIENT, _PLACE = range(4)  # its columns
_CLASS_WIDTH = 96  # px that a class may take there
_BUTTON = 70  # px


class LabelsSection(Section):
    """Draw regions, give them a class and a patient, keep them as a table.

    What is not saved yet is kept in the folder of the settings at every change, and offered when the panel opens anew.
    """

    title = "Labels"

    def __init__(self, viewer: ViewerModel, state: State) -> None:
        super().__init__(viewer, state)
        self._build_chooser()
        self._build_table()
        self._build_buttons()
        self._lay_out()

        self.added: list[str] = []  # classes that no region has yet
        self._mpps: dict[str, Mpp] = {}
        self._own_file: Path | None = None  # where this window keeps what is not saved
        self._unsaved_file: Path | None = None
        self._layers = LabelledLayers(viewer, state, names=self.names, drawing_changed=self.draw.setChecked, told=self._say)
        self._connect()
        self._unsaved_file = find_unsaved(self._folder)
        for widget in (self.unsaved, self.restore, self.forget):
            widget.setVisible(self._unsaved_file is not None)
        for label in (self.message, self.problem):
            label.hide()
        self._offer()
        self._show(state.labels)
        self._slide_changed(state.slide_layer)

    def _build_chooser(self) -> None:
        """What the next rectangle will be."""
        self.controls = Form(LabelControls)
        self.label, self.patient = self.controls.natives
        self.draw = QPushButton("Draw")
        self.draw.setCheckable(True)
        self.draw.setToolTip("Drag rectangles over the tissue, one after the other; press again to end.")
        self.apply = QPushButton("Set")
        self.apply.setToolTip("Give the selected rows this class and patient.")
        for button in (self.draw, self.apply):
            button.setFixedWidth(_BUTTON)

    def _build_table(self) -> None:
        """What is labelled."""
        self.table = plain_table(["Slide", "Class", "Patient", "x, y in mm"])
        self.table.setSelectionMode(QTableWidget.SelectionMode.ExtendedSelection)
        self.table.setAccessibleName("Labelled regions")
        self.table.setToolTip("All labelled regions. Click one to go there; double-click to open its slide.")
        header = self.table.horizontalHeader()
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        header.setMinimumSectionSize(24)
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(_SLIDE, QHeaderView.ResizeMode.Stretch)
        header.setSectionResizeMode(_CLASS, QHeaderView.ResizeMode.Fixed)
        self.table.setTextElideMode(Qt.TextElideMode.ElideMiddle)  # names of slides differ at their ends
        self.counts = quiet_label()

    def _build_buttons(self) -> None:
        """What is done with the table, and what is said of it."""
        self.remove = QPushButton("Delete")
        self.remove.setToolTip("Delete the selected rows; key Delete on the slide does so as well.")
        self.load = QPushButton("Load…")
        self.load.setToolTip("Add the regions of a labels.csv; their slides lie beside it, or beside the open one.")
        self.save = QPushButton("Save…")
        self.save.setToolTip("Write all regions to a labels.csv, for the command line and for the next time.")
        self.restore = QPushButton("Restore")
        self.restore.setToolTip("Take up the labels that were not saved when the panel was closed.")
        self.forget = QPushButton("Discard")
        self.forget.setToolTip("Delete the labels that were not saved.")
        self.unsaved = quiet_label("There are labels that were not saved.")
        self.message = quiet_label()
        self.problem = error_label()

    def _connect(self) -> None:
        self.controls.changed.connect(lambda name: self._prepare())
        self.label.named.connect(self.add_class)
        self.draw.clicked.connect(self.start_drawing)
        self.apply.clicked.connect(self._set)
        self.remove.clicked.connect(self._remove)
        self.load.clicked.connect(self._choose_table)
        self.save.clicked.connect(self._choose_place)
        self.restore.clicked.connect(self._restore)
        self.forget.clicked.connect(self._forget)
        self.table.cellClicked.connect(lambda row, column: self.go_to(self.state.labels[row]))
        self.table.cellDoubleClicked.connect(lambda row, column: self.go_to(self.state.labels[row], open_slide=True))
        self.table.itemSelectionChanged.connect(self._selected)
        self.state.events.slide_changed.connect(self._slide_changed)
        self.state.events.model_changed.connect(self._model_changed)
        self.state.events.labels_changed.connect(self._show)
        self.state.events.example_wanted.connect(self.go_to)

    def _lay_out(self) -> None:
        self.column.addLayout(self.controls.row("label", beside=(self.draw,)))
        self.column.addLayout(self.controls.row("patient", beside=(self.apply,)))
        self.column.addWidget(self.table)
        self.column.addWidget(self.counts)
        row = QHBoxLayout()
        for button in (self.remove, self.load, self.save):
            row.addWidget(button, 1)
        self.column.addLayout(row)
        row = QHBoxLayout()
        row.addWidget(self.unsaved, 1)
        for button in (self.restore, self.forget):
            row.addWidget(button)
        self.column.addLayout(row)
        self.column.addWidget(self.message)
        self.column.addWidget(self.problem)

    def shortcuts(self) -> list[Shortcut]:
        """Draw labelled regions, undo."""
        return [
            Shortcut("label", "Draw labelled regions, or end it", self.draw.click),
            Shortcut("undo", "Undo the last region or label drawn, moved, set or deleted", self.state.history.undo),
        ]

    def release(self) -> None:
        """Follow the viewer no longer."""
        self._layers.release()

    @property
    def _folder(self) -> Path:
        return Path(settings().panel.folder).expanduser()

    # ------------------------------------------------------------------------------------------------------------------------- the classes

    def names(self) -> tuple[str, ...]:
        """Return the classes to choose from."""
        loaded = self.state.loaded
        return class_names(None if loaded is None else loaded.model.card, self.state.labels, self.added)

    def add_class(self, name: str) -> None:
        """Choose a class, which may be a new one."""
        if name and name not in self.names():
            self.added.append(name)
        self._offer(name or None)

    def _offer(self, chosen: str | None = None) -> None:
        loaded = self.state.loaded
        self.label.offer(self.names(), free=loaded is not None and loaded.model.card.task != "class", chosen=chosen)

    def _prepare(self) -> None:
        self._layers.next(self.label.chosen, self.controls.value.patient)
        self.draw.setEnabled(bool(self.state.slide_path))

    # ------------------------------------------------------------------------------------------------------------------------- the regions

    def start_drawing(self) -> None:
        """Let the user drag labelled rectangles, or end it."""
        if self.draw.isChecked() and not self.label.chosen:
            self.draw.setChecked(False)
            self.label.ask()
            return
        self.unfold.emit()
        self._layers.draw(self.draw.isChecked())

    def go_to(self, example: Example, *, open_slide: bool = False) -> None:
        """Show a labelled region, on whichever open slide it lies; with `open_slide` its slide is opened first."""
        layer = self._layer_of(path_of(example))
        if layer is None and open_slide:
            from streamview_napari.view import add_layers

            try:
                add_layers(self.viewer, path_of(example))
            except StreamviewError as error:
                self._fail(str(error))
                return
            layer = self._layer_of(path_of(example))
        if layer is None:
            self._say(f"{example.name} is not open: double-click to open it.")
            return
        for other in self.viewer.layers:
            if slide_on(other) is not None:
                other.visible = other is layer
        self.state.select_slide(layer)
        if not self.draw.isChecked():
            self.viewer.layers.selection.active = layer
        if example.region is not None:
            fly_to(self.viewer, example.region, None if self.state.slide is None else self.state.slide.mpp)

    def _layer_of(self, path: str) -> Image | None:
        layers = [layer for layer in self.viewer.layers if _place(layer) == path]
        return next((layer for layer in layers if layer is self.state.slide_layer), layers[0] if layers else None)

    def _rows(self) -> list[int]:
        return sorted({index.row() for index in self.table.selectedIndexes()})

    def _selected(self) -> None:
        rows = self._rows()
        for button in (self.apply, self.remove):
            button.setEnabled(bool(rows))

    def _set(self) -> None:
        rows = self._rows()
        self.state.change_labels(relabel(self.state.labels, rows, self.label.chosen, self.controls.value.patient))
        self._select(rows)

    def _remove(self) -> None:
        gone = set(self._rows())
        self.state.change_labels(tuple(example for row, example in enumerate(self.state.labels) if row not in gone))

    def _select(self, rows: list[int]) -> None:
        model, chosen = self.table.model(), self.table.selectionModel()
        flags = QItemSelectionModel.SelectionFlag.Select | QItemSelectionModel.SelectionFlag.Rows
        for row in rows:
            chosen.select(model.index(row, 0), flags)

    def _show(self, labels: tuple[Example, ...]) -> None:
        """List what is labelled, and keep it where it is not saved."""
        slide = self.state.slide
        if slide is not None:
            self._mpps[_place(self.state.slide_layer)] = slide.mpp
        self._offer()
        names = self.names()
        with QSignalBlocker(self.table):
            self.table.clearSelection()
            self.table.setRowCount(len(labels))
            for row, (example, listed) in enumerate(zip(labels, list_rows(labels, self._mpps), strict=True)):
                for column, text in enumerate((listed.slide, listed.label, listed.patient or "–", listed.place)):
                    item = QTableWidgetItem(text)
                    item.setToolTip(listed.tip)
                    if column == _CLASS:
                        item.setData(Qt.ItemDataRole.DecorationRole, QColor(colour_of(example.label, names)))
                    self.table.setItem(row, column, item)
        self.table.setColumnHidden(_PATIENT, not any(example.patient for example in labels))
        self.table.horizontalHeader().resizeSection(_CLASS, min(self.table.sizeHintForColumn(_CLASS), _CLASS_WIDTH))
        self._selected()
        show_rows(self.table, _ROWS)
        self.table.setVisible(bool(labels))
        self.counts.setText(describe_counts(labels, names))
        self.counts.setVisible(bool(labels))
        self.remove.setVisible(bool(labels))
        self.save.setEnabled(bool(labels))
        unsaved = "" if self.state.table is not None else ", not saved"
        self.note(f"{len(labels)} region{'s' * (len(labels) != 1)}{unsaved}" if labels else "")
        self.fill(self.state.slide_layer is not None or bool(labels))
        self._layers.show()
        self._keep()

    def _slide_changed(self, layer: Image | None) -> None:
        self.draw.setChecked(False)
        slide, path = self.state.slide, _place(layer)
        if slide is not None and self._mpps.get(path) != slide.mpp and of_slide(self.state.labels, path):
            self._mpps[path] = slide.mpp
            self._show(self.state.labels)
        self._layers.show()
        self.fill(layer is not None or bool(self.state.labels))
        self._prepare()

    def _model_changed(self, loaded: Loaded | None) -> None:
        if loaded is not None:
            self._offer()
            self._show(self.state.labels)

    # --------------------------------------------------------------------------------------------------------------------------- the table

    def _choose_table(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Load labels", self._proposed(), "Labels (*.csv);;All files (*)")
        if path:
            self.load_table(Path(path))

    def _choose_place(self) -> None:
        path, _ = QFileDialog.getSaveFileName(self, "Save labels", self._proposed(), "Labels (*.csv)")
        if path:
            self.save_table(Path(path if path.endswith(".csv") else f"{path}.csv"))

    def _proposed(self) -> str:
        if self.state.table is not None:
            return str(self.state.table)
        path = self.state.slide_path
        return str((Path.home() if path is None else Path(path).parent) / "labels.csv")

    def load_table(self, path: Path) -> None:
        """Add the regions of a table to those that are there."""
        self._say("Loading…")
        alone, slide = not self.state.labels, self.state.slide_path
        elsewhere = None if slide is None else Path(slide).parent

        def loaded(result: tuple[tuple[Example, ...], dict[str, Mpp]]) -> None:
            labels, mpps = result
            self._mpps |= mpps
            self.message.hide()
            self.problem.hide()
            self.state.change_labels(join(self.state.labels, labels), path if alone else None)

        self.state.start(lambda report: load(path, elsewhere), done=loaded, failed=self._fail)

    def save_table(self, path: Path) -> None:
        """Write all regions to a table."""
        try:
            write_labels(path, self.state.labels)
        except StreamviewError as error:
            self._fail(str(error))
            return
        self.problem.hide()
        self._say(f"Saved: {path}")
        self.state.label(self.state.labels, path)

    def _keep(self) -> None:
        """Write what is not saved where the next panel finds it; remove that once it is saved, or there is nothing to keep."""
        if self.state.table is not None or not self.state.labels:
            if self._own_file is not None:
                self._own_file.unlink(missing_ok=True)
                self._own_file = None
            return
        try:
            if self._own_file is None:
                self._own_file = free_place(self._folder)
            write_labels(self._own_file, self.state.labels)
        except StreamviewError as error:
            self._fail(f"{error}. The labels are not kept until you save them elsewhere.")

    def _restore(self) -> None:
        unsaved = self._unsaved_file
        if unsaved is None:
            return

        def loaded(result: tuple[tuple[Example, ...], dict[str, Mpp]]) -> None:
            labels, mpps = result
            self._mpps |= mpps
            self.state.change_labels(join(labels, self.state.labels))
            self._forget()

        self.state.start(lambda report: load(unsaved), done=loaded, failed=self._fail)

    def _forget(self) -> None:
        if self._unsaved_file is not None and self._unsaved_file != self._own_file:
            self._unsaved_file.unlink(missing_ok=True)
        self._unsaved_file = None
        for widget in (self.unsaved, self.restore, self.forget):
            widget.hide()

    def _say(self, text: str) -> None:
        self.problem.hide()
        self.message.setText(text)
        self.message.setVisible(bool(text))

    def _fail(self, text: str) -> None:
        self.message.hide()
        self.problem.setText(text)
        self.problem.show()


def _place(layer: Layer | None) -> str:
    """The one absolute path of a slide's layer; the root where it has none."""
    record = slide_on(layer)
    return os.path.realpath((record and record.path) or "/")
