"""Files and folders that appear whole or not at all: written beside their place, then renamed into it."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streamview.errors import StreamviewError

__all__ = ["discard", "disk_errors", "replace", "replacing", "temporary_sibling", "write_text"]

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into an error that names the remedy.

    Raises
    ------
    StreamviewError
        When the block fails because the disk is full or `path` may not be written. Other errors pass unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StreamviewError(f"{path}: the disk is full; free some space or write to another disk, then run again") from error
        if error.errno in _FORBIDDEN:
            raise StreamviewError(f"{path}: may not be written ({error.strerror}); choose another output folder") from error
        raise


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
    """Write UTF-8 text (line ends as given) so that a reader sees the old content or the new, never a part."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")
