"""Files and folders that appear whole or not at all: written beside their place, then renamed into it."""

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
_LONGEST_STEM = 120  # bytes: 255 are legal, and endings, regions, digests and ".partial" are added
_ZARR = ("zarr.json", ".zgroup", ".zarray")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into an error that names the remedy.

    Raises
    ------
    StreamviewError
        When the block fails with an `OSError`: a full or read-only disk, a size limit, an I/O error, a stale handle, a name that is too
        long ... A reader of our output that went away (`BrokenPipeError`) is no error of the disk and passes unchanged.
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
    """Name for the unfinished form of `path`: hidden, unique, on the same disk; its folder is created."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")


def replace(temporary: Path, path: Path) -> None:
    """Move a finished file or folder into its place; what stood there before goes only once the new one is in."""
    with disk_errors(path):
        if not path.is_dir():
            os.replace(temporary, path)
            return
        # A folder that is not empty cannot be replaced in one step: it steps aside, and back if the new one fails to come.
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
    """Yield a temporary sibling to write; it takes the place of `path` when the block ends and vanishes when it fails.

    Raises
    ------
    StreamviewError
        When the disk is full or `path` may not be written.
    """
    temporary = temporary_sibling(path)
    try:
        with disk_errors(path):
            yield temporary
        replace(temporary, path)
    finally:
        discard(temporary)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text (line ends as given) so that a reader sees the old content or the new, never a part.

    A byte of a file name that is no UTF-8 is written as ``\\udc..``, which JSON reads as the same name.

    Raises
    ------
    StreamviewError
        When it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def safe_stem(name: str) -> str:
    """Return the beginning of a file name of ours that is derived from `name`, such as a slide's: legal, and different for each.

    Names of up to 120 bytes of UTF-8 without separators and control characters that do not begin with a dot are left as they are; others
    are shortened and get a digest of the whole.
    """
    plain = re.sub(r"[\x00-\x1f\x7f/\\\ud800-\udfff]+", "_", name)
    short = plain.encode()[:_LONGEST_STEM].decode(errors="ignore")
    if short == name and name and not name.startswith("."):
        return name
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:12]
    return f"{plain.encode()[: _LONGEST_STEM - 13].decode(errors='ignore').strip('.')}-{digest}"


def check_output(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder for results that is, or lies inside, an OME-Zarr image: its files would become part of the image.

    Raises
    ------
    StreamviewError
        Naming the image.
    """
    place = Path(os.path.abspath(folder))
    for above in (place, *place.parents):
        if any((above / name).is_file() for name in _ZARR):
            raise StreamviewError(f"{folder}: lies in the OME-Zarr image {above}; choose a folder of its own for the output")
