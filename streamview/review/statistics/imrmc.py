"""The text file of iMRMC, the FDA's program for studies of many readers and many cases (https://github.com/DIDSR/iMRMC).

Free text, the lines ``N0: n`` (negative cases), ``N1: n`` (positive cases), ``NR: n`` (readers) and ``NM: n`` (modalities), a line
``BEGIN DATA:``, then one row ``readerID,caseID,modalityID,score`` for each truth and each read. A truth row has reader ``-1``, modality
``truth`` and score 0 or 1. Ids are compared letter by letter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from streamview.errors import ReviewError
from streamview.review.reads import Modality, Read, Truth, as_classes, group_reads

__all__ = ["format_imrmc", "parse_imrmc"]

_BEGIN = "BEGIN DATA:"
_COUNTS = ("N0", "N1", "NR", "NM")
_DECIMAL = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_TRUTH_READER = "-1"
_TRUTH_MODALITIES = ("truth", "0")  # the program's own examples have 0
_NAMES: Mapping[str, Modality] = MappingProxyType({"unaided": "unaided", "aided": "aided"})


def format_imrmc(reads: Iterable[Read], truth: Truth, positive: str | Collection[str], *, title: str = "") -> str:
    """Return reads and the truth of their cases as the text of an iMRMC file.

    Parameters
    ----------
    reads
        One per reader, case and modality, each with a score.
    truth
        True class of every case that was read.
    positive
        The classes that count as positive.
    title
        One line of free text at the top.

    Raises
    ------
    ReviewError
        If there are no reads; a score or a case's truth is missing; an id is empty, has a comma, space or line break, or is reserved.

    Examples
    --------
    >>> from streamview.review.reads import Read
    >>> from streamview.review.statistics.imrmc import format_imrmc
    >>> print(format_imrmc([Read("r1", "c1", "aided", "lesion", score=80)], {"c1": "lesion"}, "lesion", title="a study"))
    a study
    N0: 0
    N1: 1
    NR: 1
    NM: 1
    BEGIN DATA:
    -1,c1,truth,1
    r1,c1,aided,80
    <BLANKLINE>
    """
    if len(title.splitlines()) > 1 or re.match(rf"\s*({'|'.join(_COUNTS)}|{_BEGIN[:-1]}):", title):
        raise ReviewError(f"title {title!r}; expected one line that is none of the file's own")
    groups = group_reads(reads)
    ordered = [read for group in groups.values() for read in group.values()]
    if not ordered:
        raise ReviewError("there are no reads; expected one or more")
    cases = sorted({read.case for read in ordered})
    readers = sorted({read.reader for read in ordered})
    _check_ids("reader", readers)
    _check_ids("case", cases)
    if _TRUTH_READER in readers:
        raise ReviewError(f"reader id {_TRUTH_READER!r} means the truth in an iMRMC file; expected another")
    unknown = [case for case in cases if truth.get(case) is None]
    if unknown:
        raise ReviewError(f"case {unknown[0]!r} has no truth ({len(unknown)} of {len(cases)}); an iMRMC file requires it of every case")
    present = {case: truth[case] in as_classes(positive) for case in cases}
    positives = sum(present.values())
    counts = zip(_COUNTS, (len(cases) - positives, positives, len(readers), len({read.modality for read in ordered})), strict=True)
    rows = [f"{_TRUTH_READER},{case},truth,{int(present[case])}" for case in cases]
    rows += [f"{read.reader},{read.case},{read.modality},{_score(read)}" for read in ordered]
    return "\n".join([*([title] if title else []), *(f"{name}: {count}" for name, count in counts), _BEGIN, *rows, ""])


def parse_imrmc(text: str, modalities: Mapping[str, Modality] = _NAMES) -> tuple[tuple[Read, ...], dict[str, str]]:
    """Return the reads and the truth that the text of an iMRMC file holds.

    Parameters
    ----------
    text
        The file.
    modalities
        From the file's modality ids to ours.

    Returns
    -------
    reads
        In the order of the file, with an empty verdict: the format has scores alone.
    truth
        From case to ``"1"`` (positive) or ``"0"``.

    Raises
    ------
    ReviewError
        If a line is not of the format, a case has no truth or two, a read is repeated, or the counts are others than those of the data.
        The message names the line.
    """
    lines = text.splitlines()
    begin = next((number for number, line in enumerate(lines) if line == _BEGIN), None)
    if begin is None:
        raise ReviewError(f"line {max(len(lines), 1)}: the file ends without a line {_BEGIN!r}; expected it in front of the data")
    stated = _stated(lines[:begin])
    truth: dict[str, str] = {}
    reads: dict[tuple[str, str, str], tuple[int, Read]] = {}
    for number, line in enumerate(lines[begin + 1 :], begin + 2):
        if not line:
            continue
        reader, case, modality, score = _fields(number, line)
        if reader == _TRUTH_READER:
            truth[case] = _truth(number, case, modality, score, truth)
        elif (reader, case, modality) in reads:
            first = reads[reader, case, modality][0]
            raise ReviewError(f"line {number}: reader {reader}, case {case}, modality {modality} is also in line {first}; expected it once")
        else:
            reads[reader, case, modality] = number, Read(reader, case, _modality(number, modality, modalities), "", _number(number, score))
    _check_truth(reads.values(), truth)
    positives = list(truth.values()).count("1")
    readers, names = {reader for reader, _, _ in reads}, {modality for _, _, modality in reads}
    _check_counts(stated, (len(truth) - positives, positives, len(readers), len(names)))
    return tuple(read for _, read in reads.values()), truth


def _check_ids(kind: str, ids: Iterable[str]) -> None:
    for name in ids:
        if not name or re.search(r"[,\s]", name):
            raise ReviewError(f"{kind} id {name!r}; expected one without commas, spaces and line breaks, and not empty")


def _score(read: Read) -> str:
    if read.score is None:
        raise ReviewError(f"{read.place}: the {read.modality} read has no score; an iMRMC file requires one")
    score = float(read.score)
    return str(int(score)) if score.is_integer() and abs(score) < 1e15 else repr(score)


def _stated(header: Iterable[str]) -> dict[str, tuple[int, int]]:
    """The counts of the header, each with its line."""
    stated: dict[str, tuple[int, int]] = {}
    for number, line in enumerate(header, 1):
        name, colon, value = line.strip().partition(":")
        if not colon or name not in _COUNTS:
            continue
        if not re.fullmatch(r"[0-9]+", value.strip()):
            raise ReviewError(f"line {number}: {line.strip()!r}; expected a whole number after {name}:")
        if name in stated:
            raise ReviewError(f"line {number}: {name} is also in line {stated[name][1]}; expected it once")
        stated[name] = int(value), number
    missing = [name for name in _COUNTS if name not in stated]
    if missing:
        raise ReviewError(f"line {number + 1 if stated else 1}: no line {missing[0]!r} in front of the data; expected '{missing[0]}: n'")
    return stated


def _fields(number: int, line: str) -> list[str]:
    fields = line.split(",")
    if len(fields) != 4 or not all(fields) or re.search(r"\s", line):
        raise ReviewError(f"line {number}: {line!r}; expected readerID,caseID,modalityID,score without spaces")
    return fields


def _truth(number: int, case: str, modality: str, score: str, truth: Mapping[str, str]) -> str:
    if case in truth:
        raise ReviewError(f"line {number}: the truth of case {case} is given twice; expected it once")
    if modality not in _TRUTH_MODALITIES:
        raise ReviewError(f"line {number}: modality {modality!r} in a truth row; expected truth")
    if _number(number, score) not in (0, 1):
        raise ReviewError(f"line {number}: truth {score!r}; expected 0 or 1")
    return str(int(float(score)))


def _modality(number: int, name: str, modalities: Mapping[str, Modality]) -> Modality:
    if name not in modalities:
        raise ReviewError(f"line {number}: modality {name!r}; expected {' or '.join(modalities)}, or pass modalities= to name it")
    return modalities[name]


def _number(number: int, text: str) -> float:
    value = float(text) if _DECIMAL.fullmatch(text) else math.nan
    if not math.isfinite(value):
        raise ReviewError(f"line {number}: score {text!r}; expected a finite number")
    return value


def _check_truth(reads: Iterable[tuple[int, Read]], truth: Mapping[str, str]) -> None:
    for number, read in reads:
        if read.case not in truth:
            raise ReviewError(f"line {number}: case {read.case} has no truth row; expected {_TRUTH_READER},{read.case},truth,0 or 1")


def _check_counts(stated: Mapping[str, tuple[int, int]], actual: Iterable[int]) -> None:
    for name, count in zip(_COUNTS, actual, strict=True):
        value, number = stated[name]
        if value != count:
            raise ReviewError(f"line {number}: {name} is {value}, but the data have {count}; expected them to agree")
