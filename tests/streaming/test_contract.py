"""What `stream` promises of the module it returns, line by line."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from streamview.errors import NotStreamableError, RegionError
from streamview.streaming import stream
from tests.support.networks import seed_network
from tests.support.oracle import errors, gradients

TILE = (16, 24)


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return seed_network(blocks=3).double()


@pytest.fixture
def image() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, 45, 51, dtype=torch.float64)


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-10 * expected.abs().max())


def test_grad_is_touched_by_autograd_alone(network: nn.Module, image: Tensor) -> None:
    streamed = stream(network, tile=TILE)
    torch.autograd.grad(streamed(image).sum(), list(network.parameters()))
    assert all(p.grad is None for p in network.parameters())
    streamed(image).sum().backward()
    once = [p.grad.clone() for p in network.parameters()]
    streamed(image).sum().backward()
    assert all(close(p.grad, 2 * g) for p, g in zip(network.parameters(), once, strict=True))


def test_parameter_hooks_see_the_whole_gradient_once(network: nn.Module, image: Tensor) -> None:
    seen = []
    network[0].weight.register_hook(seen.append)
    stream(network, tile=TILE)(image).sum().backward()
    network(image).sum().backward()
    assert len(seen) == 2
    assert close(seen[0], seen[1])


def test_weights_changed_before_the_reverse_pass_raise(network: nn.Module, image: Tensor) -> None:
    out = stream(network, tile=TILE)(image).sum()
    with torch.no_grad():
        network[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_folded_weights_changed_before_the_reverse_pass_raise(image: Tensor) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(4)).double().eval().requires_grad_(False)
    out = stream(network, tile=TILE)(image.requires_grad_()).sum()
    network[1].running_mean.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_two_forwards_then_one_backward(network: nn.Module, image: Tensor) -> None:
    streamed = stream(network, tile=TILE)
    a, b = image.clone().requires_grad_(), image.flip(3).clone().requires_grad_()
    found = torch.autograd.grad((streamed(a) * streamed(b)).sum(), [a, b, *network.parameters()])
    expected = torch.autograd.grad((network(a) * network(b)).sum(), [a, b, *network.parameters()])
    assert all(close(x, y) for x, y in zip(found, expected, strict=True))


def test_retained_graph_used_twice(network: nn.Module, image: Tensor) -> None:
    leaf = image.clone().requires_grad_()
    for how in ({"tile": TILE}, {"memory": "1GB"}):
        out = stream(network, **how)(leaf)
        first = torch.autograd.grad(out[0, 0], leaf, retain_graph=True)[0]
        again = torch.autograd.grad(out[0, 0], leaf)[0]
        assert torch.equal(first, again)
        assert first.any()


def test_memory_is_let_go_of_unless_the_graph_is_retained(network: nn.Module, image: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamview.streaming.run import run

    calls = []
    forward = run.Forward
    monkeypatch.setattr(run, "Forward", lambda *args: calls.append(forward(*args)) or calls[-1])
    for how, kept in (({"tile": TILE}, "carries"), ({"memory": "1GB"}, "saved")):
        out = stream(network, **how)(image.clone().requires_grad_()).sum()
        out.backward(retain_graph=True)
        assert getattr(calls[-1], kept)
        out.backward()
        assert not getattr(calls[-1], kept)
        with pytest.raises(RuntimeError, match="second time"):
            out.backward()


def test_several_modules_over_one_network(network: nn.Module, image: Tensor) -> None:
    leaf = image.clone().requires_grad_()
    found = stream(network, tile=TILE)(leaf) + stream(network, tile=(7, 9))(leaf)
    assert close(torch.autograd.grad(found.sum(), leaf)[0], torch.autograd.grad(2 * network(leaf).sum(), leaf)[0])


def test_nothing_is_saved_under_no_grad(network: nn.Module, image: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamview.streaming.run import run

    calls = []
    forward = run.Forward
    monkeypatch.setattr(run, "Forward", lambda *args: calls.append(forward(*args)) or calls[-1])
    with torch.no_grad():
        out = stream(network, tile=TILE, check=False)(image.requires_grad_())
    assert not out.requires_grad
    assert not calls[0].carries
    assert not calls[0].saved


def test_autocast_of_the_forward_pass_rules_the_recomputation() -> None:
    torch.manual_seed(0)
    network = seed_network(8, 3)
    image = torch.randn(1, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        out = stream(network, tile=(16, 64))(image.requires_grad_())
        plain = network(image)
    assert out.dtype == plain.dtype == torch.bfloat16
    found, expected = (torch.autograd.grad(o.float().sum(), [image, *network.parameters()]) for o in (out, plain))
    assert all(f.dtype == e.dtype == torch.float32 for f, e in zip(found, expected, strict=True))
    for f, e in zip(found, expected, strict=True):
        assert (f - e).norm() <= 0.05 * e.norm()


def test_requires_grad_is_read_at_every_call(network: nn.Module, image: Tensor) -> None:
    streamed = stream(network, tile=TILE)
    network[0].requires_grad_(False)
    streamed(image).sum().backward()
    assert network[0].weight.grad is None
    assert network[2].weight.grad is not None
    network[0].requires_grad_(True)
    streamed(image).sum().backward()
    assert network[0].weight.grad is not None


def test_tuning_the_last_stage_pays_for_no_full_reverse_pass(network: nn.Module, image: Tensor) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    network.requires_grad_(False)
    network[-1].requires_grad_(True)
    streamed = stream(network, tile=TILE)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        streamed(image)
    with FlopCounterMode(display=False) as training:
        streamed(image).sum().backward()
    assert training.get_total_flops() < 1.01 * forward.get_total_flops()


def test_weights_and_modes_are_read_at_every_call(image: Tensor) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).double()
    streamed = stream(network, tile=TILE)
    torch.manual_seed(5)
    found = streamed(image)
    torch.manual_seed(5)
    assert close(found, network(image))  # both in training mode: batch statistics and the same dropout
    network.eval()
    assert close(streamed(image), network(image))
    network[0].weight = nn.Parameter(torch.randn_like(network[0].weight))
    network[2].running_mean.add_(1)
    assert close(streamed(image), network(image))
    network[3] = nn.Tanh()
    assert close(streamed(image), network(image))


def test_training_mode_ends_the_local_part() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 4, 4, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1)).double()
    assert len(stream(network).graph().nodes) == 1
    assert len(stream(network.eval()).graph().nodes) == 2  # BatchNorm is folded into the convolution
    torch.manual_seed(0)
    assert max(errors(network.train(), torch.randn(2, 3, 33, 29, dtype=torch.float64), tile=TILE)) < 1e-10


def test_hooks_in_the_local_part_raise(network: nn.Module, image: Tensor) -> None:
    streamed = stream(network, tile=TILE)
    handle = network[2].register_forward_hook(lambda *_: None)
    with pytest.raises(NotStreamableError, match=r"2 has a hook.*`cut`"):
        streamed(image)
    handle.remove()
    handle = network[2].register_full_backward_hook(lambda *_: None)
    with pytest.raises(NotStreamableError, match="2 has a hook"):
        streamed(image)
    handle.remove()
    handle = network[2].register_forward_pre_hook(lambda *_: None)
    with pytest.raises(NotStreamableError, match="2 has a hook"):
        streamed(image)
    handle.remove()
    assert close(streamed(image), network(image))


def test_hooks_in_the_head_run(network: nn.Module, image: Tensor) -> None:
    seen = []
    network[-1].register_forward_hook(lambda m, i, o: seen.append(o))
    stream(network, tile=TILE)(image)
    assert len(seen) == 1


def test_cut_gives_features_and_their_gradient(network: nn.Module, image: Tensor) -> None:
    streamed = stream(network, tile=TILE)
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: object, out: Tensor) -> None:
        out.retain_grad()
        kept.append(out)

    handle = streamed.cut.register_forward_hook(keep)
    leaf = image.clone().requires_grad_()
    streamed(leaf)[0, 0].backward()
    features = network[:-3](image).detach().requires_grad_()
    network[-3:](features)[0, 0].backward()
    assert close(kept[0], features)
    assert close(kept[0].grad, features.grad)
    handle.remove()
    assert streamed.graph().sinks[0].kind == "max"


def test_parametrizations_are_evaluated_once_a_call(image: Tensor) -> None:
    calls = []

    class Double(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            calls.append(1)
            return 2 * weight

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), weight_norm(nn.Conv2d(4, 4, 3)), nn.AdaptiveMaxPool2d(1)).double()
    parametrize.register_parametrization(network[0], "weight", Double())
    streamed = stream(network, tile=TILE)
    streamed(image)
    calls.clear()
    streamed(image)
    assert len(calls) == 1
    assert max(errors(network, image, tile=TILE)) < 1e-10


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_old_weight_norm(image: Tensor) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(torch.nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), nn.AdaptiveMaxPool2d(1)).double()
    streamed = stream(network, tile=TILE)
    with torch.no_grad():
        network[0].weight_g.mul_(3)
    assert close(streamed(image), network(image))
    assert max(errors(network, image, tile=TILE)) < 1e-10


def test_copies_are_of_their_own_network(network: nn.Module, image: Tensor) -> None:
    streamed = stream(network, tile=TILE)
    for twin in (copy.deepcopy(streamed), pickle.loads(pickle.dumps(streamed))):
        with torch.no_grad():
            twin.module[0].weight.mul_(2)
        assert close(twin(image), twin.module(image))
        assert not close(twin(image), streamed(image))


def test_double_backward_raises(network: nn.Module, image: Tensor) -> None:
    leaf = image.clone().requires_grad_()
    (grad,) = torch.autograd.grad(stream(network, tile=TILE)(leaf).square().sum(), leaf, create_graph=True)
    with pytest.raises(NotStreamableError, match="can be differentiated once"):
        grad.sum().backward()


def test_the_image_is_not_changed_in_place(image: Tensor) -> None:
    network = nn.Sequential(nn.ReLU(True), nn.Conv2d(3, 2, 3)).double()
    before = image.clone()
    stream(network, tile=TILE)(image)
    assert torch.equal(image, before)


def test_state_is_restored_after_an_error(network: nn.Module, image: Tensor) -> None:
    network[0].requires_grad_(False)
    network.train()
    state = [(m.training, [p.requires_grad for p in m.parameters()]) for m in network.modules()]
    with pytest.raises(RegionError, match="3 x 3 px"):
        stream(network, tile=TILE)(image[:, :, :3, :3])
    assert state == [(m.training, [p.requires_grad for p in m.parameters()]) for m in network.modules()]
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("shape", "message"), [((3, 40, 40), "expected a float tensor"), ((1, 4, 40, 40), "4 channels: the network takes 3")]
)
def test_wrong_images(network: nn.Module, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(RegionError, match=message):
        stream(network)(torch.zeros(shape, dtype=torch.float64))
    with pytest.raises(RegionError, match="uint8"):
        stream(network)(torch.zeros((1, 3, 40, 40), dtype=torch.uint8))


def test_channels_last_and_float32_agree_with_plain_torch() -> None:
    torch.manual_seed(0)
    network = seed_network(8, 3).to(memory_format=torch.channels_last)
    image = torch.randn(1, 3, 96, 80).to(memory_format=torch.channels_last)
    found = gradients(stream(network, tile=(32, 80)), image, list(network.parameters()), torch.ones(1, 2))
    expected = gradients(network, image, list(network.parameters()), torch.ones(1, 2))
    for f, e in zip(found, expected, strict=True):
        assert (f - e).norm() <= 1e-4 * e.norm()


class Attention(nn.Module):
    """A toy vision transformer: patches, then attention over all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 192, 8, 8)
        self.attend = nn.MultiheadAttention(192, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        return self.attend(tokens, tokens, tokens)[0].mean(1)


class Normalised(nn.Sequential):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1))


class Squeezed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * x.amax((2, 3), keepdim=True)


class ReadThenChanged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        before = x.amax((2, 3))
        return x.relu_().mean((2, 3)) + before


class SliceChanged(ReadThenChanged):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        margin = x[:, :, 1:]
        return x.relu_().mean((2, 3)) + margin.mean((2, 3))


class ConversionChanged(ReadThenChanged):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        same = x.to(x.dtype).type_as(self.conv.weight)
        return x.relu_().mean((2, 3)) + (same * 2).amax((2, 3))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Attention(), r"streamed: attend: attention over the whole image .* patches by PatchEncoder"),
        (Normalised(nn.BatchNorm2d(4)), r"1: BatchNorm in training mode.*call .eval\(\)"),
        (Normalised(nn.InstanceNorm2d(4, track_running_stats=True).train()), "1: InstanceNorm2d"),
        (Squeezed(), "mul: it joins a map with the result of a layer that needs the whole map"),
        (nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")), "0: Conv2d with padding_mode='circular'"),
        (Branching(), "cannot be traced"),
        (ReadThenChanged(), "relu_ changes a value in place .* the head reads too"),
        (SliceChanged(), "relu_ changes a value in place that shares memory with a slice"),
        (ConversionChanged(), "relu_ changes a value in place that shares memory with a slice or a conversion"),
        (nn.Linear(3, 3), "Linear"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_refusals_name_the_layer_and_the_reason(network: nn.Module, message: str) -> None:
    with pytest.raises(NotStreamableError, match=message):
        stream(network)


def test_a_refused_branch_prints_and_logs_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotStreamableError):
        stream(Branching())
    assert capfd.readouterr() == ("", "")
