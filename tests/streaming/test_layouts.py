"""Calls that permute, split and flatten the dimensions of a map: exact, and nothing left to the head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from streamview.errors import NotStreamableError, RegionError
from streamview.streaming import stream
from streamview.streaming.capture.capture import capture
from streamview.streaming.ops.layouts import Layout, from_layout, merged, split, to_layout
from tests.support.networks import Inverted
from tests.support.oracle import errors

pytestmark = pytest.mark.usefixtures("fine_rows")

TILES = [(5, 60), (9, 11)]


@given(st.permutations(["N", "H", "W", 0, 1, 2]), st.lists(st.integers(1, 3), min_size=3, max_size=3), st.booleans())
def test_layouts_are_inverted(order: list[Any], lengths: list[int], flat: bool) -> None:
    parts = split((1, lengths[0] * lengths[1] * lengths[2]), lengths)
    # two parts of the same stride and length cannot be told apart, nor need they be
    if len(set(parts)) < 3:
        return
    layout: Layout = tuple(parts[d] if isinstance(d, int) else d for d in order)
    if flat:
        layout = tuple("HW" if d == "H" else d for d in layout if d != "W")
    x = torch.arange(2 * lengths[0] * lengths[1] * lengths[2] * 20).view(2, -1, 4, 5)
    seen = to_layout(x, layout)
    assert seen.dim() == len(layout)
    assert torch.equal(from_layout(seen, layout, (4, 5)), x)
    y = x.unflatten(1, lengths)
    if flat:
        y = y.flatten(-2)
    names = ["N", *parts, *(["HW"] if flat else ["H", "W"])]
    assert torch.equal(seen, y.permute([names.index(d) for d in layout]))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_parts_merge_to_what_was_split(lengths: list[int]) -> None:
    total = 1
    for length in lengths:
        total *= length
    assert merged(split((1, total), lengths)) == (1, total)
    if len(lengths) > 1 and min(lengths) > 1:
        assert merged(split((1, total), lengths)[::-1]) is None


class Call(nn.Module):
    """A call between two convolutions, with layers of eight channels at hand as `m`."""

    def __init__(self, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(3, 8, 3, padding=1), nn.LazyConv2d(5, 2)
        self.norm, self.small = nn.LayerNorm(8), nn.LayerNorm(4, elementwise_affine=False)
        self.linear, self.mix, self.shuffle = nn.Linear(8, 6), nn.Linear(8, 8, bias=False), nn.ChannelShuffle(2)
        self.gamma, self.gates, self.columns = (nn.Parameter(torch.randn(n)) for n in (8, 4, 25))
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.call(self, self.before(x)))


def _nhwc(call: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    return lambda m, x: call(m, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _shuffled(m: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    return torch.transpose(x.view(n, 4, c // 4, h, w), 1, 2).contiguous().view(n, -1, h, w)


FORMS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "shuffle by view": _shuffled,
    "shuffle by reshape": lambda m, x: x.reshape(x.shape[0], 2, -1, x.shape[2], x.shape[3]).transpose(1, 2).reshape(x.shape),
    "shuffle by flatten": lambda m, x: x.unflatten(1, (4, 2)).transpose(1, 2).flatten(1, 2),
    "shuffle by swapaxes": lambda m, x: x.unflatten(-3, (-1, 2)).swapaxes(2, 1).flatten(start_dim=1, end_dim=2),
    "F.channel_shuffle": lambda m, x: F.channel_shuffle(x, 4),
    "nn.ChannelShuffle": lambda m, x: m.shuffle(x).relu(),
    "split and joined again": lambda m, x: x.view(x.size(0), 2, 4, x.size(2), x.size(3)).view(x.size(0), 8, x.size(2), x.size(3)),
    "softmax over parts": lambda m, x: x.view(x.size(0), 2, 4, x.size(2), x.size(3)).softmax(2).flatten(1, 2),
    "mean over a part": lambda m, x: x.view(x.size(0), 2, 4, x.size(2), x.size(3)).mean(1),
    "sum over the other part": lambda m, x: x.unflatten(1, (2, 4)).sum(dim=2) * m.gates[:2, None, None],
    "largest of a part": lambda m, x: x.unflatten(1, (2, 4)).amax(1) + x.unflatten(1, (2, 4)).max(dim=1)[0],
    "maxout": lambda m, x: torch.max(x.unflatten(1, (4, 2)), 2).values,
    "parts times a constant": lambda m, x: (x.unflatten(1, (2, 4)) * m.gates[:, None, None]).flatten(1, 2),
    "norm": _nhwc(lambda m, x: m.norm(x)),
    "norm as a function": _nhwc(lambda m, x: F.layer_norm(x, (8,), m.gamma)),
    "linear": _nhwc(lambda m, x: m.linear(x)),
    "linear as a function": _nhwc(lambda m, x: F.linear(x, m.mix.weight, m.gamma)),
    "linear and norm": _nhwc(lambda m, x: m.norm(m.mix(x.relu())) + x),
    "layer scale": _nhwc(lambda m, x: x + m.gamma * m.mix(m.norm(x))),
    "layer scale by its first dimension": lambda m, x: x + m.gamma.view(8, 1, 1) * x.tanh(),
    "scaled columns": _nhwc(lambda m, x: x * m.columns[:, None]),
    "activations": _nhwc(lambda m, x: F.gelu(F.relu(x)) * 2 - x / (x.abs() + 1)),
    "softmax": _nhwc(lambda m, x: x.softmax(-1) + F.log_softmax(x, dim=3)),
    "softmax of a transposed map": lambda m, x: x.transpose(1, 3).softmax(3).transpose(3, 1),
    "chunks of channels last": _nhwc(lambda m, x: (lambda p: torch.cat([p[2].sigmoid(), p[0] * 2, p[3]], -1))(x.chunk(4, dim=-1))),
    "gated linear unit": _nhwc(lambda m, x: (lambda parts: m.small(parts[0] * parts[1].sigmoid()))(torch.split(x, 4, -1))),
    "positions flattened": lambda m, x: m.norm(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape),
    "positions flattened by view": lambda m, x: m.mix(x.view(x.size(0), 8, -1).permute(0, 2, 1)).transpose(1, 2).view(x.size()),
    "softmax over channels of flat positions": lambda m, x: x.flatten(2).softmax(1).view(x.size(0), 8, x.size(2), x.size(3)),
    "chunk": lambda m, x: torch.cat(x.chunk(3, 1)[::-1], 1),
    "chunk of an odd number": lambda m, x: x.chunk(3, dim=1)[2].tanh() + x[:, :1],
    "split": lambda m, x: (lambda p: torch.cat([p[2], p[0] * 2, p[1]], 1))(torch.split(x, [1, 3, 4], dim=1)),
    "split by size": lambda m, x: x.split(3, 1)[-1] - x.split(3, 1)[0][:, 1:],
    "softmax of chunks": lambda m, x: x.chunk(2, 1)[0].softmax(1) * torch.split(x, 4, 1)[1],
    "mean over channels": lambda m, x: torch.cat([x.mean(1, keepdim=True), torch.sum(x, 1, True)], 1),
    "extremes over channels": lambda m, x: torch.cat([x.amax(1, True), x.amin(dim=1, keepdim=True)], 1),
    "max over channels": lambda m, x: x * torch.max(x, 1, keepdim=True)[0].sigmoid(),
    "mean over channels last": _nhwc(lambda m, x: x.mean(-1, keepdim=True)),
    "addcmul": lambda m, x: torch.addcmul(x, m.gamma[:, None, None], x.tanh(), value=0.5),
    "addcmul as a method": lambda m, x: x.addcmul(x.relu(), x.tanh()),
    "changed in place while permuted": lambda m, x: (lambda y: (y.permute(0, 2, 3, 1).mul_(2), y)[1])(x * 3),
    "changed in place while split": lambda m, x: (lambda y: (F.relu_(y.unflatten(1, (2, 4))), y)[1])(x * 2),
    "largest value changed in place": lambda m, x: (lambda y: (y[0].relu_(), x * y[0])[1])(x.max(1, keepdim=True)),
}  # fmt: skip


def build(call: Callable[[Any, Tensor], Tensor], size: tuple[int, int] = (21, 25)) -> nn.Module:
    torch.manual_seed(0)
    network = Call(call).double()
    network(torch.zeros(1, 3, *size, dtype=torch.float64))
    return network


@pytest.mark.parametrize("form", FORMS)
def test_form(form: str) -> None:
    network = build(FORMS[form])
    graph = capture(network)
    assert [sink.kind for sink in graph.sinks] == ["map"]
    assert graph.passes == 1
    assert not [node for node in graph.head.module.graph.nodes if node.op.startswith("call")]
    for tile in TILES:
        assert max(errors(network, torch.randn(2, 3, 21, 25, dtype=torch.float64), tile=tile)) < 1e-10


REDUCTIONS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "flat positions": ("mean", lambda x: x.flatten(2).mean(-1)),
    "flat positions by view": ("mean", lambda x: x.view(x.size(0), x.size(1), -1).mean(2)),
    "flat positions in front of channels": ("mean", lambda x: x.flatten(2).transpose(1, 2).mean(1)),
    "flat positions kept": ("sum", lambda x: x.flatten(2).sum(2, keepdim=True).squeeze(2)),
    "channels last": ("mean", lambda x: x.permute(0, 2, 3, 1).mean(dim=(1, 2))),
    "channels last kept": ("mean", lambda x: x.permute(0, 2, 3, 1).mean((1, 2), keepdim=True).flatten(1)),
    "parts": ("mean", lambda x: x.unflatten(1, (2, 4)).mean((3, 4)).flatten(1)),
    "parts changed": ("sum", lambda x: x.unflatten(1, (2, 4)).transpose(1, 2).sum((-1, -2)).flatten(1)),
    "shuffled": ("mean", lambda x: x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2).mean((2, 3))),
    "transposed": ("sum", lambda x: x.transpose(2, 3).sum((2, 3))),
}


@pytest.mark.parametrize("form", REDUCTIONS)
def test_reduction(form: str) -> None:
    kind, reduce = REDUCTIONS[form]

    class Reduced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(reduce(self.conv(x)))

    torch.manual_seed(0)
    network = Reduced().double()
    assert [sink.kind for sink in capture(network).sinks] == [kind]
    for tile in TILES:
        assert max(errors(network, torch.randn(2, 3, 21, 25, dtype=torch.float64), tile=tile)) < 1e-10


def test_convnext() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 4, 4), nn.Conv2d(6, 6, 7, padding=3, groups=6), Inverted(6), nn.Conv2d(6, 8, 2, 2), Inverted(8)
    ).double()
    graph = capture(network)
    assert graph.passes == 1
    for tile in ((8, 90), (17, 23)):
        assert max(errors(network, torch.randn(2, 3, 61, 83, dtype=torch.float64), tile=tile)) < 1e-10


def test_the_head_gets_maps_in_their_layout() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = self.conv(x)
            last = y.permute(0, 2, 3, 1)
            return y, last, last.std(-1), y.flatten(2), y.unflatten(1, (2, 2)), torch.stack(y.chunk(2, 1), 0)

    torch.manual_seed(0)
    network = Several().double()
    image = torch.randn(2, 3, 21, 23, dtype=torch.float64, requires_grad=True)
    found, expected = stream(network, tile=(4, 5))(image), network(image)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a, b, atol=1e-12)
    grads = [torch.autograd.grad(sum((o * o).sum() for o in out), image)[0] for out in (found, expected)]
    assert torch.allclose(*grads, atol=1e-11)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda m, x: m.norm(x.transpose(1, 2)).transpose(1, 2), "LayerNorm over|permuted"),
        (lambda m, x: x.softmax(2), "rather than over channels"),
        (lambda m, x: x.permute(0, 1, 3, 2).softmax(3), "rather than over channels"),
        (lambda m, x: x.flatten(2).softmax(-1).reshape(x.shape), "rather than over channels"),
        (lambda m, x: x.transpose(0, 1).flip(2), "flip"),
        (lambda m, x: x.view(x.size(0), 8, 25, 21), "new shape"),
        (lambda m, x: x.view(x.size(0), 4, -1, x.size(2) * x.size(3)), "new shape|mixes height and width|depends on the size"),
        (lambda m, x: F.conv2d(x.transpose(2, 3), m.before.weight.transpose(0, 1)), "permuted"),
        (lambda m, x: x + x.transpose(2, 3), "permuted"),
        (lambda m, x: torch.cat([x, x], 2), "over other dimensions"),
        (lambda m, x: x.chunk(2, 2)[0], "over dimension 2"),
    ],
)  # fmt: skip
def test_refused(call: Callable[[Any, Tensor], Tensor], reason: str) -> None:
    network = Call(call)
    network.after = nn.Conv2d(8, 5, 2)
    network.norm = nn.LayerNorm(21)
    with pytest.raises(NotStreamableError, match=reason):
        capture(network)


def _assign(m: Any, x: Tensor) -> Tensor:
    x = x * 2
    x[:, :2] = 0.3
    return x


def _assign_row(m: Any, x: Tensor) -> Tensor:
    x = F.avg_pool2d(x, 8)
    x[:, :, 0] = 0.3
    return x


def _fill_part(m: Any, x: Tensor) -> Tensor:
    x = F.avg_pool2d(x, 8)
    x.narrow(2, 0, 1).fill_(0.3)
    return x


@pytest.mark.parametrize("call", [_assign, _assign_row, _fill_part])
def test_parts_changed_in_place_are_refused(call: Callable[[Any, Tensor], Tensor]) -> None:
    """Silently, the later layers would read what was there before."""
    network = Call(call)
    network.after = nn.Conv2d(8, 5, 2)
    with pytest.raises(NotStreamableError, match="changes a value in place"):
        capture(network)


def test_channels_are_those_of_the_last_layer() -> None:
    """The layout of a value follows its channels, not those of the image."""

    def counted(m: Any, x: Tensor) -> Tensor:
        return x * x.size(1) + x.shape[1] + x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2], x.shape[3]).flatten(1, 2)

    for tile in TILES:
        assert max(errors(build(counted), torch.randn(2, 3, 21, 25, dtype=torch.float64), tile=tile)) < 1e-10


def test_a_shape_by_the_sizes_of_another_map() -> None:
    """Right where the sizes agree; an error where they do not, even if the numbers of elements would."""

    def shaped(m: Any, x: Tensor) -> Tensor:
        like = F.max_pool2d(x, (3, 1), (1, 1), (1, 0))
        return x.flatten(2).relu().view(x.size(0), 8, like.size(2), like.size(3)) + like

    for tile in TILES:
        assert max(errors(build(shaped), torch.randn(2, 3, 21, 25, dtype=torch.float64), tile=tile)) < 1e-10

    def misshaped(m: Any, x: Tensor) -> Tensor:
        like = F.interpolate(x, size=(x.size(2) * 2, x.size(3) // 2))
        return x.flatten(2).view(x.size(0), 8, like.size(2), like.size(3))

    network = build(misshaped, (20, 24))
    with pytest.raises((NotStreamableError, RegionError), match="new shape that is not its own"):
        stream(network)(torch.zeros(1, 3, 20, 24, dtype=torch.float64))
