"""What streaming costs on a GPU beside conventional autograd: time by device events, peak memory, forecasts, reading."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from streamview_models import MODELS
from torch import Tensor, nn

import streamview
from streamview.inference.compute import Compute
from streamview.inference.explain import forecast
from streamview.inference.passes import forward_pass
from streamview.inference.prepared import prepare
from streamview.inference.reader import read_order
from streamview.progress import Progress
from streamview.results import Precision
from streamview.slides.synthetic import write_synthetic_slide
from streamview.streaming import stream
from streamview.streaming.cuda import full_float32
from streamview.streaming.run.run import Run

__all__ = ["NETWORKS", "SIZES", "Case", "cases", "measure", "measure_slide"]

NETWORKS = ("camelyon17-2048", "resnet18", "resnet50")
SIZES = (2048, 4096, 8192)
KINDS = ("prediction", "saliency", "training")
_REPEATS = 2


@dataclass(frozen=True, slots=True)
class Case:
    """One network on one square image.

    Parameters
    ----------
    network, size
        The network, and the side of its image in px.
    kind
        ``"prediction"``, ``"saliency"`` or ``"training"``.
    precision
        ``"float32"`` (without TF32), ``"tf32"`` or ``"bf16"``, of the weights and the image.
    contestant
        ``"conventional"`` or ``"streamview"``.
    """

    network: str
    size: int
    kind: str
    precision: str
    contestant: str


def cases(sizes: tuple[int, ...] = SIZES) -> Iterator[Case]:
    """What is measured, the small and the important first."""
    for size in sizes:
        for precision, networks in (("float32", NETWORKS), ("bf16", NETWORKS), ("tf32", ("camelyon17-2048",))):
            for network in networks:
                for kind in KINDS if precision == "float32" else KINDS[:2]:
                    for contestant in ("streamview", "conventional"):
                        yield Case(network, size, kind, precision, contestant)


def measure(case: Case, device: torch.device) -> dict[str, Any]:
    """A row: seconds, peak and planned bytes beyond network and image, or why there is none."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    # the faster of both layouts, for conventional autograd and for us
    layout = torch.contiguous_format if case.precision == "float32" else torch.channels_last
    network = _network(case.network).to(device, dtype, memory_format=layout)
    image = torch.rand(1, 3, case.size, case.size, device=device).to(dtype, memory_format=layout)
    module: nn.Module = network if case.contestant == "conventional" else stream(network)
    row: dict[str, Any] = asdict(case)
    try:
        with full_float32(device) if case.precision == "float32" else nullcontext():
            seconds, peak = _timed(lambda: _pass(module, image, case.kind), device)
            row |= {"seconds": seconds, "peak_bytes": peak}
            if not isinstance(module, streamview.streaming.Streamed):
                return row
            with torch.set_grad_enabled(case.kind != "prediction"):
                plan = module.plan((1, 3, case.size, case.size), image_gradient=case.kind == "saliency")
        return row | {"planned_bytes": plan.peak_bytes, "forecast_seconds": plan.seconds, "plan": str(plan)}
    except torch.OutOfMemoryError:
        return row | {"note": "does not fit"}


def _network(name: str) -> nn.Module:
    if name in MODELS:
        return MODELS[name]().eval()
    import torchvision

    network: nn.Module = getattr(torchvision.models, name)(weights=None)
    return network.eval()


def _pass(module: nn.Module, image: Tensor, kind: str) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(kind == "training").grad = None
    leaf = image.detach().requires_grad_(kind == "saliency")
    with torch.set_grad_enabled(kind != "prediction"):
        logits = module(leaf)
    if kind != "prediction":
        logits[0, 0].backward()


def _timed(work: Callable[[], None], device: torch.device) -> tuple[float, int]:
    """The least seconds of some passes after a first one, and the most bytes reserved beyond what was allocated before."""
    work()
    gc.collect()
    _settle(device)
    before, seconds = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0, []
    for _ in range(_REPEATS):
        seconds.append(_seconds(work, device))
    return min(seconds), torch.cuda.max_memory_reserved(device) - before if device.type == "cuda" else 0


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize(device)
    return float(begin.elapsed_time(end)) / 1000


def measure_slide(device: torch.device, size: int = 8192, precision: Precision = "float32") -> dict[str, Any]:
    """A whole call of `streamview.saliency` on a slide: its time, its forecast, and how far reading and computing overlap."""
    model = streamview.load_model("camelyon17-2048", untrained=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.svs"
        write_synthetic_slide(path, size=(size, size), seed=1)
        with streamview.open_slide(path, mpp=8.0) as slide:
            compute = Compute(device=str(device), precision=precision)
            expected = forecast(model, slide, targets=1, compute=compute)
            calls = []
            for _ in range(2):  # the first call also pays for what is set up once
                _settle(device)
                start = time.perf_counter()
                streamview.saliency(model, slide, compute=compute)
                calls.append(time.perf_counter() - start)
            peak = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0
            run = prepare(model, slide, compute=compute)
            start = time.perf_counter()
            plan = run.plan(targets=1)
            planning = time.perf_counter() - start
            with run.reader(run.both) as reader, full_float32(device):
                start = time.perf_counter()
                for rows, columns in read_order(run.both, plan):
                    reader.fetch(rows, columns)
                reading = time.perf_counter() - start
                taken = []
                for _ in range(2):  # the second time the region is on the device, where there is one
                    start = time.perf_counter()
                    forward_pass(Run(run.both, plan), reader, model.card, Progress("forward pass", plan.steps, None), explain=True)
                    _settle(device)
                    taken.append(time.perf_counter() - start)
            both, computing = taken
    return {
        "size": size, "precision": precision, "seconds": min(calls), "first_seconds": calls[0], "peak_bytes": peak,
        "forecast_seconds": expected.seconds, "forecast_bytes": expected.peak_bytes, "planning_seconds": planning,
        "reading_seconds": reading,
        "forward_seconds": computing, "forward_with_reading_seconds": both,
        "overlap": max(0.0, min(1.0, (reading + computing - both) / min(reading, computing))),
    }  # fmt: skip
