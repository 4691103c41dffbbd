"""Measure the maps of two networks, beside an edge detector and random values, and put table and picture into the docs.

    python -m experiments.faithfulness --tiles ../shared/data/camelyon16_tiles

writes ``docs/images/faithfulness.png``, and the table between the marks in ``docs/faithfulness.md``. The network `demo` is measured on
the demo's slide, `camelyon16-tiles` on a slide composed of tiles of a source slide that no training saw.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import ndimage

import streamview
from experiments.camelyon16_tiles.compose import MPP, load_tiles
from experiments.camelyon16_tiles.measure import compose_slides
from streamview.faithfulness import Faithfulness, Settings, measure_faithfulness
from streamview.faithfulness.curves import normalise
from streamview.faithfulness.localisation import Area
from streamview.faithfulness.runs import explain_again
from streamview.files import atomic
from streamview.inference.prepared import PreparedRun
from streamview.progress import Report
from streamview.results import Plane, Saliency, SaliencyMap
from streamview.results.display import show, usual_recipe
from streamview.results.overlay import overlay
from streamview.slides.synthetic import write_synthetic_slide

TEST = "tumor_064"
NAMES = {
    "evidence": "class evidence",
    "signed": "gradient x input",
    "absolute": "largest gradient",
    "edges": "edge detector (control)",
    "random": "random values (control)",
}
COLOURS = {"evidence": "#0a7f8c", "signed": "#7a4fb5", "absolute": "#c2410c", "edges": "#8a6d00", "random": "#57606a"}
BEGIN, END = "<!-- table: python -m experiments.faithfulness -->", "<!-- end of table -->"


def main() -> None:
    """Measure, and write table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=Path, required=True, help="folder with normal/ and tumor/")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the page (default: docs)")
    parser.add_argument("--size", type=int, default=1024, metavar="PX", help="side of the demo's slide (default: 1024)")
    parser.add_argument("--quick", action="store_true", help="few steps and rankings, to see that it runs")
    options = parser.parse_args()
    settings = Settings(steps=3, rankings=2, shuffles=1, noises=0) if options.quick else Settings(rankings=20)
    start, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.svs"
        lesion = write_synthetic_slide(path, size=(options.size, options.size))
        with streamview.open_slide(path) as slide:
            rows.append(measure(streamview.load_model("demo"), slide, "lesion", lesion, settings))
    composed = next(one for one in compose_slides(load_tiles(options.tiles, [TEST]), 2, seed=64) if one.lesion.any())
    slide = streamview.slides.as_slide(composed.pixels, MPP)
    rows.append(measure(streamview.load_model("camelyon16-tiles"), slide, "tumour", composed.lesion, settings))
    page = options.docs / "faithfulness.md"
    text = page.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    atomic.write_text(page, f"{before}{BEGIN}\n{table([measured for measured, _ in rows])}\n{END}{after}")
    draw(rows).savefig(options.docs / "images" / "faithfulness.png")
    print(table([measured for measured, _ in rows]))
    print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)


def measure(
    model: streamview.networks.Model, slide: streamview.Slide, target: str, lesion: NDArray[np.bool_], settings: Settings
) -> tuple[Faithfulness, NDArray[np.uint8]]:
    """Measure a network's maps and the two controls; return also the slide with its class evidence."""
    run = streamview.prepare(model, slide)
    saliency = with_controls(run, run.explain([target])[0], None, None)
    measured = measure_faithfulness(run, saliency, settings, annotated=("lesion", Area(lesion)), explain=with_controls)
    for method in saliency.maps:
        print(f"{model.card.name}, {method}: {measured.line(method)}", file=sys.stderr)
        print("\n".join(f"  {line}" for line in measured.details(method)), file=sys.stderr, flush=True)
    factor = max(1, max(slide.shape) // 700)
    tissue = np.ascontiguousarray(slide.read(streamview.Region(0, 0, *slide.shape))[::factor, ::factor])
    picture, _ = overlay(tissue, saliency, show(saliency, usual_recipe(saliency)), slide.background)
    return measured, picture


def with_controls(run: PreparedRun, saliency: Saliency, scratch: Path | None, report: Report | None) -> Saliency:
    """The maps of a run with two that no network made: edges of its pixels, and random values, which stay the same."""
    again = explain_again(run, saliency, scratch, report) if report is not None else saliency
    one, (height, width) = again.maps["absolute"], run.inside
    grey = run.sampler.read(0, height, 0, width).mean(-1)
    edges = np.hypot(*(ndimage.sobel(grey, axis) for axis in (0, 1)))
    noise = np.random.default_rng(0).random((-(-height // 8), -(-width // 8)))
    noise = np.kron(noise, np.ones((8, 8)))[:height, :width]
    controls: dict[Any, SaliencyMap] = {
        name: SaliencyMap("absolute", Plane(values.astype(np.float32)), one.step, one.origin)
        for name, values in (("edges", edges), ("random", noise))
    }
    return replace(again, maps={name: again.maps.get(name) or controls[name] for name in NAMES if name in {*again.maps, *controls}})


def table(measurements: Sequence[Faithfulness]) -> str:
    """The figures in Markdown."""
    heads = (
        "network, map",
        "deletion",
        "insertion",
        "shuffled weights",
        "stability",
        "energy / area",
        "average precision",
        "checks passed",
    )
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for measured in measurements:
        areas = [curve.area for curve in measured.random if curve.area is not None]
        lines.append(f"| **{measured.model_name}**, {len(areas)} random rankings | {np.mean(areas):.2f} ± {np.std(areas, ddof=1):.2f} | "
                     f"{np.mean(areas):.2f} ± {np.std(areas, ddof=1):.2f} | at most {measured.settings.similar:.2f} | at least "
                     f"{measured.settings.stable:.2f} | 1 | {measured.maps[0].localisation.area:.2f} | |")  # fmt: skip
        for method, name in NAMES.items():
            one = measured.of(method)
            if one is None or one.deletion is None or one.insertion is None or one.localisation is None:
                continue
            checks = {check.name: check.passed for check in measured.checks(method)}
            cells = {
                "deletion": f"{one.deletion.area:.2f}",
                "insertion": f"{one.insertion.area:.2f}",
                "parameter randomisation": f"{np.mean([abs(similarity.rank) for similarity in one.shuffled]):.2f}",
                "stability": f"{min(change.rank for change in one.changes):.2f}",
            }
            marked = [value if checks[check] is not False else f"**{value}** fails" for check, value in cells.items()]  # type: ignore[index]
            passed = f"{sum(value is True for value in checks.values())} of {sum(value is not None for value in checks.values())}"
            place = one.localisation
            lines.append(f"| {name} | {' | '.join(marked)} | {place.ratio:.1f} | {place.precision:.2f} | {passed} |")
    return "\n".join(lines)


def draw(rows: Sequence[tuple[Faithfulness, NDArray[np.uint8]]]) -> Figure:
    """Draw each slide with its class evidence, and the curves of all maps before those of the random rankings."""
    figure = Figure(figsize=(12, 3.9 * len(rows)), dpi=100, layout="constrained")
    axes = figure.subplots(len(rows), 3, squeeze=False, width_ratios=(1, 1.15, 1.15))
    for row, (measured, picture) in zip(axes, rows, strict=True):
        row[0].imshow(picture)
        row[0].axis("off")
        row[0].set_title(f"{measured.model_name}: class evidence for {measured.target}", fontsize=10)
        for ax, kind in zip(row[1:], ("deletion", "insertion"), strict=True):
            for number, curve in enumerate(measured.random):
                shares, scores = (curve.shares, curve.scores) if kind == "deletion" else (_mirrored(curve.shares), curve.scores[::-1])
                values = normalise(scores, measured.full, measured.empty)
                ax.plot(shares, values or (), color="#c9d1d9", linewidth=1, label=None if number else "random rankings")
            for method, name in NAMES.items():
                one = measured.of(method)
                curve = None if one is None else getattr(one, kind)
                if curve is not None and curve.area is not None:
                    style, width = ("--", 1.8) if "control" in name else ("-", 4.0 if method == "signed" else 1.8)  # two are often the same
                    values = normalise(curve.scores, measured.full, measured.empty)
                    label = f"{name}: {one.deletion.area:.2f}, {one.insertion.area:.2f}"
                    ax.plot(curve.shares, values or (), style, color=COLOURS[method], linewidth=width, label=label)
            better = "lower is better" if kind == "deletion" else "higher is better"
            ax.set_title(f"{kind}, area under the curve ({better})", fontsize=10)
            ax.set_xlabel("share of the tissue erased" if kind == "deletion" else "share of the tissue brought back", fontsize=9)
            ax.tick_params(labelsize=8)
            ax.spines[["top", "right"]].set_visible(False)
        row[2].legend(fontsize=7.5, frameon=False, loc="lower right", title="areas: deletion, insertion", title_fontsize=7.5)
        row[1].set_ylabel("score, as share of what all tissue makes", fontsize=9)
    return figure


def _mirrored(shares: Sequence[float]) -> tuple[float, ...]:
    return tuple(1 - share for share in reversed(shares))


if __name__ == "__main__":
    main()
