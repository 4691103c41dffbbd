"""Train a network of the paper's Table 2 at three resolutions to predict a value that shows in the finest detail.

    python -m experiments.regression --tiles ../shared/data/camelyon16_tiles -o FOLDER

FOLDER then holds ``results.json``, ``table.md``, ``trend.png`` and ``examples.png``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from streamview_models.layers import table2_network
from torch.nn.functional import huber_loss

from experiments.camelyon16_tiles.__main__ import TEST, TRAINING
from experiments.camelyon16_tiles.compose import load_tiles
from experiments.charts import draw_trend
from experiments.regression.data import Slides, amplify_detail, compose_slides
from experiments.resolution.data import MPP
from experiments.resolution.networks import LAYERS
from experiments.shell import count, new_folder, tell
from experiments.statistics import compare, measure
from experiments.training import Stage, lower_resolution, outputs, train
from streamview.evaluation.bootstrap import Figure, rank_correlation
from streamview.evaluation.drawing import INK, TEXT, page, write_chart

if TYPE_CHECKING:
    from matplotlib import figure as mpl

WIDTH, RATE, DECAY, BATCH = 8, 1e-3, 0.85, 16
Row = tuple[Figure, float | None]
"""Spearman's correlation, and p against the next lower resolution."""


def main() -> None:
    """Train and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=Path, required=True, help="folder with normal/ and tumor/")
    parser.add_argument("-o", "--output", type=new_folder, metavar="FOLDER", required=True)
    parser.add_argument("--training", type=count, default=960, metavar="N", help="composed slides to train on (default: 960)")
    parser.add_argument("--epochs", type=count, default=6, metavar="N", help="over these slides (default: 6)")
    parser.add_argument("--slides", type=count, default=200, metavar="N", help="composed test slides (default: 200)")
    options = parser.parse_args()
    training = compose_slides(load_tiles(options.tiles, TRAINING), options.training, seed=1)
    tiles = load_tiles(options.tiles, [TEST])
    test = compose_slides(tiles, options.slides, seed=64)
    answers = {}
    for factor, layers in LAYERS.items():
        tell(f"{MPP * factor:.3g} um/px, {layers} layers")
        network = table2_network(layers, 1, WIDTH, batch_norm=True, dropout=None)
        targets = torch.from_numpy(training.values).float()[:, None]
        stage = Stage(lower_resolution(training.pixels, factor), targets, BATCH, options.epochs, RATE)
        train(network, [stage], huber_loss, initialise="he", decay=DECAY, seed=0, tell=tell)
        answers[factor] = outputs(network, lower_resolution(test.pixels, factor))[:, 0]
    rows = compare_resolutions(answers, test)
    folder: Path = options.output
    record = {"truth": test.values.tolist(), "answers": {MPP * factor: values.tolist() for factor, values in answers.items()}}
    (folder / "results.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    (folder / "table.md").write_text(table(rows), encoding="utf-8")
    lines = {"value": {MPP * factor: figure for factor, (figure, _) in rows.items()}}
    text = f"{options.slides} composed slides of a source slide that no training saw; bars: 95 % bootstrap intervals"
    title = "A value in the finest detail, by resolution"
    write_chart(folder / "trend.png", lambda figure: draw_trend(figure, title, text, "Spearman's rho", lines, 0.0), (7.2, 4.6))
    plain = lower_resolution(tiles.normal[:1], 2)[0]
    write_chart(folder / "examples.png", lambda figure: draw_examples(figure, plain), (8.0, 5.4))
    print(table(rows), end="")


def compare_resolutions(answers: Mapping[int, NDArray[np.float64]], test: Slides) -> dict[int, Row]:
    """Correlate answers with the truth, by the factor of the resolution, the lowest resolution first."""
    rows: dict[int, Row] = {}
    lower: NDArray[np.float64] | None = None
    statistic = partial(rank_correlation, truth=test.values)
    for factor, values in answers.items():
        rows[factor] = measure(statistic(values), len(values)), None if lower is None else compare(statistic, lower, values)
        lower = values
    return rows


def table(rows: Mapping[int, Row]) -> str:
    """The correlations in Markdown."""
    lines = ["| um/px | layers | Spearman's rho | p against the row above |", "|---|---|---|---|"]
    for factor, (figure, p) in rows.items():
        lines.append(f"| {MPP * factor:.3g} | {LAYERS[factor]} | {figure} | {'' if p is None else f'{p:.2g}'} |")
    return "\n".join([*lines, ""])


def draw_examples(figure: mpl.Figure, pixels: NDArray[np.uint8]) -> None:
    """Draw a tile with its detail halved, as it is, and doubled, at each resolution."""
    page(
        figure,
        "The value to be predicted",
        "",
        ["a tile (CAMELYON16, CC0 1.0) with its finest detail scaled, at the finest and the lowest resolution"],
    )
    grid = figure.subplots(2, 3)
    for row, factor in zip(grid, (1, 4), strict=True):
        for axes, value in zip(row, (-1, 0, 1), strict=True):
            axes.imshow(lower_resolution(amplify_detail(pixels, 2.0**value, 1.0, 0.0)[None], factor)[0], interpolation="nearest")
            axes.set_title(f"value {value}, {MPP * factor:.3g} um/px", fontsize=TEXT, color=INK)
            axes.axis("off")


if __name__ == "__main__":
    main()
