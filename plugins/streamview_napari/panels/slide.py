"""The section about the slide: which one, its size and resolution, a missing or wrong mpp, and the conversion of what has no overview."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from qtpy.QtCore import Qt, QTimer, Signal
from qtpy.QtGui import QResizeEvent
from qtpy.QtWidgets import (
    QComboBox,
    QDialog,
    QDialogButtonBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from streamview.errors import SlideError, StreamviewError
from streamview_napari.canvas.layers import has_overview, job_layers, slide_layer
from streamview_napari.panels.section import Section, error_label, quiet_label
from streamview_napari.panels.theme import set_role
from streamview_napari.records import MapLayer, OutlineLayer, RegionsLayer, note, record_of, slide_on
from streamview_napari.requests.regions import describe_size
from streamview_napari.requests.slide import MPP_EXPECTED, describe_resolution, parse_mpp

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image, Layer

    from streamview.progress import Report, Step
    from streamview.slides import Slide
    from streamview_napari.state import State
    from streamview_napari.tasks import Work

__all__ = ["MppDialog", "SlideSection", "measure"]


def measure(layer: Image, mpp: float) -> None:
    """Give a slide's layer an mpp, in place of the one that its file states or lacks; it is then placed in micrometres.

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
        self.name = _Name()
        set_role(self.name, "title")
        self.choice = QComboBox()
        self.choice.setAccessibleName("Slide")
        self.choice.setToolTip("Which of the open slides is worked on; it is shown alone.")
        self.choice.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
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
        set_role(self.bar, "progress")
        facts = QHBoxLayout()
        facts.addWidget(self.extent, 1)
        facts.addWidget(self.measure, 0, Qt.AlignmentFlag.AlignBottom)
        buttons = QHBoxLayout()
        for button in (self.convert, self.stop):
            buttons.addWidget(button)
        buttons.addStretch()
        self.column.addWidget(self.name)
        self.column.addWidget(self.choice)
        self.column.addLayout(facts)
        self.column.addWidget(self.advice)
        self.column.addLayout(buttons)
        self.column.addWidget(self.bar)
        self.column.addWidget(self.problem)
        self.choice.activated.connect(self._chosen)
        self.measure.clicked.connect(self.ask)
        self.convert.clicked.connect(self._choose_folder)
        self.stop.clicked.connect(self._cancel)
        self._work: Work | None = None
        self._dialog: MppDialog | None = None
        self._shown: WeakSet[Image] = WeakSet()
        self._slides: list[Image | tuple[str, str]] = []  # as they are listed; of a job: its folder and the slide's id
        state.events.slide_changed.connect(self._show)
        for event in (viewer.layers.events.inserted, viewer.layers.events.removed):
            event.connect(self._list)
        self._show(state.slide_layer)

    def release(self) -> None:
        """Follow the viewer no longer."""
        for event in (self.viewer.layers.events.inserted, self.viewer.layers.events.removed):
            event.disconnect(self._list)

    def _show(self, layer: Image | None) -> None:
        slide = self.state.slide
        self.fill(slide is not None)
        self.problem.hide()
        self._running(False)
        self._list()
        if self._dialog is not None:
            self._dialog.reject()
        if layer is None or slide is None:
            return
        if layer not in self._shown:  # a slide that comes after others is looked at whole, as the first is
            if len(self._shown):
                self.viewer.reset_view(layers=[layer])
            self._shown.add(layer)
        self.name.write(slide.name)
        self.name.setToolTip(str(self.state.slide_path or slide.name))
        self.extent.setText(f"{describe_size(slide.shape, slide.mpp)}\n{describe_resolution(slide)}")
        set_role(self.measure, "plain" if slide.mpp is None else "link")
        lacking = not has_overview(slide)
        self.advice.setVisible(lacking)
        self.convert.setVisible(lacking)
        record = slide_on(layer)
        if layer is not None and record is not None and slide.mpp is None and not record.asked_for_mpp:
            note(layer, replace(record, asked_for_mpp=True))
            QTimer.singleShot(0, self.ask)

    # ----------------------------------------------------------------------------------------------------------- open slides, and of jobs

    def _list(self, event: Any = None) -> None:
        """Offer the open slides and the others of their jobs, where there are several."""
        records = {layer: record for layer in self.viewer.layers if (record := slide_on(layer)) is not None}
        jobs = [record.job for record in records.values() if record.job is not None]
        opened = {(job.folder, job.slide_id) for job in jobs}
        others = dict.fromkeys((job.folder, slide_id) for job in jobs for slide_id in job.slide_ids)
        self._slides = [*records, *(place for place in others if place not in opened)]
        self.choice.clear()
        self.choice.addItems([f"{slide[1]} (in the job)" if isinstance(slide, tuple) else slide.name for slide in self._slides])
        if self.state.slide_layer in records:
            self.choice.setCurrentIndex(self._slides.index(self.state.slide_layer))
        self.choice.setVisible(len(self._slides) > 1)
        self.name.setVisible(len(self._slides) < 2)

    def _chosen(self) -> None:
        """Work on the slide that was chosen, and show it alone; one of a job is opened with its maps."""
        chosen = self._slides[self.choice.currentIndex()]
        layer = self.state.slide_layer if isinstance(chosen, tuple) else chosen
        if isinstance(chosen, tuple):
            from napari.layers import Layer

            try:
                layers = job_layers(*chosen)
            except StreamviewError as error:
                self._list()
                self._fail(str(error))
                return
            for data, options, kind in layers:
                self.viewer.add_layer(Layer.create(data, options, kind))
            layer = self.state.slide_layer
        self.viewer.layers.selection.active = layer
        self.state.select_slide(layer)
        self.viewer.reset_view(layers=[layer])

    # --------------------------------------------------------------------------------------------------------------------------- the mpp

    def ask(self) -> None:
        """Ask for the mpp; Cancel leaves it as it is."""
        layer, slide = self.state.slide_layer, self.state.slide
        if layer is None or slide is None or self.state.closed or self._dialog is not None:
            return
        self._dialog = MppDialog(slide, self)
        self._dialog.given.connect(lambda mpp: self.set_mpp(layer, mpp))
        self._dialog.finished.connect(self._asked)
        self._dialog.open()

    def _asked(self) -> None:
        if self._dialog is not None:
            self._dialog.deleteLater()
            self._dialog = None

    def set_mpp(self, layer: Image, mpp: float) -> None:
        """Use this mpp for a slide, move all that lies on it along, and look at it anew."""
        record = slide_on(layer)
        before = None if record is None else record.source.mpp
        try:
            measure(layer, mpp)
        except SlideError as error:
            self._fail(str(error))
            return
        factors = [mpp / old for old in before or (1.0, 1.0)]
        for other in self.viewer.layers:
            if _lies_on(other, layer):
                other.scale, other.translate = other.scale[-2:] * factors, other.translate[-2:] * factors
                other.units = layer.units
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


class MppDialog(QDialog):
    """Asks how many micrometres a pixel covers; only a number that can be is taken.

    Parameters
    ----------
    slide
        Whose pixels.
    parent
        The dialog lies over it.
    """

    given = Signal(float)
    """Emitted with the mpp when the user has accepted it."""

    def __init__(self, slide: Slide, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Micrometres per pixel")
        known = "does not say how large its pixels are" if slide.mpp is None else f"has {describe_resolution(slide)}"
        question = QLabel(f"{slide.name} {known}.\nMicrometres per pixel at full resolution:")
        question.setWordWrap(True)
        self.line = QLineEdit()
        self.line.setAccessibleName("Micrometres per pixel")
        self.line.setPlaceholderText("such as 0.25")
        self.hint = quiet_label(MPP_EXPECTED)
        self.buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Ok | QDialogButtonBox.StandardButton.Cancel)
        self.buttons.accepted.connect(self.accept)
        self.buttons.rejected.connect(self.reject)
        column = QVBoxLayout(self)
        for widget in (question, self.line, self.hint, self.buttons):
            column.addWidget(widget)
        self.resize(400, self.sizeHint().height())

    def accept(self) -> None:
        """Take what was written, or say what is wrong with it and stay open."""
        try:
            mpp = parse_mpp(self.line.text())
        except SlideError as error:
            self.hint.setText(str(error) if self.line.text().strip() else MPP_EXPECTED)
            set_role(self.hint, "warning")
            self.line.setFocus()
            return
        self.given.emit(mpp)
        super().accept()


class _Name(QLabel):
    """A name, cut in its middle where it is too long."""

    def __init__(self) -> None:
        super().__init__()
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self._whole = ""

    def write(self, name: str) -> None:
        """Show another name."""
        self._whole = name
        self.setText(self.fontMetrics().elidedText(name, Qt.TextElideMode.ElideMiddle, max(self.width(), 100)))

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Cut it anew."""
        super().resizeEvent(event)
        self.write(self._whole)


def _lies_on(layer: Layer, slide: Image) -> bool:
    """Whether a layer shows regions or maps of a slide."""
    record, known = record_of(layer), slide_on(slide)
    if isinstance(record, RegionsLayer):
        return record.slide is slide
    if isinstance(record, OutlineLayer):
        return _lies_on(record.map, slide)
    return isinstance(record, MapLayer) and known is not None and record.saliency.prediction.identity.source == known.source.identity
