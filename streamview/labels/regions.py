"""Labelled regions: what a network is fine-tuned on and judged by, as a table that people keep.

A table is a CSV file with the columns ``slide_id,label`` and, each optional, ``patient_id``, ``x,y,width,height`` (all four or none, in
level-0 pixels), ``mpp`` (um per level-0 pixel, where the slide does not say) and ``split`` (``train`` or ``validation``). Other columns are
ignored. A row without a region stands for the whole slide, one without a patient for a patient of its own slide.
`streamview.files.tables` says which separators and encodings are read.
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
from streamview.files.tables import Row, parse_number, read_table
from streamview.geometry import Region, as_region
from streamview.slides import Slide, as_slide, open_slide

if TYPE_CHECKING:
    from streamview.networks.cards import ModelCard

__all__ = ["Example", "count_labels", "find_targets", "identify_slides", "labels_digest", "read_labels", "unite_slides", "write_labels"]

_REGION = ("x", "y", "width", "height")
_COLUMNS = ("slide_id", "label", "patient_id", *_REGION, "mpp", "split")
_SPLITS = ("", "train", "validation")
_SLIDES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm", ".zarr")
_ZARR = ("zarr.json", ".zattrs", ".zgroup")
_WHOLE = re.compile(r"[.,]0$")
_SHOWN = 3  # of many faults of one kind
_NAMED = 8  # classes


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A labelled region.

    Parameters
    ----------
    source
        Path of a slide, an open slide, or a uint8 (H, W, 3) array.
    label
        As in a table: the name of a class; of a multilabel network names joined by ``;``, or nothing where none is present; of a
        regression its values joined by ``;``.
    region
        In level-0 pixels; None: the whole slide.
    patient
        Whose tissue it is: regions of one patient never stand on both sides of a split. Empty: of the slide's own.
    slide_id
        What tables call the slide; empty: the name of its source.
    mpp
        Um per level-0 pixel, in place of what the slide says.
    split
        ``"train"`` or ``"validation"``, where the user has divided the examples; else empty.
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
        """What tables call the slide."""
        if self.slide_id:
            return self.slide_id
        if isinstance(self.source, str | os.PathLike):
            return Path(self.source).name
        return as_slide(self.source).name

    @property
    def case(self) -> str:
        """The patient, or where none is named the slide, with or without its suffix the same."""
        suffix = next((end for end in _SLIDES if self.name.lower().endswith(end)), "")
        return self.patient or self.name[: len(self.name) - len(suffix)].removesuffix(".ome")

    @property
    def file(self) -> str:
        """Name of the slide's file without its folder; of other sources what tables call them."""
        return Path(self.source).name if isinstance(self.source, str | os.PathLike) else self.name

    def __str__(self) -> str:
        """The slide's name and the region, for messages."""
        return self.name if self.region is None else f"{self.name} at {self.region}"

    @contextmanager
    def open(self) -> Iterator[Slide]:
        """Yield the slide; what is opened here is closed at the end.

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

    A slide is one slide however its rows name it: by another path, without its suffix, by a link, or as a copy of the file. Its rows then
    have the source and the ``slide_id`` of the first of them, and the patient and mpp that any of them states.

    Parameters
    ----------
    path
        CSV file, see the module.
    slides
        Folder of the slides; default that of the table. A ``slide_id`` is a path from there, or such a path without its suffix.

    Raises
    ------
    LabelError
        When the table is missing or is no table, a slide is missing or could be several, a number or split is wrong, one region stands in
        it twice, or rows of one slide contradict each other. The message names lines and slides.

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
            sources[name] = _find_slide(folder, name)
        except SlideError as error:
            missing.insert(0, f"line {line}: {error}")
    if missing:
        more = f" (and {len(missing) - _SHOWN} more)" if len(missing) > _SHOWN else ""
        remedy = "expected a path from there, with or without its suffix; mend slide_id, or name the folder of the slides with --slides"
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
        For every example what identifies the pixels of its slide: `Slide.identity`, or where it cannot be opened its source; and by
        identity height and width in level-0 pixels.
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
            except SlideError:  # whoever reads it says why
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
    """Give all examples of one slide one source, name, patient and mpp, so that it counts once; others stay as they are.

    Parameters
    ----------
    examples
        Labelled regions.
    identities, shapes
        As from `identify_slides`; a region of a slide's known size is the whole slide.
    places
        What messages call each, such as ``"line 3"``; default its name and number.
    where
        What messages begin with.

    Raises
    ------
    LabelError
        When one region of a slide stands there twice, or what is said of a slide contradicts: its patient, its mpp, the label of a region.
    """
    first: dict[str, Example] = {}
    patients: dict[str, int] = {}
    mpps: dict[str, int] = {}
    regions: dict[tuple[str, Region | None], int] = {}

    def refuse(before: int, now: int, found: str) -> NoReturn:
        both = [f"{places[i] if places else f'example {i + 1}'} ({examples[i].name})" for i in (before, now)]
        raise LabelError(f"{where}{both[0]} and {both[1]} are of one slide, but {found}")

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
    """Write a table that `read_labels` reads; slides in the table's folder or below are named from there, so that both can move together.

    Raises
    ------
    LabelError
        When an example's slide is not a file or folder.
    StreamviewError
        When the disk is full or the table may not be written.
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
    """Count regions and patients of every label as it is written, by name."""
    found: dict[str, tuple[int, int]] = {}
    for label in sorted({example.label for example in examples}):
        cases = [example.case for example in examples if example.label == label]
        found[label] = len(cases), len(set(cases))
    return found


def find_targets(examples: Sequence[Example], card: ModelCard) -> NDArray[np.float64] | NDArray[np.int64]:
    """Return what a network should answer.

    Parameters
    ----------
    examples
        N labelled regions.
    card
        Of a network with K outputs.

    Returns
    -------
    ndarray
        Task ``"class"``: int64 (N,), the index of the class. ``"multilabel"``: float64 (N, K), 1 where a class is present.
        ``"regression"``: float64 (N, K), the values.

    Raises
    ------
    LabelError
        When a label is no class of the network, or not its values.
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
    """Return the hex digest of files' names, regions, labels, patients and splits, whatever their order and wherever they lie."""
    rows = [
        json.dumps([e.file, None if e.region is None else str(e.region), e.label, e.patient, e.split, e.mpp], ensure_ascii=False)
        for e in examples
    ]
    return hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest()


def _read_rows(path: Path) -> tuple[Row, ...]:
    columns, rows = read_table(path, _COLUMNS, _COLUMNS[:2])
    given = [name for name in _REGION if name in columns]
    if given and len(given) < len(_REGION):
        raise LabelError(f"{path} has the columns {', '.join(given)} alone; expected x, y, width and height, or none of them")
    if not rows:
        raise LabelError(f"{path} holds no labelled region; expected one a line under {','.join(columns)}")
    return rows


def _find_slide(folder: Path, name: str) -> Path:
    if not name:
        raise SlideError("names no slide")
    for spelling in dict.fromkeys((name, name.replace("\\", "/"))):  # as Windows writes paths
        path = folder / spelling
        try:
            near = [other for other in path.parent.iterdir() if _is_named(other, path.name)] if path.parent.is_dir() else []
            # an MRXS has a folder of its own name beside it, which is no slide
            if path.exists() and not (near and path.is_dir() and not any((path / file).exists() for file in _ZARR)):
                return path
        except OSError as error:
            raise SlideError(f"slide {name!r} cannot be looked for in {folder} ({error.strerror or error})") from None
        if len(near) > 1:
            raise SlideError(f"slide {name!r} may be {' or '.join(sorted(other.name for other in near)[:_SHOWN])} in {folder}")
        if near:
            return near[0]
    raise SlideError(f"slide {name!r} is not in {folder}")


def _is_named(file: Path, stem: str) -> bool:
    """Whether a file is a slide of this name with a suffix."""
    return file.name.startswith(f"{stem}.") and file.name.lower().endswith(_SLIDES)


def _file_keys(sources: Mapping[str, Path]) -> tuple[dict[str, str], dict[str, tuple[int, int]]]:
    """What tells the slides of a table apart, by name: the place on the disk, and where two may have the same pixels, these; and sizes.

    Files of different sizes are no copies; a folder may be the pyramid of any other slide.
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
    """Where a file lies, the same for all its links."""
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
    mpp = None
    if cells.get("mpp"):
        try:
            mpp = parse_number(cells["mpp"])
        except ValueError:
            mpp = math.nan
        if not (math.isfinite(mpp) and mpp > 0):
            raise LabelError(f"{where}: mpp {cells['mpp']!r}; expected micrometres per level-0 pixel above 0, or nothing")
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
    found = f"{example}: label {name!r}" if name else f"{example}: has no label"
    hint = f" (near: {near[0]})" if near else ""
    classes = ", ".join(names) if len(names) <= _NAMED else f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"
    remedy = "mend the label, or give the network a head for these classes (finetune --new-head)"
    raise LabelError(f"{found}{hint}; the network's classes are {classes}: {remedy}")


def _numbers(example: Example, count: int) -> list[float]:
    try:
        values = [parse_number(part.strip()) for part in example.label.split(";")]
    except ValueError:
        values = []
    if len(values) != count or not all(map(math.isfinite, values)):
        expected = "a number" if count == 1 else f"{count} numbers joined by ;"
        raise LabelError(f"{example}: label {example.label!r}; the network is a regression, so expected {expected}")
    return values
