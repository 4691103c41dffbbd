"""A whole slide of real tissue: what its forecast, prediction and maps take, with its noisy glass and with it flat.

    OMP_WAIT_POLICY=passive python -m benchmarks.whole_slide TILES -o OUT [--glass flat as-scanned] [--targets 0 1]

TILES is a folder of 256 x 256 px tiles of tissue with the folders `normal` and `tumor`. The slide, made once, is a tiled JPEG pyramid at
0.25 um/px as Aperio's scanners write it: 15 % tissue in six pieces, and glass with the noise of a camera. Every run has a process of its
own: prediction (0 targets) or prediction and map. Printed are the time of planning, the forecast, and what the run took; OUT keeps the
slide, the maps and the figures.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from streamview import Compute, load_model, open_slide, prepare
from streamview.streaming.memory import format_bytes
from streamview.streaming.run.timing import format_seconds
from streamview.system.machine import peak_memory

TILE = 256
MPP = 0.25
GLASS, NOISE = 243, 1.5  # grey levels
TISSUE = 0.15
LESION = 0.01  # of the tissue
LEVELS = (1, 4, 16, 64)  # downsamples

Pixels = NDArray[np.uint8]


def place_tissue(rows: int, columns: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """For every tile 0: glass, 1: normal tissue, 2: tumour."""
    y, x = np.mgrid[:rows, :columns] + 0.5
    kinds = np.zeros((rows, columns), np.uint8)
    nearest = np.full((rows, columns), np.inf)
    for row in (0.28, 0.72):
        for column in (0.2, 0.5, 0.8):
            centre = rng.normal((row, column), 0.03) * (rows, columns)
            stretch = rng.uniform(0.6, 1.6)
            wave = 1 + 0.25 * np.sin(rng.integers(2, 5) * np.arctan2(y - centre[0], x - centre[1]) + rng.uniform(0, 6))
            nearest = np.minimum(nearest, ((y - centre[0]) ** 2 * stretch + (x - centre[1]) ** 2 / stretch) / wave)
    kinds.flat[np.argsort(nearest, axis=None)[: round(TISSUE * kinds.size)]] = 1
    spot = rng.permutation(np.argwhere(kinds == 1))[0]
    distance = np.where(kinds == 1, (y - spot[0]) ** 2 + (x - spot[1]) ** 2, np.inf)
    kinds.flat[np.argsort(distance, axis=None)[: max(1, round(LESION * TISSUE * kinds.size))]] = 2
    return kinds


def encode(tile: Pixels) -> bytes:
    """A tile as JPEG."""
    file = io.BytesIO()
    Image.fromarray(tile).save(file, "JPEG", quality=80, subsampling="4:2:0")
    return file.getvalue()


def shrink(tile: Pixels, factor: int) -> Pixels:
    """The mean of blocks of a tile."""
    side = TILE // factor
    return tile.reshape(side, factor, side, factor, 3).mean((1, 3)).round().astype(np.uint8)


def write_slide(path: Path, tiles: Path, size: tuple[int, int], seed: int = 0) -> None:
    """Write the slide level by level; its pixels are never in memory as a whole."""
    rng = np.random.default_rng(seed)
    rows, columns = -(-size[0] // TILE), -(-size[1] // TILE)
    kinds = place_tissue(rows, columns, rng)
    shown = [[np.clip(rng.normal(GLASS, NOISE, (TILE, TILE, 3)).round(), 0, 255).astype(np.uint8) for _ in range(16)]]
    for name in ("normal", "tumor"):
        found = sorted((tiles / name).glob("*.png"))
        if not found:
            raise SystemExit(f"{tiles / name}: no tiles (.png); give a folder with the folders normal and tumor")
        images = [np.asarray(Image.open(file).convert("RGB")) for file in found[:100]]
        shown.append([np.ascontiguousarray(np.rot90(image, turn)) for image in images for turn in range(4)])
    chosen = rng.integers(0, [[len(shown[kind]) for kind in row] for row in kinds])
    text = f"Aperio Image Library v11.2.1 \r\n{size[1]}x{size[0]} (256x256) JPEG/RGB Q=80|AppMag = 40|MPP = {MPP}"

    def level(factor: int) -> Iterator[bytes]:
        small = [[encode(tile) if factor == 1 else shrink(tile, factor) for tile in group] for group in shown]
        for row in range(0, rows, factor):
            for column in range(0, columns, factor):
                if factor == 1:
                    yield small[kinds[row, column]][chosen[row, column]]
                    continue
                whole = np.full((TILE, TILE, 3), GLASS, np.uint8)
                side = TILE // factor
                for i, y in enumerate(range(row, min(row + factor, rows))):
                    for j, x in enumerate(range(column, min(column + factor, columns))):
                        whole[i * side : (i + 1) * side, j * side : (j + 1) * side] = small[kinds[y, x]][chosen[y, x]]
                yield encode(whole)

    with tifffile.TiffWriter(path.with_suffix(".part"), bigtiff=True) as writer:
        for factor in LEVELS:
            shape = (-(-size[0] // factor), -(-size[1] // factor), 3)
            writer.write(
                level(factor), shape=shape, dtype=np.uint8, tile=(TILE, TILE), photometric="ycbcr", subsampling=(2, 2), compression="jpeg",
                description=text, metadata=None,
            )  # fmt: skip
            if factor == 1:  # Aperio: page 1 is the thumbnail
                colours = np.array([shown[k][0].mean((0, 1)) for k in range(3)]).round().astype(np.uint8)
                writer.write(colours[kinds], photometric="rgb", description=text, metadata=None)
    path.with_suffix(".part").rename(path)
    np.save(path.with_suffix(".kinds.npy"), kinds)


def run(slide_path: Path, out: Path, name: str, glass: str, targets: int, memory: str) -> dict[str, object]:
    """Forecast and run in this process."""
    model = load_model(name)
    with open_slide(slide_path) as slide:
        start = time.perf_counter()
        prepared = prepare(model, slide, compute=Compute(memory=memory, glass=glass))  # type: ignore[arg-type]
        ready = time.perf_counter()
        prepared.plan(targets, bool(targets))
        planned = time.perf_counter()
        place = out / f"{glass}.ome.zarr"
        forecast = prepared.forecast(targets, place if targets else None)
        begun = time.perf_counter()
        if targets:
            prediction = prepared.explain(plan=forecast.plan, outs=[place])[0].prediction
        else:
            prediction = prepared.predict(forecast.plan)
        seconds = time.perf_counter() - begun
    return {
        "model": name,
        "glass": glass,
        "targets": targets,
        "shape": forecast.shape,
        "tile": forecast.plan.tile,
        "steps": forecast.plan.steps,
        "computed": forecast.plan.computed,
        "prepare_seconds": ready - start,
        "plan_seconds": planned - ready,
        "forecast_seconds": forecast.seconds,
        "seconds": seconds,
        "forecast_bytes": forecast.peak_bytes,
        "bytes": peak_memory(),
        "disk_bytes": sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) if targets else 0,
        "forecast_disk_bytes": forecast.disk_bytes,
        "probabilities": [round(float(value), 4) for value in prediction.probabilities],
    }


def main() -> None:
    """Make the slide, run, and print a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tiles", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--size", type=int, nargs=2, default=(80000, 100000), metavar=("HEIGHT", "WIDTH"), help="px")
    parser.add_argument("-m", "--model", default="camelyon16-tiles")
    parser.add_argument("--memory", default="4GB")
    parser.add_argument("--glass", nargs="+", choices=("flat", "as-scanned"), default=["flat", "as-scanned"])
    parser.add_argument(
        "--targets", type=int, nargs="+", choices=(0, 1), default=[0, 1], help="0: prediction alone; 1: also the maps of a class"
    )
    parser.add_argument("--call", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    slide = options.out / f"slide-{options.size[0]}x{options.size[1]}.svs"
    if options.call:
        print(json.dumps(run(slide, options.out, options.model, options.glass[0], options.targets[0], options.memory)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    if not slide.exists():
        write_slide(slide, options.tiles, tuple(options.size))
    for glass in options.glass:
        for targets in options.targets:
            command = [
                sys.executable,
                "-m",
                "benchmarks.whole_slide",
                str(options.tiles),
                "-o",
                str(options.out),
                "--call",
                "-m",
                options.model,
            ]
            command += ["--size", *map(str, options.size), "--memory", options.memory, "--glass", glass, "--targets", str(targets)]
            row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            with (options.out / "runs.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(describe(row), flush=True)


def describe(row: dict[str, object]) -> str:
    """A run in a line."""
    ahead, took = float(row["forecast_seconds"] or 0), float(row["seconds"])  # type: ignore[arg-type]
    guessed, peak = int(row["forecast_bytes"]), int(row["bytes"])  # type: ignore[call-overload]
    what = "maps" if row["targets"] else "prediction"
    return (
        f"{row['model']}, glass {row['glass']}, {what}: {row['steps']} steps of {row['tile']}, {row['computed']:.0%} computed; prepared in "
        f"{row['prepare_seconds']:.1f} s, planned in "
        f"{row['plan_seconds']:.1f} s; time {format_seconds(took)} (forecast {ahead / took - 1:+.0%}), peak {format_bytes(peak)} "
        f"(forecast {guessed / peak - 1:+.0%}), disk {format_bytes(row['disk_bytes'])}, {row['probabilities']}"  # type: ignore[arg-type]
    )


if __name__ == "__main__":
    main()
