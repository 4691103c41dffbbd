"""The dock: tabs of sections, those without content hidden."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from qtpy.QtCore import QCoreApplication, QEvent, QObject, QSize, QTimer
from qtpy.QtWidgets import QLabel, QMainWindow, QPushButton, QTabWidget, QVBoxLayout, QWidget

from streamview_napari.panels.closing import may_close
from streamview_napari.panels.column import Column
from streamview_napari.panels.display import DisplaySection
from streamview_napari.panels.drops import Drops
from streamview_napari.panels.export import ExportSection
from streamview_napari.panels.finetuning import FinetuningSection
from streamview_napari.panels.focus import Focus, order_tabs
from streamview_napari.panels.hotspots import HotspotSection
from streamview_napari.panels.inference import InferenceSection
from streamview_napari.panels.keys import KeySheet, bind, unbind
from streamview_napari.panels.labels import LabelsSection
from streamview_napari.panels.results import ResultSection
from streamview_napari.panels.section import Section, Shortcut
from streamview_napari.panels.slide import SlideSection
from streamview_napari.panels.theme import style_sheet
from streamview_napari.records import slide_on
from streamview_napari.state import State

if TYPE_CHECKING:
    from napari.components import ViewerModel

__all__ = ["Dock"]

_WIDTH = 340  # px


class Dock(QWidget):
    """What napari opens as the plugin's widget.

    Parameters
    ----------
    napari_viewer
        The viewer; napari puts it in by this name.
    """

    TABS: ClassVar[dict[str, tuple[type[Section], ...]]] = {
        "Analyse": (SlideSection, InferenceSection, ResultSection, DisplaySection, HotspotSection, ExportSection),
        "Train": (LabelsSection, FinetuningSection),
    }
    """The sections of each tab, from top to bottom."""
    HINT: ClassVar[str] = "Open a slide: drag it here, or File > Open."
    """What is said while there is no slide; empty: nothing, and no slide is taken."""

    def __init__(self, napari_viewer: ViewerModel) -> None:
        super().__init__()
        self._window: QWidget | None = None
        self._docked = False
        self.viewer = napari_viewer
        self.state = State(napari_viewer)
        sections = {title: [section(napari_viewer, self.state) for section in tab] for title, tab in self.TABS.items()}
        self.sections = [section for tab in sections.values() for section in tab]
        self.hint = QLabel(self.HINT)
        self.hint.setWordWrap(True)
        self.sheet: KeySheet | None = None
        self._shortcuts = [shortcut for section in self.sections for shortcut in section.shortcuts()]
        self._shortcuts.append(Shortcut("sheet", "Show this sheet", self.show_keys))
        bind(napari_viewer, self._shortcuts, self)
        self._lay_out(sections)
        self._follow_theme()
        napari_viewer.events.theme.connect(self._follow_theme)
        Focus(self)
        self.state.events.slide_changed.connect(self._show_hint)
        self._show_hint(self.state.slide_layer)
        application = QCoreApplication.instance()
        if application is not None:
            application.aboutToQuit.connect(self.close_work)

    def _lay_out(self, sections: dict[str, list[Section]]) -> None:
        self.tabs = QTabWidget()
        for title, tab in sections.items():
            column = Column(tab)
            column.wanted.connect(partial(self.tabs.setCurrentWidget, column))
            self.tabs.addTab(column, title)
        self.tabs.tabBar().setAccessibleName(" or ".join(sections).capitalize())
        keys = QPushButton("Keys")
        keys.setToolTip("What the keys do; key ?")
        keys.clicked.connect(self.show_keys)
        self.tabs.setCornerWidget(keys)
        whole = QVBoxLayout(self)
        whole.setContentsMargins(0, 0, 0, 0)
        whole.setSpacing(4)
        whole.addWidget(self.hint)
        whole.addWidget(self.tabs)
        for section in self.sections:
            order_tabs(section)
        self.setMinimumWidth(_WIDTH)

    def _follow_theme(self, event: Any = None) -> None:
        self.setStyleSheet(style_sheet(self.viewer.theme))

    def sizeHint(self) -> QSize:
        """Ask for the usual width."""
        return QSize(_WIDTH + 20, 700)

    def _show_hint(self, layer: Any) -> None:
        self.hint.setVisible(layer is None and bool(self.HINT))

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
            canvas = self._window.centralWidget() if isinstance(self._window, QMainWindow) else None
            inside = [] if canvas is None else [canvas, *canvas.findChildren(QWidget)]
            if self.HINT:
                Drops(self.viewer, [self, *(widget for widget in inside if widget.acceptDrops())], self)
            self._replace_others(self._window)
        return bool(super().event(event))

    def _replace_others(self, window: QWidget) -> None:
        """Close the other dock of this plugin: both would work on the same layers, and that for analysis names a session's slides."""
        for other in window.findChildren(Dock):
            if other is not self and not other.state.closed:
                self.viewer.window.remove_dock_widget(other)
                other.deleteLater()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Stop the work when the window closes; a click on its cross, or its menu, may still be declined, here and in napari's dialogue."""
        if watched is self._window and event.type() == QEvent.Type.Close:
            if event.spontaneous() or self._is_whole():
                if not self.state.closed and not may_close(self.state, self):
                    event.ignore()
                    return True
                QTimer.singleShot(0, self._window_may_have_closed)
            else:
                self.close_work()
        return False

    def _is_whole(self) -> bool:
        """Whether the canvas is still in the window: a program that closes the viewer takes it out first, the menu does not."""
        canvas = self._window.centralWidget() if isinstance(self._window, QMainWindow) else None
        return canvas is not None and any(widget.isVisible() for widget in canvas.findChildren(QWidget))

    def _window_may_have_closed(self) -> None:
        if self._window is not None and not self._window.isVisible():
            self.close_work()
            for record in map(slide_on, self.viewer.layers):  # napari keeps the layers of a window that is closed by its cross
                if record is not None and record.path is not None:
                    record.source.close()

    def close_work(self) -> None:
        """Cancel what runs and wait for it, give the keys back, and let go of the viewer."""
        if not self.state.closed:
            unbind(self.viewer, self._shortcuts, self)
            self.viewer.events.theme.disconnect(self._follow_theme)
            for section in self.sections:
                section.release()
            self.state.close()
