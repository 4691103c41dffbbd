"""How fast a whole level 0 is read, and in how much memory: ``python -m benchmarks.reading [SLIDE] [--rounds N]``.

Every contestant reads the same file in a process of its own, in turns, so that a busy moment of the machine hits all of them alike.
The measure is the JPEG decoder itself: simplejpeg (libjpeg-turbo) on one thread, tile after tile into one array.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from streamview.system.machine import peak_memory

Figures = dict[str, float]
Pixels = NDArray[np.uint8] | None


class Clock:
    """Seconds to open (imports included) and to read, seconds of all processors while reading, and peak memory in bytes."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def opened(self) -> None:
        """Opening is done, reading begins."""
        self._opened, self._work = time.perf_counter(), time.process_time()

    def read(self) -> Figures:
        """Reading is done."""
        read, work = time.perf_counter() - self._opened, time.process_time() - self._work
        return {"open": self._opened - self._start, "read": read, "cpu": work, "peak": peak_memory()}


def _streamview(path: str, clock: Clock) -> tuple[Figures, Pixels]:
    from streamview.geometry import Region
    from streamview.slides import open_slide

    with open_slide(path) as slide:
        clock.opened()
        pixels = slide.read(Region(0, 0, *slide.shape))
        return clock.read(), pixels


def _simplejpeg(path: str, clock: Clock) -> tuple[Figures, Pixels]:
    import simplejpeg
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        height, width = page.chunks[:2]
        across = -(-page.imagewidth // width)
        clock.opened()
        pixels = np.empty(page.shape, np.uint8)
        for index, (offset, count) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
            y, x = index // across * height, index % across * width
            file.filehandle.seek(offset)
            target = pixels[y : y + height, x : x + width]
            target[...] = simplejpeg.decode_jpeg(file.filehandle.read(count), "RGB")[: target.shape[0], : target.shape[1]]
        return clock.read(), pixels


def _openslide(path: str, clock: Clock) -> tuple[Figures, Pixels]:
    import openslide

    with openslide.OpenSlide(path) as slide:
        clock.opened()
        image = slide.read_region((0, 0), 0, slide.dimensions)
        # its RGBA is not made RGB, and the copy that NumPy takes is not counted
        return clock.read(), np.asarray(image)[..., :3]


def _tifffile_zarr(path: str, clock: Clock) -> tuple[Figures, Pixels]:
    import tifffile
    import zarr

    with tifffile.imread(path, aszarr=True, level=0) as store:
        array = zarr.open_array(store, mode="r")
        clock.opened()
        pixels = np.asarray(array[...])
        return clock.read(), pixels


CONTESTANTS: dict[str, tuple[str, Callable[[str, Clock], tuple[Figures, Pixels]]]] = {
    "streamview": ("streamview", _streamview),
    "simplejpeg": ("simplejpeg, one thread", _simplejpeg),
    "openslide": ("OpenSlide read_region", _openslide),
    "tifffile": ("tifffile aszarr, zarr", _tifffile_zarr),
}


def measure(name: str, path: str) -> Figures:
    """One reading, in this process, and a checksum of the pixels, 0 where they are not kept."""
    figures, pixels = CONTESTANTS[name][1](path, Clock())
    checksum = 0
    for row in range(0, 0 if pixels is None else len(pixels), 1024):
        checksum = zlib.crc32(np.ascontiguousarray(pixels[row : row + 1024]).data, checksum)
    return figures | {"checksum": checksum}


def compare(path: str, rounds: int) -> dict[str, list[Figures]]:
    """Readings of all contestants, each in a process of its own, in turns."""
    found: dict[str, list[Figures]] = {name: [] for name in CONTESTANTS}
    for _ in range(rounds):
        for name, readings in found.items():
            command = [sys.executable, "-m", "benchmarks.reading", path, "--one", name]
            readings.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    return found


def table(found: dict[str, list[Figures]], megapixels: float) -> str:
    """A Markdown table of the medians."""
    middle = {name: {key: median(reading[key] for reading in readings) for key in readings[0]} for name, readings in found.items()}
    slowest, expected = middle["openslide"]["read"], found["streamview"][0]["checksum"]
    lines = [
        "| | read, s | Mpx/s | of OpenSlide | of all processors, s | open, s | peak MB | pixels |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, (title, _) in CONTESTANTS.items():
        took, checksum = middle[name], found[name][0]["checksum"]
        same = "not kept" if checksum == 0 else "equal" if checksum == expected else "differ"
        speed = f"{took['read']:.2f} | {megapixels / took['read']:.0f} | {slowest / took['read']:.1f}x"
        lines.append(f"| {title} | {speed} | {took['cpu']:.2f} | {took['open']:.2f} | {took['peak'] / 1e6:.0f} | {same} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, or as one contestant the figures of one reading."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reading", description=__doc__)
    parser.add_argument("slide", nargs="?", help="an SVS of JPEG tiles (default: a synthetic one of 8192 px, made for it)")
    parser.add_argument("--rounds", type=int, default=5, help="readings of each (default: 5)")
    parser.add_argument("--one", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.slide)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = options.slide
        if path is None:
            from streamview.slides.synthetic import write_synthetic_slide

            path = str(Path(folder, "slide.svs"))
            write_synthetic_slide(path, size=(8192, 8192), seed=1)
        from streamview.slides import open_slide

        with open_slide(path) as slide:
            height, width = slide.shape
            print(f"{slide.name}: {width} x {height} px, {slide.reader}; medians of {options.rounds}, in turns\n")
        print(table(compare(path, options.rounds), height * width / 1e6))


if __name__ == "__main__":
    main()
