"""How far forecasts are from what happens: memory and time of twenty combinations of network, size, budget and task.

    OMP_WAIT_POLICY=passive python -m benchmarks.forecasts [--only 0 3] [--json benchmarks/results.jsonl]

Memory: `Streamed.plan` against the growth of the peak resident memory (VmHWM of Linux) over the call, without the image but with its
gradient, in a process of its own. Time: the same against the process time of the call, both of all threads, in another process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.contestants import build_network
from benchmarks.report import forecasts
from benchmarks.worker import describe_machine
from streamview.streaming import module, stream
from streamview.streaming.memory import return_freed_blocks
from streamview.streaming.run.timing import measure
from streamview.system.machine import peak_memory, resident_memory

COMBINATIONS = (
    ("camelyon17-2048", 1024, "saliency", "400MB"),
    ("camelyon17-2048", 2048, "saliency", "1GB"),
    ("camelyon17-2048", 2048, "training", "900MB"),
    ("camelyon17-2048", 4096, "forward", "600MB"),
    ("resnet18", 2048, "forward", "500MB"),
    ("resnet18", 2048, "training", "700MB"),
    ("resnet18", 4096, "saliency", "700MB"),
    ("resnet34", 2048, "saliency", "350MB"),
    ("resnet50", 1024, "training", "1GB"),
    ("convnext_tiny", 1024, "saliency", "2GB"),
    ("camelyon17-2048", 1024, "training", "3GB"),
    ("camelyon17-2048", 2048, "saliency", None),
    ("resnet18", 1024, "forward", "300MB"),
    ("resnet18", 2048, "saliency", "250MB"),
    ("resnet18", 2048, "training", None),
    ("resnet34", 1024, "training", "600MB"),
    ("resnet50", 2048, "saliency", "1GB"),
    ("convnext_tiny", 1024, "forward", "500MB"),
    ("efficientnet_b0", 1024, "saliency", "1GB"),
    ("unet", 1024, "saliency", "1GB"),
)


def call(number: int, timed: bool) -> dict[str, float]:
    """Forecast and measure one combination in this process."""
    name, side, task, memory = COMBINATIONS[number]
    torch.manual_seed(0)
    network = build_network(name).to(memory_format=torch.channels_last).requires_grad_(task == "training")
    streamed = stream(network, memory=memory)
    image = torch.randn(1, 3, side, side).to(memory_format=torch.channels_last).requires_grad_(task == "saliency")
    torch.set_grad_enabled(task != "forward")
    _run(streamed, torch.randn(1, 3, 256, 256).requires_grad_(task == "saliency"), task)  # what torch sets up once
    module.measure = lambda *args: measure(*args, clock=time.process_time)
    plan = streamed.plan((1, 3, side, side), image_gradient=task == "saliency", seconds=timed)
    return_freed_blocks()  # what the set-up freed would be used again
    before, start = resident_memory(), time.process_time()
    _run(streamed, image, task)
    seconds = time.process_time() - start
    return {
        "predicted_bytes": plan.peak_bytes,
        "bytes": peak_memory() - before,
        "predicted_seconds": plan.seconds or 0.0,
        "seconds": seconds,
        "overhead": plan.overhead,
        "load": os.getloadavg()[0],
    }


def _run(streamed: nn.Module, image: Tensor, task: str) -> None:
    out = streamed(image)
    if task != "forward":
        out[0, 0].backward()
    streamed.zero_grad()


def main() -> None:
    """Print one row for each combination."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="+", default=range(len(COMBINATIONS)), help="numbers of combinations, from 0")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the rows with those of benchmarks.peers")
    parser.add_argument("--call", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.call:
        print(json.dumps(call(args.call[0], bool(args.call[1]))))
        return
    for number in args.only:
        found = []
        for timed in (0, 1):
            command = [sys.executable, "-m", "benchmarks.forecasts", "--call", str(number), str(timed)]
            found.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
        memory, timing = found
        name, side, task, budget = COMBINATIONS[number]
        row = {"forecast": number, "network": name, "size": side, "kind": task, "budget": budget, "machine": describe_machine("cpu")}
        row |= {"predicted_bytes": memory["predicted_bytes"], "bytes": memory["bytes"], "overhead": memory["overhead"]}
        row |= {"predicted_seconds": timing["predicted_seconds"], "seconds": timing["seconds"], "load": timing["load"]}
        print(forecasts([row]).splitlines()[-1], flush=True)
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
