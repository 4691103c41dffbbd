"""Long work on a folder that survives being killed: done beside its place, journalled file by file, then renamed into it.

Beside ``NAME`` stands ``.NAME.partial`` as long as the work is unfinished:

``lock``
    Held through the operating system by the process that works here, so that it ends with the process, however that ends.
``journal``
    Lines of JSON: first what is being made, then one for each finished file with its size and CRC-32. Only what it vouches for counts:
    a file that merely can be read may be cut, stale or another run's.
``work``
    What becomes ``NAME``, by one rename.
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
    """The files of a folder that are finished; made by `resumable`, safe to use from several threads.

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
        """Enter a file, complete and closed, once its bytes have reached the disk."""
        line = _line(name, self.folder / name)
        with self._lock, self._path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
            self.finished.add(name)


@contextmanager
def resumable(out: Path, making: Mapping[str, Any], tell: Tell) -> Iterator[Journal]:
    """Make a folder, going on from where an earlier attempt stopped.

    The block writes files into ``journal.folder`` and enters them; it finds there those of ``journal.finished`` and nothing else. When
    it ends, the folder is renamed to `out`. When it fails or is stopped, what it entered is kept for the next attempt.

    Parameters
    ----------
    out
        The folder to make, in one that exists.
    making
        All that decides what the files hold, as JSON. Unfinished work on anything else is never gone on with.
    tell
        Told what is gone on with or kept.

    Raises
    ------
    SlideError
        When `out` exists, another process is making it, or files of unfinished work on something else are kept.
    OSError
        When the disk is full or may not be written.
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
                    " the same command goes on from there, with --restart it begins anew"
                )
            else:
                shutil.rmtree(work, ignore_errors=True)
            raise


def discard_unfinished(out: str | os.PathLike[str]) -> None:
    """Remove what an unfinished attempt at making `out` has left, if any.

    Raises
    ------
    SlideError
        When another process is at work on it.
    """
    if _partial(Path(out)).exists():
        with _locked(Path(out)) as partial:
            shutil.rmtree(partial / "work", ignore_errors=True)


def _partial(out: Path) -> Path:
    return out.with_name(f".{safe_stem(out.name)}.partial")


@contextmanager
def _locked(out: Path) -> Iterator[Path]:
    """The folder beside `out`, for this process alone; removed afterwards when no work is left in it."""
    partial = _partial(out)
    partial.mkdir(exist_ok=True)
    lock = FileLock(partial / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise SlideError(f"{out}: is being made by another process; wait until it has ended, or choose another name") from None
    try:
        yield partial
    finally:
        # Removed while the lock is held: who comes next finds nothing, or a lock file without a name, which counts for none.
        if not (partial / "work").exists():
            shutil.rmtree(partial, ignore_errors=True)
        lock.release()
        with suppress(OSError):  # Windows keeps the file of a lock that is held
            partial.rmdir()


def _resume(out: Path, partial: Path, making: Mapping[str, Any], tell: Tell) -> dict[str, bytes]:
    """Lines of the finished files, by name; everything else in the folder of the work is removed."""
    work, path = partial / "work", partial / "journal"
    if not work.exists():
        return {}
    header, *lines = path.read_bytes().splitlines(keepends=True) if path.exists() else [b""]
    made = _parsed(header) or {}
    differing = [key for key in making if key not in made or made[key] != making[key]]
    entered = {entry[0]: line for line in lines if (entry := _parsed(line))}
    if differing and entered:
        raise SlideError(
            f"{out}: {len(entered)} finished files of another {', '.join(differing)} are kept in {partial}; finish that with the"
            " settings it was begun with, choose another name, or begin anew with --restart"
        )
    if differing:
        shutil.rmtree(work)
        return {}
    kept = {}
    for file in _files(work):
        name = file.relative_to(work).as_posix()
        line = _line(name, file) if name in entered else b""
        if line and line == entered[name]:
            kept[name] = line
        else:
            file.unlink()
    lost = f", {len(entered) - len(kept)} were lost or changed and are made again" if len(entered) > len(kept) else ""
    if entered:
        tell(f"going on: {len(kept)} finished files are in {partial}{lost}")
    return kept


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _parsed(line: bytes) -> Any:
    """What a line says; None when it was cut off while being written."""
    with suppress(ValueError):
        return json.loads(line) if line.endswith(b"\n") else None
    return None


def _line(name: str, file: Path) -> bytes:
    return _json([name, *_sealed(file)])


def _sealed(path: Path) -> tuple[int, int]:
    """Size and CRC-32 of a file whose bytes have reached the disk."""
    size = checksum = 0
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        while part := file.read(1 << 20):
            size, checksum = size + len(part), zlib.crc32(part, checksum)
    return size, checksum
