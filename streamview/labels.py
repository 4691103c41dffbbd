"""Labelled regions: what a network is fine-tuned on and judged by, as a table that people keep.

A table is a CSV file with the columns ``slide_id,label`` and, each optional, ``patient_id``, ``x,y,width,height`` (all four or none, in
level-0 pixels), ``mpp`` (um per level-0 pixel, where the slide does not say) and ``split`` (``train`` or ``validation``). Other columns are
ignored. A row without a region stands for the whole slide, one without a patient for a patient of its own slide.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamview import atomic
from streamview.cards import ModelCard
from streamview.errors import LabelError, RegionError, SlideError
from streamview.geometry import Region
from streamview.slides import Slide, as_slide, open_slide

__all__ = ["Example", "count_labels", "find_targets", "labels_digest", "read_labels", "write_labels"]

_REGION = ("x", "y", "width", "height")
_COLUMNS = ("slide_id", "label", "patient_id", *_REGION, "mpp", "split")
_SPLITS = ("", "train", "validation")
_SLIDES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm", ".zarr")
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

    Parameters
    ----------
    path
        CSV file (UTF-8), see the module.
    slides
        Folder of the slides; default that of the table. A ``slide_id`` is a path from there, or such a path without its suffix.

    Raises
    ------
    LabelError
        When the table is missing or is no table, a slide is missing or could be several, a number or split is wrong, or one region
        stands in it twice. The message names lines and slides.
    """
    path = Path(path)
    rows = _read_rows(path)
    folder = path.parent if slides is None else Path(slides)
    found: dict[str, Path | None] = {row["slide_id"]: None for _, row in rows}
    missing = []
    for name in found:
        try:
            found[name] = _find_slide(folder, name)
        except SlideError as error:
            missing.append(str(error))
    if missing:
        more = f" (and {len(missing) - _SHOWN} more)" if len(missing) > _SHOWN else ""
        remedy = "expected a path from there, with or without its suffix; mend slide_id, or name the folder of the slides with --slides"
        raise LabelError(f"{path}: {'; '.join(missing[:_SHOWN])}{more}; {remedy}")
    examples = tuple(_parse(path, line, row, found[row["slide_id"]]) for line, row in rows)
    places = Counter((str(example.source), example.region) for example in examples)
    (place, count) = places.most_common(1)[0]
    if count > 1:
        where = next(example for example in examples if (str(example.source), example.region) == place)
        raise LabelError(f"{path}: {where} stands in it {count} times; expected every region once")
    return examples


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


def _read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """The lines that are not empty, with their numbers."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise LabelError(f"{path} does not exist; expected a CSV table with the columns slide_id,label") from None
    except (OSError, UnicodeDecodeError) as error:
        raise LabelError(f"{path} cannot be read ({error}); expected a CSV table in UTF-8 with the columns slide_id,label") from None
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        rows = [(reader.line_num, {key: (value or "").strip() for key, value in row.items() if isinstance(key, str)}) for row in reader]
    except csv.Error as error:
        raise LabelError(f"{path} is not a CSV table ({error}); expected the columns slide_id,label") from None
    absent = [name for name in ("slide_id", "label") if name not in columns]
    if absent:
        remedy = "separate the columns by commas" if len(columns) == 1 and ";" in columns[0] else "add it"
        raise LabelError(f"{path} has no column {' and no column '.join(absent)} (found: {', '.join(columns) or 'nothing'}); {remedy}")
    given = [name for name in _REGION if name in columns]
    if given and len(given) < len(_REGION):
        raise LabelError(f"{path} has the columns {', '.join(given)} alone; expected x, y, width and height, or none of them")
    rows = [(line, row) for line, row in rows if any(row.values())]
    if not rows:
        raise LabelError(f"{path} holds no labelled region; expected one a line under {','.join(columns)}")
    return rows


def _find_slide(folder: Path, name: str) -> Path:
    if not name:
        raise SlideError("a line names no slide")
    path = folder / name
    if path.exists():
        return path
    near = sorted(path.parent.glob(f"{path.name}.*")) if path.parent.is_dir() else []
    near = [other for other in near if other.name.lower().endswith(_SLIDES)]
    if len(near) > 1:
        raise SlideError(f"slide {name!r} may be {' or '.join(other.name for other in near[:_SHOWN])} in {folder}")
    if not near:
        raise SlideError(f"slide {name!r} is not in {folder}")
    return near[0]


def _parse(path: Path, line: int, row: dict[str, str], source: Path | None) -> Example:
    assert source is not None
    where = f"{path}, line {line}"
    numbers = [row.get(name, "") for name in _REGION]
    region = None
    if any(numbers):
        try:
            x, y, width, height = map(int, numbers)
            region = Region(y, x, height, width)
        except ValueError:
            raise LabelError(f"{where}: region {','.join(numbers)}; expected x, y, width and height in whole level-0 pixels") from None
        except RegionError as error:
            raise LabelError(f"{where}: {error}") from None
    mpp = None
    if row.get("mpp"):
        try:
            mpp = float(row["mpp"])
        except ValueError:
            mpp = math.nan
        if not (math.isfinite(mpp) and mpp > 0):
            raise LabelError(f"{where}: mpp {row['mpp']!r}; expected micrometres per level-0 pixel above 0, or nothing")
    split = row.get("split", "")
    if split not in _SPLITS:
        raise LabelError(f"{where}: split {split!r}; expected train, validation or nothing")
    return Example(source, row["label"], region, row.get("patient_id", ""), row["slide_id"], mpp, split)


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
        values = [float(part) for part in example.label.split(";")]
    except ValueError:
        values = []
    if len(values) != count or not all(map(math.isfinite, values)):
        expected = "a number" if count == 1 else f"{count} numbers joined by ;"
        raise LabelError(f"{example}: label {example.label!r}; the network is a regression, so expected {expected}")
    return values
