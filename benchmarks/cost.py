"""What streaming costs: process time and operations of a streamed pass against whole-image autograd.

    OMP_WAIT_POLICY=passive python -m benchmarks.cost [--sizes 1024 2048] [--networks camelyon17-2048 resnet18] [--repeat 3]

Both run in channels_last float32 on the same image, in turn, so that a drift of the machine's speed meets both; the ratio is
that of the fastest runs. Each network and size has a process of its own, since what earlier runs leave to the allocator makes
later ones cheaper, the whole image most of all. Threads that wait must not spin, or process time counts their waiting. "least"
(memory) keeps no step's tape: every step is computed again in the reverse pass; "kept" lets the plan keep what fits into memory.
Operations are those that torch's FlopCounterMode counts, at the smallest size.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable

import torch
from streamview_models import MODELS
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from streamview.streaming import stream

STRIP_ROWS = 128


def forward(module: nn.Module, image: Tensor) -> None:
    """The prediction alone."""
    with torch.no_grad():
        module(image)


def saliency(module: nn.Module, image: Tensor) -> None:
    """The gradient of one logit with respect to the image."""
    module.requires_grad_(False)
    leaf = image.detach().requires_grad_()
    module(leaf)[0, 0].backward()


def training(module: nn.Module, image: Tensor) -> None:
    """The gradients of all weights."""
    module.requires_grad_(True)
    module.zero_grad()
    module(image)[0, 0].backward()


PASSES = (forward, saliency, training)


def cpu_seconds(run: Callable[[nn.Module, Tensor], None], module: nn.Module, image: Tensor) -> float:
    """Process time of one pass, all threads together."""
    start = time.process_time()
    run(module, image)
    return time.process_time() - start


def operations(run: Callable[[nn.Module, Tensor], None], module: nn.Module, image: Tensor) -> int:
    """Floating point operations of one pass."""
    with FlopCounterMode(display=False) as counter:
        run(module, image)
    return counter.get_total_flops()


def compare(name: str, size: int, repeat: int, count: bool) -> None:
    """Print one row for each pass of one network at one size."""
    torch.manual_seed(0)
    network = MODELS[name]().eval().to(memory_format=torch.channels_last)
    image = torch.randn(1, 3, size, size).to(memory_format=torch.channels_last)
    contestants = {"whole": network, "least memory": stream(network, tile=(STRIP_ROWS, size)), "kept": stream(network)}
    for run in PASSES:
        small = image[:, :, :512, :512].contiguous(memory_format=torch.channels_last)
        for module in contestants.values():
            run(module, small)
        times = {label: [] for label in contestants}
        for _ in range(repeat):
            for label, module in contestants.items():
                times[label].append(cpu_seconds(run, module, image))
        best = {label: min(found) for label, found in times.items()}
        ratios = [f"{best[label] / best['whole']:12.2f}" for label in ("least memory", "kept")]
        if count:
            flops = {label: operations(run, module, image) for label, module in contestants.items()}
            ratios += [f"{flops[label] / flops['whole']:12.3f}" for label in ("least memory", "kept")]
        else:
            ratios += [f"{'':>12}"] * 2
        print(f"{name:16} {size:5} {run.__name__:9} {best['whole']:9.2f} s {''.join(ratios)}", flush=True)


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--networks", nargs="+", default=["camelyon17-2048", "resnet18"])
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, strips of {STRIP_ROWS} rows")
    columns = "".join(f"{title:>12}" for title in ("time least", "time kept", "flops least", "flops kept"))
    print(f"{'network':16} {'size':>5} {'pass':9} {'whole image':>11}{columns}")
    for name in args.networks:
        for size in args.sizes:
            process = multiprocessing.get_context("spawn").Process(target=compare, args=(name, size, args.repeat, size == min(args.sizes)))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{name} at {size} px ended with exit code {process.exitcode}")


if __name__ == "__main__":
    main()
