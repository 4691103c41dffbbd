"""The one dock: sections below each other in a scroll area, those without content hidden."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QCoreApplication, QEvent, QObject, QSize, Qt, QTimer
from qtpy.QtWidgets import QFrame, QHBoxLayout, QLabel, QPushButton, QScrollArea, QToolButton, QVBoxLayout, QWidget

from streamview_napari.panels.display import DisplaySection
from streamview_napari.panels.export import ExportSection
from streamview_napari.panels.finetuning import FinetuningSection
from streamview_napari.panels.hotspots import HotspotSection
from streamview_napari.panels.inference import InferenceSection
from streamview_napari.panels.keys import KeySheet, bind, unbind
from streamview_napari.panels.labels import LabelsSection
from streamview_napari.panels.results import ResultSection
from streamview_napari.panels.section import Section, Shortcut
from streamview_napari.panels.slide import SlideSection
from streamview_napari.state import State

if TYPE_CHECKING:
    from napari.components import ViewerModel

__all__ = ["SECTIONS", "Dock"]

SECTIONS: tuple[type[Section], ...] = (
    SlideSection,
    InferenceSection,
    ResultSection,
    DisplaySection,
    HotspotSection,
    ExportSection,
    LabelsSection,
    FinetuningSection,
)
_WIDTH = 340  # px
_TITLE_STYLE = "font-weight: bold; QToolButton { border: 0; background: transparent; padding: 0; font-weight: bold; }"


class Dock(QWidget):
    """What napari opens as the plugin's widget.

    Parameters
    ----------
    napari_viewer
        The viewer; napari puts it in by this name.
    """

    def __init__(self, napari_viewer: ViewerModel) -> None:
        super().__init__()
        self._window: QWidget | None = None
        self._docked = False
        self.viewer = napari_viewer
        self.state = State(napari_viewer)
        self.sections = [section(napari_viewer, self.state) for section in SECTIONS]
        self.hint = QLabel("Open a slide: drag it here, or File > Open.")
        self.hint.setWordWrap(True)
        self.sheet: KeySheet | None = None
        self._shortcuts = [shortcut for section in self.sections for shortcut in section.shortcuts()]
        self._shortcuts.append(Shortcut("sheet", "Show this sheet", self.show_keys))
        bind(napari_viewer, self._shortcuts)
        self._lay_out()
        self.state.events.slide_changed.connect(self._show_hint)
        self._show_hint(self.state.slide_layer)
        application = QCoreApplication.instance()
        if application is not None:
            application.aboutToQuit.connect(self.close_work)

    def _lay_out(self) -> None:
        inner = QWidget()
        column = QVBoxLayout(inner)
        column.setContentsMargins(10, 4, 12, 10)
        column.setSpacing(6)
        column.addWidget(self.hint)
        for section in self.sections:
            column.addWidget(_headed(section))
        column.addStretch()
        keys = QPushButton("Keys")
        keys.setToolTip("What the keys do; key ?")
        keys.clicked.connect(self.show_keys)
        column.addWidget(keys, 0, Qt.AlignmentFlag.AlignRight)
        area = QScrollArea()
        area.setWidgetResizable(True)
        area.setFrameShape(QFrame.Shape.NoFrame)
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        area.setWidget(inner)
        whole = QVBoxLayout(self)
        whole.setContentsMargins(0, 0, 0, 0)
        whole.addWidget(area)
        self.setMinimumWidth(_WIDTH)

    def sizeHint(self) -> QSize:
        """Ask for the usual width."""
        return QSize(_WIDTH + 20, 700)

    def _show_hint(self, layer: Any) -> None:
        self.hint.setVisible(layer is None)

    def show_keys(self) -> None:
        """Show what the keys do."""
        if self.sheet is not None:
            self.sheet.close()
            self.sheet.deleteLater()
        self.sheet = KeySheet(self._shortcuts, self)
        self.sheet.show()

    # The work must end with the window, and with the dock: napari takes a dock's widget out when its cross is clicked.

    def event(self, event: QEvent) -> bool:
        """Look out for the window that the dock is put into, and for being taken out of it."""
        if event.type() == QEvent.Type.ParentChange:
            if self.parent() is None and self._docked:
                self.close_work()
            self._docked = self.parent() is not None
        elif event.type() == QEvent.Type.Show and self._window is not self.window():
            self._window = self.window()
            self._window.installEventFilter(self)
        return bool(super().event(event))

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Stop the work when the window closes; a click on its cross may still be declined in napari's dialogue."""
        if watched is self._window and event.type() == QEvent.Type.Close:
            if event.spontaneous():
                QTimer.singleShot(0, self._window_may_have_closed)
            else:
                self.close_work()
        return False

    def _window_may_have_closed(self) -> None:
        if self._window is not None and not self._window.isVisible():
            self.close_work()

    def close_work(self) -> None:
        """Cancel what runs and wait for it, give the keys back, and let go of the viewer."""
        if not self.state.closed:
            unbind(self.viewer, self._shortcuts)
            for section in self.sections:
                section.release()
            self.state.close()


def _headed(section: Section) -> QWidget:
    """Put a section under its title and a line."""
    whole = QWidget()
    column = QVBoxLayout(whole)
    column.setContentsMargins(0, 8, 0, 4)
    column.setSpacing(6)
    title: QWidget = _fold(section) if section.folded else QLabel(section.title)
    title.setStyleSheet(_TITLE_STYLE)
    note = QLabel()
    note.setStyleSheet("color: #a0a4ab;")
    section.note_changed.connect(note.setText)
    head = QHBoxLayout()
    head.addWidget(title)
    head.addStretch()
    head.addWidget(note)
    line = QFrame()
    line.setFixedHeight(1)
    line.setStyleSheet("background: #4a505b;")
    column.addLayout(head)
    column.addWidget(line)
    column.addWidget(section)
    whole.setVisible(section.filled)
    section.filled_changed.connect(whole.setVisible)
    return whole


def _fold(section: Section) -> QToolButton:
    """Return a title that shows and hides its section; hidden at first."""
    title = QToolButton()
    title.setText(section.title)
    title.setToolTip("Click to open or close this section.")
    title.setCheckable(True)
    title.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)

    def show(shown: bool) -> None:
        title.setArrowType(Qt.ArrowType.DownArrow if shown else Qt.ArrowType.RightArrow)
        section.setVisible(shown)

    title.toggled.connect(show)
    section.unfold.connect(lambda: title.setChecked(True))
    show(False)
    return title
