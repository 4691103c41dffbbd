"""Measure how well each kind of map finds a lesion, for the networks of `experiments.resolution` and for `camelyon16-tiles`.

    python -m experiments.saliency --tiles ../shared/data/camelyon16_tiles --networks FOLDER -o FOLDER

The networks are those that `experiments.resolution` has left in a folder, and are trained there if they are missing. The output folder then
holds ``results.json``, ``table.md`` and ``figure.jpg``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as Canvas

from experiments.camelyon16_tiles.__main__ import TEST, TRAINING
from experiments.camelyon16_tiles.compose import load_tiles
from experiments.resolution.__main__ import EPOCHS, REGIONS, WINDOWS
from experiments.resolution.data import MPP, Slides, compose_slides
from experiments.resolution.networks import LAYERS, mpp_of, trained_networks
from experiments.saliency.measure import BASELINES, MAPS, MEASURES, Row, explain_slide, measure_maps, model_of
from experiments.shell import count, new_folder, tell
from experiments.training import lower_resolution
from streamview.evaluation.metrics import plain
from streamview.networks import Model, load_model
from streamview.results.display import show
from streamview.results.overlay import overlay

_GLASS = (243, 243, 243)
_THRESHOLD = 0.2  # of the largest value, below which the figure shows nothing


def main() -> None:
    """Explain, measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=Path, required=True, help="folder with normal/ and tumor/")
    parser.add_argument("--networks", type=new_folder, required=True, metavar="FOLDER", help="output folder of experiments.resolution")
    parser.add_argument("-o", "--output", type=new_folder, metavar="FOLDER", required=True)
    parser.add_argument("--slides", type=count, default=20, metavar="N", help="composed test slides with a lesion (default: 20)")
    options = parser.parse_args()
    trained = trained_networks(load_tiles(options.tiles, TRAINING), options.networks, (WINDOWS, REGIONS), EPOCHS, tell=tell)
    networks = {
        f"{LAYERS[factor]} layers, {mpp_of(factor):.3g} um/px": (model_of(net, mpp_of(factor)), factor) for factor, net in trained.items()
    }
    networks["camelyon16-tiles"] = load_model("camelyon16-tiles"), 1
    slides = _with_lesion(compose_slides(load_tiles(options.tiles, [TEST]), 3 * options.slides, seed=65), options.slides)
    tables = {name: measure_maps(model, slides, factor, mpp_of(factor), tell=tell) for name, (model, factor) in networks.items()}
    folder: Path = options.output
    record = {name: {kind: [asdict(figure) for figure in row] for kind, row in rows.items()} for name, rows in tables.items()}
    (folder / "results.json").write_text(json.dumps(plain(record), indent=1), encoding="utf-8")
    (folder / "table.md").write_text(table(tables), encoding="utf-8")
    draw_maps(networks, slides).savefig(folder / "figure.jpg", pil_kwargs={"quality": 85})
    print(table(tables), end="")


def _with_lesion(slides: Slides, number: int) -> Slides:
    """The first slides with a medium or large lesion, by turns."""
    chosen = [place for place, size in enumerate(slides.sizes) if size in ("medium", "large")][:number]
    return Slides(slides.pixels[chosen], slides.lesions[chosen], tuple(slides.sizes[place] for place in chosen))


def table(tables: Mapping[str, Mapping[str, Row]]) -> str:
    """A table in Markdown for each measure: maps down, networks across."""
    lines = []
    for number, measure in enumerate(MEASURES):
        lines += [f"| {measure} | {' | '.join(tables)} |", "|" + "---|" * (len(tables) + 1)]
        for kind in (*MAPS, *BASELINES):
            lines.append(f"| {kind} | {' | '.join(str(rows[kind][number]) for rows in tables.values())} |")
        lines.append("")
    return "\n".join(lines)


def draw_maps(networks: Mapping[str, tuple[Model, int]], slides: Slides) -> Canvas:
    """Draw the first slide with a large lesion: a row for each network, with the lesion and every map over the tissue."""
    place = slides.sizes.index("large")
    kinds = list(MAPS)
    canvas = Canvas(figsize=(2.1 * (len(kinds) + 1), 2.3 * len(networks)), dpi=100, layout="constrained")
    grid = canvas.subplots(len(networks), len(kinds) + 1, squeeze=False)
    for axes, (name, (model, factor)) in zip(grid, networks.items(), strict=True):
        pixels = lower_resolution(slides.pixels[place : place + 1], factor)[0]
        lesion = slides.lesions[place][::factor, ::factor].astype(np.float32)
        pictures = {"slide and lesion": pixels}
        for kind, (saliency, recipe) in explain_slide(model, pixels, MPP * factor).items():
            pictures[kind] = overlay(pixels, saliency, show(saliency, replace(recipe, threshold=_THRESHOLD, outline=False)), _GLASS)[0]
        for ax, (title, picture) in zip(axes, pictures.items(), strict=True):
            ax.imshow(picture)
            ax.contour(lesion, [0.5], colors="black", linewidths=1, linestyles="dashed")
            ax.set_title(f"{name}\n{title}" if title == "slide and lesion" else title, fontsize=8)
            ax.axis("off")
    return canvas


if __name__ == "__main__":
    main()
