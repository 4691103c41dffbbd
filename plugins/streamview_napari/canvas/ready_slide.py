"""The slide and maps of one step of a review session, read in a thread so that they are ready when their turn comes; without Qt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamview.errors import StreamviewError
from streamview.review.blinding import BlindSlide, open_blind, open_maps
from streamview_napari.canvas.display import ReadyMap, make_ready
from streamview_napari.canvas.layers import LayerTuple, first_recipe, slide_layer
from streamview_napari.requests.answers import Answer

if TYPE_CHECKING:
    from streamview.review.session import Sight

__all__ = ["ReadySlide", "open_answers", "open_slide_of"]


@dataclass(frozen=True, slots=True, eq=False)
class ReadySlide:
    """A slide that can be put on the canvas at once.

    Parameters
    ----------
    sight
        The step's.
    slide
        Open; whoever shows it closes it.
    layer
        Of the slide, its coarsest tiles being read.
    """

    sight: Sight
    slide: BlindSlide
    layer: LayerTuple


def open_slide_of(sight: Sight) -> ReadySlide:
    """Open the slide of a step and begin to read its coarsest pixels.

    Raises
    ------
    StreamviewError
        When it cannot be opened.
    """
    slide = open_blind(sight)
    layer = slide_layer(slide)
    levels, options, _ = layer
    last = levels[-1]
    with options["metadata"]["streamview"].tiles.without_waiting():
        last[: last.shape[0], : last.shape[1]]
    return ReadySlide(sight, slide, layer)


def open_answers(sight: Sight, slide: BlindSlide) -> list[tuple[Answer, ReadyMap]]:
    """Return the network's answers with their maps, the first made ready to be shown; none before their turn.

    Raises
    ------
    StreamviewError
        When a map or the slide cannot be read; it does not name the slide.
    """
    answers = []
    for saliency in open_maps(sight):
        try:
            ready = make_ready(saliency, first_recipe(saliency), slide)
        except (StreamviewError, OSError):
            raise StreamviewError(f"{sight.title}: the network's map cannot be shown; tell whoever leads the session") from None
        answers.append((Answer(saliency.prediction, saliency), ready))
    return answers
