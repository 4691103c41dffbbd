"""Leases: one owner at a time, an ended owner's work goes on, and nobody takes over from a living one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from streamview.errors import StreamviewError
from streamview.files import leases
from streamview.files.leases import Owner, claim, hold

CLAIM = """
import sys
sys.path[:0] = sys.argv[2].split(":")
from pathlib import Path
from streamview.files.leases import claim
lease = claim(Path(sys.argv[1]), "run")
print("held" if lease is None else "claimed", flush=True)
sys.stdin.readline()
if lease is not None:
    lease.release()
"""


def process(place: Path) -> subprocess.Popen[str]:
    """Claim in another process, which holds until a line is sent to it or it is killed."""
    arguments = [sys.executable, "-c", CLAIM, str(place), ":".join(sys.path)]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def end(other: subprocess.Popen[str], *, kill: bool = False) -> None:
    if kill:
        other.kill()
    other.communicate("\n" if not kill else None)


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    place = tmp_path / "leases" / "slide a.svs"
    lease = claim(place, "run")
    assert lease is not None
    assert claim(place, "run") is None
    assert claim(place.with_name("slide b.svs"), "run").release() is None
    lease.release()
    with claim(place, "other"):
        assert claim(place, "run") is None
    assert list(place.parent.iterdir()) == []


@pytest.mark.parametrize("kill", [True, False])
def test_work_of_an_ended_process_goes_on(tmp_path: Path, kill: bool) -> None:
    place = tmp_path / "slide"
    other = process(place)
    assert other.stdout.readline() == "claimed\n"
    assert claim(place, "run") is None
    end(other, kill=kill)
    with claim(place, "run") as lease:
        assert lease.deaths == int(kill)
        assert claim(place, "run") is None
    assert list(tmp_path.iterdir()) == []  # also what the killed one left


def test_deaths_are_counted_per_run(tmp_path: Path) -> None:
    for deaths in range(3):
        other = process(tmp_path / "slide")
        assert other.stdout.readline() == "claimed\n", deaths
        end(other, kill=True)
    with claim(tmp_path / "slide", "run") as lease:
        assert lease.deaths == 3
    other = process(tmp_path / "slide")
    other.stdout.readline()
    end(other, kill=True)
    with claim(tmp_path / "slide", "another run") as lease:
        assert lease.deaths == 0


def test_of_many_that_wait_for_an_ended_owner_one_goes_on(tmp_path: Path) -> None:
    other = process(tmp_path / "slide")
    other.stdout.readline()
    end(other, kill=True)
    many = [process(tmp_path / "slide") for _ in range(6)]
    answers = Counter(each.stdout.readline() for each in many)
    assert answers == {"claimed\n": 1, "held\n": 5}
    for each in many:
        end(each)


def test_a_lease_elsewhere_ends_by_silence_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with claim(tmp_path / "slide", "run"):
        (file,) = tmp_path.iterdir()
        owner = json.loads(file.read_text()) | {"host": "another machine", "pid": 1}
        file.write_text(json.dumps(owner))
        assert claim(tmp_path / "slide", "run") is None
        silent = time.time() - leases._SILENT - 5
        os.utime(file, (silent, silent))
        second = claim(tmp_path / "slide", "run")
        assert second is not None
    assert [path.name for path in tmp_path.iterdir()] == ["slide.1.lease"]  # the silent one, should it live, leaves the new one alone
    second.release()


def test_a_lease_is_renewed_while_it_is_held(tmp_path: Path) -> None:
    with claim(tmp_path / "slide", "run", beat=0.05):
        (file,) = tmp_path.iterdir()
        os.utime(file, (1, 1))
        deadline = time.monotonic() + 10
        while file.stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert file.stat().st_mtime > 2


def test_an_incomplete_lease_counts_until_it_is_silent(tmp_path: Path) -> None:
    file = tmp_path / "slide.0.lease"
    file.write_text("{")
    assert claim(tmp_path / "slide", "run") is None
    os.utime(file, (1, 1))
    with claim(tmp_path / "slide", "run"):
        pass


def test_a_number_used_again_is_another_process() -> None:
    here = Owner.here("run")
    assert here.ended is False
    if here.started:
        assert Owner("run", here.host, here.pid, "1").ended is True
    assert Owner("run", "another machine", here.pid, here.started).ended is None


def test_holding_waits_and_says_so(tmp_path: Path) -> None:
    with (
        hold(tmp_path / "tables"),
        pytest.raises(StreamviewError, match="another process has held it for 0 s"),
        hold(tmp_path / "tables", 0.1),
    ):
        pass
    with hold(tmp_path / "tables"):
        pass


def test_names_that_begin_alike_are_different_leases(tmp_path: Path) -> None:
    with claim(tmp_path / "a", "run"), claim(tmp_path / "a.0", "run"), claim(tmp_path / "a.0.lease", "run"):
        assert claim(tmp_path / "a", "run") is None
