"""The definitions are those of the papers: layers, shapes, names, and what they answer."""

import hashlib

import pytest
import torch
from streamview_models import ALIASES, MODELS, folder
from torch import fx, nn

from streamview.networks import load_card

PAPER = {"2048": 22, "4096": 25, "8192": 28}


def kinds(module: nn.Module, *types: type) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, types)]


def on_meta(name: str, **arguments: int) -> nn.Module:
    with torch.device("meta"):
        return MODELS[name](**arguments)


@pytest.mark.parametrize("family", ["tupac16", "camelyon17"])
@pytest.mark.parametrize(("size", "layers"), PAPER.items())
def test_table_2(family: str, size: str, layers: int) -> None:
    network = on_meta(f"{family}-{size}")
    convolutions, pools = kinds(network, nn.Conv2d), kinds(network, nn.MaxPool2d, nn.AdaptiveMaxPool2d)
    assert len(convolutions) + len(pools) + len(kinds(network, nn.Linear)) == layers
    assert len(convolutions) == len(kinds(network, nn.ReLU)) == 2 * len(pools)
    widths = [convolution.out_channels for convolution in convolutions]
    assert widths == [32] * 2 + [64] * 2 + [128] * 2 + [256] * 2 + [512] * (len(convolutions) - 8)
    assert {(c.kernel_size, c.padding, c.stride) for c in convolutions} == {((3, 3), (1, 1), (1, 1))}
    assert [type(pool) for pool in pools] == [nn.MaxPool2d] * (len(pools) - 1) + [nn.AdaptiveMaxPool2d]
    # the last map before the global pool is 32 px wide for each network's own region size
    assert int(size) // 2 ** (len(pools) - 1) == 32
    assert network.head[-1].out_features == {"tupac16": 1, "camelyon17": 2}[family]


def test_only_tupac16_has_batch_norm_in_its_final_seven_layers_and_dropout() -> None:
    tupac, camelyon = on_meta("tupac16-2048"), on_meta("camelyon17-2048")
    assert not kinds(camelyon, nn.BatchNorm2d, nn.Dropout)
    counted = [layer for layer in tupac.modules() if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AdaptiveMaxPool2d | nn.Linear)]
    order = list(tupac.modules())
    followed = [order[order.index(layer) + 1] for layer in counted[:-1]]
    assert [isinstance(layer, nn.BatchNorm2d) for layer in followed[-6:]] == [True, True, False] * 2
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in followed[:-6])
    assert [type(layer) for layer in tupac.head] == [nn.Flatten, nn.Dropout, nn.Linear]
    assert tupac.head[1].p == 0.5


def test_table_1() -> None:
    network = on_meta("imagenette")
    convolutions, pools = kinds(network, nn.Conv2d), kinds(network, nn.MaxPool2d)
    assert [(c.out_channels, c.kernel_size, c.padding) for c in convolutions] == [(n, (3, 3), (0, 0)) for n in (16, 32, 64, 128, 256)]
    assert [pool.kernel_size for pool in pools] == [2, 2, 2, 2, 10]
    # the paper's input and the smallest and largest that leave one position
    for side in (320, 222, 381):
        assert network(torch.empty(1, 3, side, side, device="meta")).shape == (1, 10)
    for side in (221, 382):
        with pytest.raises(RuntimeError):
            network(torch.empty(1, 3, side, side, device="meta"))


# Entries of torchvision 0.28's state dicts, and the parameter counts it publishes.
TORCHVISION = {"resnet18": (122, 11_689_512), "resnet34": (218, 21_797_672)}


@pytest.mark.parametrize("name", TORCHVISION)
def test_resnet_has_torchvisions_names_and_shapes(name: str) -> None:
    state = on_meta(name).state_dict()
    entries, parameters = TORCHVISION[name]
    assert len(state) == entries
    assert sum(value.numel() for key, value in state.items() if "running" not in key and "num_batches" not in key) == parameters
    stages = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}[name]
    expected = {"conv1.weight": (64, 3, 7, 7), "fc.weight": (1000, 512), "fc.bias": (1000,)} | batch_norm("bn1", 64)
    for stage, depth in enumerate(stages):
        channels = 64 * 2**stage
        for block in range(depth):
            source = channels // 2 if stage and not block else channels
            prefix = f"layer{stage + 1}.{block}."
            expected |= {prefix + "conv1.weight": (channels, source, 3, 3), prefix + "conv2.weight": (channels, channels, 3, 3)}
            expected |= batch_norm(prefix + "bn1", channels) | batch_norm(prefix + "bn2", channels)
            if source != channels:
                expected |= {prefix + "downsample.0.weight": (channels, source, 1, 1)} | batch_norm(prefix + "downsample.1", channels)
    assert {key: tuple(value.shape) for key, value in state.items()} == expected


def batch_norm(prefix: str, channels: int) -> dict[str, tuple[int, ...]]:
    vectors = {f"{prefix}.{name}": (channels,) for name in ("weight", "bias", "running_mean", "running_var")}
    return vectors | {f"{prefix}.num_batches_tracked": ()}


@pytest.mark.parametrize("name", MODELS)
def test_every_network_narrowed_traces_and_answers(name: str) -> None:
    torch.manual_seed(0)
    network = MODELS[name](3, width=2).eval()
    height, width = (320, 230) if name == "imagenette" else (290, 257)
    x = torch.rand(2, 3, height, width)
    answer = network(x)
    assert answer.shape == (2, 3)
    assert torch.isfinite(answer).all()
    assert answer.abs().max() > 0
    torch.testing.assert_close(fx.symbolic_trace(network)(x), answer, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["camelyon17-2048", "imagenette", "demo"])
def test_he_initialisation(name: str) -> None:
    torch.manual_seed(0)
    network = MODELS[name]()
    for layer in kinds(network, nn.Conv2d, nn.Linear):
        assert layer.bias.abs().max() == 0
        if layer.weight.numel() > 10_000:
            fan_in = layer.weight[0].numel()
            assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)


def test_every_network_has_a_card_that_fits_and_a_readme() -> None:
    digests = set()
    for name in [*MODELS, *ALIASES]:
        card = load_card(name)
        target = ALIASES.get(name, name)
        assert (card.name, card.architecture) == (target, target)
        assert "research use only" in card.use.lower()
        parameters = list(on_meta(target).parameters())
        assert parameters[-1].shape == (len(card.class_names),)
        # only what was trained knows how its pixels should be spaced
        assert card.trained == (folder(target) / "weights.safetensors").exists() == (card.mpp is not None)
        readme = (folder(target) / "README.md").read_text()
        assert target.split("-")[0] in readme
        assert "research use only" in readme.lower()
        digests.add(card.sha256)
    assert len(digests) == len(MODELS)
    assert all(len(digest) == hashlib.sha256().digest_size * 2 for digest in digests)
