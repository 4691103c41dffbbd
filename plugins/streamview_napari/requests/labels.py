"""Labelled regions of several slides, as the panel keeps them, and what it says of them; pure."""

from __future__ import annotations

import functools
import html
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from streamview.errors import LabelError, SlideError
from streamview.labels.regions import Example, count_labels, read_labels
from streamview_napari.requests.regions import describe_size

if TYPE_CHECKING:
    from streamview.geometry import Region
    from streamview.networks.cards import ModelCard

__all__ = [
    "CLASS_COLOURS",
    "NO_CLASS",
    "Mpp",
    "Row",
    "class_names",
    "colour_of",
    "describe_counts",
    "find_unsaved",
    "free_place",
    "join",
    "list_rows",
    "load",
    "of_slide",
    "path_of",
    "paths_of",
    "relabel",
    "replace_drawn",
]

Mpp = tuple[float, float] | None
"""Um per level-0 px, ``(y, x)``; None where it is not known."""

CLASS_COLOURS = ("#01a882", "#c77a00", "#75dffd", "#9d230d", "#9b035a", "#271f00", "#030218")
NO_CLASS = "#b5ffd9"
"""Outlines of classes, and of what has none: seen on H&E, and told apart from each other, from the yellow outline of maps and from the blue
of regions also by who lacks the green cones."""
_UNSAVED = "unsaved-labels"


@dataclass(frozen=True, slots=True)
class Row:
    """What the table says of a labelled region.

    Parameters
    ----------
    slide
        Its name, without folder and suffix.
    label, patient
        As in the table that is kept.
    place
        Of its upper left corner, x and y in mm, or in px where the mpp is not known; ``"whole"`` for a whole slide.
    tip
        All of it, and the size, for who points there.
    """

    slide: str
    label: str
    patient: str
    place: str
    tip: str


def path_of(example: Example) -> str:
    """Return the one absolute path of an example's slide; empty where it is no file."""
    return paths_of([example])[0]


def paths_of(labels: Iterable[Example]) -> list[str]:
    """Return the one absolute path of each example's slide, looked up once a slide; empty where it is no file."""
    look_up = functools.cache(os.path.realpath)
    return [look_up(os.fspath(example.source)) if isinstance(example.source, str | os.PathLike) else "" for example in labels]


def of_slide(labels: Iterable[Example], path: str) -> tuple[Example, ...]:
    """Return the regions of a slide that can be drawn on it: those that are not the whole slide."""
    labels = tuple(labels)
    return tuple(one for one, place in zip(labels, paths_of(labels), strict=True) if one.region is not None and place == path)


def replace_drawn(labels: Sequence[Example], path: str, drawn: Sequence[Example]) -> tuple[Example, ...]:
    """Put what is now drawn on a slide in place of what was; the slide keeps its place among the others, and what tables call it."""
    paths = paths_of(labels)
    first = paths.index(path) if path in paths else len(labels)
    called = labels[first].slide_id if path in paths else ""
    if not called and any(example.name == Path(path).name and place != path for example, place in zip(labels, paths, strict=True)):
        called = path  # another slide has its name, and they must not count as one patient's
    remaining = [example for example, place in zip(labels, paths, strict=True) if place != path or example.region is None]
    named = (example if example.slide_id == called else replace(example, slide_id=called) for example in drawn)
    return (*remaining[:first], *named, *remaining[first:])


def join(labels: Sequence[Example], more: Sequence[Example]) -> tuple[Example, ...]:
    """Add labelled regions to those that are there; of the same region the added one counts."""
    places = {(path_of(example), example.region) for example in more}
    names = {path_of(example): example.slide_id for example in more}
    remaining = [example for example in labels if (path_of(example), example.region) not in places]
    return (*(replace(example, slide_id=names.get(path_of(example), example.slide_id)) for example in remaining), *more)


def relabel(labels: Sequence[Example], rows: Iterable[int], label: str, patient: str) -> tuple[Example, ...]:
    """Give some of the labelled regions, by their place among all, another class and patient."""
    chosen = set(rows)
    return tuple(replace(example, label=label, patient=patient) if row in chosen else example for row, example in enumerate(labels))


def load(path: str | os.PathLike[str], elsewhere: Path | None = None) -> tuple[tuple[Example, ...], dict[str, Mpp]]:
    """Read a table, and from each slide its mpp, by its path; slides that are not beside the table are looked for in a second folder.

    Raises
    ------
    LabelError
        As `streamview.labels.regions.read_labels`.
    """
    try:
        labels = read_labels(path)
    except LabelError:
        if elsewhere is None:
            raise
        labels = read_labels(path, elsewhere)
    mpps: dict[str, Mpp] = {}
    for example in labels:
        if path_of(example) not in mpps:
            try:
                with example.open() as slide:
                    mpps[path_of(example)] = slide.mpp
            except SlideError:  # listed all the same; training says what is wrong with it
                mpps[path_of(example)] = None
    return labels, mpps


def class_names(card: ModelCard | None, labels: Iterable[Example], added: Iterable[str] = ()) -> tuple[str, ...]:
    """Return what to choose a class from: the network's own (a regression has none), then those added or in use."""
    own = () if card is None or card.task == "regression" else card.class_names
    separate = card is not None and card.task == "multilabel"
    used = [part for example in labels for part in (example.label.split(";") if separate else [example.label])]
    return tuple(dict.fromkeys(name for name in (*own, *added, *used) if name))


def colour_of(label: str, names: Sequence[str]) -> str:
    """Return the colour of a class, which depends on its place among the classes; that of the first of several."""
    first = label.split(";")[0]
    known = label if label in names else first
    return CLASS_COLOURS[names.index(known) % len(CLASS_COLOURS)] if known in names else NO_CLASS


def describe_counts(labels: Sequence[Example], names: Sequence[str]) -> str:
    """Say how many regions of how many patients each class has, a line each, as rich text with a spot of the class's colour."""
    lines = []
    for label, (regions, patients) in count_labels(labels).items():
        spot = f"<span style='color: {colour_of(label, names)}'>■</span>"
        many = f"{regions} region{'s' * (regions != 1)}, {patients} patient{'s' * (patients != 1)}"
        lines.append(f"{spot} {html.escape(label) or 'no class'}: {many}")
    return "<br>".join(lines)


def list_rows(labels: Sequence[Example], mpps: Mapping[str, Mpp]) -> list[Row]:
    """Say of every labelled region what it is; `mpps` by the slide's path."""
    return [_row(example, mpps.get(path)) for example, path in zip(labels, paths_of(labels), strict=True)]


def find_unsaved(folder: Path) -> Path | None:
    """Return the latest table of labels that were never saved."""
    files = sorted(folder.glob(f"{_UNSAVED}*.csv"), key=lambda path: path.stat().st_mtime)
    return files[-1] if files else None


def free_place(folder: Path) -> Path:
    """Return where a window can keep its unsaved labels without touching those of another."""
    number = 1
    while (place := folder / f"{_UNSAVED}-{number}.csv").exists():
        number += 1
    return place


def _row(example: Example, mpp: Mpp) -> Row:
    mpp = mpp if example.mpp is None else (example.mpp, example.mpp)
    whole = example.region is None
    size = "whole" if example.region is None else describe_size(example.region.shape, mpp)
    place = "the whole slide" if whole else f"{size}\nX,Y,WIDTH,HEIGHT in pixels: {example.region}"
    patient = example.patient or "not named: counted as the slide's own"
    split = f"\nSplit: {example.split}" if example.split else ""
    tip = f"{example.name}: {example.label}\nPatient: {patient}\n{place}{split}"
    return Row(Path(example.name).stem, example.label, example.patient, _corner(example.region, mpp), tip)


def _corner(region: Region | None, mpp: Mpp) -> str:
    """Where the upper left corner of a region is, x first."""
    if region is None:
        return "whole"
    return f"{region.x}, {region.y} px" if mpp is None else f"{region.x * mpp[1] / 1000:.2f}, {region.y * mpp[0] / 1000:.2f}"
