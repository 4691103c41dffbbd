"""The section of what leaves the window: files for other programs, the script that computes the map again, and what the map is."""

from __future__ import annotations

import html
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from PIL import Image as Picture
from PIL.PngImagePlugin import PngInfo
from qtpy.QtWidgets import (
    QApplication,
    QComboBox,
    QDialog,
    QDialogButtonBox,
    QFileDialog,
    QHBoxLayout,
    QMenu,
    QPushButton,
    QSizePolicy,
    QTextBrowser,
    QVBoxLayout,
)

from streamview.errors import StreamviewError
from streamview.files import atomic
from streamview.results import RESEARCH_USE
from streamview_napari.panels.section import Section, error_label, labelled, quiet_label
from streamview_napari.panels.theme import Colour, colours
from streamview_napari.records import MapLayer
from streamview_napari.requests.answers import describe_certificate
from streamview_napari.requests.script import about, command, find_origin, python

if TYPE_CHECKING:
    import numpy as np
    from napari.components import ViewerModel
    from napari.layers import Image
    from numpy.typing import NDArray

    from streamview.results import Saliency
    from streamview.results.display import Recipe
    from streamview.slides import Slide
    from streamview_napari.state import State
    from streamview_napari.tasks import Work

__all__ = ["FORMATS", "ExportSection", "Form", "write"]

Form = Literal["view", "picture", "ome-tiff", "ome-zarr", "geojson", "csv"]


@dataclass(frozen=True, slots=True)
class _Format:
    title: str
    ending: str
    tip: str


FORMATS: dict[Form, _Format] = {
    "view": _Format("PNG, as seen", ".png", "The canvas as it is now, with its captions and bars."),
    "picture": _Format("PNG of the region", ".png", "The whole region with the map, its bars and what a reader must know."),
    "ome-tiff": _Format("OME-TIFF", ".ome.tif", "This map, raw float32, as a pyramid that QuPath opens at the right size."),
    "ome-zarr": _Format("OME-Zarr", ".ome.zarr", "All maps of the result, raw float32; opens here again with its display."),
    "geojson": _Format("GeoJSON hotspots", ".geojson", "The areas above the threshold as annotations for QuPath."),
    "csv": _Format("CSV of hotspots", ".csv", "The areas above the threshold as a table."),
}


def write(
    form: Form,
    path: str | os.PathLike[str],
    saliency: Saliency,
    recipe: Recipe,
    *,
    slide: Slide | None = None,
    canvas: NDArray[np.uint8] | None = None,
) -> Path:
    """Write a map; the file appears whole or not at all, and replaces one that was there.

    Parameters
    ----------
    form
        See `FORMATS`.
    path
        The file.
    saliency, recipe
        What, and how it is shown.
    slide
        The source of `saliency`, for ``"picture"``.
    canvas
        uint8 (h, w, 3 or 4), for ``"view"``.

    Raises
    ------
    StreamviewError
        When the disk is full, the place may not be written, or the slide that is needed is not at hand.
    """
    path = Path(path)
    if form == "view" and canvas is not None:
        facts = PngInfo()
        facts.add_text("streamview", f"identity {saliency.prediction.identity.key}; target {saliency.target}; {recipe}; {RESEARCH_USE}")
        with atomic.replacing(path) as temporary:
            Picture.fromarray(canvas).save(temporary, "PNG", pnginfo=facts)
    elif form == "picture":
        from streamview.export.png import render_png

        if slide is None or slide.identity != saliency.prediction.identity.source:
            raise StreamviewError(f"{saliency.prediction.slide_name}: is not open, and the picture shows it; open that slide first")
        render_png(slide, saliency, recipe, path)
    elif form == "ome-tiff":
        from streamview.export.ometiff import write_ome_tiff

        write_ome_tiff(saliency, recipe.method, path)
    elif form == "ome-zarr":
        from streamview.export.omezarr import write_ome_zarr

        write_ome_zarr(saliency, recipe, path)
    elif form == "geojson":
        from streamview.export.geojson import write_hotspots

        write_hotspots(saliency, recipe, path)
    elif form == "csv":
        from streamview.export.table import write_hotspot_table

        write_hotspot_table(saliency, recipe, path)
    return path


class ExportSection(Section):
    """Files, script and facts of the map worked on."""

    title = "Export"
    opens = "room"

    def __init__(self, viewer: ViewerModel, state: State) -> None:
        super().__init__(viewer, state)
        self.format = QComboBox()
        self.format.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        for form in get_args(Form):
            self.format.addItem(FORMATS[form].title, form)
        self.format.currentIndexChanged.connect(lambda: self.format.setToolTip(FORMATS[self.format.currentData()].tip))
        self.format.setToolTip(FORMATS["view"].tip)
        self.save = QPushButton("Save…")
        self.save.setToolTip("Choose where to write the file.")
        self.save.clicked.connect(self._choose)
        self.column.addLayout(labelled("Format", self.format, self.save))
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
        self.message = quiet_label()
        self.problem = error_label()
        for label in (self.message, self.problem):
            label.hide()
            self.column.addWidget(label)
        self.sheet: QDialog | None = None
        self._work: Work | None = None
        state.events.map_selected.connect(self._select)
        self._select(state.map_layer)

    def release(self) -> None:
        """Close what was opened."""
        if self.sheet is not None:
            self.sheet.close()

    def export(self, form: Form, path: str | os.PathLike[str], done: Callable[[Path], Any] | None = None) -> None:
        """Write the map worked on in a thread, and say so; errors are shown as text."""
        record = self.state.map
        if record is None:
            return
        saliency, recipe, slide = record.saliency, record.recipe, self.state.slide
        canvas = None
        if form == "view":
            canvas = self.viewer.screenshot(canvas_only=True, flash=False)
        self.save.setEnabled(False)
        self._say(f"Writing {Path(path).name}…")

        def written(place: Path) -> None:
            self.save.setEnabled(True)
            self._say(f"Written: {place}")
            if done is not None:
                done(place)

        self._work = self.state.start(
            lambda report: write(form, path, saliency, recipe, slide=slide, canvas=canvas), done=written, failed=self._fail
        )

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
        form: Form = self.format.currentData()
        saliency, ending = record.saliency, FORMATS[form].ending
        name = f"{Path(saliency.prediction.slide_name).stem}-{saliency.target.name}-{record.recipe.method}{ending}".replace("/", "_")
        chosen, _ = QFileDialog.getSaveFileName(self, FORMATS[form].title, name, f"{FORMATS[form].title} (*{ending})")
        if chosen:
            self.export(form, chosen if chosen.endswith(ending) else chosen + ending)

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
        self.save.setEnabled(True)
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
