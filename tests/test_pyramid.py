import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaozarrs
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from ome_zarr_models.v05 import Image

from streamview import pyramid as module
from streamview.errors import Cancelled, RegionError, SlideError
from streamview.geometry import Region
from streamview.pyramid import build_pyramid, discard_unfinished, open_pyramid, pyramid_shapes
from streamview.slides import Slide, as_slide, open_slide
from streamview.slides.sampling import Sampler


def rgb(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def halved(pixels):
    """Mean of the pixels that each 2 x 2 block has, rounded half up, by counting."""
    height, width = (-(-n // 2) for n in pixels.shape[:2])
    total, count = np.zeros((height, width, 3), int), np.zeros((height, width, 1), int)
    for dy in (0, 1):
        for dx in (0, 1):
            part = pixels[dy::2, dx::2]
            total[: part.shape[0], : part.shape[1]] += part
            count[: part.shape[0], : part.shape[1]] += 1
    return (2 * total + count) // (2 * count)


def files(root):
    """Every file below a folder, with its bytes."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(Path(root).rglob("*")) if path.is_file()}


@pytest.fixture
def small_shards(monkeypatch):
    """Many shards from few pixels."""
    monkeypatch.setattr(module, "SHARD", 128)
    monkeypatch.setattr(module, "CHUNK", 64)
    monkeypatch.setattr(module, "COARSEST", 100)


def stop_at(count):
    def report(step):
        if step.done == count:
            raise Cancelled("stopped")

    return report


def transformations(path):
    """Scale and translation (y, x) of every level."""
    datasets = zarr.open_group(str(path), mode="r").attrs["ome"]["multiscales"][0]["datasets"]
    return [tuple(t[t["type"]][1:] for t in dataset["coordinateTransformations"]) for dataset in datasets]


@pytest.fixture(scope="module")
def odd():
    """2967 rows over 2 shards, 4111 columns over 3, both odd."""
    return np.tile(rgb(989, 4111), (3, 1, 1))


@pytest.fixture(scope="module")
def built(odd, tmp_path_factory):
    return build_pyramid(as_slide(odd, 0.25), tmp_path_factory.mktemp("pyramid") / "odd.ome.zarr")


def test_level_0_is_the_slide_and_the_others_exact_block_means(odd, built):
    assert [level.shape for level in built.levels] == [(2967, 4111), (1484, 2056), (742, 1028), (371, 514)]
    assert [level.downsample for level in built.levels] == [(2.0**k, 2.0**k) for k in range(4)]
    expected = odd
    for number, level in enumerate(built.levels):
        assert np.array_equal(built.read(Region(0, 0, *level.shape, number)), expected)
        expected = halved(expected)


def test_it_is_a_slide(odd, built):
    assert isinstance(built, Slide)
    assert (built.mpp, built.mpp_source, built.name) == ((0.25, 0.25), "given (--mpp)", "odd.ome.zarr")
    assert built.identity == as_slide(odd).identity
    pixels = built.read(Region(2000, 2000, 100, 90))
    assert pixels.flags.c_contiguous
    assert np.array_equal(pixels, odd[2000:2100, 2000:2090])
    with pytest.raises(RegionError):
        built.read(Region(0, 0, 372, 1, 3))


def test_its_metadata(tmp_path, built):
    path = tmp_path / "link"
    path.symlink_to(built.arrays[0].store.root)
    ome = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]
    assert ome["version"] == "0.5"
    image = ome["multiscales"][0]
    assert [(axis["name"], axis.get("unit")) for axis in image["axes"]] == [("c", None), ("y", "micrometer"), ("x", "micrometer")]
    for k, dataset in enumerate(image["datasets"]):
        scale, translation = (t[t["type"]] for t in dataset["coordinateTransformations"])
        assert scale == [1, 2**k * 0.25, 2**k * 0.25]
        assert translation == [0, 0.25 * (2**k - 1) / 2, 0.25 * (2**k - 1) / 2]
    assert [channel["window"] for channel in ome["omero"]["channels"]] == [{"min": 0, "max": 255, "start": 0, "end": 255}] * 3
    for array in built.arrays:
        assert (array.chunks, array.shards, array.metadata.dimension_names) == ((3, 512, 512), (3, 2048, 2048), ("c", "y", "x"))


def test_other_programs_find_it_valid(built):
    path = str(built.arrays[0].store.root)
    Image.from_zarr(zarr.open_group(path, mode="r"))
    yaozarrs.validate_zarr_store(path)


def test_without_mpp_there_are_no_units(tmp_path):
    with build_pyramid(as_slide(rgb(1100, 30)), tmp_path / "a.ome.zarr") as pyramid:
        assert (pyramid.mpp, pyramid.mpp_source) == (None, "unknown")
        ome = dict(zarr.open_group(str(tmp_path / "a.ome.zarr"), mode="r").attrs)["ome"]
    image = ome["multiscales"][0]
    assert all("unit" not in axis for axis in image["axes"])
    assert image["datasets"][1]["coordinateTransformations"] == [
        {"type": "scale", "scale": [1.0, 2.0, 2.0]},
        {"type": "translation", "translation": [0.0, 0.5, 0.5]},
    ]
    yaozarrs.validate_zarr_store(str(tmp_path / "a.ome.zarr"))
    with open_slide(tmp_path / "a.ome.zarr", mpp=0.5) as slide:
        assert (slide.mpp, slide.mpp_source) == ((0.5, 0.5), "given (--mpp)")


def test_nothing_depends_on_name_or_time(tmp_path):
    pixels = rgb(40, 50)
    contents = []
    for name in ("a.ome.zarr", "deep/b.ome.zarr"):
        root = tmp_path / name
        build_pyramid(as_slide(pixels, 0.5), root)
        contents.append({path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()})
    assert contents[0] == contents[1]


def test_a_slide_file_keeps_its_background_and_source(synthetic_slide, tmp_path):
    with open_slide(synthetic_slide.path) as slide, build_pyramid(slide, tmp_path / "a.ome.zarr") as pyramid:
        assert (pyramid.identity, pyramid.background, pyramid.mpp_source) == (slide.identity, slide.background, "aperio.MPP")
        assert np.array_equal(pyramid.read(Region(700, 900, 300, 200)), slide.read(Region(700, 900, 300, 200)))


def test_a_colour_profile_is_kept(tmp_path):
    slide = as_slide(rgb(30, 30))
    slide.icc_profile = bytes(range(256))
    with build_pyramid(slide, tmp_path / "a.ome.zarr") as pyramid:
        assert pyramid.icc_profile == slide.icc_profile


def test_progress_is_told(tmp_path):
    steps = []
    build_pyramid(as_slide(rgb(2100, 30)), tmp_path / "a.ome.zarr", report=steps.append)
    assert [(step.done, step.total) for step in steps] == [(n, 4) for n in range(5)]  # shards of 2, 1, 1


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
        assert "goes on from there, with --restart it begins anew" in said[0]
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
    assert said[1].startswith("going on: ")
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
    assert said == [f"going on: {len(lines) - 2} finished files are in {partial}"]
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
    assert "3 were lost or changed and are made again" in said[0]
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
    with pytest.raises(SlideError, match=f"{said} are kept in .*--restart"):
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
            with pytest.raises(SlideError, match="is being made by another process; wait"):
                attempt()

    build_pyramid(slide, out, report=intrude)
    assert files(out) == whole
    assert not partial.exists()


CONVERT = """
import sys, time
import numpy as np
from streamview import pyramid
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
        assert f"going on: {found[-1]} finished files" in output or not found[-1]
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


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_conversion_goes_on_to_the_same_bytes(tmp_path, whole, seed):
    kill_and_resume(tmp_path, whole, seed)


@pytest.mark.slow
def test_fifty_killed_conversions_go_on_to_the_same_bytes(tmp_path, whole, capsys):
    found = [kill_and_resume(tmp_path, whole, seed) for seed in range(100, 150)]
    with capsys.disabled():
        print(f"\nfinished shards at each kill (of 101): {found}")


def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch):
    def forbidden(path, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(os, "mkdir", forbidden)  # as for root a mode of 0500 forbids nothing
        with pytest.raises(SlideError, match=r"cannot be written \(Read-only file system\); check the folder"):
            build_pyramid(as_slide(rgb(30, 30)), tmp_path / "a.ome.zarr")
    assert not list(tmp_path.iterdir())


def test_an_unreadable_slide_leaves_nothing(tmp_path, shared_data):
    with open_slide(shared_data / "broken/unreadable.svs") as slide, pytest.raises(SlideError, match="unreadable at level 0"):
        build_pyramid(slide, tmp_path / "a.ome.zarr")
    assert not list(tmp_path.iterdir())


def test_an_existing_output_is_refused_and_kept(tmp_path):
    out = tmp_path / "a.ome.zarr"
    out.write_text("precious")
    with pytest.raises(SlideError, match="exists already"):
        build_pyramid(as_slide(rgb(30, 30)), out)
    assert out.read_text() == "precious"


def test_an_output_that_appears_meanwhile_is_kept(tmp_path):
    out = tmp_path / "a.ome.zarr"

    def report(step):
        if step.done == step.total:
            out.mkdir()
            (out / "theirs").touch()

    with pytest.raises(SlideError, match="another program"):
        build_pyramid(as_slide(rgb(30, 30)), out, report=report)
    assert [path.name for path in out.rglob("*")] == ["theirs"]
    shutil.rmtree(out)
    steps = []
    build_pyramid(as_slide(rgb(30, 30)), out, report=steps.append)
    assert [step.total for step in steps] == [0]  # it was all there but for the name
    assert not (tmp_path / ".a.ome.zarr.partial").exists()


def test_a_lost_shard_is_noticed(tmp_path):
    build_pyramid(as_slide(rgb(2100, 30)), tmp_path / "a.ome.zarr")
    (tmp_path / "a.ome.zarr/0/c/0/1/0").unlink()
    with pytest.raises(SlideError, match=r"level 0 has lost its shard \(0, 1, 0\)"):
        open_pyramid(tmp_path / "a.ome.zarr")


def test_a_damaged_shard_is_named(tmp_path):
    build_pyramid(as_slide(rgb(30, 30)), tmp_path / "a.ome.zarr")
    shard = tmp_path / "a.ome.zarr/0/c/0/0/0"
    shard.write_bytes(bytes(shard.stat().st_size))
    with open_pyramid(tmp_path / "a.ome.zarr") as pyramid, pytest.raises(SlideError, match=r"unreadable at level 0.*convert"):
        pyramid.read(Region(0, 0, 30, 30))


def test_links_out_of_the_folder_are_refused(tmp_path):
    build_pyramid(as_slide(rgb(30, 30)), tmp_path / "a.ome.zarr")
    shard = tmp_path / "a.ome.zarr/0/c/0/0/0"
    shard.rename(tmp_path / "outside")
    shard.symlink_to(tmp_path / "outside")
    with pytest.raises(SlideError, match="link that leaves the folder"):
        open_pyramid(tmp_path / "a.ome.zarr")


@pytest.mark.parametrize(("codec", "stored"), [("zstd", "zstd"), ("lz4", "blosc")])
def test_both_codecs_keep_every_pixel(tmp_path, odd, codec, stored):
    pixels = odd[:700, :600]
    with build_pyramid(as_slide(pixels), tmp_path / "a.ome.zarr", codec=codec) as pyramid:
        assert np.array_equal(pyramid.read(Region(0, 0, 700, 600)), pixels)
    metadata = json.loads((tmp_path / "a.ome.zarr/0/zarr.json").read_text())
    assert stored in [inner["name"] for inner in metadata["codecs"][0]["configuration"]["codecs"]]
    Image.from_zarr(zarr.open_group(str(tmp_path / "a.ome.zarr"), mode="r"))


def test_the_number_of_levels(tmp_path):
    slide = as_slide(rgb(40, 70))
    assert pyramid_shapes(slide) == ((40, 70),)
    assert pyramid_shapes(slide, levels=3) == ((40, 70), (20, 35), (10, 18))
    assert pyramid_shapes(slide, levels=8)[-1] == (1, 1)
    with build_pyramid(slide, tmp_path / "a.ome.zarr", levels=3) as pyramid:
        assert [level.shape for level in pyramid.levels] == [(40, 70), (20, 35), (10, 18)]
    for levels in (0, -1, 9):
        with pytest.raises(SlideError, match=f"{levels} levels asked for: expected 1 to 8 for 70 x 40 px"):
            build_pyramid(slide, tmp_path / "b.ome.zarr", levels=levels)


_PX = st.integers(1, 300)


@given(st.tuples(_PX, _PX), st.tuples(st.integers(0, 99), st.integers(0, 99)), st.sampled_from([None, 0.5, 0.7, 2]))
@settings(max_examples=40, deadline=None)
def test_a_part_at_some_mpp_lies_where_its_pixels_were(tmp_path_factory, shape, corner, mpp):
    slide = as_slide(rgb(400, 400), 0.5)
    region = Region(*corner, *shape)
    out = tmp_path_factory.mktemp("part") / "a.ome.zarr"
    with build_pyramid(slide, out, region=region, mpp=mpp, levels=1) as pyramid:
        grid = Sampler(slide, region, mpp)
        assert pyramid.mpp == (mpp or 0.5,) * 2
        assert np.array_equal(pyramid.read(Region(0, 0, *pyramid.shape)), grid.read(0, grid.shape[0], 0, grid.shape[1]))
    ((scale, translation),) = transformations(out)
    assert scale == list(pyramid.mpp)
    # the outer corner of pixel (0, 0) is that of the region, where centres of the slide's pixels are at multiples of its mpp
    assert np.allclose(np.subtract(translation, np.divide(scale, 2)), 0.5 * (np.asarray(corner) - 0.5), rtol=0, atol=1e-9)


def test_every_level_of_a_part_has_the_same_corner(tmp_path):
    build_pyramid(as_slide(rgb(300, 300), 0.25), tmp_path / "a.ome.zarr", region=Region(40, 60, 200, 210), mpp=1, levels=4)
    placed = transformations(tmp_path / "a.ome.zarr")
    assert [scale for scale, _ in placed] == [[1.0, 1.0], [2.0, 2.0], [4.0, 4.0], [8.0, 8.0]]
    assert [translation for _, translation in placed] == [[10 + (2**k - 0.25) / 2, 15 + (2**k - 0.25) / 2] for k in range(4)]
    yaozarrs.validate_zarr_store(str(tmp_path / "a.ome.zarr"))
    Image.from_zarr(zarr.open_group(str(tmp_path / "a.ome.zarr"), mode="r"))


def test_a_part_has_an_identity_of_its_own(tmp_path):
    slide = as_slide(rgb(300, 300), 0.5)
    asked = [{}, {"region": Region(0, 0, 300, 300)}, {"mpp": 0.5}, {"levels": 2}, {"region": Region(0, 0, 300, 299)}]
    asked += [{"region": Region(0, 1, 300, 299)}, {"mpp": 1}, {"mpp": 2}, {"region": Region(0, 0, 300, 299), "mpp": 2}]
    found = []
    for number, options in enumerate(asked):
        with build_pyramid(slide, tmp_path / f"{number}.ome.zarr", **options) as pyramid:
            found.append(pyramid.identity)
    assert found[:4] == [slide.identity] * 4
    assert len({*found[3:]}) == len(found[3:])


def test_a_pyramid_of_a_part_has_pixels_of_its_own(tmp_path):
    """Its place in the slide is for programs that show both; as a slide it begins at 0."""
    slide = as_slide(rgb(300, 300), 0.5)
    with build_pyramid(slide, tmp_path / "a.ome.zarr", region=Region(100, 120, 90, 80)) as part:
        assert (part.shape, part.mpp, part.mpp_source) == ((90, 80), (0.5, 0.5), "given (--mpp)")
        assert np.array_equal(part.read(Region(10, 20, 30, 40)), slide.read(Region(110, 140, 30, 40)))
        with build_pyramid(part, tmp_path / "b.ome.zarr") as again:
            assert again.identity == part.identity
    attributes = dict(zarr.open_group(str(tmp_path / "a.ome.zarr"), mode="r").attrs)["streamview"]
    assert attributes["part"] == {"slide": slide.identity, "region": "120,100,80,90", "scale": [1.0, 1.0]}


def test_a_part_that_cannot_be(tmp_path):
    with pytest.raises(RegionError, match="give a region inside it"):
        build_pyramid(as_slide(rgb(30, 30)), tmp_path / "a.ome.zarr", region=Region(0, 0, 31, 30))
    with pytest.raises(SlideError, match="state the slide's with --mpp"):
        build_pyramid(as_slide(rgb(30, 30)), tmp_path / "a.ome.zarr", mpp=2)
    with pytest.raises(SlideError, match="more than 10% coarser"):
        build_pyramid(as_slide(rgb(30, 30), 0.5), tmp_path / "a.ome.zarr", mpp=0.25)
    assert not list(tmp_path.iterdir())


def write_group(path, shape, dtype="uint8", axes="cyx", chunks=None, version="0.5", names=None):
    group = zarr.create_group(str(path), zarr_format=2 if version == "0.4" else 3)
    group.create_array("0", shape=shape, dtype=dtype, chunks=chunks or tuple(min(n, 64) for n in shape))
    transformations = [{"type": "scale", "scale": [1.0] * (len(axes) - 2) + [0.5, 0.4]}]
    units = {"y": {"unit": "micrometer"}, "x": {"unit": "micrometer"}}
    image = {
        "axes": [{"name": axis, **units.get(axis, {})} for axis in axes],
        "datasets": [{"path": "0", "coordinateTransformations": transformations}],
        "version": version,
    }
    group.attrs.update({"multiscales": [image]} if version == "0.4" else {"ome": {"version": version, "multiscales": [image]}})
    return group["0"]


@pytest.mark.parametrize(("version", "axes"), [("0.5", "cyx"), ("0.4", "tczyx")])
def test_images_of_other_programs_open(tmp_path, version, axes):
    pixels = rgb(70, 90)
    array = write_group(
        tmp_path / "a.zarr", (1,) * (len(axes) - 3) + (3, 70, 90) if axes == "cyx" else (1, 3, 1, 70, 90), axes=axes, version=version
    )
    array[...] = np.moveaxis(pixels, 2, 0).reshape(array.shape)
    with open_slide(tmp_path / "a.zarr") as slide:
        assert (slide.mpp, slide.mpp_source) == ((0.5, 0.4), "OME-Zarr scale")
        assert np.array_equal(slide.read(Region(5, 6, 50, 60)), pixels[5:55, 6:66])
        assert len(slide.identity) == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (3, 64, 64), "dtype": "uint16"}, r"type uint16\): expected 8-bit RGB"),
        ({"shape": (1, 64, 64)}, "expected 8-bit RGB"),
        ({"shape": (3, 2**40, 2**20)}, "declares 1048576 x 1099511627776 px"),
        ({"shape": (3, 2**20, 2**20), "chunks": (3, 2**15, 2**15)}, "pieces of 3072 MiB"),
    ],
)
def test_unfit_arrays_are_refused(tmp_path, options, message):
    write_group(tmp_path / "a.zarr", **options)
    with pytest.raises(SlideError, match=message):
        open_pyramid(tmp_path / "a.zarr")


def test_unfit_groups_are_refused(tmp_path):
    zarr.create_group(str(tmp_path / "plain.zarr"))
    with pytest.raises(SlideError, match="no OME-Zarr image of axes c, y, x"):
        open_pyramid(tmp_path / "plain.zarr")
    with pytest.raises(SlideError, match="not a zarr group"):
        open_pyramid(tmp_path / "none.zarr")
    build_pyramid(as_slide(rgb(30, 30)), tmp_path / "a.ome.zarr")
    (tmp_path / "a.ome.zarr/0/zarr.json").unlink()
    with pytest.raises(SlideError, match="a level is missing"):
        open_pyramid(tmp_path / "a.ome.zarr")


def test_real_slides_convert(shared_data, tmp_path):
    for number, path in enumerate(sorted((shared_data / "slides").iterdir())):
        with open_slide(path) as slide, build_pyramid(slide, tmp_path / f"{number}.ome.zarr") as pyramid:
            assert (pyramid.shape, pyramid.identity) == (slide.shape, slide.identity)
            corner = Region(0, 0, min(300, slide.shape[0]), min(300, slide.shape[1]))
            assert np.array_equal(pyramid.read(corner), slide.read(corner))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from Linux's ru_maxrss")
def test_memory_does_not_grow_with_the_slide():
    program = """
import resource, sys, tempfile
import numpy as np
from streamview.pyramid import build_pyramid
from streamview.slides import Level
tile = np.random.default_rng(0).integers(0, 256, (2048, 2048, 3), np.uint8)
class Endless:
    name, mpp, mpp_source, background, identity = "endless", None, "unknown", (255, 255, 255), "0" * 64
    shape, properties, icc_profile = (int(sys.argv[1]), 4096), {}, None
    levels = (Level(shape, (1.0, 1.0)),)
    def read(self, region):
        return tile[: region.height, : region.width].copy()
with tempfile.TemporaryDirectory() as folder:
    build_pyramid(Endless(), folder + "/a.ome.zarr")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    small, large = (int(subprocess.check_output([sys.executable, "-c", program, str(n)])) for n in (8192, 32768))
    assert large < small + 60, f"{small} MB for 8192 rows, {large} MB for 32768"
