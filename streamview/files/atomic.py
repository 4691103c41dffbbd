"""Atomic writes of files and folders: written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streamview.errors import StreamviewError

__all__ = ["check_output", "discard", "disk_errors", "replace", "replacing", "safe_stem", "temporary_sibling", "write_text"]

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_ZARR = ("zarr.json", ".zgroup", ".zarray")
_MAX_STEM_BYTES = 128  # file systems allow 255 bytes a name; this leaves room for prefixes, regions and suffixes
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # devices on Windows, whatever the suffix


def safe_stem(name: str) -> str:
    """Return a valid file-name stem for output named after a slide.

    Use it wherever the name of an output file, folder or column derives from `Slide.name`: a slide's name may not be UTF-8 (surrogates
    from `os.fsdecode`), may have up to 255 bytes, newlines, colons or trailing spaces, and may be part of a URL.

    Parameters
    ----------
    name
        Such as `Slide.name`, with its suffix.

    Returns
    -------
    str
        `name` itself if it is at most 128 bytes of UTF-8, printable, and legal on every common file system. Otherwise its legal characters,
        truncated to that length, and a digest of the name: different names never share a stem, and a name always has the same one.
    """
    legal = "".join(letter if letter.isprintable() and letter not in '/\\:*?"<>|' else "_" for letter in name)
    legal = legal.rstrip(" .").lstrip(" ")
    if _RESERVED.fullmatch(legal) or legal.startswith("."):
        legal = f"_{legal}"
    if legal == name and legal and len(name.encode()) <= _MAX_STEM_BYTES:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    room = _MAX_STEM_BYTES - len(digest) - 1
    return f"{legal.encode()[:room].decode(errors='ignore').rstrip(' .') or 'slide'}-{digest}"


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Convert errors of the file system into errors that name the remedy.

    Raises
    ------
    StreamviewError
        If the block fails with an `OSError`: a full or read-only disk, a size limit, an I/O error, a stale handle, a name that is too
        long ... A `BrokenPipeError` is not a disk error and passes unchanged.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise StreamviewError(f"{path}: the disk is full; free some space or write to another disk, then run again") from error
        if error.errno in _FORBIDDEN:
            raise StreamviewError(f"{path}: may not be written ({error.strerror}); choose another output folder") from error
        reason = error.strerror or str(error) or type(error).__name__
        raise StreamviewError(
            f"{path}: cannot be written ({reason}); check the disk and the path, or choose another output folder"
        ) from error


def temporary_sibling(path: Path) -> Path:
    """Temporary name for writing `path`: hidden, unique, on the same disk; its folder is created."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{safe_stem(path.name)}.{uuid.uuid4().hex[:8]}.partial")


def replace(temporary: Path, path: Path) -> None:
    """Move a finished file or folder to `path`; an earlier one is deleted only after the new one is in place."""
    with disk_errors(path):
        if not path.is_dir():
            os.replace(temporary, path)
            return
        # A non-empty folder cannot be replaced in one step: it is renamed, and renamed back if the new one cannot be moved.
        aside = temporary_sibling(path)
        os.rename(path, aside)
        try:
            os.rename(temporary, path)
        except OSError:
            os.rename(aside, path)
            raise
        discard(aside)


def discard(temporary: Path) -> None:
    """Remove an unfinished file or folder, if it exists."""
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write; it replaces `path` when the block ends, and is deleted if the block fails.

    Raises
    ------
    StreamviewError
        If the disk is full or `path` cannot be written.
    """
    temporary = temporary_sibling(path)
    try:
        with disk_errors(path):
            yield temporary
        replace(temporary, path)
    finally:
        discard(temporary)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text (line ends unchanged) atomically: a reader sees the old or the new content.

    Bytes of file names that are not UTF-8 are written as ``\\udc..``, which JSON reads as the same name.

    Raises
    ------
    StreamviewError
        If it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def check_output(folder: str | os.PathLike[str]) -> None:
    """Reject an output folder that is, or lies inside, an OME-Zarr image: its files would become part of the image.

    Raises
    ------
    StreamviewError
        Naming the image.
    """
    place = Path(os.path.abspath(folder))
    for above in (place, *place.parents):
        if any((above / name).is_file() for name in _ZARR):
            raise StreamviewError(f"{folder}: lies in the OME-Zarr image {above}; choose a folder of its own for the output")
