"""Train the network `camelyon16-tiles` on composed regions, and measure it on slides of a source slide that no training saw.

    python -m experiments.camelyon16_tiles --tiles ../shared/data/camelyon16_tiles -o FOLDER [--weights FILE]

FOLDER then holds ``weights.safetensors``, ``results.json``, ``table.md`` and ``figure.jpg``. The two trainings, of the network and of the
one that calibrates it, are kept there too: the command goes on after the last one that is done.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
from streamview_models import folder
from streamview_models.camelyon16_tiles import build
from torch import nn

from experiments.camelyon16_tiles.calibrate import margins_on, platt_scaling, scale_margin
from experiments.camelyon16_tiles.compose import Tiles, load_tiles
from experiments.camelyon16_tiles.measure import Figures, compose_slides, draw_slides, measure_network
from experiments.camelyon16_tiles.train import Recipe, train
from streamview.evaluation.metrics import plain
from streamview.networks import load_model

TRAINING, TEST = ("tumor_001", "tumor_004"), "tumor_064"


def main() -> None:
    """Train unless weights are given, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=Path, required=True, help="folder with normal/ and tumor/")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", required=True)
    parser.add_argument("--weights", type=Path, metavar="FILE", help="measure these weights instead of training")
    parser.add_argument("--slides", type=int, default=60, metavar="N", help="composed test slides (default: 60)")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    weights = options.weights or options.output / "weights.safetensors"
    if not options.weights:
        tiles = load_tiles(options.tiles, TRAINING)
        network = _trained(tiles, options.output / "trained.safetensors")
        calibrator = _trained(tiles.part(0, 3, keep=False), options.output / "trained-on-two-thirds.safetensors")
        factor, shift = platt_scaling(*margins_on(calibrator, tiles.part(0, 3, keep=True), 80, seed=3))
        _tell(f"calibration: margin times {factor:.3f}, plus {shift:.3f}")
        scale_margin(network.get_submodule("head.2"), factor, shift)
        _save(network, weights)
    model = load_model("camelyon16-tiles", weights=weights, card=folder("camelyon16-tiles") / "card.json")
    slides = compose_slides(load_tiles(options.tiles, [TEST]), options.slides, seed=64)
    figures = measure_network(model, load_model("camelyon16-tiles", untrained=True), slides, tell=_tell)
    (options.output / "results.json").write_text(json.dumps(plain(asdict(figures)), indent=1), encoding="utf-8")
    (options.output / "table.md").write_text(table(figures), encoding="utf-8")
    draw_slides(model, slides).savefig(options.output / "figure.jpg", pil_kwargs={"quality": 85})
    print(table(figures))


def _trained(tiles: Tiles, file: Path) -> nn.Module:
    """Train a network and keep its weights in a file, or read them from there."""
    if not file.exists():
        _save(train(tiles, Recipe(), tell=_tell), file)
    network = build().eval()
    network.load_state_dict(safetensors.torch.load_file(file))
    return network


def _save(network: nn.Module, file: Path) -> None:
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, file)


def table(figures: Figures) -> str:
    """The figures in Markdown."""
    metrics = figures.metrics
    auc = metrics.outputs[1].auc
    lines = [
        f"{metrics.regions} slides: AUC {auc}, accuracy {metrics.accuracy}, expected calibration error {metrics.ece:.3f}",
        "",
        "| map | pointing game | energy in the lesion, times its share of the area | average precision |",
        "|---|---|---|---|",
    ]
    lines += [f"| {name} | {' | '.join(map(str, row))} |" for name, row in figures.maps.items()]
    return "\n".join([*lines, ""])


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
