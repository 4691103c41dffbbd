"""What this plugin knows of a layer: one record in the layer's ``metadata["streamview"]``.

Records are frozen: what changes is put there anew, by `note`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari.layers import Image, Layer

    from streamview.inspection.certificate import Certificate
    from streamview.results import Saliency
    from streamview.results.display import Recipe
    from streamview.results.shown_map import ShownMap
    from streamview.slides import Slide
    from streamview_napari.requests.answers import RunFacts
    from streamview_napari.tiles import Tiles

__all__ = [
    "AnalysedLayer",
    "JobPlace",
    "MapLayer",
    "OutlineLayer",
    "Record",
    "RegionsLayer",
    "SlideLayer",
    "expect_map",
    "map_on",
    "note",
    "record_of",
    "slide_on",
]


@dataclass(frozen=True, slots=True)
class JobPlace:
    """Where a slide is found in a job.

    Parameters
    ----------
    folder
        Of the job.
    slide_id
        The slide's id there.
    slide_ids
        Those of all slides there that have answers.
    """

    folder: str
    slide_id: str
    slide_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class SlideLayer:
    """A layer that shows a slide.

    Parameters
    ----------
    source
        The open slide, with the mpp that the user gave where its file states none.
    path
        From where it was opened for this layer, and closed with it; None where whoever opened it closes it.
    asked_for_mpp
        Whether the user was asked for the mpp.
    job
        Its place in the job that it was opened from; None where it was opened by itself.
    tiles
        What its levels are read through; None where they are read as they are.
    """

    source: Slide
    path: str | None = None
    asked_for_mpp: bool = False
    job: JobPlace | None = None
    tiles: Tiles | None = None


@dataclass(frozen=True, slots=True, eq=False)
class MapLayer:
    """A layer that shows a map.

    Parameters
    ----------
    saliency
        The raw maps, the target, and the prediction with its identity.
    shown
        Which of the maps, and how it is shown now.
    caption
        What the canvas says of it.
    run
        With what it was computed in this window; None where it was opened.
    certificate
        Of the network on its region, where the user asked for one.
    siblings
        Other results that were opened with it, which have no layer.
    """

    saliency: Saliency
    shown: ShownMap
    caption: str
    run: RunFacts | None = None
    certificate: Certificate | None = None
    siblings: tuple[Saliency, ...] = ()

    @property
    def source(self) -> str:
        """Identity of the slide that it is for."""
        return self.saliency.prediction.identity.source

    @property
    def recipe(self) -> Recipe:
        """How it is shown."""
        return self.shown.shown.recipe

    @property
    def cap(self) -> float:
        """The raw value that gets the full colour."""
        return self.shown.shown.cap


@dataclass(frozen=True, slots=True, eq=False)
class RegionsLayer:
    """A layer of rectangles on a slide.

    Parameters
    ----------
    slide
        The slide's layer.
    labelled
        Whether the rectangles have a class, or are there to be run on.
    """

    slide: Image
    labelled: bool


@dataclass(frozen=True, slots=True, eq=False)
class OutlineLayer:
    """A layer that outlines what a map shows.

    Parameters
    ----------
    map
        The map's layer.
    """

    map: Image


@dataclass(frozen=True, slots=True, eq=False)
class AnalysedLayer:
    """A layer that outlines the regions that were analysed on the slide worked on."""


Record = SlideLayer | MapLayer | RegionsLayer | OutlineLayer | AnalysedLayer


def record_of(layer: Layer | None) -> Record | None:
    """Return the record of a layer; None for layers that are not this plugin's."""
    record = None if layer is None else layer.metadata.get("streamview")
    return record if isinstance(record, Record) else None


def slide_on(layer: Layer | None) -> SlideLayer | None:
    """Return the record of a slide's layer; None for other layers."""
    record = record_of(layer)
    return record if isinstance(record, SlideLayer) else None


def map_on(layer: Layer | None) -> MapLayer | None:
    """Return the record of a map's layer; None for other layers."""
    record = record_of(layer)
    return record if isinstance(record, MapLayer) else None


def expect_map(layer: Layer) -> MapLayer:
    """Return the record of a map's layer.

    Raises
    ------
    TypeError
        When it is another layer.
    """
    record = map_on(layer)
    if record is None:
        raise TypeError(f"the layer {layer.name} shows no map of streamview: expected one that does")
    return record


def note(layer: Layer, record: Record) -> None:
    """Put a record on a layer, in place of the one that was there."""
    layer.metadata["streamview"] = record
