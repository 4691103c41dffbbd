"""Write a folder in a way that survives being killed: in a partial folder with a journal of finished files, renamed at the end.

While the work is unfinished, ``.NAME.partial`` lies beside ``NAME``:

``lock``
    A lock of the operating system, held by the working process and released when the process ends in any way.
``journal``
    Lines of JSON: first the inputs of the work, then one line per finished file with its size and CRC-32. Only files in the journal are
    trusted: any other file may be truncated, stale or of another run.
``work``
    The future ``NAME``.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from streamview.errors import SlideError
from streamview.files.atomic import safe_stem

__all__ = ["Journal", "Tell", "discard_unfinished", "resumable"]

Tell = Callable[[str], None]


class Journal:
    """The finished files of a folder; created by `resumable`, safe to use from several threads.

    Parameters
    ----------
    path
        File of the journal; lines are appended.
    folder
        Folder of the work.
    finished
        Names of the finished files, relative to `folder`, with ``/`` between the parts.
    """

    def __init__(self, path: Path, folder: Path, finished: set[str]) -> None:
        self.folder, self.finished = folder, finished
        self._path, self._lock = path, threading.Lock()

    def add(self, name: str) -> None:
        """Sync a complete and closed file to disk, and enter it."""
        line = _line(name, self.folder / name)
        with self._lock, self._path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
            self.finished.add(name)


@contextmanager
def resumable(out: Path, making: Mapping[str, Any], tell: Tell) -> Iterator[Journal]:
    """Create a folder, resuming an earlier attempt.

    The block writes files into ``journal.folder``, which initially holds exactly those of ``journal.finished``, and enters them. At its
    end the folder is renamed to `out`. If it fails or is stopped, the entered files are kept for the next attempt.

    Parameters
    ----------
    out
        The folder to create; its parent must exist.
    making
        All inputs that determine the files' content, as JSON. Unfinished work with other inputs is never resumed.
    tell
        Called with messages: that work resumes, or what was kept.

    Raises
    ------
    SlideError
        If `out` exists, another process is writing it, or there are finished files of unfinished work with other inputs.
    OSError
        If the disk is full or not writable.
    """
    making = json.loads(json.dumps(making))
    with _locked(out) as partial:
        if os.path.lexists(out):
            raise SlideError(f"{out}: exists already; remove it or choose another name")
        work, path = partial / "work", partial / "journal"
        lines = _resume(out, partial, making, tell)
        fresh = path.with_suffix(".new")
        fresh.write_bytes(b"".join((_json(making), *lines.values())))
        os.replace(fresh, path)
        work.mkdir(exist_ok=True)
        journal = Journal(path, work, set(lines))
        try:
            yield journal
            for file in _files(work):
                if file.relative_to(work).as_posix() not in journal.finished:
                    _sealed(file)
            os.rename(work, out)
        except BaseException:
            if journal.finished:
                tell(
                    f"unfinished: {len(journal.finished)} files are kept in {partial};"
                    " the same command resumes from there, with --restart it starts over"
                )
            else:
                shutil.rmtree(work, ignore_errors=True)
            raise


def discard_unfinished(out: str | os.PathLike[str]) -> None:
    """Remove the partial folder of an unfinished `out`, if any.

    Raises
    ------
    SlideError
        If another process is working on it.
    """
    if _partial(Path(out)).exists():
        with _locked(Path(out)) as partial:
            shutil.rmtree(partial / "work", ignore_errors=True)


def _partial(out: Path) -> Path:
    return out.with_name(f".{safe_stem(out.name)}.partial")


@contextmanager
def _locked(out: Path) -> Iterator[Path]:
    """Lock and yield the partial folder of `out`; it is removed afterwards if it holds no work."""
    partial = _partial(out)
    partial.mkdir(exist_ok=True)
    lock = FileLock(partial / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise SlideError(f"{out}: is being written by another process; wait until it has ended, or choose another name") from None
    try:
        yield partial
    finally:
        # Removed while the lock is held: the next process finds nothing, or holds a deleted lock file, which locks nothing.
        if not (partial / "work").exists():
            shutil.rmtree(partial, ignore_errors=True)
        lock.release()
        with suppress(OSError):  # Windows does not delete the file of a held lock
            partial.rmdir()


def _resume(out: Path, partial: Path, making: Mapping[str, Any], tell: Tell) -> dict[str, bytes]:
    """Journal lines of the intact finished files, by name; all other files of the work are removed."""
    work, path = partial / "work", partial / "journal"
    if not work.exists():
        return {}
    header, *lines = path.read_bytes().splitlines(keepends=True) if path.exists() else [b""]
    earlier = _parsed(header) or {}
    differing = [key for key in making if key not in earlier or earlier[key] != making[key]]
    entered = {entry[0]: line for line in lines if (entry := _parsed(line))}
    if differing and entered:
        raise SlideError(
            f"{out}: {partial} holds {len(entered)} finished files with another {', '.join(differing)}; finish that work with its own"
            " settings, choose another name, or start over with --restart"
        )
    if differing:
        shutil.rmtree(work)
        return {}
    intact = {}
    for file in _files(work):
        name = file.relative_to(work).as_posix()
        line = _line(name, file) if name in entered else b""
        if line and line == entered[name]:
            intact[name] = line
        else:
            file.unlink()
    lost = f", {len(entered) - len(intact)} were lost or changed and are written again" if len(entered) > len(intact) else ""
    if entered:
        tell(f"resuming: {len(intact)} finished files are in {partial}{lost}")
    return intact


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _parsed(line: bytes) -> Any:
    """Parse a line; None if it was truncated while being written."""
    with suppress(ValueError):
        return json.loads(line) if line.endswith(b"\n") else None
    return None


def _line(name: str, file: Path) -> bytes:
    return _json([name, *_sealed(file)])


def _sealed(path: Path) -> tuple[int, int]:
    """Sync a file to disk, and return its size and CRC-32."""
    size = checksum = 0
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        while part := file.read(1 << 20):
            size, checksum = size + len(part), zlib.crc32(part, checksum)
    return size, checksum
