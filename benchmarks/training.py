"""What one training step on a whole slide takes, against its forecast: ``python -m benchmarks.training SLIDE``.

The network is trained on two copies of the slide with different labels, one step of the optimiser each. Steps are timed apart; the peak is
the process's own (VmHWM), in a process that does nothing else.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise

from streamview.finetuning import History, Settings, finetune, forecast_training
from streamview.labels.regions import Example
from streamview.networks import load_model
from streamview.streaming.memory import format_bytes
from streamview.streaming.run.timing import format_seconds
from streamview.system.machine import peak_memory


def main() -> None:
    """Forecast, train, compare."""
    parser = argparse.ArgumentParser(description="Measure one training step against its forecast.")
    parser.add_argument("slide")
    parser.add_argument("--model", default="camelyon17-2048", help="random weights are drawn (default: camelyon17-2048)")
    parser.add_argument("--mpp", type=float, default=8.0, help="um per level-0 px of the slide (default: 8, so that it is read as it is)")
    parser.add_argument("--memory", default="4GB")
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    model = load_model(options.model, untrained=True)
    names = model.card.class_names[:2]
    examples = [Example(options.slide, name, patient=name, mpp=options.mpp) for name in names]
    settings = Settings(batch=1, epochs=-(-options.steps // 2), validation=0, patience=0)
    ahead = forecast_training(model, examples, settings, memory=options.memory, force=True)
    print(f"forecast: {ahead}", flush=True)
    print(f"plan: {ahead.plan}", flush=True)
    ends = [time.perf_counter()]

    def watch(history: History) -> None:
        if len(history.losses) == len(ends):
            ends.append(time.perf_counter())
            print(f"step {len(history.losses)}: {ends[-1] - ends[-2]:.1f} s, loss {history.losses[-1]:.4g}", flush=True)

    finetune(model, examples, settings, memory=options.memory, ahead=ahead, force=True, watch=watch)
    steps = [after - before for before, after in pairwise(ends)]
    mean, peak = sum(steps) / len(steps), peak_memory()
    print(
        f"a step of {ahead.largest[1]} x {ahead.largest[0]} px: {format_seconds(mean)}, forecast {format_seconds(ahead.region_seconds)} "
        f"({ahead.region_seconds / mean - 1:+.0%}); peak {format_bytes(peak)} ({peak:,} bytes), forecast {format_bytes(ahead.peak_bytes)} "
        f"({ahead.peak_bytes / peak - 1:+.0%})"
    )


if __name__ == "__main__":
    main()
