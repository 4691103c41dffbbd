"""The exactness tests notice a broken engine: each mutation here must be caught."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from streamview.streaming import graph, schedule
from streamview.streaming.ops import margins, registry, resample, reshape, window
from streamview.streaming.run import run, sinks, stores
from tests.support.networks import Excite, Response, seed_network
from tests.support.oracle import errors

pytestmark = pytest.mark.usefixtures("fine_rows")


@pytest.fixture
def image() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(1, 3, 47, 39, dtype=torch.float64)


def test_carry_one_row_short(image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    network = seed_network(blocks=3).double()
    assert max(errors(network, image, tile=(8, 40))) < 1e-10
    first = schedule.Window.first
    monkeypatch.setattr(schedule.Window, "first", lambda self, o, n: min(first(self, o, n) + (self.kernel == 3), n))
    assert _broken(network, image)


def test_zero_instead_of_minus_infinity_in_max_pool(image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 2, 1)).double()
    nn.init.constant_(network[0].bias, -9)
    assert max(errors(network, image, tile=(8, 11))) < 1e-10
    pad = torch.nn.functional.pad
    monkeypatch.setattr(window.F, "pad", lambda x, margins, value: pad(x, margins, value=0.0))
    assert _broken(network, image)


def test_gradient_of_a_carry_lost(image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    network = seed_network(blocks=3).double()
    from streamview.streaming.run import passes as execute

    reverse = execute.backward_step
    monkeypatch.setattr(execute, "backward_step", lambda *args: (reverse(*args)[0], [None] * 99))
    assert _broken(network, image)


def test_last_of_equal_maxima(image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2)).double()
    flat = torch.ones_like(image)
    assert max(errors(network, flat, tile=(8, 8))) < 1e-10
    meeting = window._meeting
    monkeypatch.setattr(window, "_meeting", lambda *args: meeting(*args)[::-1])
    assert _broken(network, flat)


def _broken(network: nn.Module, image: torch.Tensor, barriers: str = "auto", tile: tuple[int, int] = (8, 11)) -> bool:
    """Whether the error is plain to see; a mutation may also make torch complain."""
    try:
        return max(errors(network, image, tile=tile, barriers=barriers)) > 1e-6
    except (RuntimeError, IndexError, ValueError):
        return True


def test_padding_of_the_convolution_is_zero(image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, (3, 2), padding="same"), nn.Conv2d(4, 2, 3, padding=1)).double()
    assert max(errors(network, image, tile=(8, 11))) < 1e-10
    pad = F.pad
    monkeypatch.setattr(window.F, "pad", lambda x, p, value=0.0: pad(x, p, value=1.0))
    assert _broken(network, image)


def _up(mode: str = "nearest") -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Upsample(scale_factor=2, mode=mode), nn.Conv2d(4, 2, 3)).double()


@pytest.mark.parametrize("change", [1, -1], ids=["late", "early"])
@pytest.mark.parametrize("method", ["first", "frontier"])
def test_spread_off_by_one(image: torch.Tensor, monkeypatch: pytest.MonkeyPatch, change: int, method: str) -> None:
    """What is kept too short or promised too soon is wrong; what is kept or awaited too long is merely dear."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 2, 4, 2, 1)).double()
    assert max(errors(network, image, tile=(8, 11))) < 1e-10
    plain = getattr(schedule.Spread, method)

    def mutated(self: schedule.Spread, at: int, n: int) -> int:
        most = n if method == "first" else self.size(n)
        return min(max(plain(self, at, n) + (change if 0 < at < n else 0), 0), most)

    monkeypatch.setattr(schedule.Spread, method, mutated)
    assert _broken(network, image) == (change == 1)


def test_table_frontier_off_by_one(image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    network = _up("bilinear")
    assert max(errors(network, image, tile=(8, 11))) < 1e-10
    frontier = schedule.Table.frontier
    monkeypatch.setattr(schedule.Table, "frontier", lambda self, p, n: min(frontier(self, p, n) + (p < n), self.size(n)))
    assert _broken(network, image)


def test_later_outputs_of_a_table_forgotten(image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reflection reads its first rows once more, in another order."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReflectionPad2d(9), nn.Conv2d(4, 2, 3)).double()
    assert max(errors(network, image, tile=(8, 11))) < 1e-10
    monkeypatch.setattr(schedule.Table, "of", classmethod(lambda cls, low, high, *a: cls(tuple(low), tuple(h + 1 for h in high), *a)))
    assert _broken(network, image)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_tap_of_the_adjoint_dropped(image: torch.Tensor, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    network = _up(mode)
    assert max(errors(network, image, tile=(8, 11))) < 1e-10
    vjp, taps = resample.Resample.vjp, resample.Resample._parts

    def fewer(self: resample.Resample, *args: object) -> object:
        monkeypatch.setattr(resample.Resample, "_parts", lambda *a: [(d, t[:1] if len(t) > 1 else []) for d, t in taps(*a)])
        found = vjp(self, *args)
        monkeypatch.setattr(resample.Resample, "_parts", taps)
        return found

    monkeypatch.setattr(resample.Resample, "vjp", fewer)
    assert _broken(network, image)


def test_reflection_repeats_the_border(image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReflectionPad2d(2), nn.Conv2d(4, 2, 3)).double()
    assert max(errors(network, image, tile=(8, 11))) < 1e-10

    def symmetric(n: int, before: int, after: int) -> object:
        inner = [-o - 1 if o < 0 else o for o in range(-before, n + after)]
        return resample.one_tap([2 * n - 1 - o if o >= n else o for o in inner], 1.0, -float(before))

    monkeypatch.setattr(margins, "_reflected", symmetric)
    assert _broken(network, image)


def test_transposed_convolution_cut_one_row_off(image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 2, 3, 2, 1)).double()
    assert max(errors(network, image, tile=(8, 11))) < 1e-10
    call = resample.TransposedConvolution._call

    def moved(self: object, piece: registry.Piece, *tensors: torch.Tensor) -> torch.Tensor:
        y, x = piece.origin
        return call(self, dataclasses.replace(piece, origin=(y + (y > 0), x)), *tensors)

    monkeypatch.setattr(resample.TransposedConvolution, "_call", moved)
    assert _broken(network, image)


def test_channels_shuffled_forth_instead_of_back(image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ChannelShuffle(2), nn.Conv2d(6, 2, 3)).double()
    assert max(errors(network, image, tile=(8, 11))) < 1e-10
    monkeypatch.setattr(reshape.Shuffle, "vjp", lambda self, grad, *_: ([grad[:, list(self.order)]], []))
    assert _broken(network, image)


class _Gated(nn.Module):
    """Two gates; what is stored for them is read by several layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.one, self.two = Excite(4), Response(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        z = self.b(self.one(y)) + y
        return self.c(self.two(z)) * y


@pytest.fixture
def gated(image: torch.Tensor) -> nn.Module:
    network = _Gated().double()
    for barriers in ("kept", "spilled", "regenerated"):
        assert max(errors(network, image, tile=(8, 11), barriers=barriers)) < 1e-10
    return network


@pytest.mark.parametrize("barriers", ["kept", "spilled"])
def test_gradient_of_a_stored_map_overwritten(
    image: torch.Tensor, gated: nn.Module, monkeypatch: pytest.MonkeyPatch, barriers: str
) -> None:
    kind = stores.Held if barriers == "kept" else stores.Spilled
    monkeypatch.setattr(
        kind, "accumulate", lambda self, piece, rows, cols: (self.add(torch.zeros_like(piece), rows, cols), self.add(piece, rows, cols))
    )
    assert _broken(gated, image, barriers)


@pytest.mark.parametrize("barriers", ["kept", "spilled", "regenerated"])
def test_gradient_of_a_statistic_dropped(image: torch.Tensor, gated: nn.Module, monkeypatch: pytest.MonkeyPatch, barriers: str) -> None:
    through = run.Run._through_bridges
    monkeypatch.setattr(
        run.Run,
        "_through_bridges",
        lambda self, phase, given: dict.fromkeys(through(self, phase, given)) if not phase else through(self, phase, given),
    )
    assert _broken(gated, image, barriers)


def test_gradient_of_the_image_from_a_later_pass_dropped(image: torch.Tensor, gated: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores.Spilled, "accumulate", lambda self, piece, rows, cols: self.add(torch.zeros_like(piece), rows, cols))
    assert _broken(gated, image, "regenerated")


def test_mean_over_one_position_too_few(image: torch.Tensor, gated: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    init = sinks.RunningMean.__init__
    monkeypatch.setattr(sinks.RunningMean, "__init__", lambda self, count, dtype=None: init(self, max(count - 1, 1), dtype))
    assert _broken(gated, image)
    assert _broken(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)).double(), image)


def test_a_spilled_row_out_of_place(image: torch.Tensor, gated: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    offset = stores.Spilled._offset
    monkeypatch.setattr(stores.Spilled, "_offset", lambda self, image, row, col: offset(self, image, row, max(col - 1, 0)))
    assert _broken(gated, image, "spilled")


def test_gradients_that_share_memory(image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch hands the same tensor to a map and to a constant of its size; what lies before would change both."""

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.field = nn.Conv2d(3, 4, 3, padding=1), nn.Parameter(torch.randn(1, 4, 47, 39))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x).relu() + self.field

    network = Field().double()
    assert max(errors(network, image, tile=(99, 99))) < 1e-10
    monkeypatch.setattr(torch.Tensor, "clone", lambda self, **_: self)
    assert _broken(network, image, tile=(99, 99))


def test_a_weight_between_passes_listed_for_every_use(image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Excite(4)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), gate, nn.ReLU(), nn.Conv2d(4, 4, 3), gate).double()
    assert max(errors(network, image, tile=(8, 11))) < 1e-10
    monkeypatch.setattr(graph.Graph, "between", property(lambda self: [weight for bridge in self.bridges for weight in bridge.weights]))
    assert _broken(network, image)
