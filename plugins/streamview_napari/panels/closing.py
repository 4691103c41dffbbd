"""What is asked before the window closes while work is under way or results lie in a temporary folder only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtWidgets import QFileDialog, QMessageBox, QWidget

from streamview.errors import StreamviewError
from streamview_napari.requests.keep import describe_unsaved, keep_results

if TYPE_CHECKING:
    from streamview_napari.state import State

__all__ = ["may_close"]


def may_close(state: State, parent: QWidget) -> bool:
    """Ask once, where something would be lost, and keep the results where the user wants that; return whether the window may close."""
    lost = describe_unsaved(len(state.unsaved), running=state.running)
    if not lost:
        return True
    box = QMessageBox(parent)
    box.setWindowTitle("streamview")
    box.setIcon(QMessageBox.Icon.Warning)
    box.setText(lost)
    keep = box.addButton("Keep…", QMessageBox.ButtonRole.AcceptRole) if state.unsaved else None
    close = box.addButton("Close", QMessageBox.ButtonRole.DestructiveRole)
    stay = box.addButton("Cancel", QMessageBox.ButtonRole.RejectRole)
    box.setDefaultButton(stay if keep is None else keep)
    box.setEscapeButton(stay)
    box.exec()
    clicked = box.clickedButton()
    box.deleteLater()
    if clicked is close:
        return True
    return clicked is keep and keep is not None and _keep(state, parent)


def _keep(state: State, parent: QWidget) -> bool:
    beside = Path.home() if state.slide_path is None or "://" in state.slide_path else Path(state.slide_path).parent
    chosen, _ = QFileDialog.getSaveFileName(parent, "Keep the results in a job folder", str(beside / "job"), "Folder (*)")
    if not chosen:
        return False
    try:
        keep_results(state.unsaved, Path(chosen))
    except StreamviewError as error:
        QMessageBox.warning(parent, "streamview", str(error))
        return False
    state.saved(state.unsaved)
    return True
