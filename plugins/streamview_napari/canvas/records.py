"""What the plugin knows of a layer: one frozen record in its ``metadata["streamview"]``, exchanged for another when something changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from napari.layers import Layer

    from streamview.results import Saliency
    from streamview.results.display import Recipe
    from streamview.slides import Slide
    from streamview_napari.canvas.map_pyramid import ShownMap
    from streamview_napari.requests.answers import RunFacts

__all__ = ["Attached", "MapRecord", "SlideRecord", "attached_to", "keep", "map_record", "path_of_layer", "slide_record"]

_Record = TypeVar("_Record")
_KEY = "streamview"


@dataclass(frozen=True, slots=True, eq=False)
class SlideRecord:
    """Of an image layer that shows a slide.

    Parameters
    ----------
    source
        The slide, open; with the mpp that the user gave, where it states none.
    path
        Where it was opened from for this layer: it is closed with the layer. None where the caller closes it.
    asked
        Whether the user was asked for the missing mpp.
    """

    source: Slide
    path: str | None
    asked: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class MapRecord:
    """Of an image layer that shows a map; its values are per cent of the cap.

    Parameters
    ----------
    saliency
        The raw maps and what they are.
    map
        The one that is shown, as it is shown now.
    run
        With what it was computed, if by the dock.
    certificate
        Of exactness, as a dictionary; None while it was not asked for.
    verified
        The certificate in a sentence.
    """

    saliency: Saliency
    map: ShownMap
    run: RunFacts | None = None
    certificate: dict[str, Any] | None = None
    verified: str = ""

    @property
    def recipe(self) -> Recipe:
        """How the map is shown."""
        return self.map.shown.recipe


@dataclass(frozen=True, slots=True, eq=False)
class Attached:
    """Of a layer that belongs to another one: rectangles to run on, labelled regions, or the outline of a map."""

    kind: Literal["regions", "labels", "outline"]
    to: Layer


def keep(record: SlideRecord | MapRecord | Attached) -> dict[str, Any]:
    """The metadata of a layer with this record."""
    return {_KEY: record}


def slide_record(layer: Layer | None) -> SlideRecord | None:
    """The record of a layer that shows a slide; None of any other."""
    return _of(SlideRecord, layer)


def map_record(layer: Layer | None) -> MapRecord | None:
    """The record of a layer that shows a map; None of any other."""
    return _of(MapRecord, layer)


def attached_to(layer: Layer | None, kind: str) -> Layer | None:
    """The layer to which one of this kind belongs; None of any other."""
    record = _of(Attached, layer)
    return record.to if record is not None and record.kind == kind else None


def _of(kind: type[_Record], layer: Layer | None) -> _Record | None:
    record = None if layer is None else layer.metadata.get(_KEY)
    return record if isinstance(record, kind) else None


def path_of_layer(layer: Layer | None) -> str | None:
    """Where the slide of a layer was opened from; None where its caller closes it, and of any other layer."""
    record = slide_record(layer)
    return None if record is None else record.path
