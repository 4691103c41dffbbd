"""Train a network of the paper's Table 2 at three resolutions, and compare how well they find lesions of three sizes.

    python -m experiments.resolution --tiles ../shared/data/camelyon16_tiles -o FOLDER

FOLDER then holds the three networks, ``results.json``, ``table.md`` and ``trend.png``. Networks that are there are not trained again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.camelyon16_tiles.__main__ import TEST, TRAINING
from experiments.camelyon16_tiles.compose import load_tiles
from experiments.charts import draw_trend
from experiments.resolution.data import SHARES, Slides, compose_slides
from experiments.resolution.networks import mpp_of, trained_networks
from experiments.shell import count, new_folder, tell
from experiments.statistics import compare, measure
from experiments.training import lower_resolution, outputs
from streamview.evaluation.bootstrap import Figure, area_under_curve
from streamview.evaluation.drawing import write_chart

KINDS = ("any", *SHARES)
WINDOWS, REGIONS, EPOCHS = 4000, 640, (12, 4)
"""Composed windows and regions to train on, and epochs over each."""
Row = Mapping[str, tuple[Figure, float | None]]
"""By kind of lesion, the area under the ROC curve and p against the next lower resolution."""


def main() -> None:
    """Train what is missing, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=Path, required=True, help="folder with normal/ and tumor/")
    parser.add_argument("-o", "--output", type=new_folder, metavar="FOLDER", required=True)
    parser.add_argument("--windows", type=count, default=WINDOWS, metavar="N", help=f"composed windows of 128 px (default: {WINDOWS})")
    parser.add_argument("--regions", type=count, default=REGIONS, metavar="N", help=f"composed regions of 512 px (default: {REGIONS})")
    parser.add_argument("--epochs", type=count, nargs=2, default=EPOCHS, metavar="N", help="over windows, over regions (default: 12 4)")
    parser.add_argument("--slides", type=count, default=240, metavar="N", help="composed test slides (default: 240)")
    options = parser.parse_args()
    folder: Path = options.output
    counts, epochs = (options.windows, options.regions), tuple(options.epochs)
    networks = trained_networks(load_tiles(options.tiles, TRAINING), folder, counts, epochs, tell=tell)
    slides = compose_slides(load_tiles(options.tiles, [TEST]), options.slides, seed=64)
    margins = {}
    for factor, network in networks.items():
        logits = outputs(network, lower_resolution(slides.pixels, factor))
        margins[factor] = logits[:, 1] - logits[:, 0]
    rows = compare_resolutions(margins, slides)
    record = {"sizes": slides.sizes, "margins": {mpp_of(factor): values.tolist() for factor, values in margins.items()}}
    (folder / "results.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    (folder / "table.md").write_text(table(rows), encoding="utf-8")
    lines = {f"{kind} lesion": {mpp_of(factor): row[kind][0] for factor, row in rows.items()} for kind in SHARES}
    text = f"{len(slides.sizes)} composed slides of a source slide that no training saw; bars: 95 % bootstrap intervals"
    area = "area under the ROC curve"
    write_chart(folder / "trend.png", lambda figure: draw_trend(figure, "Lesions by resolution", text, area, lines, 0.5), (7.2, 4.6))
    print(table(rows), end="")


def compare_resolutions(margins: Mapping[int, NDArray[np.float64]], slides: Slides) -> dict[int, Row]:
    """Measure every network on slides with each kind of lesion against those without.

    Parameters
    ----------
    margins
        Logit of metastasis minus that of negative for each slide, by the factor of the resolution, the lowest resolution first.
    slides
        The slides.
    """
    sizes = np.array(slides.sizes)
    rows: dict[int, Row] = {}
    lower: NDArray[np.float64] | None = None
    for factor, values in margins.items():
        row = {}
        for kind in KINDS:
            chosen = (sizes == "") | (sizes == kind) | (kind == "any")
            statistic = partial(area_under_curve, positive=sizes[chosen] != "")
            figure = measure(statistic(values[chosen]), int(chosen.sum()))
            row[kind] = figure, None if lower is None else compare(statistic, lower[chosen], values[chosen])
        rows[factor], lower = row, values
    return rows


def table(rows: Mapping[int, Row]) -> str:
    """The areas in Markdown."""
    lines = [f"| um/px | {' | '.join(f'{kind} lesion' for kind in KINDS)} |", "|" + "---|" * (len(KINDS) + 1)]
    for factor, row in rows.items():
        cells = [f"{figure}" + ("" if p is None else f", p = {p:.2g}") for figure, p in row.values()]
        lines.append(f"| {mpp_of(factor):.3g} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
