"""What a reader was told is stored is stored: through kills, a full disk, several writers, a clock that is set back, and damage."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import streamview.review.store as stores
from streamview.errors import StreamviewError
from streamview.review.store import Event, Store, new_event, recover

ROOT = Path(__file__).parents[2]
_WRITER = """
import sys
sys.path.insert(0, sys.argv[3])
from streamview.review.store import Store, new_event
with Store(sys.argv[1]) as store:
    for number in range(10**6):
        store.add(new_event("a", "verdict", f"C{number}", 1, "unaided", verdict="x", of=sys.argv[2]))
        print(number, flush=True)  # acknowledged
"""


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.create(tmp_path / "s.sqlite", {"readers": ["a", "b"], "title": "Zürich"}) as store:
        yield store


def test_settings_and_events_come_back(store: Store) -> None:
    assert store.settings == {"readers": ["a", "b"], "title": "Zürich"}
    events = [new_event("a", "opened", "C1", 1, "unaided"), new_event("b", "verdict", "C2", 1, "aided", verdict="ä", confidence=None)]
    store.add(*events)
    with Store(store.path) as other:
        assert other.events() == events
        assert other.events("b") == events[1:]
        other.check()


def test_nothing_is_ever_changed_or_deleted(store: Store) -> None:
    store.add(new_event("a", "opened", "C1"))
    with sqlite3.connect(store.path) as connection:
        for command in ("UPDATE events SET reader = 'b'", "DELETE FROM events", "UPDATE settings SET value = '1'", "DELETE FROM settings"):
            with pytest.raises(sqlite3.IntegrityError, match="never"):
                connection.execute(command)
    connection.close()
    with pytest.raises(StreamviewError, match="UNIQUE"):
        store.add(*[store.events()[0]])


def test_several_events_are_stored_together_or_not_at_all(store: Store) -> None:
    good, twice = new_event("a", "opened", "C1"), new_event("a", "opened", "C2")
    with pytest.raises(StreamviewError):
        store.add(good, twice, twice)
    assert store.events() == []
    with pytest.raises(ValueError, match="JSON"):
        store.add(new_event("a", "rest", seconds=float("nan")))
    assert store.events() == []


def test_the_modes_are_those_that_survive_a_loss_of_power(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def modes(store: Store) -> tuple[str, int]:
        read = store._connection.execute
        return read("PRAGMA journal_mode").fetchone()[0], read("PRAGMA synchronous").fetchone()[0]

    assert modes(store) == ("wal", 2)  # FULL
    monkeypatch.setattr(stores, "on_network", lambda path: True)
    with Store.create(tmp_path / "far.sqlite", {}) as far:
        assert modes(far) == ("delete", 3)  # EXTRA
        far.add(new_event("a", "opened"))
        assert len(far.events()) == 1


@pytest.mark.parametrize(("kind", "expected"), [("nfs4", True), ("cifs", True), ("ext4", False), ("overlay", False)])
def test_network_drives_are_recognised(kind: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = f"overlay / overlay rw 0 0\nserver:/x {tmp_path} {kind} rw 0 0\nproc /proc proc rw 0 0\n"
    monkeypatch.setattr(Path, "read_text", lambda self, *a, **k: mounts)
    assert stores.on_network(tmp_path / "s.sqlite") == expected
    assert not stores.on_network(Path("/elsewhere/s.sqlite"))


def _kill_in_writes(path: Path, times: int, seed: int) -> None:
    rng = random.Random(seed)
    acknowledged: dict[str, int] = {}
    for turn in range(times):
        process = subprocess.Popen([sys.executable, "-c", _WRITER, str(path), str(turn), str(ROOT)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline()  # it writes
        time.sleep(rng.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        lines = process.stdout.read().split("\n")
        process.wait()
        process.stdout.close()
        acknowledged[str(turn)] = max([int(line) for line in lines[:-1] if line], default=0)
        if turn % 25 == 24 or turn == times - 1:
            with Store(path) as store:
                store.check()
                stored: dict[str, set[str]] = {}
                for event in store.events():
                    stored.setdefault((event.values or {})["of"], set()).add(event.case)
            for each, last in acknowledged.items():
                assert {f"C{number}" for number in range(last + 1)} <= stored[each]


def test_a_kill_loses_nothing_that_was_acknowledged(store: Store) -> None:
    _kill_in_writes(store.path, 8, 1)


@pytest.mark.slow
def test_two_hundred_kills_lose_nothing_that_was_acknowledged(store: Store) -> None:
    _kill_in_writes(store.path, 200, 2)


def _write(path: str, reader: str, count: int) -> None:
    with Store(path) as store:
        for number in range(count):
            store.add(new_event(reader, "opened", f"C{number}", 1, "unaided"))


def test_readers_who_write_at_once_lose_nothing(store: Store) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_write, args=(str(store.path), reader, 60)) for reader in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for reader in "abc":
        assert [event.case for event in store.events(reader)] == [f"C{number}" for number in range(60)]
    store.check()


def test_a_full_disk_stores_nothing_and_says_so(store: Store) -> None:
    store.add(new_event("a", "opened", "C1"))
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    stored = 1
    for _ in range(10_000):
        try:
            store.add(new_event("a", "note", "C1", text="x" * 500))
        except StreamviewError as error:
            assert "nothing was stored; free some space" in str(error)  # noqa: PT017  # which of them fails is SQLite's to say
            break
        stored += 1
    assert 1 < stored < 10_000
    assert len(store.events()) == stored
    store._connection.execute("PRAGMA max_page_count = 100000")
    store.add(new_event("a", "opened", "C2"))
    store.check()
    assert store.events()[-1].case == "C2"


def test_order_is_that_of_the_file_when_the_clock_is_set_back(store: Store) -> None:
    later, earlier = "2026-11-27T10:00:00.000+00:00", "2026-11-27T08:00:00.000+00:00"
    store.add(Event("1", "a", "verdict", later, "C1", 1, "unaided", {"verdict": "x"}))
    store.add(Event("2", "a", "verdict", earlier, "C1", 1, "unaided", {"verdict": "y"}))
    assert [event.id for event in store.events()] == ["1", "2"]


def test_an_existing_file_is_not_replaced_and_nothing_is_left_over(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StreamviewError, match="exists"):
        Store.create(store.path, {})
    assert store.settings["title"] == "Zürich"
    assert sorted(path.name for path in tmp_path.iterdir() if "-" not in path.name) == ["s.sqlite"]
    with pytest.raises(StreamviewError, match="cannot be written"):
        Store.create(tmp_path / "no" / "s.sqlite", {})
    with pytest.raises(StreamviewError, match="no such session"):
        Store(tmp_path / "other.sqlite")


def test_what_is_no_session_is_said(tmp_path: Path) -> None:
    text = tmp_path / "text.sqlite"
    text.write_text("not a database, but long enough to be looked at" * 40)
    with pytest.raises(StreamviewError, match="damaged, or no review session"):
        Store(text)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    with pytest.raises(StreamviewError, match="no review session"):
        Store(other)


def test_a_later_version_is_not_touched(store: Store) -> None:
    store._connection.execute("INSERT INTO migrations VALUES ('m099_later', '')")
    with pytest.raises(StreamviewError, match="later version"):
        Store(store.path)


def test_what_can_be_read_of_a_damaged_file_is_saved(store: Store, tmp_path: Path) -> None:
    events = [new_event("a", "verdict", f"C{number}", 1, "unaided", verdict="x" * 200) for number in range(400)]
    store.add(*events)
    store.close()
    data = bytearray(store.path.read_bytes())
    assert len(data) > 30 * 4096
    for page in (12, 17):
        data[page * 4096 : page * 4096 + 4096] = os.urandom(4096)
    store.path.write_bytes(bytes(data))
    saved = recover(store.path, tmp_path / "saved.sqlite")
    assert 200 < saved < 400
    with Store(tmp_path / "saved.sqlite") as other:
        other.check()
        assert other.settings["title"] == "Zürich"
        known = {event.id: event for event in events}
        assert all(known[event.id] == event for event in other.events())
    (tmp_path / "nothing.sqlite").write_bytes(b"x" * 10_000)
    with pytest.raises(StreamviewError, match="nothing can be read"):
        recover(tmp_path / "nothing.sqlite", tmp_path / "new.sqlite")


def test_merging_adds_what_is_missing_once(store: Store, tmp_path: Path) -> None:
    events = [new_event("b", "opened", f"C{number}") for number in range(5)]
    store.add(*events[:2])
    assert store.add_missing(events) == 3
    assert store.add_missing(events) == 0
    assert len(store.events()) == 5
