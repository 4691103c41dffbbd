"""Streamed equals whole-image autograd in float64: output, gradient of the image, gradient of every weight."""

from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from networks import Case, cases, seed_network
from oracle import errors, remembering
from streamview_models import MODELS
from torch import nn

from streamview.errors import NotStreamableError
from streamview.streaming import step

pytestmark = pytest.mark.usefixtures("fine_rows")

TOLERANCE = 1e-10
SETTINGS = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def check(case: Case) -> None:
    try:
        case.network(case.image.clone().requires_grad_()).sum().backward()
    except RuntimeError:
        assume(False)  # torch itself refuses: the image, or a value needed for the reverse pass, was changed in place
    try:
        with mock.patch.object(step, "_WORTHWHILE", case.worthwhile), remembering(case.tapes, case.segment, case.spill):
            worst = max(errors(case.network, case.image, tile=case.tile, barriers=case.barriers))
        assert worst < TOLERANCE
    except NotStreamableError as refusal:
        assert "shares memory with a slice" in str(refusal)  # noqa: PT017 - the one refusal that a random network may earn


@settings(max_examples=500, derandomize=True, **SETTINGS)
@given(cases())
def test_random_networks(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=3000, **SETTINGS)
@given(cases())
def test_many_random_networks(case: Case) -> None:
    check(case)


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
