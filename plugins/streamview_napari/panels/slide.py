"""The section about the slide: its name, size and resolution, the missing mpp, and the conversion of what has no overview."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QFileDialog, QHBoxLayout, QInputDialog, QLabel, QProgressBar, QPushButton

from streamview.errors import SlideError
from streamview_napari.canvas.layers import has_overview, slide_layer
from streamview_napari.panels.section import Section, error_label, quiet_label
from streamview_napari.records import RegionsLayer, note, record_of, slide_on
from streamview_napari.requests.regions import describe_size

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

    from streamview.progress import Report, Step
    from streamview.slides import Slide
    from streamview_napari.state import State
    from streamview_napari.tasks import Work

__all__ = ["SlideSection", "measure"]


def measure(layer: Image, mpp: float) -> None:
    """Give a slide's layer the mpp that its file does not state; it is then placed in micrometres.

    Raises
    ------
    SlideError
        When it is not a positive number, or the layer shows no slide.
    """
    from streamview.slides import as_slide

    record = slide_on(layer)
    if record is None:
        raise SlideError(f"the layer {layer.name} shows no slide: expected one that does")
    source = as_slide(record.source, mpp)
    _, options, _ = slide_layer(source)
    layer.scale, layer.translate, layer.units = options["scale"], options["translate"], options["units"]
    note(layer, replace(record, source=source))


class SlideSection(Section):
    """Which slide is worked on."""

    title = "Slide"
    opens = "stays"

    def __init__(self, viewer: ViewerModel, state: State) -> None:
        super().__init__(viewer, state)
        self.name = QLabel()
        self.name.setStyleSheet("font-weight: bold;")
        self.extent = quiet_label()
        self.advice = quiet_label("No overview in this file: zoom in to see it, or convert it once.")
        self.problem = error_label()
        self.measure = QPushButton("Set µm/px…")
        self.measure.setToolTip("How many micrometres one pixel of the full resolution covers; scales, sizes and networks need it.")
        self.convert = QPushButton("Convert…")
        self.convert.setToolTip("Write the slide once as an OME-Zarr with all resolutions, and open that.")
        self.stop = QPushButton("Cancel")
        self.stop.setToolTip("Stop the conversion; nothing half-written is left.")
        self.bar = QProgressBar()
        self.bar.setFixedHeight(8)
        self.bar.setTextVisible(False)
        row = QHBoxLayout()
        for button in (self.measure, self.convert, self.stop):
            row.addWidget(button)
        row.addStretch()
        for widget in (self.name, self.extent, self.advice):
            self.column.addWidget(widget)
        self.column.addLayout(row)
        self.column.addWidget(self.bar)
        self.column.addWidget(self.problem)
        self.measure.clicked.connect(self.ask)
        self.convert.clicked.connect(self._choose_folder)
        self.stop.clicked.connect(self._cancel)
        self._work: Work | None = None
        self._dialog: QInputDialog | None = None
        state.events.slide_changed.connect(self._show)
        self._show(state.slide_layer)

    def _show(self, layer: Image | None) -> None:
        slide = self.state.slide
        self.fill(slide is not None)
        self.problem.hide()
        self._running(False)
        if self._dialog is not None:
            self._dialog.reject()
        if slide is None:
            return
        self.name.setText(slide.name)
        self.name.setToolTip(str(self.state.slide_path or slide.name))
        if slide.mpp is None:
            resolution = f"µm/px {slide.mpp_source}"
        else:
            y, x = slide.mpp
            pixel = f"{x:.4g}" if abs(y - x) < 1e-6 * x else f"{x:.4g} × {y:.4g}"
            source = "given by you" if slide.mpp_source.startswith("given") else slide.mpp_source
            resolution = f"{pixel} µm/px ({source})"
        self.extent.setText(f"{describe_size(slide.shape, slide.mpp)}\n{resolution}")
        self.measure.setVisible(slide.mpp is None)
        lacking = not has_overview(slide)
        self.advice.setVisible(lacking)
        self.convert.setVisible(lacking)
        record = slide_on(layer)
        if layer is not None and record is not None and slide.mpp is None and not record.asked_for_mpp:
            note(layer, replace(record, asked_for_mpp=True))
            QTimer.singleShot(0, self.ask)

    def ask(self) -> None:
        """Ask for the mpp; Cancel leaves pixels."""
        layer, slide = self.state.slide_layer, self.state.slide
        if layer is None or slide is None or slide.mpp is not None or self.state.closed or self._dialog is not None:
            return
        dialog = self._dialog = QInputDialog(self)
        dialog.setWindowTitle("Micrometres per pixel")
        dialog.setLabelText(
            f"{slide.name} does not say how large its pixels are.\nMicrometres per pixel at full resolution (Cancel: stay in pixels):"
        )
        dialog.setInputMode(QInputDialog.InputMode.DoubleInput)
        dialog.setDoubleRange(0.0001, 1000)
        dialog.setDoubleDecimals(4)
        dialog.setDoubleValue(0.25)
        dialog.doubleValueSelected.connect(lambda mpp: self.set_mpp(layer, mpp))
        dialog.finished.connect(self._asked)
        dialog.open()

    def _asked(self) -> None:
        if self._dialog is not None:
            self._dialog.deleteLater()
            self._dialog = None

    def set_mpp(self, layer: Image, mpp: float) -> None:
        """Use this mpp for a slide, and look at it anew."""
        try:
            measure(layer, mpp)
        except SlideError as error:
            self._fail(str(error))
            return
        for other in self.viewer.layers:
            record = record_of(other)
            if isinstance(record, RegionsLayer) and record.slide is layer:  # drawn in pixels
                other.scale, other.units = layer.scale, layer.units
        self.state.events.slide_changed.emit(layer)
        self.viewer.reset_view()

    def _choose_folder(self) -> None:
        path = self.state.slide_path
        proposed = f"{Path(path).with_suffix('')}.ome.zarr" if path else "slide.ome.zarr"
        out, _ = QFileDialog.getSaveFileName(self, "Convert to", proposed, "OME-Zarr (*.ome.zarr)")
        if out:
            self.convert_to(Path(out))

    def convert_to(self, out: Path) -> None:
        """Convert the slide and open the result in its place."""
        layer, slide = self.state.slide_layer, self.state.slide
        if layer is None or slide is None:
            return

        def convert(report: Report) -> Slide:
            from streamview.slides.pyramid import build_pyramid

            return build_pyramid(slide, out, report=report)

        self._running(True)
        self.problem.hide()
        self._work = self.state.start(
            convert,
            done=lambda pyramid: self._converted(layer, pyramid, out),
            failed=self._fail,
            cancelled=lambda: self._running(False),
            progress=self._step,
        )

    def _converted(self, layer: Image, pyramid: Slide, out: Path) -> None:
        from napari.layers import Layer

        self._running(False)
        data, options, kind = slide_layer(pyramid, path=out)
        place = self.viewer.layers.index(layer) if layer in self.viewer.layers else 0
        self.viewer.layers.insert(place, Layer.create(data, options, kind))
        if layer in self.viewer.layers:
            self.viewer.layers.remove(layer)

    def _cancel(self) -> None:
        if self._work is not None:
            self._work.cancel()

    def _step(self, step: Step) -> None:
        self.bar.setRange(0, step.total)
        self.bar.setValue(step.done)

    def _fail(self, text: str) -> None:
        self._running(False)
        self.problem.setText(text)
        self.problem.show()

    def _running(self, running: bool) -> None:
        self.bar.setVisible(running)
        self.stop.setVisible(running)
        self.convert.setEnabled(not running)
