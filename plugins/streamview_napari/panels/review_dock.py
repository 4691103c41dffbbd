"""What a pathologist opens to read a session: without the panel for analysis, which would name the slides."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from streamview_napari.panels.display import DisplaySection
from streamview_napari.panels.dock import Dock
from streamview_napari.panels.reading import ReadingSection
from streamview_napari.panels.reviewed_hotspots import ReviewedHotspots
from streamview_napari.panels.section import Section

if TYPE_CHECKING:
    from napari.components import ViewerModel

__all__ = ["ReviewDock"]


class _Display(DisplaySection):
    """How the map is shown, for who wants to change it."""

    opens = "room"


class ReviewDock(Dock):
    """The dock of a review session.

    Parameters
    ----------
    napari_viewer
        The viewer; napari puts it in by this name.
    """

    TABS: ClassVar[dict[str, tuple[type[Section], ...]]] = {"Review": (ReadingSection, ReviewedHotspots, _Display)}
    HINT = ""

    def __init__(self, napari_viewer: ViewerModel) -> None:
        super().__init__(napari_viewer)
        self.reading = next(section for section in self.sections if isinstance(section, ReadingSection))
        hotspots = next(section for section in self.sections if isinstance(section, ReviewedHotspots))
        hotspots.called.connect(self.reading.judge)
        self.reading.hotspots_called.connect(hotspots.show_calls)
