"""Memory that runs out in the middle of a call: smaller steps, the same result."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from streamview.errors import MemoryBudgetError
from streamview.streaming import cuda, stream
from streamview.streaming.call import Call
from streamview.streaming.capture.capture import capture
from streamview.streaming.graph import bind
from streamview.streaming.ops.window import Convolution
from streamview.streaming.plan.plan import Plan, make_plan
from streamview.streaming.run.out_of_memory import ran_out, retry_smaller, smaller
from tests.support.networks import Excite, seed_network
from tests.support.oracle import gradients

CPU = (
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error code 12"
)
ERRORS = [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU), MemoryError()]
Starve = Callable[..., list[Exception]]


@pytest.fixture
def starve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Starve]:
    """Let convolutions run out of memory: of an image of more than so many rows, or the `nth` time that one is run or reversed."""

    def arrange(error: Exception, *, rows: int | None = None, nth: int | None = None, method: str = "run") -> list[Exception]:
        original, raised, count = getattr(Convolution, method), [], iter(range(10**9))

        def hungry(self: Convolution, first: Any, *args: Any) -> Any:
            probe = first if isinstance(first, Tensor) else first[0]
            large = rows is not None and (rows == 0 or (probe.shape[1] == 3 and probe.shape[2] > rows))
            if probe.device.type != "meta" and (large or next(count) == nth):
                raised.append(error)
                raise error
            return original(self, first, *args)

        monkeypatch.setattr(Convolution, method, hungry)
        return raised

    yield arrange
    for error in ERRORS:  # whose frames would hold what the run had, for the life of this module
        error.with_traceback(None)


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 3, 72, 60, dtype=torch.float64)


def plain() -> nn.Module:
    torch.manual_seed(0)
    return seed_network(blocks=3).double()


def gated() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.SiLU(), Excite(6), nn.Conv2d(6, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()


def test_what_counts_as_running_out() -> None:
    assert all(map(ran_out, ERRORS))
    assert ran_out(np._core._exceptions._ArrayMemoryError((2, 2), np.dtype(float)))
    assert ran_out(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert not any(map(ran_out, [RuntimeError("shapes cannot be multiplied"), ValueError("out of memory"), KeyboardInterrupt()]))


def test_steps_shrink_to_a_least() -> None:
    shape, tile, found = (5000, 300), (256, 10**6), []
    while (smaller_tile := smaller(tile, shape)) is not None:
        found.append(tile := smaller_tile)
    assert found == [(128, 300), (64, 300), (32, 300), (16, 300), (8, 300), (8, 150), (8, 75), (8, 64)]
    assert smaller((256, 256), (100, 200)) == (50, 200)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("make", [plain, gated])
def test_too_large_a_step_is_made_smaller(
    make: Callable[[], nn.Module], image: Tensor, starve: Starve, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    network = make()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    cotangent = torch.ones_like(network(image))
    expected = gradients(stream(network, tile=(18, 60), check=False), image, list(network.parameters()), cotangent)
    raised = starve(error, rows=34)
    with caplog.at_level(logging.WARNING):
        found = gradients(stream(network, tile=(72, 60), check=False), image, list(network.parameters()), cotangent)
    assert len(raised) == 2
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"cpu ran out of memory in steps of {a} x 60 px; starting again in steps of {b} x 60 px" for a, b in ((72, 36), (36, 18))
    ]
    assert all(torch.allclose(f, e, rtol=1e-10, atol=1e-13) for f, e in zip(found, expected, strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("nth", [0, 2, 4])
@pytest.mark.parametrize("make", [plain, gated])
def test_once_in_the_reverse_pass(make: Callable[[], nn.Module], image: Tensor, starve: Starve, nth: int) -> None:
    network = make()
    cotangent = torch.ones_like(network(image))
    expected = gradients(network, image, list(network.parameters()), cotangent)
    raised = starve(torch.OutOfMemoryError("CUDA out of memory."), nth=nth, method="vjp")
    found = gradients(stream(network, tile=(30, 60), check=False), image, list(network.parameters()), cotangent)
    assert len(raised) == 1
    assert all(torch.allclose(f, e, rtol=1e-9, atol=1e-12) for f, e in zip(found, expected, strict=True))


def test_a_retained_graph_after_memory_ran_out(image: Tensor, starve: Starve) -> None:
    network = plain()
    leaf = image.requires_grad_()
    out = stream(network, tile=(30, 60), check=False)(leaf)
    starve(MemoryError(), nth=2, method="vjp")
    once, again = (torch.autograd.grad(out[0, 0], leaf, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(once, again)
    assert torch.allclose(once, torch.autograd.grad(network(leaf)[0, 0], leaf)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", [pytest.param("run", marks=pytest.mark.slow), "vjp"])
def test_when_nothing_smaller_is_left(image: Tensor, starve: Starve, method: str) -> None:
    network = plain()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    raised = starve(torch.OutOfMemoryError("CUDA out of memory."), rows=0, method=method)
    with pytest.raises(MemoryBudgetError, match=r"^cpu ran out of memory, also in steps of 8 x 60 px: end what else .* smaller region$"):
        stream(network, tile=(64, 60), check=False)(image.requires_grad_()).sum().backward()
    assert len(raised) == 4
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.is_grad_enabled()


def test_other_errors_pass(image: Tensor, starve: Starve) -> None:
    raised = starve(RuntimeError("a defect"), nth=0)
    with pytest.raises(RuntimeError, match="a defect"):
        stream(plain(), tile=(64, 60), check=False)(image)
    assert len(raised) == 1


def test_what_the_failed_attempt_had_is_let_go_before_the_next() -> None:
    class Held:
        alive = 0

        def __init__(self) -> None:
            Held.alive += 1

        def __del__(self) -> None:
            Held.alive -= 1

    seen: list[int] = []

    def attempt(plan: Plan) -> str:
        seen.append(Held.alive)
        held = [Held()]
        held.append(held)  # type: ignore[arg-type]  # a cycle
        if plan.tile[0] > 16:
            raise MemoryError
        return "done"

    graph = capture(seed_network(4, 3))
    call = Call(bind(graph, (64, 64)), 1, torch.float32, None, [weight.read().detach() for weight in graph.weights])
    assert retry_smaller(attempt, call, make_plan(call, tile=(64, 64))) == "done"
    assert seen == [0, 0, 0]


def test_limits_of_callers_that_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least of the limits in force holds, and when the last caller has left, what held before."""
    share = [0.9]
    monkeypatch.setattr(cuda, "release_cache", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=1000))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: share[0])
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda fraction, device: share.__setitem__(0, fraction))
    device = torch.device("cuda", 0)
    first, second = cuda.bounded(device, 500), cuda.bounded(device, 700)
    shares = []
    for change in (first.__enter__, second.__enter__, lambda: first.__exit__(None, None, None), lambda: second.__exit__(None, None, None)):
        change()
        shares.append(share[0])
    assert shares == [0.5, 0.5, 0.7, 0.9]
