"""Leases: work that one process at a time may do, on one machine or on several that share a folder.

A lease is a file ``NAME.<n>.lease`` with its owner inside. It appears complete, as a hard link that only one process can make, which
holds on NFS too; file locks (``flock``) do not everywhere. A lease whose owner has ended is never removed by others: whoever goes on makes
the next generation ``n + 1``, again as a link that only one process can make, so that two processes cannot both take over. An owner on
this machine is known to have ended from its process; one elsewhere, from the time of the file, which it renews while it works.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from streamview.errors import StreamviewError
from streamview.files import atomic

__all__ = ["Lease", "Owner", "claim", "hold"]

_BEAT = 15.0  # seconds between two renewals
_SILENT = 120.0  # seconds without a renewal after which an owner on another machine counts as ended
_POLL = 0.05  # seconds between two attempts of `hold`


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that holds a lease.

    Parameters
    ----------
    run
        What it works for, in the caller's terms, such as a run id.
    host
        The machine, since it was started, and where processes have numbers of their own (containers) that too.
    pid, started
        The process's number, and when it began in the system's own count, since numbers are used again; empty where not known.
    """

    run: str
    host: str
    pid: int
    started: str

    @classmethod
    def here(cls, run: str) -> Owner:
        """This process."""
        return cls(run, _host(), os.getpid(), _started(os.getpid()))

    @property
    def ended(self) -> bool | None:
        """Whether the process has ended; None if it cannot be seen from this machine."""
        if self.host != _host():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass  # it belongs to another user
        return _started(self.pid) != self.started


class Lease:
    """A lease that this process holds, renewed by a thread of its own until it is released; a context manager.

    Parameters
    ----------
    path
        Its file.
    deaths
        How many earlier owners with the same `Owner.run` ended without releasing it.
    beat
        Seconds between two renewals; None: it is held too shortly to need any.
    """

    def __init__(self, path: Path, deaths: int, beat: float | None) -> None:
        self.deaths = deaths
        self._path, self._released = path, threading.Event()
        self._thread = None if beat is None else threading.Thread(target=self._renew, args=(beat,), name="streamview-lease", daemon=True)
        if self._thread is not None:
            self._thread.start()

    def release(self) -> None:
        """Give the lease back, and remove what ended owners left of it."""
        self._released.set()
        if self._thread is not None:
            self._thread.join()
        name, _, own = self._path.name.removesuffix(".lease").rpartition(".")
        for number, path in _generations(self._path.parent, name):  # its own last: until then nobody else can begin
            if number <= int(own):
                path.unlink(missing_ok=True)

    def _renew(self, beat: float) -> None:
        while not self._released.wait(beat):
            try:
                os.utime(self._path)
            except OSError:
                continue  # the disk may come back; otherwise the lease becomes silent

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def claim(place: Path, run: str, *, beat: float | None = _BEAT) -> Lease | None:
    """Take a lease, without waiting.

    Parameters
    ----------
    place
        Folder and name of what is leased; the folder is created. It holds leases only, of which there are few at any time.
    run
        What the lease is for; see `Owner`.
    beat
        See `Lease`.

    Returns
    -------
    Lease or None
        None if another process holds it.

    Raises
    ------
    StreamviewError
        If the folder cannot be written.
    """
    name = atomic.safe_stem(place.name)
    with atomic.disk_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        earlier = _generations(place.parent, name)
        if earlier and not _is_ended(earlier[-1][1]):
            return None
        path = place.parent / f"{name}.{earlier[-1][0] + 1 if earlier else 0}.lease"
        if not _create(path, Owner.here(run)):
            return None
        deaths = sum(owner is not None and owner.run == run for owner in (_read(other) for _, other in earlier))
    return Lease(path, deaths, beat)


@contextmanager
def hold(place: Path, patience: float = 120.0) -> Iterator[None]:
    """Hold a lease for a moment, such as to change a small file, and wait for it as long as needed.

    Parameters
    ----------
    place
        As for `claim`.
    patience
        Seconds to wait.

    Raises
    ------
    StreamviewError
        If another process holds it for longer.
    """
    deadline = time.monotonic() + patience
    while (lease := claim(place, "", beat=None)) is None:
        if time.monotonic() > deadline:
            raise StreamviewError(f"{place}: another process has held it for {patience:.0f} s; end that one, then run again")
        time.sleep(_POLL)
    with lease:
        yield


def _generations(folder: Path, name: str) -> list[tuple[int, Path]]:
    """The lease's files, oldest generation first."""
    generations = []
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, _, number = entry.name.removesuffix(".lease").rpartition(".")
            if stem == name and number.isdecimal():
                generations.append((int(number), Path(entry.path)))
    return sorted(generations)


def _create(path: Path, owner: Owner) -> bool:
    """Make a lease's file if there is none."""
    content = json.dumps(asdict(owner)).encode()
    temporary = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        temporary.write_bytes(content)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links: made exclusively, then filled
            try:
                with open(path, "xb") as file:
                    file.write(content)
            except FileExistsError:
                return False
        return True
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path) -> Owner | None:
    """The owner of a lease; None if its file is gone or not complete."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _is_ended(path: Path) -> bool:
    """Whether the owner of a lease has ended without releasing it."""
    owner = _read(path)
    if owner is not None and owner.ended is not None:
        return owner.ended
    try:
        return _now(path.parent) - path.stat().st_mtime > _SILENT
    except FileNotFoundError:  # released in the meantime
        return False


def _now(folder: Path) -> float:
    """The time by the clock of the disk, which may be another machine's."""
    probe = folder / f".{uuid.uuid4().hex}.partial"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _host() -> str:
    """This machine since it was started, and the space of its process numbers."""
    parts = [platform.node()]
    for path, read in (("/proc/sys/kernel/random/boot_id", Path.read_text), ("/proc/self/ns/pid", os.readlink)):
        try:
            parts.append(str(read(Path(path))).strip())
        except OSError:
            continue
    return " ".join(parts)


def _started(pid: int) -> str:
    """When a process began, in clock ticks since the machine started; empty for one that has ended, or where the system does not say."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if status[0] in "ZX" else status[19]
