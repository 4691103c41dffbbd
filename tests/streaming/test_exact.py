"""Streamed equals whole-image autograd in float64: output, gradient of the image, gradient of every weight."""

import re
from collections import Counter
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from streamview_models import MODELS
from torch import nn

from streamview.errors import StreamviewError
from streamview.streaming import step
from tests.support.networks import Case, cases, seed_network
from tests.support.oracle import captured, errors, joined, jumps, remembering

pytestmark = pytest.mark.usefixtures("fine_rows")

TOLERANCE = 1e-10
JUMPS = "torch's own gradient jumps there"
SETTINGS = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def outcome(case: Case) -> str:
    """``"exact"``, or why the network was refused; anything else raises."""
    try:
        joined(case.network(case.image.clone().requires_grad_())).sum().backward()
    except RuntimeError:
        return "torch itself refuses it"  # the image, or a value needed for the backward pass, was changed in place
    try:
        worthwhile, remembered = (
            mock.patch.object(step, "_WORTHWHILE", case.worthwhile),
            remembering(case.saved_steps, case.segment, case.spill),
        )
        with captured(case.exported), worthwhile, remembered:
            output, *gradients = errors(case.network, case.image, tile=case.tile, barriers=case.barriers)
    except StreamviewError as refusal:
        return re.sub(r"[\w.]*\d[\w.]*", "#", str(refusal))
    assert output < TOLERANCE
    if max(gradients) >= TOLERANCE and jumps(case.network, case.image):
        return JUMPS
    assert max(gradients) < TOLERANCE
    return "exact"


def check(case: Case) -> None:
    reason = outcome(case)
    assume(reason not in ("torch itself refuses it", JUMPS))
    assert reason == "exact" or "shares memory with a slice" in reason, reason  # the one refusal that a random network may earn


@pytest.mark.parametrize("examples", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_random_networks(examples: int) -> None:
    @settings(max_examples=examples, derandomize=True, **SETTINGS)
    @given(cases())
    def run(case: Case) -> None:
        check(case)

    run()


@pytest.mark.parametrize("examples", [6, pytest.param(12, marks=pytest.mark.slow)])
def test_random_networks_by_torch_export(examples: int) -> None:
    @settings(max_examples=examples, derandomize=True, **SETTINGS)
    @given(cases(exported=1))
    def run(case: Case) -> None:
        outcome(case)

    run()


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_two_thousand_random_networks(capsys: pytest.CaptureFixture[str]) -> None:
    """None wrong, none crashing; what is refused is counted by its reason."""
    reasons: Counter[str] = Counter()

    @settings(max_examples=2000, database=None, phases=[Phase.generate], **SETTINGS)
    @given(cases(exported=0.25))
    def run(case: Case) -> None:
        reasons[f"{'torch.export' if case.exported else 'torch.fx'}: {outcome(case)}"] += 1

    run()
    with capsys.disabled():
        print(*(f"{count:5} {reason}" for reason, count in reasons.most_common()), sep="\n")


def randomise_statistics(network: nn.Module) -> nn.Module:
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.normal_(layer.weight, 1, 0.2)
            nn.init.normal_(layer.bias)
    return network


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("tile", [(64, 10_000), (37, 51)], ids=["strips", "tiles"])
def test_registry(name: str, tile: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = randomise_statistics(MODELS[name](outputs=3, width=2)).double().eval()
    size = {"imagenette": (333, 341), "camelyon17-8192": (261, 301), "tupac16-8192": (261, 301)}.get(name, (197, 163))
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    assert max(errors(network, image, tile=tile)) < TOLERANCE


@pytest.mark.parametrize("tile", [(1, 70), (70, 1), (3, 5), (1000, 1000), (33, 17)])
def test_extreme_tiles(tile: tuple[int, int]) -> None:
    torch.manual_seed(1)
    network = seed_network(blocks=4).double()
    image = torch.randn(1, 3, 43, 70, dtype=torch.float64)
    assert max(errors(network, image, tile=tile)) < TOLERANCE


def test_gradcheck() -> None:
    torch.manual_seed(2)
    from streamview.streaming import stream

    network = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.GELU(), nn.AvgPool2d(2, ceil_mode=True), nn.Flatten()).double()
    streamed = stream(network, tile=(3, 4))
    image = torch.randn(1, 3, 7, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: streamed(x), (image, *network.parameters()))


def test_two_runs_are_bitwise_equal() -> None:
    torch.manual_seed(3)
    from streamview.streaming import stream

    network = seed_network(8, 4)
    image = torch.randn(1, 3, 96, 128)
    runs = []
    for _ in range(2):
        leaf = image.clone().requires_grad_()
        out = stream(network, tile=(32, 128))(leaf)
        runs.append([out, *torch.autograd.grad(out[0, 0], [leaf, *network.parameters()])])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
