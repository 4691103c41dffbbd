"""A conversion that was stopped, killed or ran out of disk goes on to the same bytes."""

import errno
import json
import random
import shutil
import subprocess
import sys
import time

import pytest
import zarr

from streamview.errors import Cancelled, SlideError
from streamview.geometry import Region
from streamview.slides import as_slide
from streamview.slides import pyramid as module
from streamview.slides.pyramid import build_pyramid, discard_unfinished
from tests.support.pyramids import files, rgb, stop_at


@pytest.fixture
def small_shards(monkeypatch):
    """Many shards from few pixels."""
    monkeypatch.setattr(module, "SHARD", 128)
    monkeypatch.setattr(module, "CHUNK", 64)
    monkeypatch.setattr(module, "COARSEST", 100)


@pytest.mark.parametrize("at", [0, 1, 3])
def test_cancelling_keeps_what_is_finished(tmp_path, at):
    slide, out, said = as_slide(rgb(2100, 30)), tmp_path / "a.ome.zarr", []
    build_pyramid(slide, tmp_path / "whole.ome.zarr")
    with pytest.raises(Cancelled):
        build_pyramid(slide, out, report=stop_at(at), tell=said.append)
    partial = tmp_path / ".a.ome.zarr.partial"
    assert not out.exists()
    if at == 0:
        assert not partial.exists()
        assert said == []
    else:
        assert "kept in" in said[0]
        assert "resumes from there, with --restart it starts over" in said[0]
        assert "ome" not in zarr.open_group(str(partial / "work"), mode="r").attrs
    steps = []
    build_pyramid(slide, out, report=steps.append)
    assert steps[0].total <= 4 - at
    assert files(out) == files(tmp_path / "whole.ome.zarr")
    assert not partial.exists()


def test_a_full_disk_is_said_and_leaves_nothing_where_nothing_was_finished(tmp_path, monkeypatch):
    async def full(self, key, value):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zarr.storage.LocalStore, "set", full)
    with pytest.raises(SlideError, match="disk is full; free some space"):
        build_pyramid(as_slide(rgb(30, 30)), tmp_path / "a.ome.zarr")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_keeps_what_is_finished(tmp_path, monkeypatch, small_shards):
    slide, out, said = as_slide(rgb(500, 400)), tmp_path / "a.ome.zarr", []
    build_pyramid(slide, tmp_path / "whole.ome.zarr")
    put, left = zarr.storage.LocalStore.set, [12]

    async def fill(self, key, value):
        left[0] -= 1
        if left[0] < 0:
            self.root.joinpath(key).parent.mkdir(parents=True, exist_ok=True)
            self.root.joinpath(key).write_bytes(b"half of it")  # the worst a store might do
            raise OSError(errno.ENOSPC, "No space left on device")
        await put(self, key, value)

    with monkeypatch.context() as patched:
        patched.setattr(zarr.storage.LocalStore, "set", fill)
        with pytest.raises(SlideError, match=r"disk is full; free some space.*goes on"):
            build_pyramid(slide, out, tell=said.append)
    assert "kept in" in said[0]
    build_pyramid(slide, out, tell=said.append)
    assert said[1].startswith("resuming: ")
    assert files(out) == files(tmp_path / "whole.ome.zarr")


def unfinished(slide, out, count=8):
    """Stop a conversion after some shards; return the folder of what it left."""
    with pytest.raises(Cancelled):
        build_pyramid(slide, out, report=stop_at(count))
    return out.with_name(f".{out.name}.partial")


@pytest.fixture
def stopped(tmp_path, small_shards):
    """A slide, where its pyramid should be, what a stopped conversion left, and the files of the whole one."""
    slide = as_slide(rgb(500, 400))
    build_pyramid(slide, tmp_path / "whole.ome.zarr")
    out = tmp_path / "a.ome.zarr"
    return slide, out, unfinished(slide, out), files(tmp_path / "whole.ome.zarr")


@pytest.mark.parametrize("cut", [1, 10, 25])
def test_a_torn_line_of_the_journal_counts_for_nothing(stopped, cut):
    slide, out, partial, whole = stopped
    journal = partial / "journal"
    lines = journal.read_bytes().splitlines()
    journal.write_bytes(journal.read_bytes()[:-cut])
    said = []
    build_pyramid(slide, out, tell=said.append)
    assert said == [f"resuming: {len(lines) - 2} finished files are in {partial}"]
    assert files(out) == whole


def test_what_the_journal_does_not_vouch_for_is_made_again(stopped):
    slide, out, partial, whole = stopped
    first, second, third, *_ = (json.loads(line)[0] for line in (partial / "journal").read_text().splitlines()[1:])
    (partial / "work" / first).unlink()  # somebody tidied up
    damaged = partial / "work" / second
    damaged.write_bytes(bytes(damaged.stat().st_size))  # of the right size
    (partial / "work" / third).write_bytes(b"")
    (partial / "work/0/c/0/0/stray.partial").write_bytes(b"a store's temporary file")
    (partial / "work/0/c/0/3/9").mkdir(parents=True)
    (partial / "work/0/c/0/3/9").rmdir()
    said = []
    build_pyramid(slide, out, tell=said.append)
    assert "3 were lost or changed and are written again" in said[0]
    assert files(out) == whole


def test_a_readable_shard_without_a_line_is_not_trusted(stopped):
    slide, out, partial, whole = stopped
    journal = partial / "journal"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:1]))
    for path in (partial / "work/0").rglob("[0-9]"):
        if path.is_file():
            shutil.copy(next(p for p in (partial / "work/0").rglob("[0-9]") if p.is_file()), path.with_name("x"))
            path.with_name("x").replace(path)  # every shard holds the pixels of the same one
    build_pyramid(slide, out)
    assert files(out) == whole


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"codec": "lz4"}, "another codec"),
        ({"levels": 2}, "another levels, metadata"),
        ({"region": Region(0, 0, 400, 400)}, "another region, levels, metadata"),
        ({"slide": as_slide(rgb(500, 400, seed=1))}, "another source, metadata"),
        ({"slide": as_slide(rgb(500, 400), 0.5)}, "another metadata"),
    ],
)
def test_another_source_or_other_settings_are_refused_and_nothing_is_lost(stopped, options, said):
    slide, out, partial, whole = stopped
    kept = files(partial)
    with pytest.raises(SlideError, match=f"holds .* finished files with {said}; .*restart=True"):
        build_pyramid(**{"slide": slide} | options, out=out)
    assert not out.exists()
    assert {name: kept[name] for name in files(partial)} == kept
    build_pyramid(slide, out)
    assert files(out) == whole


def test_unfinished_work_can_be_discarded(stopped):
    slide, out, partial, whole = stopped
    discard_unfinished(out)
    assert not partial.exists()
    discard_unfinished(out)
    said = []
    build_pyramid(slide, out, tell=said.append)
    assert said == []
    assert files(out) == whole


def test_a_second_writer_is_refused(stopped):
    slide, out, partial, whole = stopped

    def intrude(step):
        for attempt in (lambda: build_pyramid(slide, out), lambda: discard_unfinished(out)):
            with pytest.raises(SlideError, match="is being written by another process; wait"):
                attempt()

    build_pyramid(slide, out, report=intrude)
    assert files(out) == whole
    assert not partial.exists()


CONVERT = """
import sys, time
import numpy as np
from streamview.slides import pyramid
from streamview.slides import as_slide
pyramid.SHARD, pyramid.CHUNK, pyramid.COARSEST = 128, 64, 100
slide = as_slide(np.random.default_rng(0).integers(0, 256, (900, 1100, 3), np.uint8), 0.5)
print("ready", flush=True)
pyramid.build_pyramid(slide, sys.argv[1], tell=lambda line: print(line, flush=True))
"""


def kill_and_resume(folder, whole, seed):
    """Kill a conversion at a random moment, once or twice, then let it end; return how many shards each attempt found finished."""
    chance, found = random.Random(seed), []
    out = folder / f"{seed}.ome.zarr"
    journal = out.with_name(f".{out.name}.partial") / "journal"
    for _ in range(chance.choice((1, 1, 2))):
        lines, wait = chance.randrange(0, 102), chance.uniform(0, 0.02)
        with subprocess.Popen([sys.executable, "-c", CONVERT, str(out)], stdout=subprocess.PIPE) as child:
            child.stdout.readline()
            while child.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > lines):
                time.sleep(0.0005)
            time.sleep(wait)
            child.kill()
        found.append(journal.read_bytes().count(b"\n") - 1 if journal.exists() else None)
        assert child.returncode in (-9, 0)
        assert out.exists() == (child.returncode == 0 or not journal.exists() or not (journal.parent / "work").exists())
    if not out.exists():
        output = subprocess.run([sys.executable, "-c", CONVERT, str(out)], check=True, capture_output=True, text=True).stdout
        assert f"resuming: {found[-1]} finished files" in output or not found[-1]
        assert not journal.parent.exists()
    assert files(out) == whole
    shutil.rmtree(out)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of an uninterrupted conversion by the program that is killed."""
    out = tmp_path_factory.mktemp("whole") / "a.ome.zarr"
    subprocess.run([sys.executable, "-c", CONVERT, str(out)], check=True)
    assert len(files(out)) == 72 + 20 + 6 + 2 + 1 + 6
    return files(out)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_a_killed_conversion_goes_on_to_the_same_bytes(tmp_path, whole, seed):
    kill_and_resume(tmp_path, whole, seed)


@pytest.mark.slow
def test_fifty_killed_conversions_go_on_to_the_same_bytes(tmp_path, whole, capsys):
    found = [kill_and_resume(tmp_path, whole, seed) for seed in range(100, 150)]
    with capsys.disabled():
        print(f"\nfinished shards at each kill (of 101): {found}")
