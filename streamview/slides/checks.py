"""Checks made before a file is trusted: its declared size, its completeness, and the digest that identifies it."""

from __future__ import annotations

import configparser
import hashlib
import os
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from streamview.errors import SlideError

__all__ = ["DAMAGED", "check_companions", "check_complete", "check_size", "file_identity"]

MAX_SIDE, MAX_PIXELS = 2**22, 2**42  # the largest scans are near 2^20 px a side
MAX_CHUNK = 2**28  # bytes of one decoded tile, strip or chunk; more would make every small read a large one
_MAX_DIRECTORIES = 100_000
_SAMPLE, _SAMPLES = 1 << 16, 64

# What parsers and decoders of others raise on damaged input, in place of errors of their own.
DAMAGED = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError, struct.error)

# TIFF tags: data offsets, their byte counts, and sub-directories.
_OFFSETS, _COUNTS, _SUBDIRECTORIES = (273, 324), (279, 325), 330
_TYPES = {3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}


def check_size(name: str, shape: tuple[int, int], chunk_bytes: int = 0) -> None:
    """Refuse sizes that no scan has, before anything is allocated for them.

    Raises
    ------
    SlideError
        When a side, the area, or one separately stored piece is absurd.
    """
    height, width = shape
    if height <= 0 or width <= 0 or max(shape) > MAX_SIDE or height * width > MAX_PIXELS:
        raise SlideError(f"{name}: declares {width} x {height} px, expected 1 to {MAX_SIDE} a side; the file is damaged, get it again")
    if chunk_bytes > MAX_CHUNK:
        raise SlideError(
            f"{name}: stored in pieces of {chunk_bytes / 2**20:.0f} MiB, expected tiles of at most {MAX_CHUNK >> 20} MiB;"
            " save it as a tiled pyramid, e.g. vips tiffsave IN OUT.tif --tile --pyramid --compression jpeg"
        )


def file_identity(path: Path) -> str:
    """SHA-256 over a file's size and 64 evenly spaced samples of 64 KiB (all of a file up to 4 MiB), as hex."""
    size = path.stat().st_size
    digest = hashlib.sha256(f"streamview file {size}\n".encode())
    with path.open("rb") as file:
        if size <= _SAMPLE * _SAMPLES:
            digest.update(file.read())
        else:
            for number in range(_SAMPLES):
                file.seek((size - _SAMPLE) * number // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def check_complete(path: Path) -> None:
    """Refuse a TIFF (of any vendor) that points beyond its end: it was cut short. Other files pass.

    Readers differ here: OpenSlide refuses some cut files with a puzzling message, tifffile reads what is left.

    Raises
    ------
    SlideError
        When a directory or a tile lies outside the file, or the directories form a loop.
    """
    with path.open("rb") as file:
        header = file.read(16)
        order = {b"II": "<", b"MM": ">"}.get(header[:2])
        if order is None or len(header) < 8:
            return
        version = struct.unpack_from(order + "H", header, 2)[0]
        size = os.fstat(file.fileno()).st_size
        # A classic TIFF beyond 4 GiB is Hamamatsu's own layout, which OpenSlide checks itself.
        if version not in (42, 43) or (version == 42 and size >= 2**32):
            return
        try:
            end = _furthest_byte(file, order, big=version == 43)
        except (struct.error, OverflowError):
            end = None
    if end is None or end > size:
        found = f"points to byte {end}" if end is not None else "points to a directory beyond its end"
        raise SlideError(f"{path.name}: truncated: it {found}, but ends at byte {size}; copy or download it again")


def check_companions(path: Path) -> None:
    """Refuse an MRXS without the files that hold its pixels, which lie in a folder of the same name. Other files pass.

    Raises
    ------
    SlideError
        Naming what is missing.
    """
    with path.open("rb") as file:
        if path.suffix.lower() != ".mrxs" or file.read(2) != b"\xff\xd8":  # an index in form of a JPEG
            return
    folder = path.with_suffix("")
    index = folder / "Slidedat.ini"
    if not index.is_file():
        raise SlideError(f"{path.name}: its folder {folder.name}/ with Slidedat.ini is missing; copy the folder along with the file")
    stated = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        stated.read_string(index.read_text("utf-8-sig", errors="replace"))
        files = [value for key, value in stated["DATAFILE"].items() if key.startswith("file_") and key != "file_count"]
        files.append(stated["HIERARCHICAL"]["indexfile"])
    except (configparser.Error, KeyError) as error:
        raise SlideError(f"{path.name}: {folder.name}/Slidedat.ini is damaged ({error}); copy the folder again") from None
    for name in files:
        if Path(name).name != name or not (folder / name).is_file():
            raise SlideError(f"{path.name}: {folder.name}/{name} is missing; copy the whole folder along with the file")


def _furthest_byte(file: BinaryIO, order: str, *, big: bool) -> int:
    """First byte after everything that the TIFF's directories point to; struct.error when a directory itself is cut."""
    word, count_format, entry_size = ("Q", "Q", 20) if big else ("I", "H", 12)
    file.seek(8 if big else 4)
    starts = [_unpack(file, order + word)]
    seen: set[int] = set()
    furthest = 0
    while starts:
        offset, chain = starts.pop(), set[int]()
        # Several routes may lead to one directory: writers chain sub-directories and list them as well. Only a chain that comes back
        # to itself has no end.
        while offset and offset not in seen:
            if len(seen) > _MAX_DIRECTORIES:
                raise SlideError(f"{Path(file.name).name}: more than {_MAX_DIRECTORIES} TIFF directories; expected a slide of a few")
            seen.add(offset)
            chain.add(offset)
            file.seek(offset)
            entries = file.read(_unpack(file, order + count_format) * entry_size)
            offset = _unpack(file, order + word)
            end, subdirectories = _directory(file, order, entries, entry_size)
            furthest = max(furthest, end)
            starts.extend(subdirectories)
        if offset in chain:
            raise SlideError(f"{Path(file.name).name}: its TIFF directories form a loop; the file is damaged, get it again")
    return furthest


def _directory(file: BinaryIO, order: str, entries: bytes, entry_size: int) -> tuple[int, list[int]]:
    """First byte after what a directory points to, and its sub-directories."""
    word = "Q" if entry_size == 20 else "I"
    fields = {}
    for start in range(0, len(entries), entry_size):
        tag, kind, count = struct.unpack_from(order + "HH" + word, entries, start)
        if tag in (*_OFFSETS, *_COUNTS, _SUBDIRECTORIES) and kind in _TYPES:
            fields[tag] = _values(file, order, entries[start + 4 + struct.calcsize(order + word) : start + entry_size], kind, count)
    furthest = 0
    for offsets, counts in zip(_OFFSETS, _COUNTS, strict=True):
        if offsets in fields and counts in fields:
            both = min(len(fields[offsets]), len(fields[counts]))
            ends = (fields[offsets][:both] + fields[counts][:both])[fields[counts][:both] > 0]  # what is left out lies nowhere
            furthest = max(furthest, int(ends.max(initial=0)))
    return furthest, [int(value) for value in fields.get(_SUBDIRECTORIES, ())]


def _unpack(file: BinaryIO, layout: str) -> int:
    value: int = struct.unpack(layout, file.read(struct.calcsize(layout)))[0]
    return value


def _values(file: BinaryIO, order: str, inline: bytes, kind: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Values of one TIFF field, kept in the entry itself when they fit."""
    dtype = np.dtype(order + _TYPES[kind])
    data = inline
    if count * dtype.itemsize > len(inline):
        position = file.tell()
        file.seek(int(np.frombuffer(inline, order + ("u8" if len(inline) == 8 else "u4"))[0]))
        data = file.read(min(count * dtype.itemsize, os.fstat(file.fileno()).st_size))
        file.seek(position)
        if len(data) < count * dtype.itemsize:
            raise struct.error
    return np.frombuffer(data, dtype, count).astype(np.uint64)
