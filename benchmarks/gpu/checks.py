"""What must hold on a GPU: each check returns what it saw, and raises `AssertionError` where that is wrong."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from streamview_models import MODELS
from torch import Tensor, nn

import streamview
from streamview.errors import StreamviewError
from streamview.finetuning import Settings, finetune
from streamview.inference.compute import PRECISIONS, Compute
from streamview.inference.prepared import prepare
from streamview.labels.regions import read_labels
from streamview.slides.synthetic import write_synthetic_slide
from streamview.streaming.cuda import bounded
from streamview.streaming.cuda import full_float32 as in_full_float32
from streamview.streaming.run import out_of_memory as shortage
from tests.support.networks import Case, Excite, cases
from tests.support.oracle import errors, gradients, joined, remembering

__all__ = ["CHECKS", "Check"]

Check = Callable[[torch.device], str]
EXACT = 1e-10  # largest error of float64, relative to the largest value
_STRAY = 1e-6  # likewise between devices: some kernels of CUDA compute in float32, such as that of Hardswish


def head(channels: int, pool: type[nn.Module] = nn.AdaptiveAvgPool2d) -> list[nn.Module]:
    """A pooled linear head for two classes."""
    return [pool(1), nn.Flatten(), nn.Linear(channels, 2)]


def networks() -> Iterator[tuple[str, nn.Module]]:
    """Small networks of every kind: plain, with statistics of whole maps, deep."""
    first = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)]
    yield "plain", nn.Sequential(*first, nn.ReLU(), nn.MaxPool2d(2), *head(16, nn.AdaptiveMaxPool2d))
    for name, whole in (("group norm", nn.GroupNorm(4, 16)), ("squeeze-excitation", Excite(16))):
        layers = [nn.Conv2d(3, 16, 3, stride=2, padding=1), whole, nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3, padding=1), nn.GELU()]
        yield name, nn.Sequential(*layers, *head(16))
    yield "resnet18", MODELS["resnet18"](width=16)
    yield "camelyon17-2048", MODELS["camelyon17-2048"](width=4)


def exact(device: torch.device) -> str:
    """Output and all gradients in float64, in strips and tiles, with and without saved activations, with barriers in every way."""
    worst = 0.0
    for name, network in networks():
        network = network.double().eval().to(device)
        image = torch.randn(1, 3, 288, 320, dtype=torch.float64, device=device)
        whole = name in ("group norm", "squeeze-excitation")
        ways: list[dict[str, Any]] = [{"tile": (64, 96)}, {"tile": (96, 320), "memory": "1GB"}, {"memory": "2GB"}]
        ways += [{"tile": (96, 320), "barriers": way} for way in ("kept", "spilled", "regenerated") if whole]
        for how in ways:
            error = max(errors(network, image, **how))
            assert error < EXACT, f"{name} by {how}: {error:.1e}"
            worst = max(worst, error)
    return f"worst error {worst:.1e}"


def random_networks(device: torch.device, count: int = 100) -> str:
    """As `exact`, of random networks; where torch's own kernels on the device stray from those of the CPU, the CPU decides."""
    worst, done, strayed = 0.0, 0, 0

    @settings(max_examples=count, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(cases())
    def check(case: Case) -> None:
        nonlocal worst, done, strayed
        network, image = case.network.to(device), case.image.to(device)
        try:
            joined(network(image.clone().requires_grad_())).sum().backward()
        except RuntimeError:
            return  # torch itself refuses
        how: dict[str, Any] = {"tile": case.tile, "barriers": case.barriers}
        try:
            with remembering(case.saved_steps, case.segment, case.spill):
                error = max(errors(network, image, **how))
                if error >= EXACT and _far_from_cpu(network, image, how) < _STRAY:
                    strayed += 1
                    return
        except StreamviewError:
            return
        assert error < EXACT, f"{error:.1e}: {case}"
        worst, done = max(worst, error), done + 1

    check()
    assert done >= count // 2, f"only {done} of {count} were compared"
    return f"{done} networks, worst error {worst:.1e}; {strayed} more where torch's kernels there are wrong and ours agree with the CPU"


def _far_from_cpu(network: nn.Module, image: Tensor, how: dict[str, Any]) -> float:
    """Largest difference between the streamed network where it is and the plain one on the CPU, relative to the largest value of each."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    cotangent = torch.randn_like(joined(network(image.clone())))
    streamed = gradients(streamview.stream(network, **how), image, parameters, cotangent)
    plain = copy.deepcopy(network).cpu()
    expected = gradients(plain, image.cpu(), [p for p in plain.parameters() if p.requires_grad], cotangent.cpu())
    pairs = [(a.cpu(), b) for a, b in zip(streamed, expected, strict=True) if a is not None and b is not None and b.numel()]
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in pairs)


def full_float32(device: torch.device) -> str:
    """A float32 saliency run has the errors of float32, not of TF32 (a thousand times larger), whatever the user's flags are."""
    # no ReLU and no maximum, which the last digit may decide otherwise
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.Softplus(), nn.Conv2d(32, 32, 3, 2, 1), nn.Softplus(), nn.Conv2d(32, 32, 3, padding=1)]
    network = nn.Sequential(*layers, nn.Softplus(), *head(32)).eval().to(device)
    image = torch.rand(1, 3, 512, 512, device=device)
    cotangent = first_logit(network, image)
    with in_full_float32(device):
        streamed = gradients(streamview.stream(network, tile=(128, 512)), image, [], cotangent)[1]
    truth = gradients(network.double(), image.double(), [], cotangent.double())[1]
    far = float((streamed.double() - truth).norm() / truth.norm())
    assert far < 1e-5, f"relative L2 to float64 {far:.1e}"
    return f"relative L2 to float64 {far:.1e}"


def first_logit(network: nn.Module, image: Tensor) -> Tensor:
    """The gradient of the first logit at the output."""
    with torch.no_grad():
        cotangent = torch.zeros_like(network(image))
    cotangent[0, 0] = 1
    return cotangent


def flags_are_restored(device: torch.device) -> str:
    """A prediction leaves the user's settings of TF32 as they are."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    streamview.predict(streamview.load_model("demo"), np.full((512, 512, 3), 200, np.uint8), mpp=0.5, compute=Compute(device=str(device)))
    after = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    assert before == after, f"{before} became {after}"
    return f"TF32 {before[0]}, {before[1]} before and after"


def same_bits(device: torch.device) -> str:
    """Two passes give the same prediction and map to the last bit."""
    network = MODELS["camelyon17-2048"](width=8).eval().to(device)
    image = torch.rand(1, 3, 1024, 1024, device=device)
    cotangent = first_logit(network, image)
    first, second = (gradients(streamview.stream(network), image, [], cotangent) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    return "prediction and map bitwise equal"


def memory_runs_out(device: torch.device) -> str:
    """A plan of steps far too large recovers in smaller ones, with the same gradient."""
    network = MODELS["resnet18"]().double().eval().to(device).requires_grad_(False)
    image = torch.rand(1, 3, 2048, 1536, dtype=torch.float64, device=device)
    cotangent = first_logit(network, image[:, :, :256, :256])
    expected = gradients(streamview.stream(network, tile=(256, 1536)), image, [], cotangent)[1]
    refused_rows: list[str] = []
    original = shortage.smaller

    def smaller(tile: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int] | None:
        refused_rows.append(f"{tile[0]}")
        return original(tile, shape)

    shortage.smaller = smaller
    try:
        with bounded(device, torch.cuda.memory_reserved(device) + 2**29):
            gradient = gradients(streamview.stream(network, tile=(2048, 1536)), image, [], cotangent)[1]
    finally:
        shortage.smaller = original
    assert refused_rows, "0.5 GB was enough for all"
    difference = float((gradient - expected).abs().max() / expected.abs().max())
    assert difference < EXACT, f"differs by {difference:.1e}"
    return f"after steps of {', '.join(refused_rows)} rows; difference {difference:.1e}"


def memory_is_bounded(device: torch.device) -> str:
    """A saliency run reserves no more than its ``memory``, twice in one process."""
    model = streamview.load_model("resnet18", untrained=True)
    pixels = np.random.default_rng(0).integers(0, 255, (4096, 4096, 3), np.uint8)
    peaks = []
    for _ in range(2):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        streamview.saliency(model, pixels, compute=Compute(device=str(device), memory="1.5GB"))
        peaks.append(torch.cuda.max_memory_reserved(device) / 2**30)
    assert max(peaks) <= 1.5, f"reserved {peaks} GB of 1.5"
    return f"peaks {peaks[0]:.2f} and {peaks[1]:.2f} GB of 1.5"


def reading_is_pinned(device: torch.device) -> str:
    """Parts of a slide are decoded ahead into pinned memory, and the map equals that of the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.svs"
        write_synthetic_slide(path, size=(1536, 2048), seed=3)
        model = streamview.load_model("demo")
        with streamview.open_slide(path) as slide:
            run = prepare(model, slide, compute=Compute(device=str(device)))
            with run.reader(run.forward) as reader:
                assert reader.reads_ahead
                assert reader.fetch((0, 64), (0, 64)).is_pinned()
            maps = [streamview.saliency(model, slide, compute=Compute(device=name)) for name in (str(device), "cpu")]
    ours, theirs = (np.asarray(found.maps["absolute"].values, np.float64) for found in maps)
    far = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    assert far < 1e-2, f"relative L2 to the CPU's map {far:.1e}"
    return f"relative L2 to the CPU's map {far:.1e}"


def half_precision(device: torch.device) -> str:
    """bf16 and fp16 answer nearly as float32."""
    model = streamview.load_model("demo")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.svs"
        write_synthetic_slide(path, size=(1024, 1024), seed=5)
        with streamview.open_slide(path) as slide:
            computes = [Compute(device=str(device), precision=precision) for precision in PRECISIONS]
            results = {compute.precision: streamview.saliency(model, slide, compute=compute) for compute in computes}
    full = np.asarray(results["float32"].maps["absolute"].values)
    lines = []
    for precision in ("bf16", "fp16"):
        apart = float(np.abs(results[precision].prediction.probabilities - results["float32"].prediction.probabilities).max())
        same = float(np.corrcoef(full.ravel(), np.asarray(results[precision].maps["absolute"].values).ravel())[0, 1])
        assert apart < 0.05, f"{precision}: probability off by {apart:.3f}"
        assert same > 0.8, f"{precision}: correlation of the maps {same:.3f}"
        lines.append(f"{precision} probability off by {apart:.4f}, correlation of the maps {same:.3f}")
    return "; ".join(lines)


def fine_tuning(device: torch.device) -> str:
    """Fine-tuning runs, and its loss stays finite."""
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for number in range(8):
            write_synthetic_slide(Path(folder) / f"s{number}.svs", size=(512, 512), seed=number)
            rows.append(f"s{number}.svs,{('normal', 'lesion')[number % 2]},p{number}")
        table = Path(folder) / "labels.csv"
        table.write_text("slide_id,label,patient_id\n" + "\n".join(rows) + "\n")
        model = streamview.load_model("demo")
        result = finetune(model, read_labels(table), Settings(epochs=1), device=str(device), force=True)
    losses = result.history.losses
    assert len(losses)
    assert np.isfinite(losses).all()
    return f"{len(losses)} steps of the optimiser, last loss {losses[-1]:.3f}"


def large_steps(device: torch.device) -> str:
    """The plan of a large region takes few, large steps."""
    network = MODELS["camelyon17-2048"]().eval().to(device).requires_grad_(False)
    plan = streamview.stream(network).plan((1, 3, 8192, 8192), seconds=False)
    assert plan.steps <= 32, str(plan)
    return str(plan)


CHECKS: tuple[Check, ...] = (
    exact, full_float32, flags_are_restored, same_bits, large_steps, memory_runs_out, memory_is_bounded, reading_is_pinned, half_precision,
    fine_tuning, random_networks,
)  # fmt: skip
