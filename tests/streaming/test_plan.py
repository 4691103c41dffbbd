"""The plan: budgets kept, memory forecast, refusals before the run."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contestants import build_network
from streamview.errors import MemoryBudgetError, RegionError
from streamview.streaming import module
from streamview.streaming.call import Call
from streamview.streaming.capture.capture import capture
from streamview.streaming.graph import Program, bind, demands
from streamview.streaming.memory import format_bytes, parse_bytes, return_freed_blocks
from streamview.streaming.module import stream
from streamview.streaming.ops import winograd
from streamview.streaming.plan.costs import Batch, PassCosts, pass_costs
from streamview.streaming.plan.plan import MEASURED, Plan, make_plan
from streamview.streaming.step import Grid
from streamview.system.machine import resident_memory
from tests.support.networks import seed_network
from tests.support.oracle import remembering

MB = 2**20
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from Linux's /proc")

# A process of its own for each run, as the peak of resident memory never falls: forked, so that torch is imported once.
MEASURE = """
import json, os, re, sys, torch
sys.path.insert(0, {folder!r})
from tests.support.networks import seed_network
from torch.utils.flop_counter import FlopCounterMode
from streamview.streaming import stream
from streamview.streaming.memory import return_freed_blocks
torch.set_num_threads(1)
def memory_of(field):  # ru_maxrss would include what the parent had before exec
    return int(re.search(field + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
def measure(height, width, memory, train):
    def run(module, image):
        out = module(image.requires_grad_(not train))
        (out.sum().backward() if train else torch.autograd.grad(out.sum(), image))
    network = seed_network(16, 4).requires_grad_(train).to(memory_format=torch.channels_last)
    run(stream(network, memory=memory), torch.rand(1, 3, 64, 64))
    image = torch.rand(1, 3, height, width).to(memory_format=torch.channels_last)
    return_freed_blocks()  # what the set-up freed would be used again
    before = memory_of("VmRSS")
    run(network if memory is None else stream(network, memory=memory), image)
    print(json.dumps((memory_of("VmHWM") - before) * 1024), flush=True)
for case in {cases}:
    child = os.fork()
    if not child:
        measure(*case)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, case
"""


def growths(*cases: tuple[int, int, int | None, bool]) -> list[int]:
    """Bytes by which a process of its own grows over both passes, for each height, width, memory and whether it trains."""
    script = MEASURE.format(folder=str(Path(__file__).parents[2]), cases=cases)
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    return [int(json.loads(line)) for line in told.splitlines()]


FAULTS = """
import resource, sys, torch
sys.path.insert(0, {folder!r})
from tests.support.networks import seed_network
from streamview.streaming import stream
torch.set_num_threads(1)
network = seed_network(32, 3).requires_grad_(False).to(memory_format=torch.channels_last)
streamed = stream(network, memory="1GB")
image = torch.rand(1, 3, 2048, 1024).to(memory_format=torch.channels_last).requires_grad_()
plan = streamed.plan(tuple(image.shape))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
streamed(image).sum().backward()
print(plan.steps, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / plan.peak_bytes)
"""


def plan_for(height: int, width: int, memory: int, *, train: bool = False) -> Plan:
    graph = capture(seed_network(16, 4))
    weights = [w.read() for w in graph.weights]
    needs = demands(graph, not train, [train] * len(weights))
    return make_plan(Call(bind(graph, (height, width)), 1, torch.float32, needs, weights), memory=memory)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train", "width", "budget"),
    [
        pytest.param(True, 512, 48 * MB, id="training"),
        pytest.param(True, 1024, 96 * MB, id="training, wide", marks=pytest.mark.slow),
        pytest.param(False, 1024, 96 * MB, id="saliency", marks=pytest.mark.slow),
    ],
)
def test_a_budget_is_kept_whatever_the_height(train: bool, width: int, budget: int) -> None:
    heights = 768, 1536
    image = heights[1] * width * 3 * 4  # the gradient of the image, which the caller asked for, is his
    *within, conventional = growths(*((height, width, budget, train) for height in heights), (heights[0], width, None, train))
    assert max(within) <= budget + image
    assert conventional > 2 * budget


@pytest.mark.parametrize(
    ("width", "budget"),
    [(512, 100 * MB), pytest.param(1024, 300 * MB, marks=pytest.mark.slow), pytest.param(1024, 96 * MB, marks=pytest.mark.slow)],
)
def test_peak_is_forecast(width: int, budget: int) -> None:
    height = 2 * width
    predicted = plan_for(height, width, budget, train=True).peak_bytes
    (measured,) = growths((height, width, budget, True))
    assert 0.8 * measured < predicted < 1.25 * measured


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_freed_memory_is_used_again() -> None:
    """A step finds the memory of the one before it: the pages that a call asks the system for are those that it takes at its peak."""
    script = FAULTS.format(folder=str(Path(__file__).parents[2]))
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    steps, times = map(float, told.split())
    assert steps > 8
    assert times < 1.2


def test_more_memory_saves_more_steps() -> None:
    small, large = plan_for(2048, 1024, 90 * MB, train=True), plan_for(2048, 1024, 4096 * MB, train=True)
    assert small.saved_steps < small.steps
    assert large.saved_steps == large.steps
    assert small.peak_bytes <= 90 * MB < large.peak_bytes


def test_saved_activations_change_nothing() -> None:
    torch.manual_seed(0)
    network = seed_network(4, 3).double()
    image = torch.randn(1, 3, 400, 90, dtype=torch.float64, requires_grad=True)
    found = [torch.autograd.grad(stream(network, **how)(image).sum(), image)[0] for how in ({"memory": "1GB"}, {"tile": (33, 90)})]
    assert (found[0] - found[1]).abs().max() <= 1e-12 * found[0].abs().max()


@pytest.fixture
def without_winograd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every convolution by torch: where it is not, which the processor decides, there are fewer operations and more memory."""
    monkeypatch.setattr(winograd, "suits", lambda *how: False)


def averaging(network: torch.nn.Sequential) -> torch.nn.Sequential:
    """With a mean in the place of the maximum, which leaves most gradients zero: those are not computed."""
    return torch.nn.Sequential(*(torch.nn.AdaptiveAvgPool2d(1) if isinstance(m, torch.nn.AdaptiveMaxPool2d) else m for m in network))


@pytest.mark.parametrize("train", [False, True], ids=["saliency", "training"])
@pytest.mark.parametrize("memory", ["21MB", *(pytest.param(memory, marks=pytest.mark.slow) for memory in ("26MB", "40MB")), "1GB"])
def test_operations_are_forecast(memory: str, train: bool, without_winograd: None) -> None:
    network = averaging(seed_network(16, 4)).requires_grad_(train)
    image = torch.rand(1, 3, 512, 512, requires_grad=not train)
    streamed = stream(network, memory=memory)
    plan = streamed.plan((1, 3, 512, 512), image_gradient=not train, seconds=False)
    counts = []
    for contestant in (network, streamed):
        with FlopCounterMode(display=False) as counter:
            contestant(image).sum().backward()
        counts.append(counter.get_total_flops())
    assert plan.operations == pytest.approx(counts[1], rel=0.05)
    assert plan.overhead == pytest.approx(counts[1] / counts[0], rel=0.05)
    assert plan.overhead <= (1.34 if train else 1.505)
    assert plan.saves == ("maps" if train else "bits")


@pytest.mark.slow
def test_smooth_activations_keep_maps_and_cost_half_more_where_they_do_not_fit() -> None:
    network = torch.nn.Sequential(*(torch.nn.GELU() if isinstance(m, torch.nn.ReLU) else m for m in seed_network(8, 4)))
    network.requires_grad_(False)
    small, large = (stream(network, memory=memory).plan((1, 3, 512, 512), seconds=False) for memory in ("10MB", "1GB"))
    assert small.saves == large.saves == "maps"
    assert large.overhead == 1
    assert 1.4 < small.overhead <= 1.505


@pytest.mark.slow
def test_little_memory_takes_segments_then_a_file(without_winograd: None) -> None:
    budgets = (220, 100, 24)
    plans = [plan_for(16384, 1024, budget * MB) for budget in budgets]
    assert plans[0].saved_steps == plans[0].steps
    assert plans[1].passes[0].segment
    assert not plans[1].passes[0].spill
    assert plans[2].passes[0].spill
    for plan, budget in zip(plans, budgets, strict=True):
        assert plan.peak_bytes <= budget * MB
    assert [plan.overhead for plan in plans] == sorted(plan.overhead for plan in plans)


@pytest.mark.parametrize("train", [False, True], ids=["saliency", "training"])
def test_the_memory_of_a_kernels_gradient_is_planned_where_it_is_wanted(train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = []
    for least_channels in (2**30, 1):
        monkeypatch.setattr(winograd, "_CHANNELS", {"output": 2**30, "input": 2**30, "kernel": least_channels})
        peaks.append(plan_for(512, 512, 1000 * MB, train=train).peak_bytes)
    assert (peaks[1] > peaks[0]) == train


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> int:
        raise OSError(28, "No space left on device")

    image = torch.randn(1, 3, 128, 96, requires_grad=True)
    monkeypatch.setattr("os.pwrite", full)
    with (
        remembering(0.0, 1, spill=True),
        pytest.raises(MemoryBudgetError, match=r"written to .*: No space left on device; free space there"),
    ):
        stream(seed_network(4, 3), tile=(32, 96))(image)


def test_plan_of_a_call() -> None:
    network = seed_network(8, 3)
    streamed = stream(network, memory="1GB")
    plan = streamed.plan((1, 3, 256, 256))
    assert 0 < plan.seconds < 60
    assert plan.saved_steps == plan.steps
    with torch.no_grad():
        forward = streamed.plan((1, 3, 256, 256), seconds=False)
    assert forward.saves == "nothing"
    assert forward.peak_bytes < plan.peak_bytes
    assert forward.operations < plan.operations
    assert str(plan).startswith("1 step of 256 x 256 px, activations of 1 saved, none recomputed: peak memory ")
    with pytest.raises(RegionError, match="too small"):
        streamed.plan((1, 3, 3, 3))


def test_plan_of_given_steps() -> None:
    plan = stream(seed_network(8, 3), tile=(64, 256)).plan((1, 3, 256, 256), seconds=False)
    assert (plan.tile, plan.steps, plan.saved_steps) == ((64, 256), 4, 0)
    assert plan.overhead == pytest.approx(1.33, abs=0.02)
    assert plan.peak_bytes > 0


def test_a_plan_is_made_once_for_calls_that_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = module.make_plan
    monkeypatch.setattr(module, "make_plan", lambda *args, **how: made.append(real(*args, **how)) or made[-1])
    streamed = stream(seed_network(4, 3), memory="1GB")
    for size in (64, 64, 96, 96):
        streamed(torch.rand(1, 3, size, size)).sum().backward()
    with torch.no_grad():
        streamed(torch.rand(1, 3, 96, 96))
    assert len(made) == 3


def test_planning_counts_as_no_work() -> None:
    network, image = seed_network(8, 3).eval(), torch.rand(1, 3, 128, 128)
    counts = []
    for contestant in (network, stream(network)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            contestant(image)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


@pytest.mark.slow
def test_wide_images_are_cut_into_tiles() -> None:
    plan = plan_for(256, 60_000, 100 * MB)
    assert plan.tile[1] < 60_000
    assert plan.peak_bytes <= 100 * MB


def test_no_tensor_of_a_step_reaches_the_elements_where_torch_fails() -> None:
    plan = plan_for(8192, 600_000, 2**44)
    assert 16 * plan.tile[0] * plan.tile[1] < 2**31


def test_a_tile_of_so_many_elements_is_refused_whatever_the_memory() -> None:
    streamed = stream(seed_network(8, 3).eval(), tile=(2**14, 2**14), memory=2**44, check=False)
    with pytest.raises(MemoryBudgetError, match=r"^an image of 16384 x 16384 px: every step .* give a smaller tile or fewer images$"):
        streamed.plan((1, 3, 2**14, 2**14), seconds=False)


def test_refused_before_running() -> None:
    with pytest.raises(MemoryBudgetError, match=r"needs at least \d+ MB more memory .* budget leaves 1 MB: give more memory"):
        plan_for(1024, 1024, MB)


@pytest.mark.parametrize(("text", "amount"), [("2GB", 2**31), ("1.5 gb", 3 * 2**29), ("512MB", 2**29), (1000, 1000), ("3GiB", 3 * 2**30)])
def test_amounts(text: str | int, amount: int) -> None:
    assert parse_bytes(text) == amount


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "two", 0])
def test_amounts_that_are_none(text: str | int) -> None:
    with pytest.raises(MemoryBudgetError, match="expected an amount such as 2GB"):
        parse_bytes(text)


def test_amounts_for_people() -> None:
    assert [format_bytes(n) for n in (12, 3 * 2**20, 2.5 * 2**30)] == ["12 B", "3 MB", "2.5 GB"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators give memory back in ways of their own")
def test_what_earlier_work_freed_does_not_count_against_a_budget():
    blocks = [bytes(1000) for _ in range(300_000)]
    pin = bytes(1000)
    full = resident_memory()
    del blocks
    return_freed_blocks()
    assert resident_memory() < full - 250 * 10**6
    assert len(pin) == 1000


def test_few_shapes_are_walked_where_the_first_have_blocks_too_large_for_reuse(monkeypatch: pytest.MonkeyPatch) -> None:
    walked = []

    def walk(program: Program, grid: Grid, batch: Batch) -> PassCosts:
        walked.append(grid)
        return pass_costs(program, grid, batch)

    monkeypatch.setattr("streamview.streaming.plan.plan.pass_costs", walk)
    network = nn.Sequential(nn.Conv2d(3, 96, 3, padding=1), nn.ReLU(), nn.Conv2d(96, 4, 3, padding=1))
    plan = stream(network, memory="20GB").plan((1, 3, 2048, 2048), seconds=False)
    assert plan.block_bytes < MEASURED.reused_block, "the fastest shapes at this width have larger blocks"
    assert len(walked) == 1


@pytest.mark.slow
def test_a_few_blocks_too_large_for_reuse_do_not_give_up_the_reuse_of_all_others() -> None:
    plan = stream(build_network("convnext_tiny"), memory="5GB").plan((1, 3, 2048, 2048), seconds=False)
    assert plan.block_bytes >= MEASURED.reused_block, "the last step holds all rows that were held back"
    assert plan.freed == "reused"
