"""Slides dropped on the window or the dock open at once.

napari asks which plugin opens a file wherever two can, and its own reader claims nearly every ending. Here what only it and this plugin
claim, and nobody has chosen a reader for, is opened by this plugin.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtGui import QDropEvent
from qtpy.QtWidgets import QWidget

from streamview_napari.reader import get_reader

if TYPE_CHECKING:
    from napari.components import ViewerModel

__all__ = ["Drops", "opens_here"]


def opens_here(path: str) -> bool:
    """Whether this plugin opens a path without being asked for: it can, no third one claims it, and the user prefers no other."""
    from napari.plugins.utils import get_preferred_reader
    from npe2 import PluginManager

    if get_reader(path) is None:
        return False
    claims = {reader.plugin_name for reader in PluginManager.instance().iter_compatible_readers(path)}
    preferred = get_preferred_reader(path)
    return preferred == "streamview" if preferred is not None else claims <= {"napari", "streamview"}


class Drops(QObject):
    """Opens what is dropped on some widgets, where `opens_here`; all else is left to napari.

    Parameters
    ----------
    viewer
        Gets the layers.
    widgets
        Those that take drops, at present or from now on.
    """

    def __init__(self, viewer: ViewerModel, widgets: Sequence[QWidget], parent: QObject) -> None:
        super().__init__(parent)
        self._viewer = viewer
        for widget in widgets:
            widget.setAcceptDrops(True)
            widget.installEventFilter(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Take the drops that open here."""
        kind = event.type()
        if kind not in (QEvent.Type.DragEnter, QEvent.Type.Drop) or not isinstance(event, QDropEvent) or event.modifiers() & _ASKS:
            return False
        paths = [str(Path(url.toLocalFile())) for url in event.mimeData().urls() if url.isLocalFile()]
        if not paths or not all(opens_here(path) for path in paths):
            return False
        event.acceptProposedAction()
        if kind == QEvent.Type.Drop:
            for path in paths:
                self._viewer.open(path, plugin="streamview")
        return True


_ASKS = Qt.KeyboardModifier.AltModifier | Qt.KeyboardModifier.ShiftModifier  # with these napari asks for the reader, or makes a stack
