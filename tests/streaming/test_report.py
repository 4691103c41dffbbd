"""What the report says against what the network does when it runs."""

from __future__ import annotations

import json
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from streamview.inspection.streamability import streamability
from streamview.streaming import stream
from streamview.streaming.ops.patches import PatchEncoder
from tests.support.networks import Excite, seed_network
from tests.support.zoo import import_timm


@st.composite
def chains(draw: st.DrawFn) -> nn.Sequential:
    """Layers of one channel and positive weights, so that no path from a pixel to the cut cancels another."""

    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from([*["conv"] * 3, "mean", "nearest", "bilinear", "spread", "pad", "branch"]))
        if kind == "conv":
            layers.append(nn.Conv2d(1, 1, pair(1, 5), pair(1, 3), pair(0, 3), pair(1, 2)))
        elif kind == "mean":
            layers.append(nn.AvgPool2d(draw(st.integers(1, 4)), draw(st.integers(1, 3)), ceil_mode=draw(st.booleans())))
        elif kind == "spread":
            layers.append(nn.ConvTranspose2d(1, 1, pair(3, 5), pair(1, 3)))  # no wider strides: outputs between inputs see nothing
        elif kind == "pad":
            layers.append(draw(st.sampled_from([nn.ZeroPad2d((1, 3, 0, 2)), nn.ReflectionPad2d((2, 0, 3, 1)), nn.ZeroPad2d(-1)])))
        elif kind == "branch":
            layers.append(Branch(draw(st.sampled_from([1, 3, 5]))))
        else:
            layers.append(nn.Upsample(scale_factor=2, mode=kind))
    return positive(nn.Sequential(*layers))


class Branch(nn.Module):
    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(1, 1, (kernel, 1), padding="same"), nn.Conv2d(1, 1, (1, kernel), padding="same", dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(x) + self.narrow(x)


def positive(network: nn.Module) -> nn.Module:
    for parameter in network.parameters():
        nn.init.uniform_(parameter, 0.5, 1)
    return network.double().eval()


def seen(network: nn.Module, side: int) -> tuple[int, int]:
    """Longest range of rows and of columns whose pixels have a gradient, of any row and any column in the middle of the map."""
    image = torch.ones(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    out = network(image)[0, 0]
    longest = [0, 0]
    for axis in (0, 1):
        along, across = out.shape[axis] // 2, out.shape[1 - axis] // 2
        for line in range(along - 6, along + 6):
            row = out.select(axis, line)[across - 6 : across + 6].sum()
            (grad,) = torch.autograd.grad(row, image, retain_graph=True)
            (reached,) = grad[0, 0].sum(1 - axis).nonzero(as_tuple=True)
            if len(reached):
                longest[axis] = max(longest[axis], int(reached[-1] - reached[0]) + 1)
    return longest[0], longest[1]


@settings(max_examples=25, deadline=None)
@given(chains())
@pytest.mark.slow
def test_the_receptive_field_is_that_of_the_gradient(network: nn.Sequential) -> None:
    found = streamability(network)
    (cut,) = found.cuts
    assert cut.field is not None
    assert cut.field == cut.local_field
    side = 2 * max(cut.field) + int(16 * max(*cut.stride, 1))
    assert cut.field == seen(network, side)


def test_the_field_of_the_longest_path_counts() -> None:
    assert streamability(positive(Branch(5))).cuts[0].field == (5, 9)


def test_a_field_that_grows_with_the_image_is_not_stated() -> None:
    network = nn.Sequential(nn.Upsample(size=(20, 20), mode="bilinear"), nn.Conv2d(3, 4, 3))
    found = streamability(network)
    assert found.cuts[0].field is None
    assert "grows with it" in str(found)


def test_the_paper_network() -> None:
    found = streamability(seed_network(blocks=3))
    (cut,) = found.cuts
    assert (cut.layer, cut.kind, cut.channels, cut.stride) == ("13", "max", 16, (4.0, 4.0))
    assert (found.tracer, found.channels, found.passes, found.operations) == ("torch.fx", 3, 1, 8)
    assert found.sides is not None
    assert str(found.sides) == "any sides from 4 px on"
    assert found.head == ("15", "16")
    assert found.piecewise_linear
    assert not streamability(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU())).piecewise_linear


class Hourglass(nn.Module):
    """Halves twice, doubles twice, and joins maps of one size: only multiples of four fit."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + F.interpolate(F.max_pool2d(F.max_pool2d(x, 2), 2), scale_factor=4)).mean((2, 3))


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.position = nn.Conv2d(3, 4, 3, 2, 3), nn.Parameter(torch.randn(1, 4, 12, 12))

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) + self.position).mean((2, 3))


SIDES = {
    "padded": seed_network(blocks=3),
    "without padding": nn.Sequential(nn.Conv2d(3, 2, 7, 2), nn.Conv2d(2, 2, 5, dilation=2), nn.MaxPool2d(3)),
    "reflected": nn.Sequential(nn.ReflectionPad2d(5), nn.Conv2d(3, 2, 4, 3)),
    "hourglass": Hourglass(),
    "flattened": nn.Sequential(nn.Conv2d(3, 2, 3), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(2 * 25, 3)),
    "embedded": Field(),
    "pooled to a grid": nn.Sequential(nn.Conv2d(3, 2, 3, 2), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(18, 2)),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name == "flattened" else name for name in SIDES])
def test_the_sides_are_those_that_run(name: str) -> None:
    network = SIDES[name].eval()
    sides = streamability(network).sides
    assert sides is not None
    assert (sides.largest is not None) == (name in ("flattened", "embedded"))
    runs = []
    for n in range(1, 70):
        try:
            with torch.no_grad():
                network(torch.zeros(1, 3, n, n))
        except RuntimeError:
            continue
        runs.append(n)
    if sides.largest is not None:
        assert runs == list(range(sides.smallest, sides.largest + 1))
        assert "only" in str(sides)
    else:
        assert sides.period is not None
        assert runs == [n for n in range(sides.smallest, 70) if n % sides.period in sides.remainders]
    stream(network, tile=(8, 8))(torch.zeros(1, 3, sides.smallest, sides.smallest))


def test_multiples_of_a_stride_are_said() -> None:
    assert str(streamability(Hourglass()).sides) == "sides that 4 divides, from 4 px on"
    found = streamability(SIDES["flattened"].eval())
    assert str(found.sides) == "sides of 22 to 25 px only: a layer has a fixed number of positions"
    assert any("PatchEncoder(module, size=22)" in text for text in found.advice)


def test_barriers() -> None:
    block = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), Excite(6), nn.Conv2d(6, 6, 1))
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), block, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = streamability(network.eval(), side=512)
    assert [barrier.layers for barrier in found.barriers] == [("1",), ("3.1",)]
    assert found.barriers[1].statistics == ("mean of 6 channels",)
    assert [barrier.bytes for barrier in found.barriers] == [4 * 4 * 512**2, 4 * 6 * 256**2]
    assert found.image == (512, 512)
    assert found.crossing_bytes == sum(barrier.bytes for barrier in found.barriers)
    (cut,) = found.cuts
    assert (cut.kind, cut.field, cut.local_field) == ("mean", None, (5, 5))
    assert found.passes == 3
    assert found.between > 0
    assert not found.piecewise_linear
    assert re.search(r"barrier +3\.1: mean of 6 channels", str(found))
    assert "the whole image, by the barriers; 5 x 5 px along the local layers alone" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["passes"] == 3


def test_refusals_and_what_to_do() -> None:
    timm = import_timm()
    size = {"embed_dim": 768, "depth": 1, "num_heads": 12}
    vit = timm.create_model("vit_tiny_patch16_224", **size).eval()
    found = streamability(vit)
    assert not found.streams
    assert found.passes == 0
    assert found.reason is not None
    assert found.layer is not None
    assert found.layer in found.reason
    assert any("PatchEncoder" in text for text in found.advice)
    assert any("body=..., head=..." in text for text in found.advice)
    assert str(found).startswith("VisionTransformer cannot be streamed\n  reason")
    encoded = streamability(
        nn.Sequential(PatchEncoder(timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0).eval()), nn.Conv2d(192, 2, 1))
    )
    assert encoded.streams
    assert encoded.cuts[0].field == (224, 224)
    assert encoded.advice == ()


def test_what_the_head_takes_over() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.AdaptiveAvgPool2d(3), nn.Conv2d(4, 2, 3), nn.Flatten()).eval()
    found = streamability(network)
    (cut,), (refusal,) = found.cuts, found.refusals
    assert (cut.layer, cut.kind) == ("0", "map")
    assert refusal.layer == "1"
    assert "depends on the size of the whole map" in refusal.reason
    assert found.head == ("1", "2", "3")
    assert "left to it  1: adaptive pooling" in str(found)


def test_training_mode_and_hooks() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = streamability(network.train())
    assert any(".eval()" in text for text in found.advice)
    network.eval()[0].register_backward_hook(lambda *_: None)
    found = streamability(network)
    assert (found.streams, found.layer) == (False, "0")
    assert "remove the hook" in found.advice[0]


def test_torch_export_is_named() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[1] != 3:
                raise ValueError("three channels are expected")
            return self.conv(x).mean((2, 3))

    found = streamability(Branching())
    assert found.tracer == "torch.export"
    assert found.cuts[0].field == (3, 3)


def test_nothing_of_the_network_changes() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    streamability(network)
    streamability(network.eval())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
