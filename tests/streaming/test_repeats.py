"""Steps on even background are not recomputed, and nothing changes; what nothing reaches is not computed in reverse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from streamview.streaming import stream
from streamview.streaming.run import passes as execute
from tests.support.networks import Excite, seed_network
from tests.support.oracle import errors, remembering

pytestmark = pytest.mark.usefixtures("fine_rows")

BLOCKS = 3
TILE = (16, 16)


def network_ending_in(pool: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    network = seed_network(4, BLOCKS).double()
    for index, layer in enumerate(network):
        if isinstance(layer, nn.MaxPool2d):
            network[index] = nn.AvgPool2d(2)  # on even background the greatest of four is a matter of rounding
        elif isinstance(layer, nn.AdaptiveMaxPool2d):
            network[index] = pool
    return network


@pytest.fixture
def slide() -> Tensor:
    """Noise on a quarter of an even background."""
    torch.manual_seed(1)
    image = torch.full((1, 3, 256, 256), 0.8, dtype=torch.float64)
    image[:, :, 64:192, 64:128] = torch.randn(1, 3, 128, 64, dtype=torch.float64)
    return image


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Steps that were computed, forward and in reverse."""
    counts = {"run_step": 0, "backward_step": 0}

    def counting(name: str) -> None:
        function = getattr(execute, name)

        def call(*args: object) -> object:
            counts[name] += 1
            return function(*args)

        monkeypatch.setattr(execute, name, call)

    counting("run_step")
    counting("backward_step")
    return counts


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)], ids=["mean", "max"])
@pytest.mark.parametrize(("saved_steps", "segment"), [(0.0, 0), (0.0, 3), (0.5, 2), (1.0, 0)])
def test_exact_on_even_background(slide: Tensor, pool: nn.Module, saved_steps: float, segment: int) -> None:
    with remembering(saved_steps, segment):
        assert max(errors(network_ending_in(pool), slide, tile=TILE)) < 1e-10
        assert max(errors(network_ending_in(pool).requires_grad_(False), slide, tile=TILE)) < 1e-10


def test_even_steps_are_computed_once(slide: Tensor, counted: dict[str, int]) -> None:
    network = network_ending_in(nn.AdaptiveAvgPool2d(1)).requires_grad_(False)
    leaf = slide.requires_grad_()
    with remembering(1.0, 0):
        stream(network, tile=TILE)(leaf)[0, 0].backward()
    assert counted["run_step"] < 180  # of 256; those at the border of the image and the noise differ
    assert counted["backward_step"] < 180


def test_what_no_gradient_reaches_is_not_computed(slide: Tensor, counted: dict[str, int]) -> None:
    network = network_ending_in(nn.AdaptiveMaxPool2d(1)).requires_grad_(False)
    slide.requires_grad_()
    out = stream(network, tile=TILE, check=False)(slide)
    forward = counted["run_step"]
    out[0, 0].backward()
    assert counted["backward_step"] < 180
    assert counted["run_step"] - forward == counted["backward_step"]  # nor what it saved


def test_a_single_pixel_breaks_the_background(slide: Tensor) -> None:
    network = network_ending_in(nn.AdaptiveAvgPool2d(1))
    slide[0, 1, 230, 230] += 1e-2
    assert max(errors(network, slide, tile=TILE)) < 1e-10
    streamed = stream(network, tile=TILE)
    even = slide.clone()
    even[0, 1, 230, 230] -= 1e-2
    assert not torch.equal(streamed(slide), streamed(even))


def test_constants_with_rows_are_seen() -> None:
    class Positional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 3, padding=1)
            self.rows = nn.Parameter(torch.randn(1, 1, 64, 1))

        def forward(self, x: Tensor) -> Tensor:
            return (self.convolution(x) * self.rows).mean((2, 3))

    image = torch.full((1, 3, 64, 48), 0.5, dtype=torch.float64)
    assert max(errors(Positional().double(), image, tile=(8, 8))) < 1e-10


@pytest.mark.parametrize("across", [nn.Identity(), Excite(4)], ids=["plain", "bridge"])
def test_gradient_of_nothing_is_zero_not_absent(across: nn.Module) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), across, nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    image = torch.randn(1, 3, 40, 40, requires_grad=True)
    grads = torch.autograd.grad((stream(network, tile=TILE)(image) * 0).sum(), [image, *network.parameters()], allow_unused=True)
    assert all(grad is not None and not grad.any() for grad in grads)
