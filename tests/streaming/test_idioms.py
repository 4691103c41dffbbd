"""Idioms of published networks that a streamed call must take as torch does: types, layouts, parts of channels, and what is no map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamview.errors import NotStreamableError
from streamview.streaming import stream
from tests.support.oracle import errors

TILE = (16, 24)
TOLERANCE = 1e-10


class Net(nn.Module):
    """Layers at hand as `m`, and a forward pass given from outside."""

    def __init__(self, run: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.linear = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 8)
        self.flat_norm, self.row_norm = nn.GroupNorm(2, 8), nn.InstanceNorm1d(8, affine=True)
        self.register_buffer("scale", torch.rand(1, 8, 1, 1) + 0.5)
        self.register_buffer("wide", torch.rand(1, 8, 1, 1, dtype=torch.float64) + 0.5)
        self.register_buffer("mask", torch.tensor([True, False, True, True, False, True, True, True]))
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def mean(x: Tensor) -> Tensor:
    return x.mean((2, 3))


@pytest.fixture
def image() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, 45, 51, dtype=torch.float64)


def network(run: Callable[[Any, Tensor], Any]) -> Net:
    torch.manual_seed(0)
    return Net(run)


EXACT: dict[str, Callable[[Any, Tensor], Any]] = {
    "a constant expanded to a map": lambda m, x: (lambda y: mean(m.b(y * m.scale.expand_as(y))))(m.a(x)),
    "GroupNorm behind a linear layer": lambda m, x: m.flat_norm(m.linear(mean(m.a(x)))),
    "GroupNorm of three dimensions": lambda m, x: m.flat_norm(F.adaptive_avg_pool2d(m.b(m.a(x)), 2).flatten(2)).mean(2),
    "instance_norm of three dimensions": lambda m, x: F.instance_norm(F.adaptive_avg_pool2d(m.b(m.a(x)), 2).flatten(2)).square().mean(2),
    "GroupNorm of a map and of what is none": lambda m, x: m.flat_norm(mean(m.b(m.flat_norm(m.a(x))))),
    "channels by a boolean buffer": lambda m, x: mean(m.b(m.a(x))[:, m.mask]),
    "channels by a mask computed from their number": lambda m, x: (lambda y: mean(m.b(y)[:, torch.arange(y.size(1)) % 3 != 1]))(m.a(x)),
    "channels counted from the end": lambda m, x: mean(m.b(m.a(x)).narrow(1, -3, 2)),
    "channel counted from the end": lambda m, x: m.b(m.a(x))[:, -2].mean((1, 2)),
}


@pytest.mark.parametrize("name", EXACT)
def test_equals_autograd(name: str, image: Tensor) -> None:
    module = network(EXACT[name]).double()
    assert max(errors(module, image, tile=TILE)) < TOLERANCE


@pytest.mark.parametrize("name", ["a constant expanded to a map", "channels by a boolean buffer"])
def test_within_a_budget(name: str, image: Tensor) -> None:
    """Where plans run the operations on tensors without memory."""
    module = network(EXACT[name]).double()
    assert max(errors(module, image, memory="100MB")) < TOLERANCE


def test_frozen_weights_beside_the_gradient_of_the_image(image: Tensor) -> None:
    module = network(EXACT["a constant expanded to a map"]).double().requires_grad_(False)
    leaf, plain = image.clone().requires_grad_(), image.clone().requires_grad_()
    stream(module, tile=TILE)(leaf).sum().backward()
    module(plain).sum().backward()
    assert (leaf.grad - plain.grad).abs().max() < TOLERANCE


def test_batch_norm_by_a_statistic(image: Tensor) -> None:
    """It cannot be folded into the convolution before it, which is read before the statistic is known."""

    def run(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        s = mean(y).mean(0)
        return mean(F.batch_norm(m.b(y * 2), s, s.exp()))

    with torch.no_grad():
        module = network(run).double()
        assert (stream(module, tile=TILE)(image) - module(image)).abs().max() < TOLERANCE


TYPED: dict[str, Callable[[Any, Tensor], Any]] = {
    "there and back": lambda m, x: mean(m.b((lambda y: y.double().square().to(y.dtype))(m.a(x)))),
    "back to the type of the image": lambda m, x: mean(m.b(m.a(x).double().square().to(x.dtype))),
    "normalised in float32": lambda m, x: (lambda y, z: mean(m.b((z / (z * z).mean(1, keepdim=True).add(1e-6).sqrt()).to(y.dtype))))(
        *(lambda y: (y, y.float()))(m.a(x))
    ),
    "scaled in place by a wider constant": lambda m, x: mean(m.b(m.a(x).mul_(m.wide))),
    "shifted in place by a wider constant": lambda m, x: mean(m.b(m.a(x).add_(m.wide).sub_(m.wide * 2))),
    "softmax in another type": lambda m, x: mean(m.b(torch.softmax(m.a(x), 1, torch.float64).to(x.dtype))),
    "converted at the end": lambda m, x: m.b(m.a(x)).double(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", TYPED)
def test_types_are_those_of_torch(name: str, dtype: torch.dtype, image: Tensor) -> None:
    module = network(TYPED[name]).to(dtype)
    module.wide = module.wide.double()
    leaf, plain = (image.to(dtype).requires_grad_() for _ in range(2))
    expected, actual = module(plain), stream(module, tile=TILE)(leaf)
    assert actual.dtype == expected.dtype
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()
    expected.sum().backward()
    actual.sum().backward()
    assert (leaf.grad - plain.grad).abs().max() <= tolerance * plain.grad.abs().max()


REDUCED: dict[str, Callable[[Any, Tensor], Any]] = {
    "standard deviation": lambda m, x: x.std((2, 3)),
    "norm": lambda m, x: torch.norm(x, dim=(2, 3)),
    "gated by its deviation": lambda m, x: mean(m.b(m.a(x)) * m.a(x).std((2, 3), keepdim=True)),
}


@pytest.mark.parametrize("name", REDUCED)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(name: str, value: float, image: Tensor) -> None:
    module = network(lambda m, x: REDUCED[name](m, m.b(m.a(x)) if name != "gated by its deviation" else x)).double()
    image[0, :, 5, 7] = value
    with torch.no_grad():
        expected, actual = module(image), stream(module, tile=TILE, check=False)(image)
    assert torch.equal(actual.isfinite(), expected.isfinite())
    assert not expected.isfinite().all()


def test_the_deviation_of_one_position_is_not_a_number() -> None:
    module = network(lambda m, x: m.a(x).std((2, 3))).double()
    assert stream(module, check=False)(torch.rand(1, 3, 1, 1, dtype=torch.float64)).isnan().all()


@pytest.mark.parametrize("name", ["GroupNorm", "norm"])
def test_large_values_in_half_precision(name: str, image: Tensor) -> None:
    """Squares of more than 256 overflow in float16, as does the sum of 65,504 squares of one."""
    norms: dict[str, Callable[[Any, Tensor], Any]] = {
        "GroupNorm": lambda m, x: m.flat_norm(m.a(x) * 400),
        "norm": lambda m, x: (lambda y: y / torch.norm(y, dim=(2, 3), keepdim=True))(m.a(x) * 400),
    }
    module = network(norms[name]).half()
    with torch.no_grad():
        actual = stream(module, tile=TILE, check=False)(image.half())
        expected = network(norms[name])(image.float())
    assert actual.isfinite().all()
    assert actual.dtype == torch.float16
    assert (actual - expected).abs().max() < 0.01 * expected.abs().max()


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: (lambda a, b: (a * b).mean(-1))(*m.a(x).view(x.shape[0], 2, 4, -1).chunk(2, 1)),
        pytest.param(lambda m, x: (lambda a, b: (a * b).mean(-1))(*m.a(x).view(x.shape[0], 2, 4, -1).chunk(2, 2)), marks=pytest.mark.slow),
        lambda m, x: m.a(x).view(x.shape[0], 2, 4, -1).flip(1).mean(-1),
        lambda m, x: torch.cat([m.a(x).view(x.shape[0], 2, 4, -1)] * 2, 1).mean(-1),
    ],
    ids=["chunk", "chunk within", "flip", "cat"],
)
def test_parts_of_channels_in_two_dimensions_are_right_or_refused(run: Callable[[Any, Tensor], Any], image: Tensor) -> None:
    module = network(run).double()
    try:
        stream(module, check=False).graph()
    except NotStreamableError:
        return
    assert max(errors(module, image, tile=TILE)) < TOLERANCE


def test_what_is_written_may_be_changed() -> None:
    """Steps on even background hand out what an earlier one gave."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    image = torch.zeros(1, 3, 96, 96)
    image[..., 60:, 60:] = torch.rand(36, 36)
    plain, out = torch.empty(1, 4, 94, 94), torch.empty(1, 4, 94, 94)
    streamed = stream(module, tile=(8, 8))
    streamed.write(lambda rows, cols: image[..., slice(*rows), slice(*cols)], (1, 3, 96, 96), lambda p, r, c: _put(plain, p, r, c))
    streamed.write(lambda rows, cols: image[..., slice(*rows), slice(*cols)], (1, 3, 96, 96), lambda p, r, c: _put(out, p.sigmoid_(), r, c))
    torch.testing.assert_close(out, plain.sigmoid())


def _put(out: Tensor, piece: Tensor, rows: tuple[int, int], cols: tuple[int, int]) -> None:
    out[..., slice(*rows), slice(*cols)] = piece
