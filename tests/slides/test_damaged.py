"""Damaged files give errors or right pixels: never a crash, a hang, or something made up.

What is right: where a byte of a tile's compressed data differs, pixels differ, and a format without checksums cannot tell. Right is then
what the library made for that compression gives for those bytes, as long as it gives all of them: where libjpeg runs out of data and
fills the rest with a flat colour, an error is right. Where directories differ, right is what they now say, as tifffile reads them.
Pyramids made by streamview hold checksums; there right are the undamaged pixels alone.
"""

import random
import resource
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile

from streamview.errors import RegionError, SlideError, SlideWarning
from streamview.geometry import Region
from streamview.slides import open_slide
from streamview.slides.pyramid import build_pyramid
from streamview.slides.synthetic import write_synthetic_slide

KINDS = ("slide.svs", "jpeg.tif", "deflate.tif", "plain.tif", "lzw.ome.tif", "jpeg2000.tif", "slide.ome.zarr")
TIFFS = {
    "jpeg.tif": {"compression": "jpeg"},
    "deflate.tif": {"compression": "zlib", "bigtiff": True},
    "plain.tif": {},
    "jpeg2000.tif": {"compression": "jpeg2000"},
}


def make(folder):
    """The undamaged files, and beside each the pixels of its levels."""
    write_synthetic_slide(folder / "slide.svs", size=(1100, 1300), seed=3)
    with open_slide(folder / "slide.svs") as slide:
        pixels = slide.read(Region(300, 300, 500, 700))
        build_pyramid(slide, folder / "slide.ome.zarr").close()
    for name, options in TIFFS.items():
        tifffile.imwrite(folder / name, pixels, photometric="rgb", tile=(128, 128), metadata=None, **options)
    with tifffile.TiffWriter(folder / "lzw.ome.tif", ome=True) as writer:
        options = {"photometric": "rgb", "tile": (128, 128), "compression": "lzw", "predictor": True}
        writer.write(pixels, subifds=1, metadata={"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}, **options)
        writer.write(pixels[::2, ::2], subfiletype=1, metadata=None, **options)
    for name in KINDS:
        with open_slide(folder / name) as slide:
            np.savez(folder / f"{name}.npz", *[slide.read(Region(0, 0, *level.shape, k)) for k, level in enumerate(slide.levels)])


def damage(source, target, seed):
    """A copy with one thing wrong; says what."""
    rng = random.Random(f"{source.name} {seed}")
    if source.is_dir():
        shutil.copytree(source, target)
        files = sorted(path for path in target.rglob("*") if path.is_file())
        described = [path for path in files if path.name == "zarr.json"]
        file = rng.choice(described if rng.random() < 0.5 else files)
        start, stop = 0, file.stat().st_size
    else:
        shutil.copy(source, target)
        file, (start, stop) = target, _part(source, rng)
    data = bytearray(file.read_bytes())
    what = rng.choice(("bit", "bit", "byte", "byte", "burst", "cut"))
    at = rng.randrange(start, stop)
    if what == "cut":
        del data[at:]
    elif what == "bit":
        data[at] ^= 1 << rng.randrange(8)
    else:
        for place in range(at, min(at + (1 if what == "byte" else 40), len(data))):
            data[place] = rng.randrange(256)
    file.write_bytes(data)
    return f"{what} at {at} of {file.relative_to(target.parent)}"


def _part(source, rng):
    """All of the file, or one tile, or what lies before or behind the tiles: directories."""
    size = source.stat().st_size
    with tifffile.TiffFile(source) as file:
        page = file.pages[0]
        tiles = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        chosen = rng.choice(tiles)
        directories = [(0, tiles[0][0]), *((each.offset, min(each.offset + 250, size)) for each in file.pages)]
    return rng.choice([(0, size), (chosen[0], sum(chosen)), *directories])


def judge(path, whole):
    """What reading gives: "refused", "part refused", "right", "as stored", or what is wrong."""
    verdict = "right"
    try:
        slide = open_slide(path)
    except SlideError as error:
        return f"more than one line: {error}" if "\n" in str(error) else "refused"
    with slide:
        for number, level in enumerate(slide.levels):
            expected = whole[number] if number < len(whole) else None
            step = 128
            for y in range(0, min(level.shape[0], 1400), step):
                for x in range(0, min(level.shape[1], 1400), step):
                    region = Region(y, x, min(step, level.shape[0] - y), min(step, level.shape[1] - x), number)
                    try:
                        pixels = slide.read(region)
                    except (SlideError, RegionError):
                        verdict = "part refused" if verdict == "right" else verdict
                        continue
                    undamaged = None if expected is None else expected[y : y + pixels.shape[0], x : x + pixels.shape[1]]
                    if undamaged is not None and undamaged.shape[0] and undamaged.shape[1]:
                        shared = pixels[: undamaged.shape[0], : undamaged.shape[1]]
                        if np.array_equal(shared, undamaged) and pixels.size == undamaged.size:
                            continue
                    if not np.array_equal(pixels, independent(path, slide, region)):
                        return f"wrong pixels in {region} of level {number}, read by {slide.reader}"
                    if undamaged is not None and not pixels.any() and undamaged.any():
                        return f"zeros in {region} of level {number}, read by {slide.reader}"
                    verdict = "as stored"
    return verdict


def independent(path, slide, region):
    """The same pixels by other code; None where it fails."""
    if path.is_dir():
        return None
    try:
        with tifffile.TiffFile(path) as file:
            if slide.reader.startswith("OpenSlide"):
                return slide.read(region)  # OpenSlide itself, chosen because direct reading differs
            page = next(page for page in _levels(file) if (page.imagelength, page.imagewidth) == slide.levels[region.level].shape)
            return page.asarray()[region.y : region.y_stop, region.x : region.x_stop]
    except Exception as error:  # noqa: BLE001  # a parser on damaged input may raise anything
        print(f"  (the independent reader fails: {error!r})")
        return None


def _levels(file):
    for page in file.pages:
        yield page
        yield from page.pages or ()


def main(folder, kind, first, count):
    """Judge some damaged files of a kind; a line for each, and before it one that would name the file of a crash."""
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    warnings.simplefilter("ignore", SlideWarning)
    with np.load(folder / f"{kind}.npz") as stored:
        whole = [stored[name] for name in stored.files]
    for seed in range(first, first + count):
        target = folder / f"damaged-{kind}"
        print(f"{kind} {seed}: {damage(folder / kind, target, seed)}", flush=True)
        print(f"= {judge(target, whole)}", flush=True)
        (shutil.rmtree if target.is_dir() else Path.unlink)(target)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("undamaged")
    make(made)
    return made


def run(folder, kind, count):
    command = [sys.executable, "-W", "ignore", __file__, str(folder), kind, "0", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20 + 2 * count, check=False)
    verdicts = [line.removeprefix("= ") for line in done.stdout.splitlines() if line.startswith("= ")]
    assert done.returncode == 0, f"crashed: {done.stdout[-300:]} {done.stderr[-2000:]}"
    assert len(verdicts) == count
    wrong = [verdict for verdict in verdicts if verdict not in ("refused", "part refused", "right", "as stored")]
    assert not wrong, done.stdout
    return verdicts


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_damaged_files(folder, kind):
    verdicts = run(folder, kind, 12)
    assert "refused" in verdicts or "part refused" in verdicts


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files(folder, kind):
    verdicts = run(folder, kind, 100)
    assert {"refused", "part refused"} & set(verdicts)
    if kind == "slide.ome.zarr":
        assert "as stored" not in verdicts


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
