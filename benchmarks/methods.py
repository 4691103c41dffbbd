"""What each method of explanation takes, against its forecast, on the demo slide; and a picture of all of them side by side.

    python -m benchmarks.methods [--size 4096] [--memory 2GB] [--methods gradient smoothgrad:samples=4]
    python -m benchmarks.methods --picture docs/images/methods.png

Each method runs in a process of its own: the time is that of the explanation, without loading; the memory the peak of the process.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import streamview
from streamview.inference.prepared import PreparedRun, prepare
from streamview.results import RESEARCH_USE, Saliency
from streamview.results.display import Recipe, show, title_of, usual_recipe
from streamview.results.overlay import overlay
from streamview.slides.synthetic import write_synthetic_slide
from streamview.slides.thumbnail import thumbnail
from streamview.streaming.memory import format_bytes
from streamview.streaming.run.timing import format_seconds
from streamview.system.machine import peak_memory

TARGET, SEED = "lesion", 5
PATCHES = 12  # of an occlusion, down and across
DRAWN = 1024  # px a side of the slide in the picture


def methods(size: int) -> list[str]:
    """What is measured at a size in px; patches in proportion, so that their number stays."""
    patch = max(size // PATCHES, 1)
    return ["gradient", "smoothgrad:samples=16", "integrated-gradients:steps=32", "grad-cam", f"occlusion:patch={patch}"]


def prepared(slide: streamview.Slide, text: str, memory: str | None) -> PreparedRun:
    """The run of the demo network with a method."""
    compute = streamview.Compute(memory=memory, method=streamview.ExplanationMethod.parse(text))
    return prepare(streamview.load_model("demo"), slide, compute=compute)


def measure(path: str, text: str, memory: str | None) -> dict[str, float | str | None]:
    """Forecast and measure one method in this process."""
    with streamview.open_slide(path) as slide, tempfile.TemporaryDirectory() as folder:
        run = prepared(slide, text, memory)
        ahead = run.forecast(1, folder)
        start = time.perf_counter()
        (result,) = run.explain([TARGET], ahead.plan, [Path(folder) / "map.ome.zarr"])
        seconds = time.perf_counter() - start
        error = None if result.completeness is None else result.completeness
    return {
        "passes": str(ahead.passes),
        "forecast_seconds": ahead.seconds,
        "seconds": seconds,
        "forecast_bytes": ahead.peak_bytes,
        "bytes": peak_memory(),
        "completeness": error,
    }


def report(size: int, memory: str | None, chosen: list[str]) -> None:
    """Print a row for each method."""
    print(f"demo slide of {size} x {size} px")
    print(f"{'method':34} {'passes':36} {'time: forecast':>15} {'measured':>12} {'memory: forecast':>17} {'measured':>9}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.svs"
        write_synthetic_slide(path, size=(size, size), seed=SEED)
        for text in chosen:
            command = [sys.executable, "-m", "benchmarks.methods", "--measure", str(path), text, *(["--memory", memory] if memory else [])]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            forecast = "a few s" if row["forecast_seconds"] is None else format_seconds(row["forecast_seconds"])
            note = "" if row["completeness"] is None else f"  completeness error {row['completeness']:.3g}"
            print(
                f"{text:34} {row['passes']:36} {forecast:>15} {format_seconds(row['seconds']):>12} "
                f"{format_bytes(row['forecast_bytes']):>17} {format_bytes(row['bytes']):>9}{note}",
                flush=True,
            )


def draw(path: Path) -> None:
    """Write the picture: the tissue, and the map of each method over it, by the display that is usual for it."""
    from matplotlib.figure import Figure

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "slide.svs"
        write_synthetic_slide(file, size=(DRAWN, DRAWN), seed=SEED)
        with streamview.open_slide(file) as slide:
            tissue = thumbnail(slide, streamview.Region(0, 0, DRAWN, DRAWN), (DRAWN // 2, DRAWN // 2))
            panels = [("The slide\n ", tissue)]
            for text in [*methods(DRAWN)[:4], "occlusion:patch=128,stride=64"]:
                print(text, flush=True)
                (result,) = prepared(slide, text, None).explain([TARGET])
                panels.append((_title(result), overlay(tissue, result, show(result, _recipe(result)), slide.background)[0]))
    columns = 3
    figure = Figure(figsize=(columns * 3.2, math.ceil(len(panels) / columns) * 3.5), layout="constrained", facecolor="white")
    for number, (title, pixels) in enumerate(panels, 1):
        axes = figure.add_subplot(math.ceil(len(panels) / columns), columns, number)
        axes.imshow(pixels, interpolation="lanczos")
        axes.set_axis_off()
        axes.set_title(title, fontsize=9, color="#1f2328")
    figure.supxlabel(f"Synthetic slide, demo network. {RESEARCH_USE}", fontsize=7, color="#57606a")
    figure.get_layout_engine().set(h_pad=0.08)  # type: ignore[union-attr]
    figure.savefig(path, dpi=130)
    print(f"written: {path}")


def _recipe(result: Saliency) -> Recipe:
    return usual_recipe(result, None if "signed" not in result.maps else "detail")


def _title(result: Saliency) -> str:
    head, _, kind = title_of(result, _recipe(result).method).partition(": ")
    return f"{head}\n{kind or ' '}"


def main() -> None:
    """Measure, or draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, metavar="PX", help="side of the slide (default: 1024)")
    parser.add_argument("--memory", metavar="2GB", help="as of streamview saliency")
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD", help="as streamview saliency takes them (default: all, an occlusion by 144 patches)"
    )
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="draw instead")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure, options.memory)))
    elif options.picture:
        draw(options.picture)
    else:
        report(options.size, options.memory, options.methods or methods(options.size))


if __name__ == "__main__":
    main()
