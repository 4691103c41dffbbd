"""Networks in which a whole map must be reduced before the next layer can run, and networks that join maps of very different depth."""

from __future__ import annotations

import copy
import errno
import gc
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from streamview_models import MODELS
from torch import Tensor, nn

from streamview.errors import MemoryBudgetError
from streamview.streaming import stream
from streamview.streaming.capture.capture import capture
from streamview.streaming.run import stores
from tests.support.networks import Excite, Inverted, Response, seed_network
from tests.support.oracle import captured_once, errors

pytestmark = pytest.mark.usefixtures("fine_rows")

MODES = ["kept", "spilled", "regenerated"]
TILES = [(8, 90), (9, 13)]
TOLERANCE = 1e-10


@pytest.fixture
def image() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, 37, 43, dtype=torch.float64)


def conv(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.ReLU())


# --------------------------------------------------------------------------------------------------------------------------- U-Nets


class UNet(nn.Module):
    """Three levels; `up` brings a map to the next finer level, `join` makes it fit."""

    def __init__(self, up: Callable[[int], nn.Module], idiom: str) -> None:
        super().__init__()
        widths = [4, 6, 8]
        self.down = nn.ModuleList([conv(3, 4), conv(4, 6), conv(6, 8)])
        self.up = nn.ModuleList([up(8), up(6)])
        self.merge = nn.ModuleList([conv(8 + widths[1], 6), conv(6 + widths[0], 4)])
        self.last, self.idiom = nn.Conv2d(4, 2, 1), idiom

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, layer in enumerate(self.down):
            x = layer(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
            if self.idiom == "size":
                x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear")
            else:
                x = up(x)
            if self.idiom == "pad":
                dy, dx = skip.size(2) - x.size(2), skip.size(3) - x.size(3)
                x = F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
            x = merge(torch.cat([skip, x], 1))
        return self.last(x)


UPS: dict[str, Callable[[int], nn.Module]] = {
    "nearest": lambda channels: nn.Upsample(scale_factor=2),
    "bilinear": lambda channels: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    "transposed": lambda channels: nn.ConvTranspose2d(channels, channels, 2, 2),
    "overlapping": lambda channels: nn.ConvTranspose2d(channels, channels, 4, 2, 1),
}


IDIOMS = [("none", (36, 44)), ("pad", (37, 43)), ("pad", (39, 41)), ("size", (37, 43))]


@pytest.mark.parametrize(
    ("up", "idiom", "size"),
    [  # in each run every way up and every way to join, which by "size" needs no way up; before a release all pairs
        pytest.param(up, *how, marks=() if (number == 0 if how[0] == "size" else (number + other) % 4 in (0, 1)) else pytest.mark.slow)
        for number, up in enumerate(UPS)
        for other, how in enumerate(IDIOMS)
    ],
)
def test_u_net(up: str, idiom: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = UNet(UPS[up], idiom).double()
    assert capture(network).passes == 1
    for tile in TILES:
        assert max(errors(network, torch.randn(1, 3, *size, dtype=torch.float64), tile=tile)) < TOLERANCE


# ------------------------------------------------------------------------------------------------------------------------- barriers


class Net(nn.Module):
    """Layers at hand as `m`, and a forward pass given from outside."""

    def __init__(self, run: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 6), conv(6, 6, 2), nn.Conv2d(6, 6, 3, 1, 1)
        self.one, self.two = Excite(6), Excite(6)
        self.fc, self.grn, self.next = nn.Linear(6, 6), Response(6), Inverted(6)
        self.group, self.wide, self.instance = nn.GroupNorm(3, 6), nn.GroupNorm(1, 6), nn.InstanceNorm2d(6, affine=True)
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def mean(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def nested(m: Any, x: Tensor) -> Tensor:
    """A gate in a branch whose own result is gated, and both joined."""
    y = m.a(x)
    return m.c(m.two(y + m.one(y).tanh() * 2))


def long_skips(m: Any, x: Tensor) -> Tensor:
    a = m.a(x)
    b = m.group(m.c(a))
    c = m.one(b + a)
    d = m.grn(m.c(c))
    return m.c(torch.cat([a, d], 1)[:, 3:9] + b) + F.interpolate(m.b(a), size=a.shape[2:])


def to_head_and_layer(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    s = mean(y)
    return m.c(y * s.sigmoid()).mean((2, 3)) + m.fc(s.flatten(1)) * s.flatten(1)


def reductions_twice(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    s, t = mean(y), F.adaptive_max_pool2d(y, 1)
    z = m.c(y * s + t)
    u = mean(z)
    return m.c(z * u * s - t) * u.tanh()


FORMS: dict[str, tuple[int, Callable[[Any, Tensor], Any]]] = {
    "gate": (2, lambda m, x: m.c(m.one(m.a(x)))),
    "gate of the image": (2, lambda m, x: m.a(x * mean(x))),
    "image with its mean": (2, lambda m, x: x - mean(x)),
    "gate between branches": (2, lambda m, x: (lambda y: m.c(y) * m.fc(mean(m.b(y)).flatten(1))[..., None, None].sigmoid())(m.a(x))),
    "two gates in a row": (3, lambda m, x: m.c(m.two(m.one(m.a(x))))),
    "two gates side by side": (2, lambda m, x: (lambda y: m.one(y) + m.two(y) * y)(m.a(x))),
    "nested": (3, nested),
    "gate used later": (2, lambda m, x: (lambda y: m.c(m.c(y)) * mean(y).sigmoid())(m.a(x))),
    "gate of a later map on an earlier": (2, lambda m, x: (lambda y: m.c(y * mean(m.b(m.c(y))).sigmoid()))(m.a(x))),
    "expanded gate": (2, lambda m, x: (lambda y: m.c(y * m.fc(mean(y).flatten(1)).view(y.size(0), 6, 1, 1).expand_as(y)))(m.a(x))),
    "long skips": (4, long_skips),
    "statistic for a layer and the head": (2, to_head_and_layer),
    "reductions used twice": (3, reductions_twice),
    "mean over the images too": (2, lambda m, x: (lambda y: m.c(y * mean(y).mean(0, keepdim=True)))(m.a(x))),
    "mean over everything": (2, lambda m, x: (lambda y: m.c(y * mean(y).mean()))(m.a(x))),
    "one channel's number": (2, lambda m, x: (lambda y: m.c(y - mean(y)[:, 2:3]))(m.a(x))),
    "GroupNorm": (2, lambda m, x: m.c(m.group(m.a(x)))),
    "GroupNorm as LayerNorm": (2, lambda m, x: m.c(m.wide(m.a(x)).relu())),
    "InstanceNorm": (2, lambda m, x: m.c(m.instance(m.a(x)))),
    "GroupNorm at the end": (2, lambda m, x: m.group(m.c(m.a(x)))),
    "F.group_norm": (2, lambda m, x: m.c(F.group_norm(m.a(x), 2, m.fc.bias, m.fc.bias.exp(), 1e-3))),
    "F.instance_norm": (2, lambda m, x: m.c(F.instance_norm(m.a(x)))),
    "GRN": (2, lambda m, x: m.c(m.grn(m.a(x)))),
    "GRN with channels last": (2, lambda m, x: m.c(_last(m.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))),
    "standardised": (3, lambda m, x: (lambda d: m.c(d / (mean(d * d) + 1e-3).sqrt()))((lambda y: y - mean(y))(m.a(x)))),
    "kernel shared by layers around a gate": (2, lambda m, x: m.c(m.one(m.c(m.a(x))))),
    "weights shared with the bridge": (2, lambda m, x: (lambda y: m.c(y * F.conv2d(mean(y), m.c.weight[:, :, 1:2, 1:2])))(m.a(x))),
    "weights shared with the head": (2, lambda m, x: m.fc(m.c(m.one(m.a(x))).mean((2, 3))) @ m.c.weight[:, :, 1, 1]),
    "ConvNeXt behind a gate": (2, lambda m, x: m.next(m.one(m.a(x)))),
    "unused gate": (1, lambda m, x: (lambda y: (m.one(y), m.c(y))[1])(m.a(x))),
    "gates for a size alone": (2, lambda m, x: (lambda y: F.interpolate(m.one(y), size=m.b(m.group(m.grn(m.two(y)))).shape[2:]))(m.a(x))),
    "map and mean out": (2, lambda m, x: (lambda y: torch.cat([m.c(y * mean(y)).flatten(1), mean(y).flatten(1), y.flatten(1)], 1))(m.a(x))),
    "changed in place behind its mean": (2, lambda m, x: (lambda y: (lambda s: (y.add_(1), m.c(y * s))[1])(mean(y)))(m.a(x) * 2)),
}  # fmt: skip


def _last(x: Tensor) -> Tensor:
    norm = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
    return x * (norm / (norm.mean(dim=-1, keepdim=True) + 1e-6)) + x


@pytest.mark.parametrize(
    ("form", "mode"),
    [
        pytest.param(form, mode, marks=() if MODES[number % 3] == mode else pytest.mark.slow)
        for number, form in enumerate(FORMS)
        for mode in MODES
    ],
)
def test_form(form: str, mode: str, image: Tensor) -> None:
    """In each run every form by one mode, and every mode by a third of the forms; the rest before a release."""
    torch.manual_seed(1)
    passes, run = FORMS[form]
    network = Net(run).double()
    with captured_once():
        assert stream(network, check=False).graph().passes == passes
        for tile in TILES:
            assert max(errors(network, image, tile=tile, barriers=mode)) < TOLERANCE


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("memory", ["3MB", "1GB"])
def test_under_a_budget(mode: str, memory: str, image: Tensor) -> None:
    for form in ("two gates in a row", "mean over the images too", "mean over everything", "GroupNorm"):
        torch.manual_seed(1)
        assert max(errors(Net(FORMS[form][1]).double(), image, memory=memory, barriers=mode)) < TOLERANCE


@pytest.mark.parametrize("mode", MODES)
def test_a_retained_graph(mode: str, image: Tensor) -> None:
    torch.manual_seed(1)
    network = Net(reductions_twice).double()
    leaf = image.clone().requires_grad_()
    inputs = [leaf, *network.a.parameters(), *network.c.parameters()]
    out, expected = stream(network, tile=(9, 13), barriers=mode)(leaf), network(leaf)
    for seed in range(2):
        torch.manual_seed(seed)
        cotangent = torch.randn_like(out)
        found = torch.autograd.grad(out, inputs, cotangent, retain_graph=True)
        for a, b in zip(found, torch.autograd.grad(expected, inputs, cotangent, retain_graph=True), strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mode", MODES)
def test_without_gradients(mode: str, image: Tensor) -> None:
    torch.manual_seed(1)
    network = Net(long_skips).double()
    streamed = stream(network, tile=(9, 13), barriers=mode)
    with torch.no_grad():
        out = streamed(image)
    assert not out.requires_grad
    assert torch.allclose(out, network(image), atol=1e-11)
    network.requires_grad_(False)
    assert not streamed(image).requires_grad


@pytest.mark.parametrize(
    "trained",
    [
        ("c",),
        ("one.bridge",),
        pytest.param(("a",), marks=pytest.mark.slow),
        pytest.param(("two.bridge.2", "group"), marks=pytest.mark.slow),
        pytest.param(("grn.scale",), marks=pytest.mark.slow),
    ],
)
def test_frozen_parts(trained: tuple[str, ...], image: Tensor) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.c(m.two(m.grn(m.group(m.c(m.one(m.a(x)))))))

    torch.manual_seed(1)
    network = Net(run).double()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    asked = [p for p in network.parameters() if p.requires_grad]
    assert asked
    for leaf in (image, image.clone().requires_grad_()):
        inputs = [*asked, leaf] if leaf.requires_grad else asked
        expected = torch.autograd.grad(network(leaf).square().sum(), inputs)
        with captured_once():
            for mode in MODES:
                result = torch.autograd.grad(stream(network, tile=(9, 13), barriers=mode)(leaf).square().sum(), inputs)
                for a, b in zip(result, expected, strict=True):
                    assert torch.allclose(a, b, rtol=1e-8, atol=1e-9), mode


@pytest.mark.parametrize("mode", MODES)
def test_batch_norm_in_training_mode_within_a_bridge(mode: str, image: Tensor) -> None:
    """Its statistics are updated once for every forward pass, and by no capture, plan or backward pass."""
    torch.manual_seed(1)
    network = Net(lambda m, x: m.c(m.one(m.a(x))))
    network.one = Excite(6, nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.0), nn.Linear(4, 6)))
    network.double().train()
    twin = copy.deepcopy(network)
    streamed = stream(network, tile=(9, 13), barriers=mode)
    norm, expected = network.one.bridge[1], twin.one.bridge[1]
    assert norm.num_batches_tracked == 0
    for count in (1, 2):
        a, b = image.clone().requires_grad_(), image.clone().requires_grad_()
        streamed(a).square().sum().backward()
        twin(b).square().sum().backward()
        assert norm.num_batches_tracked == count
        assert torch.allclose(norm.running_mean, expected.running_mean, atol=1e-12)
        assert torch.allclose(norm.running_var, expected.running_var, atol=1e-12)
        assert torch.allclose(a.grad, b.grad, atol=1e-10)
    for p, q in zip(network.parameters(), twin.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        assert p.grad is None or torch.allclose(p.grad, q.grad, rtol=1e-9, atol=1e-10)


def test_capture_draws_no_random_numbers(image: Tensor) -> None:
    network = Net(lambda m, x: m.c(m.one(m.a(x))))
    network.one = Excite(6, nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)))
    before = torch.get_rng_state()
    stream(network.double())
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_within_a_bridge(image: Tensor) -> None:
    """One draw a forward pass, that of plain torch."""
    network = Net(lambda m, x: m.c(m.one(m.a(x))))
    network.one = Excite(6, nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)))
    network.double()
    found = []
    for module in (stream(network, tile=(9, 13)), network):
        leaf = image.clone().requires_grad_()
        torch.manual_seed(7)
        out = module(leaf)
        found.append((out, *torch.autograd.grad(out.square().sum(), leaf)))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("offset", [0.0, 30.0, 1000.0])
@pytest.mark.parametrize("norm", [lambda: nn.GroupNorm(2, 6), lambda: nn.InstanceNorm2d(6)], ids=["group", "instance"])
def test_norms_of_large_means_in_single_precision(norm: Callable[[], nn.Module], offset: float) -> None:
    """As accurate as torch's own, measured against float64."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.MaxPool2d(1), norm(), nn.Hardswish())
    image = torch.randn(1, 6, 96, 96) + offset
    cotangent = torch.randn(1, 6, 96, 96)

    def run(module: nn.Module, dtype: torch.dtype) -> list[Tensor]:
        leaf = image.to(dtype).requires_grad_()
        out = module(leaf)
        return [out.double(), torch.autograd.grad(out, leaf, cotangent.to(dtype))[0].double()]

    exact = run(copy.deepcopy(network).double(), torch.float64)
    ours, theirs = run(stream(network, tile=(16, 40)), torch.float32), run(network, torch.float32)
    for e, a, b in zip(exact, ours, theirs, strict=True):
        assert (a - e).norm() <= 10 * (b - e).norm() + 1e-6 * e.norm()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(mode: str, dtype: torch.dtype, image: Tensor) -> None:
    torch.manual_seed(1)
    network = Net(lambda m, x: m.c(m.grn(m.group(m.one(m.a(x)))))).to(dtype)
    exact = copy.deepcopy(network).double()
    leaf = image.to(dtype).requires_grad_()
    wide = leaf.detach().double().requires_grad_()
    out, expected = stream(network, tile=(9, 13), barriers=mode)(leaf), exact(wide)
    assert out.dtype == dtype
    tolerance = 0.05 if dtype == torch.bfloat16 else 0.01
    assert (out - expected).norm() < tolerance * expected.norm()
    found, wanted = torch.autograd.grad(out.double().square().sum(), leaf)[0], torch.autograd.grad(expected.square().sum(), wide)[0]
    assert found.dtype == dtype
    assert (found - wanted).norm() < 2 * tolerance * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("norm", [lambda: nn.GroupNorm(2, 6), lambda: nn.InstanceNorm2d(6)], ids=["group", "instance"])
def test_a_layer_behind_a_norm_gets_the_type_of_its_map(norm: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 4, 4), norm(), nn.Conv2d(6, 4, 3), nn.AdaptiveAvgPool2d(1)).to(dtype)
    leaf = torch.randn(1, 3, 96, 80).to(dtype).requires_grad_()
    (out, grad), (expected, wanted) = (
        (made, torch.autograd.grad(made.float().sum(), leaf)[0]) for made in (stream(network, tile=(16, 40))(leaf), network(leaf))
    )
    assert out.dtype == grad.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    assert (out - expected).norm() < tolerance * expected.norm()
    assert (grad - wanted).norm() < tolerance * wanted.norm()


# --------------------------------------------------------------------------------------------------------------------------- stores


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """Weak references to all stores that a test makes."""
    found: list[weakref.ref[Any]] = []
    for kind in (stores.Held, stores.Spilled):

        def init(self: Any, *args: Any, init: Any = kind.__init__) -> None:
            found.append(weakref.ref(self))
            init(self, *args)

        monkeypatch.setattr(kind, "__init__", init)
    return found


@pytest.mark.parametrize("mode", MODES)
def test_stores_are_released(
    mode: str, image: Tensor, made: list[weakref.ref[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(stores.tempfile, "tempdir", None)
    open_before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    streamed = stream(Net(long_skips).double(), tile=(9, 13), barriers=mode)
    gc.disable()
    try:
        leaf = image.clone().requires_grad_()
        out = streamed(leaf)
        spilled = [s for s in made if isinstance(s(), stores.Spilled)]
        assert bool(spilled) == (mode == "spilled")
        torch.autograd.grad(out.sum(), leaf, retain_graph=True)
        assert not list(tmp_path.iterdir())
        del out
        assert not [s for s in made if s() is not None]
        with torch.no_grad():
            streamed(image)
        assert not [s for s in made if s() is not None]
    finally:
        gc.enable()
    if open_before:
        assert set(os.listdir("/proc/self/fd")) <= open_before | {str(max(map(int, open_before)) + 1)}


def test_a_full_disk(image: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0

    def full(file: int, data: Any, offset: int) -> int:
        nonlocal written
        written += len(data)
        if written > 50_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data, offset)

    write = os.pwrite
    monkeypatch.setattr(stores.os, "pwrite", full)
    streamed = stream(Net(lambda m, x: m.c(m.one(m.a(x)))).double(), tile=(9, 13), barriers="spilled")
    with pytest.raises(MemoryBudgetError, match="No space left on device; free space there"):
        streamed(image)
    monkeypatch.undo()
    assert streamed(image).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("cols", [7, 4, 1])
def test_a_spilled_map_is_a_held_one(dtype: torch.dtype, channels: int, cols: int) -> None:
    torch.manual_seed(0)
    size = (5, 7)
    held, spilled = stores.Held(size), stores.Spilled(size)
    held.accumulate(torch.zeros(2, channels, 1, 1, dtype=dtype), (0, 1), (0, 1))
    for rows in ((0, 2), (2, 3), (3, 5)):
        for left in range(0, 7, cols):
            span = left, min(left + cols, 7)
            shape = 2, channels, rows[1] - rows[0], span[1] - span[0]
            for layout in (torch.contiguous_format, torch.channels_last):
                piece = torch.randn(shape).to(dtype).contiguous(memory_format=layout)
                for store in (held, spilled):
                    store.accumulate(piece, rows, span)
            strided = torch.randn(*shape[:3], 2 * shape[3]).to(dtype)[..., ::2]
            for store in (held, spilled):
                store.accumulate(strided, rows, span)
                store.accumulate(strided[:, :1].expand(shape), rows, span)
    assert torch.equal(held.result(), spilled.result())
    assert torch.equal(held.read((1, 4), (2, 6)), spilled.read((1, 4), (2, 6)))
    fresh = stores.Spilled(size)
    fresh.accumulate(torch.ones(1, channels, 1, 1, dtype=dtype), (1, 2), (3, 4))
    assert fresh.result().double().sum() == channels


# ----------------------------------------------------------------------------------------------------------------- without barriers


@pytest.mark.parametrize("name", list(MODELS))
def test_plain_networks_take_one_pass(name: str) -> None:
    assert capture(MODELS[name](outputs=2, width=2).eval()).passes == 1
    assert capture(seed_network()).passes == 1
