"""What the model chooser offers and says; pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from streamview.results import RESEARCH_USE

if TYPE_CHECKING:
    from streamview.inspection.report import Streamability
    from streamview.networks import Model
    from streamview.networks.cards import ModelCard
    from streamview.slides import Slide

__all__ = ["Entry", "Loaded", "describe_card", "describe_fit", "describe_streaming", "known_models", "load"]

_COARSER_ALLOWED = 1.10
_NAMED = 6  # classes


@dataclass(frozen=True, slots=True)
class Entry:
    """A network to choose.

    Parameters
    ----------
    spec
        As for `streamview.load_model`.
    name
        For people.
    trained
        Whether trained weights are here; without, only random ones can be drawn, to try speed and memory.
    """

    spec: str
    name: str
    trained: bool


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A network ready to run, and how it streams.

    Parameters
    ----------
    spec
        What the user chose: a name, folder or file.
    model
        The network.
    streaming
        How it streams.
    """

    spec: str
    model: Model
    streaming: Streamability


def known_models() -> list[Entry]:
    """Return the networks of the registry, trained ones first; loads no weights."""
    from streamview_models import MODELS, folder

    from streamview.networks import load_card

    entries = []
    for spec in MODELS:
        trained = load_card(spec).trained and any(folder(spec).glob("*.safetensors"))
        entries.append(Entry(spec, spec if trained else f"{spec} (random weights)", trained))
    return sorted(entries, key=lambda entry: not entry.trained)


def load(spec: str, *, untrained: bool) -> Loaded:
    """Load a network of the registry, of a folder or of a file.

    Raises
    ------
    ModelError
        As `streamview.load_model`.
    """
    from streamview.inspection.streamability import streamability
    from streamview.networks import load_model

    place = Path(spec)
    model = load_model(place.parent if place.name in ("card.json", "config.json") else spec, untrained=untrained)
    return Loaded(spec, model, streamability(model.module))


def describe_card(card: ModelCard) -> str:
    """Say what a network answers, at which resolution, and under which licence."""
    names = card.class_names
    classes = f"{len(names)} classes" if len(names) > _NAMED else ", ".join(names)
    mpp = "µm/px unknown" if card.mpp is None else f"{card.mpp:.3g} µm/px"
    drawn = "" if card.trained else "\nRandom weights: answers mean nothing"
    return f"{classes} · {mpp} · {card.licence or 'licence unknown'}{drawn}\n{RESEARCH_USE}"


def describe_streaming(streaming: Streamability) -> str:
    """Say in one line whether and how a network streams."""
    if not streaming.streams:
        return f"Cannot be streamed: {streaming.reason}"
    passes = "one pass" if streaming.passes == 1 else f"{streaming.passes} passes"
    largest = "" if streaming.sides is None or streaming.sides.largest is None else f", up to {streaming.sides.largest} px"
    return f"Streams exactly, in {passes}{largest}"


def describe_fit(card: ModelCard, slide: Slide) -> tuple[bool, str]:
    """Return whether a slide's resolution fits the network, and how it is read; empty where there is nothing to say."""
    if card.mpp is None:
        return True, "The network states no µm/px; the slide is read as it is."
    if slide.mpp is None:
        return False, f"The network is made for {card.mpp:.3g} µm/px, but the slide's are unknown: set them above."
    coarsest = max(slide.mpp)
    if coarsest > card.mpp * _COARSER_ALLOWED * (1 + 1e-9):
        return False, f"The slide's {coarsest:.3g} µm/px are too coarse for a network made for {card.mpp:.3g} µm/px."
    if card.mpp > coarsest * 1.001:
        return True, f"Read at {card.mpp:.3g} µm/px, as the network was made for."
    return True, ""
