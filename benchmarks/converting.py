"""A slide to a sharded OME-Zarr pyramid: streamview beside ngff-zarr and ome-zarr-py.

    python -m benchmarks.converting slide.svs [--peers PYTHON] [--rounds 3] [--large] [--json FILE]
    python -m benchmarks.converting --picture docs/images/pyramid.png

Every conversion is a process of its own, and the contestants take turns. Seconds are those of opening and converting, libraries loaded;
CPU is the process's own time over all threads, and the peak is VmHWM of Linux, libraries included. All are asked for zarr v3, zstd, chunks
of 512 and shards of 2048 px, and 2 x 2 means; the peers read the tiles through tifffile and dask, the fastest of the ways that
their pages show, and run in the environment of ``--peers`` (ngff-zarr, ome-zarr, dask, tifffile, imagecodecs).

``--large`` converts 32768 x 16384 px, the slide repeated, to show that the peak stays what it is. ``--picture`` draws what a conversion
that was stopped has finished.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

CHUNK, SHARD = 512, 2048


def streamview(slide: str, out: str, codec: str = "zstd", shape: tuple[int, int] | None = None) -> Callable[[], None]:
    """Convert with `streamview.build_pyramid`; of `shape`, by repeating the slide, where one is given."""
    from streamview.slides import open_slide
    from streamview.slides.pyramid import build_pyramid

    def convert() -> None:
        with open_slide(slide) as opened:
            build_pyramid(opened if shape is None else _Repeated(opened, shape), out, codec=codec).close()  # type: ignore[arg-type]

    return convert


def ngff_zarr(slide: str, out: str) -> Callable[[], None]:
    """Convert with ngff-zarr."""
    import ngff_zarr as nz

    def convert() -> None:
        image = nz.to_ngff_image(_dask(slide), dims=("c", "y", "x"), scale={"y": 0.25, "x": 0.25})
        chunks = {"c": 3, "y": CHUNK, "x": CHUNK}
        multiscales = nz.to_multiscales(image, scale_factors=[2, 4, 8], chunks=chunks, method=nz.Methods.DASK_BIN_SHRINK)
        nz.to_ngff_zarr(out, multiscales, version="0.5", chunks_per_shard={"c": 1, "y": SHARD // CHUNK, "x": SHARD // CHUNK})

    return convert


def ome_zarr_py(slide: str, out: str, sharded: bool = False) -> Callable[[], None]:
    """Convert with ome-zarr-py."""
    import zarr
    from ome_zarr.scale import Methods
    from ome_zarr.writer import write_image

    def convert() -> None:
        options: dict[str, Any] = {"chunks": (3, CHUNK, CHUNK)} | ({"shards": (3, SHARD, SHARD)} if sharded else {})
        group = zarr.open_group(out, mode="w", zarr_format=3)
        write_image(_dask(slide), group, axes="cyx", scale_factors=[2, 4, 8], method=Methods.LOCAL_MEAN, storage_options=options)

    return convert


CONTESTANTS: dict[str, Callable[[str, str], Callable[[], None]]] = {
    "streamview": streamview,
    "streamview, lz4": lambda slide, out: streamview(slide, out, "lz4"),
    "ngff-zarr": ngff_zarr,
    "ome-zarr-py": ome_zarr_py,
    "ome-zarr-py, sharded": lambda slide, out: ome_zarr_py(slide, out, sharded=True),
}
LARGE = {"streamview, 32768 x 16384": lambda slide, out: streamview(slide, out, shape=(16384, 32768))}


def _dask(slide: str) -> Any:
    """Level 0 (c, y, x), read by tifffile in shards."""
    import dask.array
    import tifffile
    import zarr

    array = dask.array.from_array(zarr.open(tifffile.imread(slide, aszarr=True, level=0), mode="r"), chunks=(SHARD, SHARD, 3))
    return array.transpose(2, 0, 1)


class _Repeated:
    """A slide of any shape: another one, over and over."""

    def __init__(self, slide: Any, shape: tuple[int, int]) -> None:
        self._slide, self.shape = slide, shape
        self.name, self.mpp, self.mpp_source, self.background = slide.name, slide.mpp, slide.mpp_source, slide.background
        self.identity, self.levels = "0" * 64, (type(slide.levels[0])(shape, (1.0, 1.0)),)
        self.properties, self.icc_profile, self.pixel_source = {}, None, "memory"

    def read(self, region: Any) -> Any:
        height, width = self._slide.shape  # multiples of a shard, so that none lies across the edge
        return self._slide.read(type(region)(region.y % height, region.x % width, region.height, region.width))


def run(contestant: str, slide: str) -> dict[str, Any]:
    """Convert once, here; return seconds, seconds of the processors, peak in bytes, number of files and their bytes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.ome.zarr"
        convert = (CONTESTANTS | LARGE)[contestant](slide, str(out))
        start, before = time.perf_counter(), time.process_time()
        convert()
        seconds, cpu = time.perf_counter() - start, time.process_time() - before
        files = [path for path in out.rglob("*") if path.is_file()]
        peak = next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        written = sum(path.stat().st_size for path in files)
        return {"contestant": contestant, "seconds": seconds, "cpu": cpu, "peak": peak, "files": len(files), "bytes": written}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: the median round of each contestant, its largest peak."""
    lines = ["| | seconds | CPU s | peak MB | files | MB written |", "|---|---|---|---|---|---|"]
    for contestant in dict.fromkeys(row["contestant"] for row in rows):
        own = [row for row in rows if row["contestant"] == contestant]
        seconds, cpu = (median(row[key] for row in own) for key in ("seconds", "cpu"))
        peak = max(row["peak"] for row in own) / 1e6
        lines.append(f"| {contestant} | {seconds:.1f} | {cpu:.1f} | {peak:.0f} | {own[0]['files']} | {own[0]['bytes'] / 1e6:.0f} |")
    return "\n".join(lines)


def draw(picture: str) -> None:
    """Convert a synthetic slide, stop it on the way, and draw which shards and chunks are finished; needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    from streamview.errors import Cancelled
    from streamview.geometry import Region
    from streamview.progress import Step
    from streamview.slides import open_slide
    from streamview.slides.pyramid import build_pyramid, pyramid_shapes
    from streamview.slides.synthetic import write_synthetic_slide
    from streamview.slides.thumbnail import thumbnail

    def stop(step: Step) -> None:
        if step.done == 6:
            raise Cancelled

    with tempfile.TemporaryDirectory() as folder:
        write_synthetic_slide(f"{folder}/slide.svs", size=(5900, 7300), seed=3)
        with open_slide(f"{folder}/slide.svs") as slide:
            shapes = pyramid_shapes(slide)
            try:
                build_pyramid(slide, f"{folder}/a", report=stop)
            except Cancelled:
                lines = Path(folder, ".a.partial/journal").read_text().splitlines()[1:]
            pixels = thumbnail(slide, Region(0, 0, *slide.shape), (590, 730))
    finished = {json.loads(line)[0] for line in lines}
    figure, axes = pyplot.subplots(1, len(shapes), figsize=(11, 4.6), width_ratios=[width + 500 for _, width in shapes])
    for level, (axis, (height, width)) in enumerate(zip(axes, shapes, strict=True)):
        axis.imshow(pixels, extent=(0, width, height, 0))
        for y in range(0, height, SHARD):
            for x in range(0, width, SHARD):
                own = min(SHARD, width - x), min(SHARD, height - y)
                if f"{level}/c/0/{y // SHARD}/{x // SHARD}" not in finished:
                    axis.add_patch(Rectangle((x, y), *own, facecolor="white", alpha=0.8))
                for chunk_y in range(y, y + own[1], CHUNK):
                    axis.plot((x, x + own[0]), (chunk_y, chunk_y), color="#3d4852", linewidth=0.3)
                for chunk_x in range(x, x + own[0], CHUNK):
                    axis.plot((chunk_x, chunk_x), (y, y + own[1]), color="#3d4852", linewidth=0.3)
                axis.add_patch(Rectangle((x, y), *own, fill=False, edgecolor="#b3402a", linewidth=1.5))
        axis.set(xlim=(-40, width + 40), ylim=(height + 40, -40), aspect="equal")
        axis.set_title(f"level {level}\n{width} x {height}", fontsize=9)
        axis.axis("off")
    figure.text(0.5, 0.04, "red: shards of 2048 px, one file each; grey: chunks of 512 px; pale: not finished when stopped", ha="center")
    figure.savefig(picture, dpi=110, bbox_inches="tight")


def main() -> None:
    """Run the contestants in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", nargs="?", help="a TIFF that all can read, such as an SVS; sides of a multiple of 2048 px for --large")
    parser.add_argument("--peers", metavar="PYTHON", help="interpreter of an environment with the peers (default: streamview alone)")
    parser.add_argument("--rounds", type=int, default=3, help="conversions of each contestant, in turns (default: 3)")
    parser.add_argument("--large", action="store_true", help="also 32768 x 16384 px, once")
    parser.add_argument("--json", metavar="FILE", help="also append every conversion as a line of JSON")
    parser.add_argument("--picture", metavar="FILE.png", help="only draw a conversion that was stopped")
    parser.add_argument("--run", metavar="CONTESTANT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.picture:
        draw(options.picture)
        return
    if options.slide is None:
        parser.error("name a slide")
    if options.run:
        print(json.dumps(run(options.run, options.slide)))
        return
    contestants = [name for name in CONTESTANTS if options.peers or name.startswith("streamview")]
    rows = []
    for contestant in contestants * options.rounds + (list(LARGE) if options.large else []):
        python = sys.executable if contestant.startswith("streamview") else options.peers
        command = [python, "-m", "benchmarks.converting", options.slide, "--run", contestant]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(ended.stdout.splitlines()[-1]))
        print(f"{contestant}: {rows[-1]['seconds']:.2f} s", file=sys.stderr, flush=True)
        if options.json:
            with open(options.json, "a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
