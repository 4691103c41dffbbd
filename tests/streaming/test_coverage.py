"""Calls that networks are written with beyond layers: each streams exactly by either tracer, and nothing stays on the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamview.errors import NotStreamableError, RegionError, StreamviewError
from streamview.streaming import stream
from streamview.streaming.capture.lowering import Lowering
from tests.support.oracle import captured, errors

pytestmark = pytest.mark.usefixtures("fine_rows")

TILES = [(5, 60), (9, 11)]
Call = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """Layers for a forward pass given from outside."""

    def __init__(self, call: Call, channels: int = 3) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(channels, 6, 3, padding=1), nn.Conv2d(6, 4, 3)
        self.score, self.linear, self.few, self.join = nn.Conv2d(6, 1, 1), nn.Linear(6, 1), nn.Conv2d(6, 2, 1), nn.Conv2d(8, 4, 1)
        self.power = nn.Parameter(torch.full((1,), 3.0))
        self.norm = nn.SyncBatchNorm(6)
        self.register_buffer("order", torch.tensor([2, 0, 1]))
        nn.init.normal_(self.norm.running_mean)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def network_of(call: Call, channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return Net(call, channels).double().eval()


def check(network: nn.Module, kinds: list[str] | None = None, exported: bool = False, channels: int = 3) -> None:
    before = [set(vars(m)) for m in network.modules()]
    image = torch.randn(2, channels, 21, 25, dtype=torch.float64)
    with captured(exported):
        if kinds is not None:
            assert [sink.kind for sink in stream(network).graph().sinks if sink.kind != "shape"] == kinds
        for tile in TILES:
            assert max(errors(network, image, tile=tile)) < 1e-10
    assert [set(vars(m)) for m in network.modules()] == before


def gem(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return F.avg_pool2d(y.clamp(min=1e-6).pow(m.power), (y.size(-2), y.size(-1))).pow(1.0 / m.power).flatten(1)


def cbam(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    size = y.size(2), y.size(3)
    gate = m.linear(F.avg_pool2d(y, size, stride=size).view(y.size(0), -1)) + m.linear(F.max_pool2d(y, size).view(y.size(0), -1))
    return m.b(y * torch.sigmoid(gate).unsqueeze(2).unsqueeze(3).expand_as(y))


def tokens(m: Any, x: Tensor) -> Tensor:
    return m.a(x).flatten(2).transpose(1, 2)


def weighed_as_map(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    n, _, h, w = y.shape
    return (y * m.score(y).view(n, 1, -1).softmax(2).view(n, 1, h, w)).sum((2, 3))


def weighed(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return (F.softmax(m.score(y).flatten(2), -1) * y.flatten(2)).sum(-1)


def by_matmul(m: Any, x: Tensor) -> Tensor:
    t = tokens(m, x)
    return torch.matmul(torch.softmax(m.linear(t), 1).transpose(1, 2), t).squeeze(1)


def by_bmm(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return torch.bmm(y.flatten(2), m.score(y).flatten(2).softmax(-1).transpose(1, 2)).flatten(1)


def by_itself(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).flatten(2)
    return (y.softmax(2) * y).sum(2)


def context(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(y + weighed(m, x)[:, :, None, None].tanh())


POOLING: dict[str, tuple[list[str], Call]] = {
    "GeM": (["mean"], gem),
    "the shape as kernel": (["mean"], lambda m, x: F.avg_pool2d(y := m.a(x), y.shape[2:]).flatten(1)),
    "the image's shape as kernel": (["mean"], lambda m, x: F.avg_pool2d(m.a(x), x.shape[2:]).flatten(1)),
    "max of own size": (["max"], lambda m, x: F.max_pool2d(y := m.a(x), kernel_size=y.size()[2:]).flatten(1)),
    "CBAM": (["mean", "max", "map"], cbam),
    "mean of means": (["mean"], lambda m, x: m.a(x).mean(-1).mean(-1)),
    "mean of means of columns": (["mean"], lambda m, x: m.a(x).mean(2).mean(2)),
    "mean of means kept": (["mean"], lambda m, x: m.a(x).mean(3, keepdim=True).mean(2, keepdim=True)),
    "sum of sums": (["sum"], lambda m, x: m.a(x).sum(3).sum(2) / (x.size(2) * x.size(3))),
    "mean of means as a gate": (["mean", "map"], lambda m, x: m.b((y := m.a(x)) * y.mean(3, True).mean(2, True).sigmoid())),
    "flattened": (["mean"], lambda m, x: m.a(x).flatten(2).mean(-1)),
    "viewed": (["mean"], lambda m, x: (y := m.a(x)).view(y.size(0), y.size(1), -1).mean(2)),
    "viewed max": (["max"], lambda m, x: (y := m.a(x)).view(y.size(0), y.size(1), -1).max(2)[0]),
    "viewed max values": (["max"], lambda m, x: m.a(x).flatten(2).max(dim=2).values),
    "max of max": (["max"], lambda m, x: m.a(x).max(-1)[0].max(-1)[0]),
    "pool1d": (["mean"], lambda m, x: F.adaptive_avg_pool1d(m.a(x).flatten(2), 1).squeeze(-1)),
    "max pool1d": (["max"], lambda m, x: F.adaptive_max_pool1d(m.a(x).flatten(2), 1).squeeze(-1)),
    "max with indices": (["max"], lambda m, x: F.adaptive_max_pool2d(m.a(x), 1, return_indices=True)[0]),
    "topk": (["top"], lambda m, x: m.a(x).flatten(2).topk(5, 2)[0].mean(2)),
    "topk of tokens": (["top"], lambda m, x: tokens(m, x).topk(4, 1).values.mean(1)),
    "lowest": (["bottom"], lambda m, x: torch.topk(m.a(x).flatten(2), 3, largest=False).values),
    "attention": (["attention"], weighed),
    "attention as a map": (["attention"], weighed_as_map),
    "attention over tokens": (["attention"], lambda m, x: (torch.softmax(m.linear(t := tokens(m, x)), 1) * t).sum(1)),
    "attention by matmul": (["attention"], by_matmul),
    "attention by bmm": (["attention"], by_bmm),
    "attention of every channel": (["attention"], by_itself),
    "attention as a gate": (["attention", "map"], context),
    "attention whose weights are used otherwise": (["map"], lambda m, x: m.few(m.a(x)).flatten(2).softmax(-1).pow(2).sum(-1)),
}


@pytest.mark.parametrize("form", POOLING)
def test_pooling(form: str) -> None:
    kinds, call = POOLING[form]
    network = network_of(call)
    between = {"map"} if len(kinds) > 1 else set()  # what a later pass reads
    with captured(False):
        kept = [sink.kind for sink in stream(network).graph().sinks if sink.kind != "shape"]
    assert [kind for kind in kept if kind not in between] == [kind for kind in kinds if kind not in between]
    check(network)


@pytest.mark.parametrize(
    "form",
    [
        "GeM",
        "max with indices",
        "topk",
        "attention",
        *(pytest.param(form, marks=pytest.mark.slow) for form in ("CBAM", "max of max", "attention by matmul")),
    ],
)
def test_pooling_by_torch_export(form: str) -> None:
    check(network_of(POOLING[form][1]), exported=True)


def test_scores_far_apart_and_far_from_zero() -> None:
    """The softmax runs as a log of summed exponentials: neither overflow nor vanish."""
    network = network_of(lambda m, x: (F.softmax(300 * m.score(y := m.a(x)).flatten(2) + 1000, -1) * y.flatten(2)).sum(-1))
    check(network, ["attention"])


def pooled(m: Any, x: Tensor, **how: Any) -> Tensor:
    y = m.a(x)
    wide = F.interpolate(m.few(F.adaptive_avg_pool2d(y, 1)).relu(), size=y.shape[-2:], **how)
    return m.join(torch.cat([y, wide], 1))


def expanded(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.join(torch.cat([y, m.few(y.mean((2, 3), keepdim=True)).expand(-1, -1, y.size(2), y.size(3))], 1))


FORMS: dict[str, Call] = {
    "pooled branch": lambda m, x: pooled(m, x, mode="bilinear", align_corners=False),
    "pooled branch, nearest": pooled,
    "pooled branch, expanded": expanded,
    "SyncBatchNorm": lambda m, x: m.b(m.norm(m.a(x))),
    "flip": lambda m, x: m.a(x.flip(1)),
    "torch.flip": lambda m, x: m.a(torch.flip(x, dims=[-3])),
    "channels by a list": lambda m, x: m.a(x[:, [2, 1, 0]]),
    "channels by a list, some twice": lambda m, x: m.b(m.a(x)[:, [2, 2, 0, 1, -1, 5], ...]),
    "channels by a buffer": lambda m, x: m.a(x[:, m.order]),
    "channels by a constant": lambda m, x: m.a(x[:, torch.tensor([2, 1, 0])]),
    "index_select": lambda m, x: m.a(torch.index_select(x, 1, m.order)),
    "every other channel": lambda m, x: torch.cat([(y := m.a(x))[:, ::2], y[:, 1::2]], 1),
    "roll": lambda m, x: m.b(m.a(x).roll(2, 1)),
    "unbind": lambda m, x: m.a(torch.stack(x.unbind(1)[::-1], 1)),
    "narrow": lambda m, x: m.a(torch.cat([x.narrow(1, 1, 2), x.narrow(1, 0, 1)], 1)),
    "to a weight's type": lambda m, x: m.a(x.to(m.a.weight.dtype)),
    "double": lambda m, x: m.a(x.double()),
    "to by keywords": lambda m, x: m.a(x.to(dtype=torch.float64, device="cpu")),
    "to a weight": lambda m, x: m.a(x.to(m.a.weight)),
    "type_as": lambda m, x: m.a(x.type_as(m.a.weight)),
    "type": lambda m, x: m.a(x.type(torch.float64)),
    "to its own type": lambda m, x: m.b(m.a(x).to(x.dtype).type_as(x).to(x.device)),
    "LPPool2d": lambda m, x: nn.functional.lp_pool2d(m.a(x).abs() + 0.1, 3.0, (2, 3), ceil_mode=True),
    "area to a size": lambda m, x: F.interpolate(m.a(x), size=(9, 8), mode="area"),
    "area by a factor": lambda m, x: F.interpolate(m.a(x), scale_factor=0.4, mode="area"),
    "area, larger": lambda m, x: F.interpolate(m.a(x), scale_factor=1.7, mode="area"),
    "area to another's size": lambda m, x: F.interpolate(m.a(x), size=F.max_pool2d(x, 3).shape[2:], mode="area"),
    "a window that follows the map": lambda m, x: F.avg_pool2d(m.a(x), (x.size(2) // 2, x.size(3) // 3)),
    "constant": lambda m, x: m.a((x - torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)) / 0.25),
    "constant of the image's type": lambda m, x: m.a(x - torch.tensor([0.4, 0.5, 0.6], dtype=x.dtype, device=x.device).view(1, 3, 1, 1)),
    "constant made the image's type": lambda m, x: m.a(x - torch.tensor([0.4, 0.5, 0.6]).to(x)[None, :, None, None]),
    "constant of a list as long as the channels": lambda m, x: m.a(x - torch.tensor([0.5] * x.size(1), dtype=x.dtype).view(1, -1, 1, 1)),
    "new_tensor": lambda m, x: m.a(x - x.new_tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)),
}
BY_EXPORT = (
    "pooled branch",
    "SyncBatchNorm",
    "channels by a list, some twice",
    "to by keywords",
    "area to a size",
    "constant of the image's type",
)


@pytest.mark.parametrize("form", FORMS)
def test_form(form: str) -> None:
    check(network_of(FORMS[form]))


@pytest.mark.parametrize("form", BY_EXPORT)
def test_form_by_torch_export(form: str) -> None:
    check(network_of(FORMS[form]), exported=True)


class Plain(nn.BatchNorm2d):
    """A subclass that torch.fx cannot follow."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)


@pytest.mark.parametrize(
    "last",
    [nn.AdaptiveMaxPool2d(1), nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1, return_indices=True), nn.MaxPool2d(3)],
    ids=lambda m: str(m),
)
def test_subclasses_whose_network_torch_export_records(last: nn.Module) -> None:
    torch.manual_seed(0)
    tail = nn.Flatten() if not getattr(last, "return_indices", False) else _First()
    network = nn.Sequential(nn.Conv2d(3, 6, 3), Plain(6), last, tail).double().eval()
    assert stream(network).graph().tracer == "torch.export"
    check(network)


class _First(nn.Module):
    def forward(self, results: tuple[Tensor, Tensor]) -> Tensor:
        return results[0].flatten(1)


def test_shapes_that_disagree_with_the_recorded_ones_are_left_to_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an operation is mistaken for: what torch.export recorded decides."""
    plain = Lowering._lower

    def mistaken(self: Lowering, node: Any, target: Any) -> Any:
        lowered = plain(self, node, target)
        return [lowered] if "relu" in node.name else lowered

    monkeypatch.setattr(Lowering, "_lower", mistaken)
    network = nn.Sequential(nn.Conv2d(3, 6, 4, 4), Plain(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()
    graph = stream(network).graph()
    assert any("torch.export recorded" in refusal for refusal in graph.refusals)
    check(network)


class Gated(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.linear(x.mean((2, 3))).sigmoid()[:, :, None, None]


class ChannelsLast(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Viewed(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        return x.view(n, self.channels, 1, h, w).flatten(1, 2)


@pytest.mark.parametrize(("first", "channels"), [(f, c) for f in (Gated, ChannelsLast, Viewed) for c in (1, 4, 9)] + [(Plain, 4)])
def test_networks_of_other_channels(first: type[nn.Module], channels: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(first(channels), nn.Conv2d(channels, 4, 3), nn.ReLU()).double().eval()
    assert stream(network).graph().channels[0] == channels
    assert stream(network, channels=channels).graph().channels[0] == channels
    check(network, channels=channels)
    with pytest.raises(RegionError, match=f"image of 7 channels: the network takes {channels}"):
        stream(network)(torch.zeros(1, 7, 21, 25, dtype=torch.float64))
    with pytest.raises(NotStreamableError, match="7"):
        stream(network, channels=7)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((nn.Conv2d(3, 8, 3), nn.Conv2d(16, 4, 3)), r"1: it takes 16 channels, its map has 8"),
        ((nn.Conv2d(3, 8, 3), nn.BatchNorm2d(4).eval()), r"1: it takes 4 channels, its map has 8"),
        ((nn.Conv2d(3, 8, 3), nn.PReLU(4), nn.Conv2d(8, 4, 3)), r"1: .* 8"),
        ((nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 4)), r"1.*: it takes 4 channels, its map has 8"),
        ((nn.Conv2d(3, 8, 3), Gated(5), nn.Conv2d(8, 4, 3)), r"linear.*5|linear.*8"),
        ((nn.Conv2d(3, 8, 3), ChannelsLast(5)), r"norm: it takes 5 channels, its map has 8"),
        ((nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(5, 4, 2)), r"1: it takes 5 channels, its map has 8"),
        ((nn.Conv2d(3, 8, 3), nn.PixelShuffle(3)), r"1: it takes a multiple of 9 channels, its map has 8"),
    ],
    ids=lambda case: "" if isinstance(case, str) else type(case[-1]).__name__ + type(case[1]).__name__,
)
def test_layers_that_do_not_fit_are_named(layers: tuple[nn.Module, ...], message: str) -> None:
    with pytest.raises(StreamviewError, match=message):
        stream(nn.Sequential(*layers))
