"""Keys: bound as the settings say, and listed on a sheet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from qtpy.QtGui import QKeySequence
from qtpy.QtWidgets import QDialog, QGridLayout, QLabel, QShortcut, QVBoxLayout, QWidget

from streamview_napari.panels.section import Shortcut, quiet_label
from streamview_napari.settings import settings

if TYPE_CHECKING:
    from napari.components import ViewerModel

__all__ = ["KeySheet", "bind", "unbind"]


def bind(viewer: ViewerModel, shortcuts: Sequence[Shortcut], widget: QWidget) -> None:
    """Bind the keys of the settings; one that is empty binds nothing.

    Parameters
    ----------
    viewer
        Whose keys they are.
    shortcuts
        What they do.
    widget
        Of the same window. Keys that napari cannot tell apart, such as ``?``, are Qt's, and work while it is shown.
    """
    for shortcut in shortcuts:
        key = _key(shortcut)
        if _taken_by_napari(shortcut):
            viewer.bind_key(key, _action(shortcut), overwrite=True)
        elif key:
            keys = QShortcut(QKeySequence(key), widget)
            keys.setAutoRepeat(False)
            if not shortcut.key:
                keys.setKeys([QKeySequence(key), QKeySequence(f"Shift+{key}")])  # with Shift or without, as keyboards have it
            keys.activated.connect(shortcut.press)


def unbind(viewer: ViewerModel, shortcuts: Sequence[Shortcut], widget: QWidget) -> None:
    """Undo `bind`; napari's own keys work again."""
    from napari.utils.key_bindings import coerce_keybinding

    for shortcut in shortcuts:
        if _taken_by_napari(shortcut):
            viewer.keymap.pop(coerce_keybinding(_key(shortcut)), None)
    for keys in widget.findChildren(QShortcut):
        keys.deleteLater()


def _key(shortcut: Shortcut) -> str:
    return shortcut.key or str(getattr(settings().keys, shortcut.name))


def _taken_by_napari(shortcut: Shortcut) -> bool:
    """Whether napari binds the key: one of the settings that it has a name for; all others are the same to it."""
    key = _key(shortcut)
    if not key or shortcut.key:
        return False
    from app_model.types import KeyCode
    from napari.utils.key_bindings import coerce_keybinding

    return all(part.key != KeyCode.UNKNOWN for part in coerce_keybinding(key).parts)


def _action(shortcut: Shortcut) -> Callable[[Any], Any]:
    if shortcut.release is None:
        return lambda viewer: shortcut.press() and None
    release = shortcut.release

    def held(viewer: Any) -> Iterator[None]:
        shortcut.press()
        yield
        release()

    return held


class KeySheet(QDialog):
    """All keys, in a small window."""

    def __init__(self, shortcuts: Sequence[Shortcut], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("streamview keys")
        grid = QGridLayout()
        grid.setHorizontalSpacing(16)
        grid.setVerticalSpacing(6)
        for row, shortcut in enumerate(shortcut for shortcut in shortcuts if shortcut.text):
            key = QLabel(_key(shortcut) or "–")
            key.setStyleSheet("font-family: monospace; font-weight: bold;")
            grid.addWidget(key, row, 0)
            grid.addWidget(QLabel(shortcut.text), row, 1)
        column = QVBoxLayout(self)
        column.setContentsMargins(16, 14, 16, 14)
        column.addLayout(grid)
        if not all(shortcut.key for shortcut in shortcuts):
            column.addWidget(quiet_label("To change those of the canvas: File > Preferences > streamview."))
