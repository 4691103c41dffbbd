"""Train the network of the paper's Table 1 conventionally and by streaming, from the same start, and compare losses and weights.

    python -m experiments.equivalence --images FOLDER -o OUTPUT

FOLDER has a folder of images for each class, such as ``imagenette2-320/train``. OUTPUT then holds ``results.json``, ``table.md`` and
``losses.png``. The full size of the paper is ``--batch 32 --steps 50 --float32-steps 59000`` on Imagenette (200 epochs), for a GPU.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from streamview_models.imagenette import build

from experiments.equivalence.compare import Comparison, compare_trainings
from experiments.equivalence.images import draw_batches, list_images
from experiments.shell import count, new_folder, tell
from streamview.evaluation.drawing import BLUE, INK, RED, TEXT, frame, page, write_chart

if TYPE_CHECKING:
    from matplotlib import figure as mpl

SIDE, TILE, RATE = 320, (32, 32), 1e-3
_LINES = {
    "conventional": (BLUE, 3.0, "-"),
    "conventional, batches in reverse order": (INK, 1.2, (0, (1, 2))),
    "streamed, tiles of 32 x 32 px": (RED, 1.2, (0, (4, 3))),
}


def main() -> None:
    """Compare in float64 and in float32."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="a folder for each class")
    parser.add_argument("-o", "--output", type=new_folder, required=True, metavar="FOLDER")
    parser.add_argument("--batch", type=count, default=8, metavar="N", help="images of a step (default: 8)")
    parser.add_argument("--steps", type=count, default=50, metavar="N", help="in float64 (default: 50)")
    parser.add_argument("--float32-steps", type=count, default=200, metavar="N", help="in float32 (default: 200)")
    parser.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
    options = parser.parse_args()
    classes, images = list_images(options.images)
    comparisons = []
    for dtype, steps in ((torch.float64, options.steps), (torch.float32, options.float32_steps)):
        torch.manual_seed(0)
        network = build(len(classes)).to(options.device, dtype)
        batches = draw_batches(images, options.batch, SIDE, seed=0)
        comparisons.append(compare_trainings(network, batches, steps=steps, tile=TILE, rate=RATE, tell=tell))
    folder: Path = options.output
    (folder / "results.json").write_text(json.dumps([asdict(each) for each in comparisons], indent=1), encoding="utf-8")
    (folder / "table.md").write_text(table(comparisons), encoding="utf-8")
    write_chart(folder / "losses.png", lambda figure: draw_losses(figure, comparisons[1], options.batch), (8.0, 4.4))
    print(table(comparisons), end="")


def table(comparisons: list[Comparison]) -> str:
    """The comparisons in Markdown."""
    lines = [
        "| precision | steps | training | losses differ by at most | weights differ by at most | weights moved by at most |",
        "|---|---|---|---|---|---|",
    ]
    for each in comparisons:
        for name, losses, weights in (("streamed", each.streamed, each.weights), ("control", each.control, each.control_weights)):
            figures = f"{each.loss_difference(losses):.1e} | {weights:.1e} | {each.moved:.2g}"
            lines.append(f"| {each.precision} | {len(losses)} | {name} | {figures} |")
    return "\n".join([*lines, ""])


def draw_losses(figure: mpl.Figure, comparison: Comparison, batch: int) -> None:
    """Draw both losses over the steps."""
    text = f"{batch} images of {SIDE} x {SIDE} px a step; from the same start, on the same images"
    page(figure, f"Streamed and conventional training, {comparison.precision}", "", [text])
    axes = figure.subplots()
    curves = comparison.conventional, comparison.control, comparison.streamed
    for losses, (label, (colour, width, style)) in zip(curves, _LINES.items(), strict=True):
        axes.plot(range(1, len(losses) + 1), losses, label=label, color=colour, linewidth=width, linestyle=style)
    axes.set_xlabel("optimiser step", fontsize=TEXT, color=INK)
    axes.set_ylabel("loss (cross-entropy)", fontsize=TEXT, color=INK)
    axes.legend(fontsize=TEXT, frameon=False, labelcolor=INK)
    frame(axes)


if __name__ == "__main__":
    main()
