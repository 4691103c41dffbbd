"""One file a session: events that are only ever added, each on the disk before it counts as done.

SQLite (https://sqlite.org/), because a file that several processes write at once and that survives a loss of power is what it is for. On a
local disk the journal is a write-ahead log with ``synchronous=FULL``, so that a committed event survives both ``kill -9`` and a loss of
power. The write-ahead log needs memory that processes share, which network drives do not offer: there the journal is a rollback
journal with ``synchronous=EXTRA``, slower and as safe (https://sqlite.org/wal.html, https://sqlite.org/pragma.html#pragma_synchronous).
"""

from __future__ import annotations

import json
import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from streamview.errors import ReviewError

__all__ = ["Event", "Store", "recover"]

_PATIENCE = 20.0  # s that a write waits for another process
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "9p", "fuse.sshfs", "lustre", "beegfs", "gpfs", "fuse.glusterfs", "ceph"}


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a session.

    Parameters
    ----------
    id
        Unique over all files: a hexadecimal UUID.
    reader
        Whose; empty for the session's own.
    case, period, modality
        Of which step; empty and 0 where none.
    kind
        What happened.
    values
        What goes with it.
    at
        UTC in ISO 8601, by the clock of the machine. The order of events is that of the file, not of their clocks.
    """

    id: str
    reader: str
    kind: str
    at: str
    case: str = ""
    period: int = 0
    modality: str = ""
    values: Mapping[str, Any] | None = None


def _m001_events(connection: sqlite3.Connection) -> None:
    """Settings that never change, and events that are only added."""
    connection.executescript("""
        CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
        CREATE TABLE events (
            number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, reader TEXT NOT NULL, kind TEXT NOT NULL, at TEXT NOT NULL,
            case_id TEXT NOT NULL, period INTEGER NOT NULL, modality TEXT NOT NULL, payload TEXT NOT NULL
        ) STRICT;
        CREATE INDEX events_by_step ON events (reader, case_id, period, modality);
        CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;
        CREATE TRIGGER events_remain BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are never deleted'); END;
        CREATE TRIGGER settings_stay BEFORE UPDATE ON settings BEGIN SELECT RAISE(ABORT, 'settings are never changed'); END;
        CREATE TRIGGER settings_remain BEFORE DELETE ON settings BEGIN SELECT RAISE(ABORT, 'settings are never deleted'); END;
    """)


_MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_m001_events,)


class Store:
    """The file of a session. A context manager; of one thread.

    Parameters
    ----------
    path
        An existing file; see `create`.

    Raises
    ------
    ReviewError
        When the file is missing, is no session, is damaged, or is of a later version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ReviewError(f"{self.path.name}: no such session; make one with `streamview review new`")
        self.network = on_network(self.path)
        self._connection = self._connect()
        try:
            self._migrate()
        except BaseException:
            self._connection.close()
            raise

    @classmethod
    def create(cls, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> Store:
        """Make a session's file, which appears whole or not at all.

        Parameters
        ----------
        path
            Must not exist.
        settings
            Values that JSON can hold, by name; they never change.

        Raises
        ------
        ReviewError
            When the file exists, or cannot be written.
        """
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        try:
            with closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
                connection.execute("PRAGMA journal_mode=DELETE")
                connection.execute("PRAGMA synchronous=EXTRA")
                connection.execute("BEGIN")
                connection.execute("CREATE TABLE migrations (name TEXT PRIMARY KEY, at TEXT NOT NULL) STRICT")
                connection.commit()
                for migration in _MIGRATIONS:
                    migration(connection)
                    connection.execute("INSERT INTO migrations VALUES (?, ?)", (migration.__name__, _now()))
                rows = [(name, json.dumps(value, ensure_ascii=False, allow_nan=False)) for name, value in settings.items()]
                connection.executemany("INSERT INTO settings VALUES (?, ?)", rows)
            try:
                os.link(temporary, path)  # unlike a rename, this never replaces a session
            except FileExistsError:
                raise ReviewError(f"{path}: exists; choose another name, or open it") from None
            except OSError:  # a file system without links
                if path.exists():
                    raise ReviewError(f"{path}: exists; choose another name, or open it") from None
                os.replace(temporary, path)
        except (sqlite3.Error, OSError) as error:
            raise ReviewError(f"{path}: cannot be written: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)
        return cls(path)

    @property
    def settings(self) -> dict[str, Any]:
        """What never changes, by name."""
        with self._errors():
            return {name: json.loads(value) for name, value in self._connection.execute("SELECT name, value FROM settings")}

    def add(self, *events: Event) -> None:
        """Add events, all or none; when this returns they are on the disk.

        Raises
        ------
        ReviewError
            When the disk is full, or another process writes for longer than 20 s. Nothing has then been added.
        """
        rows = [_row(event) for event in events]
        with self._errors(), self.writing() as connection:
            connection.executemany(_INSERT, rows)

    def insert(self, event: Event) -> None:
        """Add an event within `writing`; it is on the disk when that block ends."""
        with self._errors():
            self._connection.execute(_INSERT, _row(event))

    def add_missing(self, events: list[Event]) -> int:
        """Add those whose ids are not here yet, and return how many that were: a merge of another file of the same session."""
        with self._errors(), self.writing() as connection:
            before = connection.total_changes
            connection.executemany(_INSERT.replace("INSERT", "INSERT OR IGNORE"), [_row(event) for event in events])
            return connection.total_changes - before

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, alone among all processes: what it reads stays true until it is committed."""
        with self._errors():
            self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
            with self._errors():
                self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def events(self, reader: str | None = None) -> list[Event]:
        """Return events in the order in which they were added: of one reader, or of all."""
        where, values = ("", ()) if reader is None else (" WHERE reader = ?", (reader,))
        columns = "id, reader, kind, at, case_id, period, modality, payload"
        with self._errors():
            rows = self._connection.execute(f"SELECT {columns} FROM events{where} ORDER BY number", values).fetchall()
        return [_event(row) for row in rows]

    def check(self) -> None:
        """Read the whole file.

        Raises
        ------
        ReviewError
            When a part of it is damaged.
        """
        with self._errors():
            problems = [text for (text,) in self._connection.execute("PRAGMA integrity_check")]
        if problems != ["ok"]:
            raise ReviewError(f"{self.path.name}: is damaged ({problems[0]}); save what can be read with `streamview review recover`")

    def close(self) -> None:
        """Release the file."""
        self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self) -> sqlite3.Connection:
        with self._errors():
            connection = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None)
            try:
                connection.execute(f"PRAGMA journal_mode={'DELETE' if self.network else 'WAL'}").fetchone()
                connection.execute(f"PRAGMA synchronous={'EXTRA' if self.network else 'FULL'}")
            except BaseException:
                connection.close()
                raise
        return connection

    def _migrate(self) -> None:
        with self._errors():
            tables = {name for (name,) in self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "migrations" not in tables:
                raise ReviewError(f"{self.path.name}: is no review session")
            done = {name for (name,) in self._connection.execute("SELECT name FROM migrations")}
            later = done - {migration.__name__ for migration in _MIGRATIONS}
            if later:
                raise ReviewError(f"{self.path.name}: was written by a later version of streamview; update this one")
            for migration in _MIGRATIONS:
                if migration.__name__ not in done:
                    migration(self._connection)
                    self._connection.execute("INSERT INTO migrations VALUES (?, ?)", (migration.__name__, _now()))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise ReviewError(f"{self.path.name}: {_explained(error)}") from error


def new_event(reader: str, kind: str, case: str = "", period: int = 0, modality: str = "", **values: Any) -> Event:
    """Make an event that happens now."""
    return Event(uuid.uuid4().hex, reader, kind, _now(), case, period, modality, values)


def recover(damaged: str | os.PathLike[str], out: str | os.PathLike[str]) -> int:
    """Save what can be read of a damaged session into a new file, event by event, and return how many events that were.

    Raises
    ------
    ReviewError
        When the settings cannot be read, or `out` exists.
    """
    damaged = Path(damaged)
    if not damaged.is_file():
        raise ReviewError(f"{damaged.name}: no such file")
    events: list[Event] = []
    try:
        with closing(sqlite3.connect(f"{damaged.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            settings = {name: json.loads(value) for name, value in connection.execute("SELECT name, value FROM settings")}
            last = _last_number(connection)
            columns = "id, reader, kind, at, case_id, period, modality, payload"
            for number in range(1, last + 1):
                try:
                    row = connection.execute(f"SELECT {columns} FROM events WHERE number = ?", (number,)).fetchone()
                    if row is not None:
                        events.append(_event(row))
                except (sqlite3.Error, ValueError, TypeError, UnicodeError):
                    continue
    except (sqlite3.Error, ValueError) as error:
        raise ReviewError(f"{damaged.name}: nothing can be read of it: {error}; use a copy, or what readers exported") from error
    with Store.create(out, settings) as store:
        return store.add_missing(events)


def on_network(path: Path) -> bool:
    """Whether a file lies on a network drive, by the table of mounts; False where that cannot be told."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return str(path.absolute()).startswith(("\\\\", "//"))
    place = str(path.resolve())
    mount = max(
        (fields for fields in mounts if len(fields) > 2 and (place + "/").startswith(fields[1].rstrip("/") + "/")),
        key=lambda fields: len(fields[1]),
        default=None,
    )
    return mount is not None and mount[2] in _NETWORK


_INSERT = "INSERT INTO events (id, reader, kind, at, case_id, period, modality, payload) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


def _row(event: Event) -> tuple[Any, ...]:
    payload = json.dumps(dict(event.values or {}), ensure_ascii=False, allow_nan=False)
    return event.id, event.reader, event.kind, event.at, event.case, event.period, event.modality, payload


def _event(row: tuple[Any, ...]) -> Event:
    id, reader, kind, at, case, period, modality, payload = row
    return Event(id, reader, kind, at, case, period, modality, json.loads(payload))


def _last_number(connection: sqlite3.Connection) -> int:
    """The number of the last event; where the index is damaged, that which the file remembers of its counter."""
    for query in ("SELECT seq FROM sqlite_sequence WHERE name = 'events'", "SELECT max(number) FROM events"):
        try:
            row = connection.execute(query).fetchone()
        except sqlite3.Error:
            continue
        if row and row[0]:
            return int(row[0])
    return 0


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _explained(error: sqlite3.Error) -> str:
    text = str(error)
    if "locked" in text:
        return f"another program has been writing for {_PATIENCE:.0f} s; nothing was stored, try again"
    if "full" in text or "disk I/O" in text:
        return f"{text}: nothing was stored; free some space, and try again"
    if "malformed" in text or "not a database" in text:
        return "is damaged, or no review session; save what can be read with `streamview review recover`"
    if "readonly" in text:
        return "is read-only; nothing was stored"
    return text
