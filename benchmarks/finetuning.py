"""Fine-tuning on real tissue: slides composed of CAMELYON16 tiles, tested on a source slide that nothing was learned or chosen from.

    OMP_WAIT_POLICY=passive python -m benchmarks.finetuning --tiles ../shared/data/camelyon16_tiles [-o FOLDER]

Every slide is 1024 x 1024 px of tissue on glass (0.243 um/px, twelve tiles of 256 px), half of them with a planted tumour island of
one, two or four tiles. Those that train are of the source slides tumor_001 (which has tumour tiles alone) and tumor_004 (normal ones
alone), those that test of tumor_064 (both). As no class can be told from its source slide among those that train, nothing of them
validates: the epochs are fixed beforehand, and regions are tinted strongly in training, so that a network which looks at a part at a
time cannot go by the colour of a source.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from streamview import load_model, predict
from streamview.evaluation import Metrics, measure
from streamview.finetuning import PRESETS, FinetuneResult, History, Settings, finetune
from streamview.finetuning.curves import draw_history
from streamview.labels.regions import Example, find_targets, write_labels
from streamview.networks import Model
from streamview.results import RESEARCH_USE
from streamview.streaming.memory import format_bytes
from streamview.system.machine import peak_memory

TRAIN, TEST = "tumor_001,tumor_004", "tumor_064"
SHARES = (0.1, 0.2, 0.3)
RECIPE = replace(PRESETS["all"], learning_rate=1e-3, batch=8, epochs=16, validation=0.0, jitter=0.3)


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What came of it: figures on the test slides, and what training took.

    Parameters
    ----------
    before, after
        Of the base and of the tuned network.
    result
        Of the training.
    seconds
        It took.
    peak_bytes
        Of the process, from its start.
    """

    before: Metrics
    after: Metrics
    result: FinetuneResult
    seconds: float
    peak_bytes: int

    def __str__(self) -> str:
        """A table in Markdown, and what training took."""
        lines = ["| network | accuracy | balanced accuracy | AUC | loss |", "|---|---|---|---|---|"]
        lines.append(f"| always {self.after.majority} | {self.after.baseline:.3g} | 0.5 | 0.5 | |")
        for name, found in (("base", self.before), ("tuned", self.after)):
            lines.append(f"| {name} | {found.accuracy} | {found.balanced_accuracy} | {found.outputs[1].auc} | {found.loss:.3g} |")
        pairs = enumerate(zip(self.after.confusion, self.after.outputs, strict=True))
        right = [f"{row[i]} of {sum(row)} {output.name}" for i, (row, output) in pairs]
        took = f"{self.seconds:.0f} s, peak memory of the process {format_bytes(self.peak_bytes)}"
        return "\n".join([*lines, "", f"tuned, right: {', '.join(right)}; training took {took}", RESEARCH_USE])


def compose(tiles: Path, folder: Path, sources: str, count: int, seed: int, side: int = 1024) -> list[Example]:
    """Write slides of some source slides' tiles, every other one with a lesion, and their table ``labels.csv``.

    Raises
    ------
    subprocess.CalledProcessError
        When the script that composes fails.
    """
    script = tiles.parents[1] / "tools" / "compose_planted.py"
    folder.mkdir(parents=True, exist_ok=True)

    def one(number: int) -> Example:
        share = SHARES[number // 2 % len(SHARES)] if number % 2 else 0
        path = folder / f"{number:03d}.svs"
        what = ["--size", side, "--seed", seed + number, "--lesion", share, "--tiles", tiles, "--slides", sources]
        subprocess.run([sys.executable, script, path, *map(str, what)], check=True, stdout=subprocess.DEVNULL)
        return Example(path, "lesion" if share else "normal")

    with ThreadPoolExecutor(2) as pool:
        examples = list(pool.map(one, range(count)))
    write_labels(folder / "labels.csv", examples)
    return examples


def judge(model: Model, examples: list[Example]) -> Metrics:
    """Figures of a network on composed slides, resampled by composed slide."""
    answers = []
    for example in examples:
        with example.open() as slide:
            answers.append(predict(model, slide).logits)
    return measure(np.stack(answers), find_targets(examples, model.card), [example.case for example in examples], model.card)


def run(tiles: Path, folder: Path, *, slides: tuple[int, int] = (60, 40), settings: Settings = RECIPE) -> Outcome:
    """Compose slides, fine-tune the demo network on those that train, and measure it on those that test."""
    examples = compose(tiles, folder / "train", TRAIN, slides[0], seed=0)
    tests = compose(tiles, folder / "test", TEST, slides[1], seed=10_000)
    base, start = load_model("demo"), time.monotonic()
    result = finetune(base, examples, settings, out=folder / "tuned", watch=partial(_tell, settings))
    seconds, peak = time.monotonic() - start, peak_memory()
    return Outcome(judge(base, tests), judge(result.model, tests), result, seconds, peak)


def _tell(settings: Settings, history: History) -> None:
    done = history.epochs[-1]
    if len(history.losses) == done.number * history.per_epoch and done.loss is not None:
        print(f"epoch {done.number} of {settings.epochs}: loss {done.loss:.3f}, {done.seconds:.1f} s", file=sys.stderr, flush=True)


def main() -> None:
    """Print a table, and draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=Path, default=Path("../shared/data/camelyon16_tiles"), help="folder with normal/ and tumor/")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="keep slides, tables and the tuned network here")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="also draw the training loss")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        outcome = run(options.tiles.resolve(), options.output or Path(scratch))
    print(outcome)
    if options.picture:
        figure = Figure(figsize=(7, 3.5), dpi=100, layout="constrained")
        draw_history(figure, outcome.result.history)
        figure.savefig(options.picture)


if __name__ == "__main__":
    main()
