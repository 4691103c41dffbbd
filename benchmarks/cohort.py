"""What a cohort costs besides the network, whether its memory is flat, what workers gain, and a whole slide by a grid.

    python -m benchmarks.cohort bookkeeping --slides 100 10000   # the records alone, and slides of 256 px
    python -m benchmarks.cohort memory --slides 2000             # resident memory while so many slides are answered
    python -m benchmarks.cohort workers --slides 120             # one process against a worker a core; Dask's own cost a slide
    python -m benchmarks.cohort whole-slide -o FOLDER            # 60,000 x 50,000 px, 15% tissue: forecast, run, stitched map

Times are of the wall clock, on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

import streamview
from streamview.cohort.forecast import forecast_cohort
from streamview.cohort.policy import RegionPolicy
from streamview.cohort.run import run_slides
from streamview.cohort.settings import Settings
from streamview.cohort.work import Outcome, Work
from streamview.cohort.worklist import Case, read_worklist
from streamview.inference.compute import Compute
from streamview.inference.prepared import PreparedRun
from streamview.jobs import Job, RegionResult, SlideWork, new_run_id
from streamview.slides.synthetic import synthetic_region, write_synthetic_slide
from streamview.streaming.memory import format_bytes
from streamview.system.machine import peak_memory, resident_memory

_SAMPLE = 200  # slides over which the records are timed
_PIECE = 3072  # px at 0.5 um/px of a piece of tissue of the whole slide


def main() -> None:
    """Run one of the measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=("bookkeeping", "memory", "workers", "whole-slide"))
    parser.add_argument("--slides", type=int, nargs="+", default=[100])
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = options.output or Path(folder)
        if options.measure == "bookkeeping":
            for count in options.slides:
                time_records(place / str(count), count)
            time_small_slides(place / "slides", min(options.slides))
        elif options.measure == "memory":
            watch_memory(place, max(options.slides))
        elif options.measure == "workers":
            compare_workers(place, max(options.slides))
        else:
            run_whole_slide(place)


def time_records(folder: Path, count: int) -> None:
    """Time all that the job does for a slide, in a job that has so many already, and its tables."""
    job, model = Job(folder), streamview.load_model("demo")
    pixels = np.full((64, 64, 3), 200, np.uint8)
    prediction = streamview.predict(model, pixels, mpp=0.5)
    run_id = new_run_id()

    def record(number: int) -> None:
        name = f"slide-{number:06d}.svs"
        identity = replace(prediction.identity, source=f"{number}")
        result = RegionResult(replace(prediction, slide_name=name, identity=identity), run_id, (0.5, 0.5), 1.0, source=f"/slides/{name}")
        slide_id = job.slide_id(name, result.source, identity.source)
        job.record(slide_id)
        lease = job.claim(slide_id, run_id)
        assert lease is not None
        with lease:
            job.record(slide_id)
            job.add(result, slide_id=slide_id)
            job.complete(
                slide_id, SlideWork("key", (identity.key,), "whole slide", None, 1.0, False, run_id, "2026-11-27T12:00:00+00:00", 1.0)
            )

    for number in range(count):
        record(number)
    start = time.perf_counter()
    for number in range(count, count + _SAMPLE):
        record(number)
    each = (time.perf_counter() - start) / _SAMPLE
    start = time.perf_counter()
    job.write_tables()
    tables = time.perf_counter() - start
    print(f"{count:6d} slides in the job: records {1e3 * each:.2f} ms a slide, all tables {tables:.2f} s")


def time_small_slides(folder: Path, count: int) -> None:
    """Time slides of 256 px, and the network's part of it."""
    write_copies(folder, count, 256)
    network = 0.0
    predict = PreparedRun.predict

    def timed(run: PreparedRun, *arguments: object) -> object:
        nonlocal network
        start = time.perf_counter()
        result = predict(run, *arguments)  # type: ignore[arg-type]
        network += time.perf_counter() - start
        return result

    PreparedRun.predict = timed  # type: ignore[assignment, method-assign]
    try:
        start = time.perf_counter()
        outcomes = answer(folder, folder.parent / "job")
        whole = time.perf_counter() - start
    finally:
        PreparedRun.predict = predict  # type: ignore[method-assign]
    done = len(outcomes)
    print(
        f"{done} slides of 256 px: {1e3 * whole / done:.1f} ms a slide, of which the network and its pixels {1e3 * network / done:.1f} ms"
        f", all else {1e3 * (whole - network) / done:.1f} ms (opening, hash, tissue, plan, records; tables included)"
    )
    start = time.perf_counter()
    answer(folder, folder.parent / "job")
    print(f"the same again, all answered before: {1e3 * (time.perf_counter() - start) / done:.1f} ms a slide")


def watch_memory(folder: Path, count: int) -> None:
    """Print the resident memory while slides are answered."""
    write_copies(folder / "slides", count, 256)
    milestones = sorted({count // 20, count // 4, count // 2, 3 * count // 4, count})
    outcomes: list[Outcome] = []

    def told(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if len(outcomes) in milestones:
            print(
                f"after {len(outcomes):6d} slides: {format_bytes(resident_memory())} resident, peak {format_bytes(peak_memory())}",
                flush=True,
            )

    work = Work(streamview.load_model("demo"), Job(folder / "job"), new_run_id(), skip_errors=True)
    run_slides(work, read_worklist([folder / "slides"]), command=["benchmark"], told=told)


def compare_workers(folder: Path, count: int) -> None:
    """Time one process, of one thread and of one a core, against workers of one thread, alternated; and what Dask costs a slide."""
    write_copies(folder / "slides", count, 2048)
    write_copies(folder / "small", 240, 256)
    cores = os.cpu_count() or 1
    ways = {
        "one process of 1 thread": ("1", []),
        f"one process of {cores} threads": (str(cores), []),
        f"{cores} workers of 1 thread": ("1", ["--workers", str(cores), "--memory", "6GB"]),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(2):
        for way, (threads, options) in ways.items():
            arguments = ["predict", "-i", str(folder / "slides"), "-o", str(folder / f"{way}-{number}"), "-m", "demo", "--quiet", *options]
            environment = {**os.environ, "OMP_NUM_THREADS": threads}
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "streamview.cli", *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)
            times[way].append(time.perf_counter() - start)
    *single, shared = (min(seconds) for seconds in times.values())
    for (way, seconds), best in zip(times.items(), (*single, shared), strict=True):
        gain = f"; workers are {best / shared:.2f} times as fast" if best in single else ""
        print(f"{count} slides of 2048 px, {way}: {', '.join(f'{one:.1f} s' for one in seconds)}, start included{gain}")
    time_tasks(folder, 240)


def time_tasks(folder: Path, count: int) -> None:
    """Time slides that are answered already, in this process and by one worker: the difference is Dask's."""
    from streamview.cohort.cluster import ModelChoice, run_on_cluster

    cases = read_worklist([folder / "small"])
    answer(folder / "small", folder / "tiny")
    work = Work(streamview.load_model("demo"), Job(folder / "tiny"), new_run_id(), skip_errors=True)
    start = time.perf_counter()
    run_slides(work, cases, command=["benchmark"], told=lambda outcome: None)
    here = time.perf_counter() - start
    moments: list[float] = []
    run_on_cluster(
        work, ModelChoice("demo"), cases, workers=1, command=["benchmark"], told=lambda outcome: moments.append(time.perf_counter()),
        tell=lambda line: None,
    )  # fmt: skip
    there = (moments[-1] - moments[0]) / (len(moments) - 1)
    print(f"{count} slides answered before: {1e3 * here / count:.1f} ms a slide here, {1e3 * there:.1f} ms by one worker")


def run_whole_slide(folder: Path) -> None:
    """Forecast and explain a slide of 60,000 x 50,000 px over its tissue by a grid, and by pieces of tissue predict for it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "whole.svs"
    if not path.exists():
        start = time.perf_counter()
        write_whole_slide(path)
        print(f"{path}: written in {time.perf_counter() - start:.0f} s, {format_bytes(path.stat().st_size)}")
    model, cases = streamview.load_model("demo"), (Case(str(path)),)
    budget = Compute(memory="2GB")
    for settings in (
        Settings("maps", targets=("lesion",), policy=RegionPolicy("grid", 2048), compute=budget),
        Settings(policy=RegionPolicy("tissue"), compute=budget),
    ):
        work = Work(model, Job(folder / "job"), new_run_id(), settings, skip_errors=True, redo=True)
        ahead = forecast_cohort(work, cases)
        print(f"{settings.policy}\n  forecast: {ahead}", flush=True)
        start = time.perf_counter()
        run_slides(work, cases, command=["benchmark"], told=lambda outcome: print(f"  {outcome.status} {outcome.error}"))
        seconds = time.perf_counter() - start
        forecast = "none" if ahead.seconds is None else f"{ahead.seconds:.0f} s, {seconds / ahead.seconds:.2f} times"
        print(f"  took {seconds:.0f} s (forecast {forecast}), peak memory of the process so far {format_bytes(peak_memory())}", flush=True)
    print((folder / "job" / "slides.csv").read_text())


def write_whole_slide(path: Path, shape: tuple[int, int] = (50_000, 60_000), share: float = 0.15) -> None:
    """Write a slide at 0.25 um/px like Aperio's, with pieces of tissue, of which two have a lesion, on noisy glass."""
    rng = np.random.default_rng(0)
    pieces = [enlarged(synthetic_region(_PIECE, _PIECE, seed=seed, lesion_share=lesion)[0]) for seed, lesion in ((1, 0.05), (2, 0.0))]
    glass = np.clip(rng.normal(243, 1.5, (1024, 1024, 3)), 0, 255).astype(np.uint8)
    side = pieces[0].shape[0]
    places = [(y, x) for y in range(1024, shape[0] - side, side + 512) for x in range(1024, shape[1] - side, side + 512)]
    tissue = np.mean([(piece.min(axis=-1) < 200).mean() for piece in pieces])
    count = max(2, round(share * shape[0] * shape[1] / (tissue * side**2)))
    corners = [places[number] for number in rng.permutation(len(places))[:count]]
    extent = f"{shape[1]}x{shape[0]}"
    text = f"Aperio Image Library v11.2.1 \r\n{extent} [0,0 {extent}] (256x256) JPEG/RGB Q=80|AppMag = 40|MPP = 0.25"
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for factor in (1, 4, 16, 64):
            size = -(-shape[0] // factor), -(-shape[1] // factor)
            level = [shrunk(piece, factor) for piece in pieces]
            writer.write(
                tiles(size, [(y // factor, x // factor, level[min(n, 2) // 2]) for n, (y, x) in enumerate(corners)], glass),
                shape=(*size, 3), dtype=np.uint8, photometric="rgb", compression="jpeg", compressionargs={"level": 80}, tile=(256, 256),
                description=text, metadata=None,
            )  # fmt: skip
            if factor == 1:  # Aperio's page 1 is the thumbnail
                writer.write(shrunk(pieces[0], 16), photometric="rgb", compression="jpeg", description=text, metadata=None)


def enlarged(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Twice the size, each pixel four times."""
    return image.repeat(2, 0).repeat(2, 1)


def shrunk(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Block means."""
    height, width = image.shape[0] // factor, image.shape[1] // factor
    blocks = image[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return np.asarray(blocks.mean(axis=(1, 3), dtype=np.float32).round(), np.uint8)


def tiles(size: tuple[int, int], placed: list[tuple[int, int, NDArray[np.uint8]]], glass: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """The tiles of a level: glass, and on it the pieces at their places."""
    for top in range(0, size[0], 256):
        for left in range(0, size[1], 256):
            tile = glass[top % 768 : top % 768 + 256, left % 768 : left % 768 + 256].copy()
            for y, x, piece in placed:
                y0, y1 = max(top, y), min(top + 256, y + piece.shape[0])
                x0, x1 = max(left, x), min(left + 256, x + piece.shape[1])
                if y0 < y1 and x0 < x1:
                    tile[y0 - top : y1 - top, x0 - left : x1 - left] = piece[y0 - y : y1 - y, x0 - x : x1 - x]
            yield tile


def write_copies(folder: Path, count: int, side: int) -> None:
    """Write one slide so often, each with other bytes at its end, which makes it another slide."""
    folder.mkdir(parents=True, exist_ok=True)
    first = folder / "slide-000000.svs"
    write_synthetic_slide(first, size=(side, side), seed=1)
    data = first.read_bytes()
    for number in range(count):
        (folder / f"slide-{number:06d}.svs").write_bytes(data + number.to_bytes(4, "little"))


def answer(slides: Path, job: Path) -> list[Outcome]:
    """Predict for a folder of slides."""
    outcomes: list[Outcome] = []
    work = Work(streamview.load_model("demo"), Job(job), new_run_id(), skip_errors=True)
    run_slides(work, read_worklist([slides]), command=["benchmark"], told=outcomes.append)
    return outcomes


if __name__ == "__main__":
    main()
