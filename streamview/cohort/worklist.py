"""The worklist of a cohort: which slides, from files, folders and tables."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from streamview.errors import LabelError, RegionError, SlideError, StreamviewError
from streamview.files.tables import parse_mpp, read_table
from streamview.geometry import RegionText
from streamview.slides.finding import find_slide, is_zarr, list_slides

__all__ = ["Case", "read_worklist"]

_TABLES = (".csv", ".tsv", ".txt")
_NAMES = ("path", "wsi", "slide_id")  # columns that name the slide, the first that is there
_COLUMNS = (*_NAMES, "mpp", "patient_id", "label", "region")


@dataclass(frozen=True, slots=True)
class Case:
    """A slide to work on.

    Parameters
    ----------
    path
        Path or URL, as given; in a table, below the table's folder unless absolute.
    mpp
        Um per level-0 pixel, where the slide does not state it or states it wrongly; None: as the slide states it.
    patient_id, label
        From the table; empty if unknown.
    region
        The part to work on, from the table; None: as the run's options say.
    listed
        Whether it is from a table or folder, so that it remains as a row of the results even if it does not exist.
    shares_name
        Whether the worklist has another slide of this file name.
    """

    path: str
    mpp: float | None = None
    patient_id: str = ""
    label: str = ""
    region: RegionText | None = None
    listed: bool = False
    shares_name: bool = False

    @property
    def name(self) -> str:
        """File name, also of ``.`` and of a URL."""
        return PurePosixPath(self.path.partition("?")[0]).name if self.is_url else os.path.basename(os.path.abspath(self.path))

    @property
    def source(self) -> str:
        """Absolute path, or URL."""
        return self.path if self.is_url else os.path.abspath(self.path)

    @property
    def is_url(self) -> bool:
        """Whether it is a URL."""
        return "://" in self.path


def read_worklist(
    inputs: Sequence[str | os.PathLike[str]],
    *,
    pattern: str | None = None,
    limit: int | None = None,
    shuffle: int | None = None,
) -> tuple[Case, ...]:
    """Gather the slides to work on; the same slide given twice is listed once.

    Parameters
    ----------
    inputs
        Slides (files, OME-Zarr folders, URLs), folders of slides, and tables: CSV with a column ``path``, ``wsi`` or ``slide_id`` and
        optionally ``mpp``, ``patient_id``, ``label`` and ``region`` (as on the command line); other columns are ignored.
    pattern
        Which files of folders; see `streamview.slides.finding.list_slides`.
    limit
        At most so many slides, after shuffling.
    shuffle
        Seed of a random order; None keeps the order of the inputs.

    Raises
    ------
    StreamviewError
        If a table is damaged or contradicts itself, a folder cannot be read or has no slide, or a slide is named twice on the command line.
    """
    gathered: dict[str, Case] = {}
    for given in inputs:
        for case in _cases(os.fspath(given), pattern):
            key = case.path if case.is_url else os.path.realpath(case.path)
            gathered[key] = _united(gathered[key], case) if key in gathered else case
    names = Counter(case.name for case in gathered.values())
    cases = [replace(case, shares_name=names[case.name] > 1) for case in gathered.values()]
    if shuffle is not None:
        cases.sort(key=lambda case: case.source)
        random.Random(shuffle).shuffle(cases)
    return tuple(cases[:limit])


def _cases(given: str, pattern: str | None) -> list[Case]:
    """The slides of one input."""
    path = Path(given)
    if "://" not in given and path.suffix.lower() in _TABLES and not path.is_dir():
        return _listed(path)
    if "://" not in given and path.is_dir() and not is_zarr(path) and any(path.iterdir()):
        slides = list_slides(path, pattern)
        if slides:
            return [Case(str(slide), listed=True) for slide in slides]
        if pattern is not None:
            raise SlideError(f"{given}: holds no file that matches {pattern}; check --pattern, or name the slides")
    return [Case(given)]


def _listed(table: Path) -> list[Case]:
    """The slides of a table."""
    columns, rows = read_table(table, _COLUMNS, ())
    column = next((name for name in _NAMES if name in columns), None)
    if column is None:
        named = ", ".join(columns) or "nothing"
        raise LabelError(f"{table} has no column path, wsi or slide_id (found: {named}); add one that names the slides")
    cases = []
    for row in rows:
        cells, where = row.cells, f"{table}, line {row.line}"
        named = cells[column]
        if not named:
            raise LabelError(f"{where}: names no slide; expected a path under {column}")
        try:
            path = named if "://" in named else str(find_slide(table.parent, named))
        except SlideError:
            path = os.path.join(table.parent, named)  # which remains as a failed row
        try:
            region = RegionText.parse(cells["region"]) if cells.get("region") else None
        except RegionError as error:
            raise LabelError(f"{where}: {error}") from None
        case = Case(
            path,
            mpp=parse_mpp(row, str(table)),
            patient_id=cells.get("patient_id", ""),
            label=cells.get("label", ""),
            region=region,
            listed=True,
        )
        cases.append(case)
    if not cases:
        raise LabelError(f"{table} lists no slide; expected one per line under {column}")
    return cases


def _united(first: Case, second: Case) -> Case:
    """What both say of one slide."""
    values = {}
    for name in ("mpp", "patient_id", "label", "region"):
        one, other = getattr(first, name), getattr(second, name)
        if one and other and one != other:
            raise StreamviewError(f"{second.path}: is given twice, with {name} {one} and {other}; expected one for a slide")
        values[name] = one or other
    return replace(first, listed=first.listed or second.listed, **values)
