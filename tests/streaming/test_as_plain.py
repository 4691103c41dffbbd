"""A streamed network beside a plain one: absent gradients, state, what is left on the network, types of answers, digits, refusals."""

from __future__ import annotations

import dataclasses
import random
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

from streamview.errors import MemoryBudgetError, NotStreamableError
from streamview.inspection.streamability import streamability
from streamview.streaming import stream
from tests.support.oracle import errors

TILE = (16, 24)


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 3, 37, 41, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def pooled(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()


# ------------------------------------------------------------------------------------------------------------------ absent gradients


class Gate(nn.Module):
    """Squeeze-excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.layer(x.mean((2, 3), keepdim=True)).sigmoid()


class Branches(nn.Module):
    """Branches of random layers, some behind others; the answer has one part for each."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        chosen = random.Random(seed)
        self.branches = nn.ModuleList()
        self.sources = []
        for number in range(chosen.randint(2, 4)):
            source = chosen.randint(-1, number - 1)
            layers: list[nn.Module] = [nn.Conv2d(3 if source < 0 else 4, 4, 3, padding=1)]
            layers += chosen.sample([nn.ReLU(), nn.GroupNorm(2, 4), Gate(4), nn.BatchNorm2d(4)], chosen.randint(0, 3))
            self.branches.append(nn.Sequential(*layers))
            self.sources.append(source)
        self.kinds = [chosen.choice(["mean", "max"]) for _ in self.sources]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps: list[Tensor] = []
        for branch, source in zip(self.branches, self.sources, strict=True):
            maps.append(branch(x if source < 0 else maps[source]))
        return tuple(m.mean((2, 3)) if kind == "mean" else m.amax((2, 3)) for m, kind in zip(maps, self.kinds, strict=True))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.data())
def test_gradients_are_absent_where_those_of_plain_torch_are(seed: int, data: st.DataObject) -> None:
    torch.manual_seed(seed)
    network = Branches(seed).double().eval()
    frozen = data.draw(st.integers(-1, len(network.branches) - 1))
    if frozen >= 0:
        network.branches[frozen].requires_grad_(False)
    x = torch.randn(1, 3, 19, 23, dtype=torch.float64).requires_grad_(data.draw(st.booleans()))
    used = data.draw(st.lists(st.integers(0, len(network.branches) - 1), min_size=1, unique=True))
    results = []
    for module in (network, stream(network, tile=(8, 12))):
        answer = module(x)
        asked = [t for t in (x, *network.parameters()) if t.requires_grad]
        score = sum(answer[index].sum() for index in used)
        grads = torch.autograd.grad(score, asked, allow_unused=True) if score.requires_grad else [None] * len(asked)
        results.append(([part.requires_grad for part in answer], grads))
    (flags, expected), (streamed_flags, found) = results
    # a bridge is for all branches: what one of them trains counts for the answers of others too
    assert all(streamed or not plain for streamed, plain in zip(streamed_flags, flags, strict=True))
    assert [g is None for g in found] == [g is None for g in expected]
    scale = max((float(g.abs().max()) for g in expected if g is not None), default=1.0)
    assert all(bool((a - b).abs().max() <= 1e-10 * max(scale, 1)) for a, b in zip(found, expected, strict=True) if b is not None)


def test_an_unused_branch_is_not_decayed(image: Tensor) -> None:
    network = Branches(0).double().eval()
    network.sources = [-1] * len(network.sources)
    for branch in network.branches:
        branch[0] = nn.Conv2d(3, 4, 3, padding=1).double()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.1)
    before = [p.clone() for p in network.branches[1].parameters()]
    stream(network, tile=TILE)(image)[0].sum().backward()
    optimizer.step()
    assert all(p.grad is None for p in network.branches[1].parameters())
    assert all(torch.equal(p, b) for p, b in zip(network.branches[1].parameters(), before, strict=True))


# ----------------------------------------------------------------------------------------------------------------------------- state


def old_spectral_norm(layer: nn.Module) -> nn.Module:
    return torch.nn.utils.spectral_norm(layer)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, pytest.param(old_spectral_norm, marks=pytest.mark.slow)])
@pytest.mark.parametrize("second", [nn.LeakyReLU(0.2), nn.BatchNorm2d(4)], ids=["activation", "frozen batch norm"])
def test_state_advances_once_a_call_as_in_plain_torch(norm: Callable[[nn.Module], nn.Module], second: nn.Module, image: Tensor) -> None:
    torch.manual_seed(0)
    network, twin = (
        pooled(norm(nn.Conv2d(3, 4, 3)), second.__class__(*([0.2] if second.__class__ is nn.LeakyReLU else [4]))) for _ in "ab"
    )
    twin.load_state_dict(network.state_dict())
    for each in (network, twin):
        each.train()
        each[1].eval()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    streamed = stream(network, tile=TILE)
    streamed.plan((1, 3, 37, 41))
    streamability(network)
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())
    answers = [module(image.requires_grad_()).sum() for module in (streamed, streamed, twin, twin)]
    assert all(torch.equal(a, b) for a, b in zip(network.buffers(), twin.buffers(), strict=True))
    (answers[0] + answers[1]).backward()  # two calls, then one backward pass
    (answers[2] + answers[3]).backward()
    for a, b in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-9, atol=1e-12)


def test_a_plan_leaves_torchs_random_state() -> None:
    streamed = stream(pooled(nn.Conv2d(3, 4, 3)))
    before = torch.get_rng_state()
    streamed.plan((1, 3, 64, 64))
    assert torch.equal(torch.get_rng_state(), before)


class Keeps(nn.Module):
    """Leaves its features, and things that hold them, where others find them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)
        self.seen: list[Any] = []
        self.by_name: dict[str, Any] = {}
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x).relu()
        self.last, self.size = y, y.shape[-2:]
        self.seen.append(y)
        self.by_name["features"] = y
        self.layer.output = y
        return y.mean((2, 3))


def test_nothing_is_left_on_the_network(image: Tensor) -> None:
    network = nn.Sequential(Keeps(), nn.Linear(4, 2)).double()
    before = [(dict(vars(m)), list(vars(m))) for m in network.modules()]
    streamed = stream(network, tile=TILE)
    graph = streamed.graph()
    assert torch.allclose(streamed(image), Keeps.__call__(network[0], image) @ network[1].weight.T + network[1].bias)
    network[0].__dict__.update(before[1][0])
    for name in ("size",):
        vars(network[0]).pop(name)
    network[0].seen.clear()
    network[0].by_name.clear()
    del network[0].layer.output
    stream(network, tile=TILE)(image)
    assert [(vars(m), list(vars(m))) for m in network.modules()] == before
    assert streamed.graph() is graph


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Conv2d(3, 4, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x).mean((2, 3)) / self.calls


def test_a_count_that_streaming_would_not_keep_is_refused() -> None:
    network = nn.Sequential(Counts())
    with pytest.raises(NotStreamableError, match=r"^0: forward changes the attribute calls \(from 0 to 1\)"):
        stream(network)
    assert network[0].calls == 0


class BufferCount(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.layer(x).mean((2, 3))


def test_a_buffer_that_forward_changes_advances_as_in_plain_torch(image: Tensor) -> None:
    network = BufferCount().double()
    streamed = stream(network, tile=TILE)
    streamed.plan((1, 3, 37, 41))
    assert network.calls == 0
    streamed(image)
    streamed(image)
    assert network.calls == 2


def test_a_compiled_submodule_is_streamed(image: Tensor) -> None:
    network = pooled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    expected = network(image)
    network[0].compile(backend="eager")
    assert torch.allclose(stream(network, tile=TILE)(image), expected)
    assert network[0]._compiled_call_impl is not None


# ----------------------------------------------------------------------------------------------------------------------------- types


class Named(NamedTuple):
    logits: Tensor
    features: Tensor


@dataclasses.dataclass
class Answer:
    logits: Tensor
    features: Tensor | None = None


class Output(OrderedDict[str, Tensor]):
    """As several libraries have it: its items are also attributes."""

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Answers(nn.Module):
    def __init__(self, make: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.make = nn.Conv2d(3, 4, 3), make

    def forward(self, x: Tensor) -> Any:
        y = self.layer(x)
        return self.make(y.mean((2, 3)), y.amax((2, 3)))


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: OrderedDict(out=a, aux=b),
        lambda a, b: Output(out=a, aux=b),
        lambda a, b: defaultdict(list, out=a, aux=b),
        lambda a, b: {"out": [OrderedDict(a=a), Named(a, b)], "none": None, "count": 3},
        lambda a, b: Named(a, b),
        lambda a, b: Answer(a, b),
        lambda a, b: (a, [b]),
    ],
)
def test_types_of_answers_stay(make: Callable[[Tensor, Tensor], Any], image: Tensor) -> None:
    network = Answers(make).double()
    found, expected = stream(network, tile=TILE)(image), network(image)
    assert described(found) == described(expected)
    if isinstance(expected, Output):
        assert torch.allclose(found.aux, expected.aux)


def described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return [round(v, 9) for v in value.flatten().tolist()]
    if isinstance(value, dict):
        return type(value), [(key, described(part)) for key, part in value.items()]
    if isinstance(value, tuple | list):
        return type(value), [described(part) for part in value]
    return (type(value), described(vars(value))) if dataclasses.is_dataclass(value) else value


def test_torch_compile_leaves_a_streamed_network_as_it_is(image: Tensor) -> None:
    streamed = stream(pooled(nn.Conv2d(3, 4, 3), nn.ReLU()), tile=TILE)
    outer = nn.Sequential(streamed, nn.Linear(4, 2)).double()
    image.requires_grad_()
    expected = torch.autograd.grad(outer(image)[0, 1], image)[0]
    begin = time.process_time()
    answer = torch.compile(outer, backend="eager")(image)
    assert torch.equal(torch.compile(streamed, backend="eager")(image), streamed(image))
    assert torch.allclose(torch.autograd.grad(answer[0, 1], image)[0], expected)
    assert time.process_time() - begin < 20  # minutes, if every step were compiled


# ---------------------------------------------------------------------------------------------------------------------------- memory


def test_memory_counts_the_gradient_of_the_image() -> None:
    network = pooled(nn.Conv2d(3, 4, 3)).float().requires_grad_(False)
    gradient = 3 * 1024 * 1024 * 4
    streamed = stream(network, memory=gradient + 2**24)
    assert gradient < streamed.plan((1, 3, 1024, 1024), seconds=False).peak_bytes <= gradient + 2**24
    assert streamed.plan((1, 3, 1024, 1024), seconds=False, image_gradient=False).peak_bytes < 2**24
    with pytest.raises(MemoryBudgetError, match="the gradient of an image of 1024 x 1024 px alone takes 12 MB"):
        stream(network, memory=gradient)(torch.zeros(1, 3, 1024, 1024, requires_grad=True))


# ---------------------------------------------------------------------------------------------------------------------------- digits


class Deviation(nn.Module):
    """Pooling of mean and standard deviation, and a layer that divides by it."""

    def __init__(self, unbiased: bool) -> None:
        super().__init__()
        self.unbiased = unbiased

    def forward(self, x: Tensor) -> Tensor:
        x = x / (x.var((2, 3), self.unbiased, keepdim=True) + 1e-9).sqrt()
        return x * torch.std(x, dim=(2, 3), unbiased=self.unbiased)[:, :, None, None]


@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.GroupNorm(2, 4), lambda: nn.GroupNorm(1, 4), lambda: nn.InstanceNorm2d(4, affine=True),
        lambda: Deviation(True), lambda: Deviation(False),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (100.0, 0.01)])
def test_variances_keep_their_digits_far_from_zero(norm: Callable[[], nn.Module], mean: float, deviation: float) -> None:
    torch.manual_seed(0)
    network = pooled(norm(), nn.Conv2d(4, 4, 3), nn.LeakyReLU(0.3))
    x = mean + deviation * torch.randn(2, 4, 48, 40, dtype=torch.float64)
    parameters = list(network.parameters())

    def passed(module: nn.Module, x: Tensor) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        answer = module(leaf)
        return [answer.detach(), *torch.autograd.grad(answer[0, 1], [leaf, *parameters])]

    def worst(results: list[Tensor], expected: list[Tensor]) -> list[float]:
        return [float((a - b).abs().max() / b.abs().max()) for a, b in zip(results, expected, strict=True)]

    exact = passed(network, x)
    errors = worst(passed(stream(network, tile=TILE), x), exact)
    assert errors[0] < 1e-10
    assert max(errors) < 1e-6  # sums of products with values far from zero
    network.float()
    exact = passed(network.double(), x.float().double())
    parameters = list(network.float().parameters())
    plain, streamed = (worst(passed(module, x.float()), exact) for module in (network, stream(network, tile=TILE)))
    assert all(s <= 5 * p + 1e-5 for s, p in zip(streamed, plain, strict=True))


@pytest.mark.parametrize("unbiased", [True, False])
def test_variance_pooling(unbiased: bool, image: Tensor) -> None:
    assert max(errors(nn.Sequential(nn.Conv2d(3, 4, 3), Deviation(unbiased), nn.AdaptiveMaxPool2d(1)).double(), image, tile=TILE)) < 1e-10


# -------------------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (nn.DataParallel, "^the network is inside DataParallel, .*: give the network inside, its .module$"),
        (AveragedModel, "inside AveragedModel.*its .module$"),
        (lambda network: torch.compile(network, backend="eager"), "inside OptimizedModule.*its ._orig_mod$"),
        (lambda network: nn.Sequential(nn.DataParallel(network)), "^0 is inside DataParallel, .*: put 0.module in its place$"),
    ],
    ids=["parallel", "averaged", "compiled", "nested"],
)
def test_networks_inside_others_are_refused_with_the_way_out(wrap: Callable[[nn.Module], nn.Module], message: str) -> None:
    network = wrap(pooled(nn.Conv2d(3, 4, 3)))
    with pytest.raises(NotStreamableError, match=message):
        stream(network)
    assert streamability(network).streams is False


def test_distributed_networks_are_refused_with_the_way_out(tmp_path: Any) -> None:
    if not torch.distributed.is_available():
        pytest.skip("no torch.distributed")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        network = nn.parallel.DistributedDataParallel(pooled(nn.Conv2d(3, 4, 3)))
        with pytest.raises(NotStreamableError, match=r"inside DistributedDataParallel.*its \.module$"):
            stream(network)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_script_is_refused_with_the_way_out(image: Tensor) -> None:
    with pytest.raises(NotStreamableError, match=r"compiled by torch\.jit.*the nn\.Module that it was made from"):
        stream(torch.jit.trace(pooled(nn.Conv2d(3, 4, 3)), image))


def test_pruned_layers_are_refused_with_the_way_out(image: Tensor) -> None:
    network = pooled(nn.Conv2d(3, 4, 3), nn.ReLU())
    streamed = stream(network, tile=TILE)
    prune.l1_unstructured(network[0], "weight", 0.5)
    with pytest.raises(NotStreamableError, match=r'0 is pruned by a hook .* torch\.nn\.utils\.prune\.remove\(layer, "weight"\)'):
        streamed(image)
    prune.remove(network[0], "weight")
    assert torch.allclose(streamed(image), network(image))


@pytest.mark.parametrize(
    "register",
    [
        nn.modules.module.register_module_forward_hook, nn.modules.module.register_module_forward_pre_hook,
        nn.modules.module.register_module_full_backward_hook, nn.modules.module.register_module_full_backward_pre_hook,
    ],
)  # fmt: skip
def test_global_hooks_are_refused(register: Callable[..., Any], image: Tensor) -> None:
    streamed = stream(pooled(nn.Conv2d(3, 4, 3)), tile=TILE)
    handle = register(lambda *_: None)
    try:
        with pytest.raises(NotStreamableError, match=r"a global hook of all modules .*`cut`"):
            streamed(image)
    finally:
        handle.remove()
    streamed(image)


def test_batch_norm_without_running_statistics_says_so() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Conv2d(4, 4, 3)).eval()
    with pytest.raises(NotStreamableError, match=r"1: BatchNorm without running statistics \(track_running_stats=False\)"):
        stream(network)


class Joined(nn.Module):
    """Joins a map with something that needs the whole map for a reason with brackets in it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return ((x * self.norm(x)) * x).mean((2, 3))


def test_reasons_are_given_whole() -> None:
    with pytest.raises(NotStreamableError) as refusal:
        stream(Joined())
    text = str(refusal.value)
    assert "norm: BatchNorm without running statistics (track_running_stats=False) needs those of the whole map" in text
    assert text.count("(") == text.count(")")
