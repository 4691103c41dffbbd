"""Labelled regions for fine-tuning and evaluation, and their tables.

A table is a CSV file with the columns ``slide_id,label`` and optionally ``patient_id``, ``x,y,width,height`` (all four or none, in
level-0 pixels), ``mpp`` (um per level-0 pixel, if the slide does not state it) and ``split`` (``train`` or ``validation``). Other columns
are ignored. A row without a region stands for the whole slide; without a patient the slide counts as one.
`streamview.files.tables` reads all common separators and encodings.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from numpy.typing import NDArray

from streamview.errors import LabelError, RegionError, SlideError
from streamview.files import atomic
from streamview.files.tables import Row, parse_mpp, parse_number, read_table
from streamview.geometry import Region, as_region
from streamview.slides import Slide, as_slide, open_slide
from streamview.slides.finding import SUFFIXES, find_slide

if TYPE_CHECKING:
    from streamview.networks.cards import ModelCard

__all__ = ["Example", "count_labels", "find_targets", "identify_slides", "labels_digest", "read_labels", "unite_slides", "write_labels"]

_REGION = ("x", "y", "width", "height")
_COLUMNS = ("slide_id", "label", "patient_id", *_REGION, "mpp", "split")
_SPLITS = ("", "train", "validation")
_WHOLE = re.compile(r"[.,]0$")
_SHOWN = 3  # errors of one kind in a message
_NAMED = 8  # classes in a message


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A labelled region.

    Parameters
    ----------
    source
        Path of a slide, an open slide, or a uint8 (H, W, 3) array.
    label
        As in a table: a class name; for multilabel networks names joined by ``;``, empty if none is present; for regression values
        joined by ``;``.
    region
        In level-0 pixels; None: the whole slide.
    patient
        The patient: regions of one patient are never on both sides of a split. Empty: the slide counts as a patient.
    slide_id
        The slide's name in tables; empty: the name of its source.
    mpp
        Um per level-0 pixel, overriding the slide's.
    split
        ``"train"`` or ``"validation"`` if the user has split the examples, else empty.
    """

    source: str | os.PathLike[str] | Slide | NDArray[np.uint8]
    label: str
    region: Region | None = None
    patient: str = ""
    slide_id: str = ""
    mpp: float | None = None
    split: str = ""

    def __post_init__(self) -> None:
        if self.region is not None:
            as_region(self.region)

    @property
    def name(self) -> str:
        """The slide's name in tables."""
        if self.slide_id:
            return self.slide_id
        if isinstance(self.source, str | os.PathLike):
            return Path(self.source).name
        return as_slide(self.source).name

    @property
    def case(self) -> str:
        """The patient, or if none is named the slide's name without its suffix."""
        suffix = next((end for end in SUFFIXES if self.name.lower().endswith(end)), "")
        return self.patient or self.name[: len(self.name) - len(suffix)].removesuffix(".ome")

    @property
    def file(self) -> str:
        """File name of the slide; for other sources their name in tables."""
        return Path(self.source).name if isinstance(self.source, str | os.PathLike) else self.name

    def __str__(self) -> str:
        """The slide's name and the region, for messages."""
        return self.name if self.region is None else f"{self.name} at {self.region}"

    @contextmanager
    def open(self) -> Iterator[Slide]:
        """Yield the slide; a slide opened here is closed afterwards.

        Raises
        ------
        SlideError
            As `streamview.open_slide`.
        """
        if not isinstance(self.source, str | os.PathLike):
            yield as_slide(self.source, self.mpp)
            return
        with open_slide(self.source, self.mpp) as slide:
            yield slide


def read_labels(path: str | os.PathLike[str], slides: str | os.PathLike[str] | None = None) -> tuple[Example, ...]:
    """Read a table of labelled regions.

    Rows may name one slide in different ways: by another path, without its suffix, by a link, or as a copy of the file. They then all get
    the source and the ``slide_id`` of the first, and the patient and mpp that any of them states.

    Parameters
    ----------
    path
        CSV file, see the module.
    slides
        Folder of the slides; default that of the table. A ``slide_id`` is a path relative to it, with or without the suffix.

    Raises
    ------
    LabelError
        If the table is missing or invalid, a slide is missing or ambiguous, a number or split is invalid, a region appears twice, or rows
        of one slide contradict each other. The message names lines and slides.

    Examples
    --------
    >>> import streamview
    >>> from streamview.labels.regions import Example, write_labels
    >>> write_labels("labels.csv", [Example("slide.svs", "lesion", streamview.Region(0, 256, 512, 256), patient="patient-1")])
    >>> for example in streamview.read_labels("labels.csv"):
    ...     print(example.label, example.region, example.patient)
    lesion 256,0,256,512 patient-1
    """
    path = Path(path)
    rows = _read_rows(path)
    folder = path.parent if slides is None else Path(slides)
    sources: dict[str, Path] = {}
    missing: list[str] = []
    for name, line in {row.cells["slide_id"]: row.line for row in reversed(rows)}.items():
        try:
            sources[name] = find_slide(folder, name)
        except SlideError as error:
            missing.insert(0, f"line {line}: {error}")
    if missing:
        more = f" (and {len(missing) - _SHOWN} more)" if len(missing) > _SHOWN else ""
        remedy = "expected a path from there, with or without its suffix; fix slide_id, or name the folder of the slides with --slides"
        raise LabelError(f"{path}: {'; '.join(missing[:_SHOWN])}{more}; {remedy}")
    examples = [_parse(path, row, sources[row.cells["slide_id"]]) for row in rows]
    keys, shapes = _file_keys(sources)
    identities = [keys[row.cells["slide_id"]] for row in rows]
    return unite_slides(examples, identities, shapes, places=[f"line {row.line}" for row in rows], where=f"{path}: ")


def identify_slides(examples: Sequence[Example]) -> tuple[list[str], dict[str, tuple[int, int]]]:
    """Open every slide once.

    Returns
    -------
    tuple
        For every example the identity of its slide: `Slide.identity`, or its source if it cannot be opened; and height and width in
        level-0 pixels by identity.
    """
    identities: dict[object, str] = {}
    shapes: dict[str, tuple[int, int]] = {}
    for example in examples:
        key = _source_key(example)
        if key not in identities:
            try:
                with example.open() as slide:
                    identities[key] = slide.identity
                    shapes[slide.identity] = slide.shape
            except SlideError:  # reported when the slide is read
                identities[key] = str(key)
    return [identities[_source_key(example)] for example in examples], shapes


def unite_slides(
    examples: Sequence[Example],
    identities: Sequence[str],
    shapes: Mapping[str, tuple[int, int]] = MappingProxyType({}),
    *,
    places: Sequence[str] = (),
    where: str = "",
) -> tuple[Example, ...]:
    """Give all examples of one slide the same source, name, patient and mpp, so that it counts as one slide.

    Parameters
    ----------
    examples
        Labelled regions.
    identities, shapes
        From `identify_slides`; a region of the slide's size is the whole slide.
    places
        Names of the examples in messages, such as ``"line 3"``; default their number.
    where
        Prefix of messages.

    Raises
    ------
    LabelError
        If a region of a slide appears twice, or examples of a slide contradict each other in patient, mpp or the label of a region.
    """
    first: dict[str, Example] = {}
    patients: dict[str, int] = {}
    mpps: dict[str, int] = {}
    regions: dict[tuple[str, Region | None], int] = {}

    def refuse(before: int, now: int, contradiction: str) -> NoReturn:
        both = [f"{places[i] if places else f'example {i + 1}'} ({examples[i].name})" for i in (before, now)]
        raise LabelError(f"{where}{both[0]} and {both[1]} are of one slide, but {contradiction}")

    for number, (example, identity) in enumerate(zip(examples, identities, strict=True)):
        first.setdefault(identity, example)
        before = patients.setdefault(identity, number) if example.patient else number
        if examples[before].patient != example.patient:
            named = f"patient {examples[before].patient!r} and patient {example.patient!r}"
            refuse(before, number, f"of {named}; expected one patient for a slide")
        before = mpps.setdefault(identity, number) if example.mpp is not None else number
        if examples[before].mpp != example.mpp:
            refuse(before, number, f"state mpp {examples[before].mpp} and mpp {example.mpp}; expected one for a slide")
        region = None if example.region is not None and _is_whole(example.region, shapes.get(identity)) else example.region
        before = regions.setdefault((identity, region), number)
        if before != number:
            what = "the whole slide" if region is None else f"region {region}"
            if examples[before].label != example.label:
                refuse(before, number, f"call {what} {examples[before].label!r} and {example.label!r}; expected one label for a region")
            refuse(before, number, f"both label {what}; expected every region once")
    united = []
    for example, identity in zip(examples, identities, strict=True):
        origin = first[identity]
        patient = examples[patients[identity]].patient if identity in patients else ""
        mpp = examples[mpps[identity]].mpp if identity in mpps else None
        if (example.source is origin.source, example.slide_id, example.patient, example.mpp) != (True, origin.slide_id, patient, mpp):
            example = replace(example, source=origin.source, slide_id=origin.slide_id, patient=patient, mpp=mpp)
        united.append(example)
    return tuple(united)


def write_labels(path: str | os.PathLike[str], examples: Sequence[Example]) -> None:
    """Write a table for `read_labels`; slides in or below the table's folder get relative paths, so that both can be moved together.

    Raises
    ------
    LabelError
        If an example's slide is not a file or folder.
    StreamviewError
        If the disk is full or the table cannot be written.
    """
    path = Path(path)
    home = path.resolve().parent
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for example in examples:
        if not isinstance(example.source, str | os.PathLike):
            raise LabelError(f"{example}: is not a file; a table names slides by their paths, so save it as a file first")
        place = Path(example.source).resolve()
        named = place.relative_to(home) if place.is_relative_to(home) else place
        region = example.region
        row = {"slide_id": named.as_posix(), "label": example.label, "patient_id": example.patient, "split": example.split}
        row |= {} if region is None else {key: str(getattr(region, key)) for key in _REGION}
        row |= {} if example.mpp is None else {"mpp": f"{example.mpp!r}"}
        writer.writerow(row)
    atomic.write_text(path, text.getvalue())


def count_labels(examples: Sequence[Example]) -> dict[str, tuple[int, int]]:
    """Count regions and patients by label, as written."""
    counts: dict[str, tuple[int, int]] = {}
    for label in sorted({example.label for example in examples}):
        cases = [example.case for example in examples if example.label == label]
        counts[label] = len(cases), len(set(cases))
    return counts


def find_targets(examples: Sequence[Example], card: ModelCard) -> NDArray[np.float64] | NDArray[np.int64]:
    """Return the targets of labelled regions for a network.

    Parameters
    ----------
    examples
        N labelled regions.
    card
        Card of a network with K outputs.

    Returns
    -------
    ndarray
        Task ``"class"``: int64 (N,), the index of the class. ``"multilabel"``: float64 (N, K), 1 where a class is present.
        ``"regression"``: float64 (N, K), the values.

    Raises
    ------
    LabelError
        If a label is not a class of the network, or not its number of values.
    """
    names = card.class_names
    if card.task == "regression":
        return np.array([_numbers(example, len(names)) for example in examples], np.float64).reshape(len(examples), len(names))
    multilabel = card.task == "multilabel"
    rows = [[_index(example, part, names) for part in _parts(example, multilabel)] for example in examples]
    if not multilabel:
        return np.array([row[0] for row in rows], np.int64)
    present = np.zeros((len(examples), len(names)))
    for number, row in enumerate(rows):
        present[number, row] = 1
    return present


def labels_digest(examples: Sequence[Example]) -> str:
    """Return the hex digest of file names, regions, labels, patients and splits, independent of order and folder."""
    rows = [
        json.dumps([e.file, None if e.region is None else str(e.region), e.label, e.patient, e.split, e.mpp], ensure_ascii=False)
        for e in examples
    ]
    return hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest()


def _read_rows(path: Path) -> tuple[Row, ...]:
    columns, rows = read_table(path, _COLUMNS, _COLUMNS[:2])
    present = [name for name in _REGION if name in columns]
    if present and len(present) < len(_REGION):
        raise LabelError(f"{path} has only the columns {', '.join(present)}; expected x, y, width and height, or none of them")
    if not rows:
        raise LabelError(f"{path} holds no labelled region; expected one per line under {','.join(columns)}")
    return rows


def _file_keys(sources: Mapping[str, Path]) -> tuple[dict[str, str], dict[str, tuple[int, int]]]:
    """Identify the slides of a table by name: by file, or by pixels if two may have the same; also return their sizes in pixels.

    Files of different sizes are not copies; a folder may be the pyramid of any other slide.
    """
    places = {name: _place(path) for name, path in sources.items()}
    distinct = {places[name]: path for name, path in sources.items()}
    sizes = Counter(path.stat().st_size for path in distinct.values())
    folders = any(path.is_dir() for path in distinct.values())
    alike = {place: path for place, path in distinct.items() if folders or sizes[path.stat().st_size] > 1}
    identities, shapes = identify_slides([Example(path, "") for path in alike.values()])
    keys = dict(zip(alike, identities, strict=True))
    return {name: keys.get(place, place) for name, place in places.items()}, shapes


def _place(path: Path) -> str:
    """Identify a file on disk, the same for all its links."""
    status = path.stat()
    return f"file {status.st_dev} {status.st_ino}" if status.st_ino else str(path.resolve())


def _source_key(example: Example) -> object:
    source = example.source
    return os.fspath(source) if isinstance(source, str | os.PathLike) else id(source)


def _is_whole(region: Region, shape: tuple[int, int] | None) -> bool:
    return (region.y, region.x, *region.shape) == (0, 0, *(shape or ()))


def _parse(path: Path, row: Row, source: Path) -> Example:
    where, cells = f"{path}, line {row.line}", row.cells
    numbers = [cells.get(name, "") for name in _REGION]
    region = None
    if any(numbers):
        try:
            # pandas writes whole numbers as 64.0 where a column has empty cells
            x, y, width, height = (int(_WHOLE.sub("", number)) for number in numbers)
            region = Region(y, x, height, width)
        except ValueError:
            raise LabelError(f"{where}: region {','.join(numbers)}; expected x, y, width and height in whole level-0 pixels") from None
        except RegionError as error:
            raise LabelError(f"{where}: {error}") from None
    mpp = parse_mpp(row, str(path))
    split = cells.get("split", "")
    if split not in _SPLITS:
        raise LabelError(f"{where}: split {split!r}; expected train, validation or nothing")
    return Example(source, cells["label"], region, cells.get("patient_id", ""), cells["slide_id"], mpp, split)


def _parts(example: Example, multilabel: bool) -> list[str]:
    if multilabel:
        return [part.strip() for part in example.label.split(";") if part.strip()]
    return [example.label]


def _index(example: Example, name: str, names: Sequence[str]) -> int:
    if name in names:
        return names.index(name)
    near = difflib.get_close_matches(name, names, 1)
    problem = f"{example}: label {name!r}" if name else f"{example}: has no label"
    hint = f" (near: {near[0]})" if near else ""
    classes = ", ".join(names) if len(names) <= _NAMED else f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"
    remedy = "fix the label, or give the network a head for these classes (finetune --new-head)"
    raise LabelError(f"{problem}{hint}; the network's classes are {classes}: {remedy}")


def _numbers(example: Example, count: int) -> list[float]:
    try:
        values = [parse_number(part.strip()) for part in example.label.split(";")]
    except ValueError:
        values = []
    if len(values) != count or not all(map(math.isfinite, values)):
        expected = "a number" if count == 1 else f"{count} numbers joined by ;"
        raise LabelError(f"{example}: label {example.label!r}; the network is a regression, so expected {expected}")
    return values
