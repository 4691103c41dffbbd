"""An image that is read in pieces gives what the whole image gives; every step is told, and can end the pass."""

import pytest
import torch
from torch import nn

from streamview.streaming import LazyImage, stream
from tests.support.networks import seed_network

TILE = (16, 24)
SIZE = (45, 51)


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return seed_network(blocks=3).double()


@pytest.fixture
def image() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, *SIZE, dtype=torch.float64)


def counted(image):
    """The image read in pieces, and the pieces that were read."""
    pieces = []

    def read(rows, cols):
        pieces.append((rows, cols))
        return image[:, :, rows[0] : rows[1], cols[0] : cols[1]].clone()

    return LazyImage((2, 3, *SIZE), read, image.dtype, image.device), pieces


def test_outputs_and_gradients_are_those_of_the_whole_image(network, image):
    lazy, pieces = counted(image)
    streamed = stream(network, tile=TILE)
    parameters = list(network.parameters())
    expected, found = streamed(image), streamed(lazy)
    assert found.equal(expected)
    steps = streamed.plan((2, 3, *SIZE), image_gradient=False, seconds=False).steps
    assert len(pieces) == steps
    covered = torch.zeros(SIZE, dtype=torch.int)
    for rows, cols in pieces:
        covered[rows[0] : rows[1], cols[0] : cols[1]] += 1
    assert covered.eq(1).all()
    cotangent = torch.randn_like(expected)
    for a, b in zip(torch.autograd.grad(found, parameters, cotangent), torch.autograd.grad(expected, parameters, cotangent), strict=True):
        assert a.equal(b)


def test_features_and_head_are_the_network(network, image):
    streamed = stream(network, tile=TILE)
    lazy, _ = counted(image)
    with torch.no_grad():
        features = streamed.features(lazy)
        assert streamed.head(features).equal(streamed(image))
        # the head can be asked again, and before the body was ever run
        assert stream(network, tile=TILE).head(features).equal(streamed(image))
    assert sum(t.numel() for t in features) < image.numel()


def test_every_step_of_both_passes_is_told(network, image):
    steps = []
    streamed = stream(network, tile=TILE)
    total = streamed.plan((2, 3, *SIZE), image_gradient=False, seconds=False).steps
    out = streamed(counted(image)[0], lambda: steps.append(None))
    assert len(steps) == total
    out.sum().backward()
    assert len(steps) == 2 * total


@pytest.mark.parametrize("at", [2, 14])
def test_what_a_step_raises_ends_the_pass(network, image, at):
    class Stopped(Exception):
        pass

    steps = []

    def done():
        steps.append(None)
        if len(steps) == at:
            raise Stopped

    streamed = stream(network, tile=TILE)
    with pytest.raises(Stopped):
        streamed(image, done).sum().backward()
    assert len(steps) == at
    assert network[0].weight.grad is None
    assert streamed(image).equal(stream(network, tile=TILE)(image))


def test_plans_of_several_sizes_are_remembered(network):
    streamed = stream(network, memory=2**28)
    shapes = [(1, 3, 64 + 8 * i, 64) for i in range(4)]
    plans = [streamed.plan(shape, seconds=False) for shape in shapes]
    assert [streamed.plan(shape, seconds=False) for shape in shapes] == plans
    assert all(a is b for a, b in zip(plans, [streamed.plan(shape, seconds=False) for shape in shapes], strict=True))
