"""The exactness certificate: it passes a right engine, fails a broken one, and touches nothing."""

from __future__ import annotations

import copy
import json
import math
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamview.errors import Cancelled, MemoryBudgetError, ModelError, NotStreamableError, RegionError, StreamviewError
from streamview.inspection.certificate import Certificate, Comparison, Line
from streamview.inspection.exactness import verify
from streamview.streaming import schedule
from streamview.streaming.ops import window
from tests.support.networks import seed_network


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return seed_network(blocks=3)


class Named(nn.Module):
    """Answers a mapping, and has two parameters that matter little and much."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 4, 5, 2, 1), nn.SiLU(), nn.AvgPool2d(3, 2))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        features = self.body(x)
        return {"logits": self.head(features.mean((2, 3))), "maps": [features], "size": 3}


def test_a_right_engine_passes(network: nn.Module) -> None:
    found = verify(network, (3, 301, 217), windows=4, seed=3)
    assert found.passed
    assert found.verdict == f"passed: worst relative error {found.worst:.1e}, tolerance 1e-10"
    assert found.worst < 1e-12
    assert len(found.comparisons) == 4
    assert {c.kept for c in found.comparisons} == {True, False}
    first = found.comparisons[0]
    assert first.tile[0] % 2 == first.tile[1] % 2 == 1
    for c in found.comparisons:
        assert 0 <= c.y <= 301 - c.height
        assert 0 <= c.x <= 217 - c.width
        assert c.tile[0] < c.height
        assert c.borders is not None
        assert c.elsewhere is not None
        assert c.gradient == max(c.borders, c.elsewhere) == c.row.error == c.column.error
        assert c.parameter in dict(network.named_parameters())
    assert found.torch == torch.__version__
    assert (found.network, found.device, found.pixels) == ("Sequential", "cpu", "random")


def test_the_same_seed_draws_the_same_windows(network: nn.Module) -> None:
    first, again, other = (verify(network, 200, windows=2, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert [(c.height, c.width, c.tile) for c in first.comparisons] != [(c.height, c.width, c.tile) for c in other.comparisons]


def test_the_hash_is_of_the_weights(network: nn.Module) -> None:
    other = copy.deepcopy(network)
    assert verify(network, 80, windows=1).weights_sha256 == verify(other, 80, windows=1).weights_sha256
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1e-6
    assert verify(network, 80, windows=1).weights_sha256 != verify(other, 80, windows=1).weights_sha256


def test_any_answer_any_channels_no_weights() -> None:
    torch.manual_seed(0)
    found = verify(Named(), (2, 90, 70))
    assert found.passed
    assert all(c.weights is not None for c in found.comparisons)
    bare = verify(nn.Sequential(nn.MaxPool2d(3, 2), nn.Tanh()), 90)
    assert bare.passed
    assert {(c.weights, c.parameter) for c in bare.comparisons} == {(None, None)}
    assert "worst weight" not in str(bare)


class Squeezed(nn.Module):
    """Two barriers: squeeze-and-excitation and GroupNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.second = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 6, 3, 2)
        self.norm, self.head = nn.GroupNorm(2, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = x * self.gate(nn.functional.adaptive_avg_pool2d(x, 1)).sigmoid()
        return self.head(self.norm(self.second(x)).relu().mean((2, 3)))


def test_barriers_are_tried_in_every_way() -> None:
    torch.manual_seed(0)
    found = verify(Squeezed(), 150, windows=6)
    assert found.passed
    assert {(c.barriers, c.kept) for c in found.comparisons} == {(b, k) for b in ("kept", "spilled", "regenerated") for k in (True, False)}


def test_pixels_of_a_tensor_and_of_a_function(network: nn.Module) -> None:
    torch.manual_seed(1)
    image = torch.rand(3, 150, 140)
    asked = []

    def read(rows: tuple[int, int], cols: tuple[int, int]) -> Tensor:
        asked.append((rows, cols))
        return image[:, slice(*rows), slice(*cols)]

    whole, parts = verify(network, (150, 140), pixels=image), verify(network, (150, 140), pixels=read)
    assert whole == parts
    assert whole.passed
    assert [((c.y, c.y + c.height), (c.x, c.x + c.width)) for c in parts.comparisons] == asked
    with pytest.raises(RegionError, match=r"\(3, 150, 140\): expected \(C, H, W\) = \(3, 99, 99\)"):
        verify(network, 99, pixels=image)


# what a broken engine looks like


def test_a_carry_one_row_short_fails(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    first = schedule.Window.first
    monkeypatch.setattr(schedule.Window, "first", lambda self, o, n: min(first(self, o, n) + (self.kernel == 3), n))
    assert broken(network)


def test_a_wrong_pad_value_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 3, 2))
    nn.init.constant_(network[0].bias, -9)
    assert verify(network, 120).passed
    pad = torch.nn.functional.pad
    monkeypatch.setattr(window.F, "pad", lambda x, margins, value: pad(x, margins, value=0.0))
    assert broken(network)


def test_a_lost_gradient_of_a_carry_fails_beside_the_borders(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamview.streaming.run import passes as execute

    reverse = execute.backward_step
    monkeypatch.setattr(execute, "backward_step", lambda *args: (reverse(*args)[0], [None] * 99))
    found = verify(network, 200)
    assert not found.passed
    assert found.verdict.startswith("FAILED: worst relative error ")
    assert str(found).endswith(found.verdict)
    tiled = found.comparisons[0]
    assert tiled.output < 1e-12  # the forward pass is right
    assert tiled.gradient > 1e-3
    assert tiled.weights is not None
    assert tiled.weights > 1e-3
    # columns before a border lose what flowed back from behind it
    assert min(border - tiled.column.position for border in range(tiled.tile[1], tiled.width, tiled.tile[1])) < 16


def broken(network: nn.Module) -> bool:
    """Whether the certificate fails; a mutation may also make torch complain."""
    try:
        return not verify(network, 200).passed
    except (RuntimeError, IndexError, ValueError):
        return True


def test_seams_are_found_where_they_are(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamview.inspection import twin as certificate

    streamed = certificate.stream

    class Marked(nn.Module):
        """Adds an error to the gradient of one pixel."""

        def __init__(self, inner: nn.Module, row: int, column: int) -> None:
            super().__init__()
            self.inner, self.row, self.column = inner, row, column

        def forward(self, x: Tensor) -> Any:
            if x.requires_grad:
                mask = torch.zeros_like(x)
                mask[:, :, self.row, self.column] = 1
                x.register_hook(lambda grad: grad + mask)
            return self.inner(x)

    for row, column, on_row, on_column in ((31, 32, True, True), (30, 63, False, True), (40, 33, False, False), (32, 10, True, False)):
        with monkeypatch.context() as patched:
            patched.setattr(certificate, "stream", lambda m, at=(row, column), **how: Marked(streamed(m, **how), *at))
            (c,) = verify(network, (100, 90), windows=1, tile=(32, 32)).comparisons
        assert (c.row.position, c.row.on_border, c.column.position, c.column.on_border) == (row, on_row, column, on_column)
        assert c.row.error == c.column.error == c.gradient
        here, there = (c.borders, c.elsewhere) if on_row or on_column else (c.elsewhere, c.borders)
        assert here == c.gradient > 1e-6
        assert there is not None
        assert there < 1e-12


def test_nan_fails(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamview.inspection import twin as certificate

    streamed = certificate.stream
    monkeypatch.setattr(certificate, "stream", lambda m, **how: nn.Sequential(streamed(m, **how), Nan()))
    found = verify(network, 60, windows=1)
    assert not found.passed
    assert found.worst == math.inf
    kept = json.dumps(found.to_dict(), allow_nan=False)
    assert Certificate.from_dict(json.loads(kept)) == found


class Nan(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tensor(math.nan)


# what proves nothing does not pass


def test_without_borders_or_gradients_nothing_is_shown(network: nn.Module) -> None:
    dead = copy.deepcopy(network)
    with torch.no_grad():
        dead[0].weight.zero_()
    assert "zero in every window" in verify(dead, 90).verdict
    line = Line(3, 0.0, False)
    none = Comparison(0, 0, 9, 9, (9, 9), True, "kept", 0.0, 0.0, None, None, line, line, None, 0.0, False)
    found = Certificate("n", "0" * 64, "random", 0, 1e-10, "2", "cpu", (none,))
    assert "no window held a border" in found.verdict
    assert not found.passed
    assert replace(found, comparisons=(replace(none, borders=0.0),)).passed
    assert not replace(found, comparisons=()).passed


# what it is compared on


def test_the_smallest_size_is_found() -> None:
    torch.manual_seed(0)
    deep = seed_network(2, 7)
    found = verify(deep, 900, windows=1)
    assert found.passed
    assert min(found.comparisons[0].height, found.comparisons[0].width) >= 64
    with pytest.raises(RegionError, match=r"40 x 40 px \(height x width\).*use a larger region"):
        verify(deep, 40)


def test_a_network_of_one_size() -> None:
    torch.manual_seed(0)
    fixed = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 12 * 14, 2))
    found = verify(fixed, (48, 56))
    assert found.passed
    assert {(c.height, c.width) for c in found.comparisons} == {(48, 56)}
    with pytest.raises(RegionError, match=r"Sequential in float64 does not run on 50 x 50 px \(.*\); give the shape"):
        verify(fixed, 50)


class Skip(nn.Module):
    """Takes sides that 16 divides."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(16))
        self.up = nn.Upsample(scale_factor=16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.up(self.down(x))], 1).mean((2, 3))


def test_a_network_of_round_sizes() -> None:
    torch.manual_seed(0)
    found = verify(Skip(), 250)
    assert found.passed
    assert all(c.height % 16 == c.width % 16 == 0 for c in found.comparisons)


def test_a_given_step_has_borders_inside_the_windows(network: nn.Module) -> None:
    for tile in ((90, 9999), (9999, 120), (17, 23), (90, 91)):
        found = verify(network, 210, windows=1, tile=tile)
        assert found.passed
        assert found.comparisons[0].tile == tile
    with pytest.raises(RegionError, match=r"no border between them: give a smaller tile"):
        verify(network, 100, tile=(100, 120))


def test_windows_fit_the_memory(network: nn.Module) -> None:
    wide, narrow = (verify(network, 4000, windows=2, memory=memory) for memory in ("2GB", "4MB"))
    assert max(c.height * c.width for c in narrow.comparisons) < min(c.height * c.width for c in wide.comparisons)
    assert narrow.passed
    with pytest.raises(MemoryBudgetError, match=r"takes Sequential in float64 .* as a whole, of memory 1 MB: give more"):
        verify(network, 4000, memory="1MB", tile=(1000, 1000))


@pytest.mark.parametrize("shape", [0, (3, 4, 5, 6), (-1, 20)])
def test_wrong_shapes(network: nn.Module, shape: Any) -> None:
    with pytest.raises(RegionError, match="expected a side"):
        verify(network, shape)
    with pytest.raises(RegionError, match="0 windows: expected one or more"):
        verify(network, 90, windows=0)


class OnlyFloat32(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3)).float())


def test_networks_that_cannot_be_compared(network: nn.Module) -> None:
    with pytest.raises(RegionError, match=r"OnlyFloat32 in float64 does not run on 64 x 64 px \(.*\)"):
        verify(OnlyFloat32(), 64)
    with pytest.raises(NotStreamableError, match="Linear"):
        verify(nn.Linear(3, 3), 64)
    network[0].weight.data.fill_(math.nan)
    with pytest.raises(ModelError, match="itself answers NaN"):
        verify(network, 64)
    module = nn.Conv2d(3, 3, 3)
    module.derived = module.weight * 2  # type: ignore[assignment]
    with pytest.raises(ModelError, match="Conv2d cannot be copied"):
        verify(module, 64)


# what stays as it was


def test_the_network_and_the_random_state_stay_as_they_are() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Dropout(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip
    network[0].requires_grad_(False)
    network[4].eval()
    network[3].weight.grad = torch.ones_like(network[3].weight)
    hook = network[-1].register_forward_hook(lambda *_: None)
    network[3].weight.register_hook(lambda grad: grad)
    state = {key: (value, value.clone(), value._version) for key, value in network.state_dict(keep_vars=True).items()}
    flags = [p.requires_grad for p in network.parameters()], [m.training for m in network.modules()]
    before = torch.get_rng_state()
    assert verify(network, 70).passed  # dropout draws the same in both
    with pytest.raises(Cancelled):
        verify(network, 70, done=cancel)
    assert torch.equal(torch.get_rng_state(), before)
    for key, value in network.state_dict(keep_vars=True).items():
        kept, values, version = state[key]
        assert value is kept
        assert value._version == version
        assert torch.equal(value, values)
    assert flags == ([p.requires_grad for p in network.parameters()], [m.training for m in network.modules()])
    assert torch.equal(network[3].weight.grad, torch.ones_like(network[3].weight))
    assert list(network[-1]._forward_hooks) == [hook.id]
    assert all(p.grad is None for name, p in network.named_parameters() if name != "3.weight")


def cancel() -> None:
    raise Cancelled("stopped by the user")


def test_every_window_is_announced(network: nn.Module) -> None:
    seen: list[int] = []
    verify(network, 60, windows=2, done=lambda: seen.append(1))
    assert len(seen) == 2


def test_hooks_in_the_local_part_are_refused_as_by_stream(network: nn.Module) -> None:
    network[0].register_forward_hook(lambda *_: None)
    with pytest.raises(NotStreamableError, match="hook"):
        verify(network, 90)


# how it is kept and shown


def test_json_and_table(network: nn.Module) -> None:
    found = replace(verify(network, 90, windows=2), facts={"slide": "a.svs"})
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["passed"] is True
    assert Certificate.from_dict(values) == found
    text = str(found)
    assert text.splitlines()[0] == f"Sequential, weights {found.weights_sha256[:12]}, in float64 on cpu, torch {torch.__version__}"
    assert "slide: a.svs" in text
    for c in found.comparisons:
        assert f"{c.width} x {c.height}" in text
        assert f"{c.tile[1]} x {c.tile[0]}" in text
    for damage in ({"comparisons": 3}, {"facts": None}, {"comparisons": [{"row": 1}]}):
        with pytest.raises(StreamviewError, match="damaged certificate"):
            Certificate.from_dict(values | damage)
    del values["seed"]
    with pytest.raises(StreamviewError, match=r"damaged certificate \(KeyError: 'seed'\)"):
        Certificate.from_dict(values)


class Transposed(nn.Module):
    """BatchNorm in eval mode, or instance norm, in front of a permuted map: torch 2.13 is wrong on the CPU about gradients that lie so."""

    def __init__(self, batch: bool) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4) if batch else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return F.instance_norm(x).permute(0, 2, 3, 1) if self.norm is None else self.norm(x).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("batch", [True, False])
def test_plain_torch_gets_contiguous_gradients(batch: bool) -> None:
    torch.manual_seed(0)
    certificate = verify(Transposed(batch).eval(), 96, windows=1)
    assert certificate.passed, certificate.verdict
    assert certificate.comparisons[0].differences is None


@pytest.mark.parametrize("wrong", ["plain", "streamed"])
def test_finite_differences_decide_where_gradients_disagree(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    module = sys.modules["streamview.inspection.exactness"]
    original = module._passes
    calls = []

    def passes(outputs: list[Tensor], *args: Any) -> Any:
        calls.append(1)
        result = original(outputs, *args)
        if (len(calls) == 1) == (wrong == "plain"):  # the plain network comes first
            result.pixels.mul_(1.5)
        return result

    monkeypatch.setattr(module, "_passes", passes)
    certificate = verify(network, 96, windows=1)
    (comparison,) = certificate.comparisons
    assert comparison.differences == {"plain": "streamed", "streamed": "plain"}[wrong]
    assert certificate.passed == (wrong == "plain")
    assert ("finite differences agree with the streamed one" in certificate.verdict) == (wrong == "plain")
    assert Certificate.from_dict(certificate.to_dict()) == certificate
