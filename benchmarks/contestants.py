"""Who is compared by `benchmarks.peers`, on which networks: each contestant is a function of the image that returns named tensors.

A forward pass returns the logits; saliency also the gradient of one logit with respect to the image; training the gradients of all
weights. A contestant is named in words: ``"conventional"``, ``"offload"``, ``"lightstream 5/1184"`` (units streamed, tile),
``"streamview recomputed"``.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from streamview_models import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

from streamview.streaming import stream

KINDS = ("forward", "saliency", "training")
NETWORKS = ("camelyon17-2048", "resnet18", "resnet34", "resnet50", "convnext_tiny", "efficientnet_b0", "unet")
LIGHTSTREAM = Path(__file__).parent / ".lightstream"  # git ignores it
DOCUMENTED_TILE = 2880  # of lightstream's README, with ResNet-18
STRIP_ROWS = 128

Pass = Callable[[Tensor, str], dict[str, Tensor]]

# Of lightstream, for each number of units that it may stream: output elements and pixels that a tile loses along an axis, and the stride.
# As `StreamingCNN` measures them: `tile_output_lost`, `tile_gradient_lost`, `output_stride`. ResNets and ConvNeXt are cut where its own
# `remove_last_block` cuts them; for the seed network, which it does not know, three cuts are tried.
_LOST = {
    "camelyon17-2048": {4: (4, 124, 16), 5: (4, 252, 32), 6: (4, 508, 64)},
    "resnet18": {7: (13, 465, 16), 9: (13, 977, 32)},
    "resnet34": {14: (35, 1137, 16), 17: (29, 1873, 32)},
    "resnet50": {14: (17, 561, 16), 17: (13, 881, 32)},
    "convnext_tiny": {18: (68, 2184, 16)},
}


class UNet(nn.Module):
    """The U-Net of https://arxiv.org/abs/1505.04597 at half its width, padded, with BatchNorm; it answers with the mean of each map."""

    def __init__(self, channels: Sequence[int] = (32, 64, 128, 256, 512), classes: int = 2) -> None:
        super().__init__()
        self.down = nn.ModuleList(_two(before, after) for before, after in zip((3, *channels), channels))  # noqa: B905
        steps = list(zip(channels[:0:-1], channels[-2::-1], strict=True))
        self.wider = nn.ModuleList(nn.ConvTranspose2d(deep, shallow, 2, stride=2) for deep, shallow in steps)
        self.up = nn.ModuleList(_two(deep, shallow) for deep, shallow in steps)
        self.last = nn.Conv2d(channels[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes)."""
        sides = []
        for level in self.down:
            x = level(F.max_pool2d(x, 2) if sides else x)
            sides.append(x)
        for wider, level, side in zip(self.wider, self.up, sides[-2::-1], strict=True):
            x = level(torch.cat([side, wider(x)], 1))
        return self.last(x).mean((2, 3))


def _two(before: int, after: int) -> nn.Sequential:
    convolutions = (nn.Conv2d(before, after, 3, padding=1, bias=False), nn.Conv2d(after, after, 3, padding=1, bias=False))
    return nn.Sequential(*(layer for each in convolutions for layer in (each, nn.BatchNorm2d(after), nn.ReLU(inplace=True))))


def build_network(name: str) -> nn.Module:
    """The network of this name in eval mode, with weights from torch's seed."""
    if name == "unet":
        return UNet().eval()
    if name in MODELS:
        return MODELS[name]().eval()
    sys.path.append(str(Path(__file__).parents[1]))
    from tests.support.zoo import import_torchvision  # whose wheel for processors needs help

    return import_torchvision().models.get_model(name).eval()


def units(network: nn.Module) -> list[nn.Module]:
    """The network as modules to be called one after the other; each begins with what changes nothing in place. A U-Net is no such thing."""
    if isinstance(network, UNet):
        return []
    if hasattr(network, "layer1"):
        blocks = [block for index in range(1, 5) for block in getattr(network, f"layer{index}")]
        stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        return [stem, *blocks, nn.Sequential(network.avgpool, nn.Flatten(), network.fc)]
    if hasattr(network, "avgpool"):
        stem, *stages = network.features
        parts = [part for stage in stages for part in (stage if _of_blocks(stage) else [stage])]
        flatten = [] if isinstance(network.classifier[1], nn.Flatten) else [nn.Flatten()]
        return [stem, *parts, nn.Sequential(network.avgpool, *flatten, network.classifier)]
    return [*(nn.Sequential(*network.features[start : start + 5]) for start in range(0, len(network.features), 5)), network.head]


def _of_blocks(stage: nn.Sequential) -> bool:
    """Whether a stage's modules are blocks, and not layers."""
    return not any(isinstance(layer, nn.Conv2d) for layer in stage)


def tilings(name: str, size: int) -> list[tuple[int, int]]:
    """Units and tile of lightstream for 2 x 2, 3 x 3 and 4 x 4 tiles, each with the fewest pixels computed, the fewest first."""
    found: dict[int, list[tuple[int, int]]] = {}
    for count, (output, gradient, stride) in _LOST.get(name, {}).items():
        for tile in range(stride, size, stride):
            valid, valid_gradient = tile // stride - output, (tile - gradient) // stride * stride
            if valid > 0 and valid_gradient > 0:
                across = max(math.ceil(size // stride / valid), math.ceil((size - gradient) / valid_gradient))
                if all(known != count for known, _ in found.setdefault(across, [])):
                    found[across].append((count, tile))
    best = [(across, *min(choices, key=lambda choice: choice[1])) for across, choices in found.items() if across in (2, 3, 4)]
    return [(count, tile) for across, count, tile in sorted(best, key=lambda choice: choice[0] * choice[2])]


def documented(name: str, size: int) -> list[tuple[int, int]]:
    """Units and tile of lightstream as documented, where the image is larger than the tile."""
    return [(max(_LOST[name]), DOCUMENTED_TILE)] if name in _LOST and size > DOCUMENTED_TILE else []


def differentiate(module: Callable[[Tensor], Tensor], weights: Sequence[nn.Parameter], image: Tensor, kind: str) -> dict[str, Tensor]:
    """One pass by autograd."""
    if kind == "forward":
        with torch.no_grad():
            return {"logits": module(image)}
    for weight in weights:
        weight.requires_grad_(kind == "training").grad = None
    image = image.detach().requires_grad_(kind == "saliency")
    logits = module(image)
    logits[0, 0].backward()
    return {"logits": logits.detach(), **({"image": image.grad} if kind == "saliency" else _gradients(weights))}


def build_contestant(contestant: str, name: str, size: int, dtype: torch.dtype, device: torch.device, budget: int | None) -> Pass:
    """The contestant of this name, its network built.

    Parameters
    ----------
    contestant
        In words, as in the table.
    name
        Of the network.
    size
        Rows and columns of the image, px.
    dtype, device
        Of the weights and the image.
    budget
        Bytes that streamview may use.
    """
    torch.manual_seed(0)
    network = build_network(name)
    if contestant.startswith("lightstream"):
        count, tile = contestant.removeprefix("lightstream ").split("/")
        return _lightstream(units(_out_of_place(network)), int(count), int(tile), dtype, device)
    network = network.to(device, dtype, memory_format=torch.contiguous_format if contestant.endswith("NCHW") else torch.channels_last)
    module: Callable[[Tensor], Tensor] = network
    if contestant == "checkpoint":
        parts = units(network)
        module = lambda image: checkpoint_sequential(parts, len(parts), image, use_reentrant=False)  # noqa: E731
    elif contestant == "offload":
        module = lambda image: _offloaded(network, image)  # noqa: E731
    elif contestant == "streamview recomputed":
        module = stream(network, tile=(STRIP_ROWS, size))
    elif contestant.startswith("streamview"):
        module = stream(network, memory=budget)
    weights = list(network.parameters())
    return lambda image, kind: differentiate(module, weights, image, kind)


def _offloaded(network: nn.Module, image: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu(pin_memory=image.device.type == "cuda"):
        return network(image)


def install_lightstream() -> str:
    """Install lightstream 1.0.7 from the package index into a folder of its own; what went wrong, or nothing."""
    if (LIGHTSTREAM / "lightstream").exists():
        return ""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(LIGHTSTREAM), "lightstream==1.0.7"]
    found = subprocess.run(command, capture_output=True, text=True)
    return "" if found.returncode == 0 else f"lightstream could not be installed: {found.stderr.strip().splitlines()[-1]}"


def _out_of_place(network: nn.Module) -> nn.Module:
    for layer in network.modules():
        if hasattr(layer, "inplace"):
            layer.inplace = False
    return network


def _lightstream(parts: Sequence[nn.Module], count: int, tile: int, dtype: torch.dtype, device: torch.device) -> Pass:
    # without the package's own __init__, which asks for lightning
    package = types.ModuleType("lightstream")
    package.__path__ = [str(LIGHTSTREAM / "lightstream")]
    sys.modules["lightstream"] = package
    constructor = importlib.import_module("lightstream.core.constructor")
    warnings.filterwarnings("ignore", category=UserWarning)  # it asks for autocast on CUDA, wherever it runs
    head = nn.Sequential(*parts[count:]).to(device, dtype)
    with contextlib.redirect_stdout(io.StringIO()):
        made = constructor.StreamingConstructor(
            nn.Sequential(*parts[:count]),
            tile,
            verbose=False,
            saliency=True,
            normalize_on_gpu=False,
            add_keep_modules=[nn.BatchNorm2d],
            before_streaming_init_callbacks=[_unit_scales],
        )
        made.statistics_on_cpu = device.type == "cuda"  # which would move the network to CUDA afterwards
        body = made.prepare_streaming_model()
    torch.set_grad_enabled(True)
    body.to(device, dtype)
    body.dtype = dtype
    for layer in body.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.LayerNorm):
            layer.requires_grad_(False)  # as its documentation asks
    weights = [*body.stream_module.parameters(), *head.parameters()]
    return lambda image, kind: _stream_backward(body, head, weights, image, kind)


def _stream_backward(body: Any, head: nn.Module, weights: Sequence[nn.Parameter], image: Tensor, kind: str) -> dict[str, Tensor]:
    features = body(image).detach()
    if kind == "forward":
        with torch.no_grad():
            return {"logits": head(features)}
    for weight in weights:
        weight.grad = None
    logits = head(features.requires_grad_())
    logits[0, 0].backward()
    body.backward(image, features.grad)
    return {"logits": logits.detach(), **({"image": body.saliency_map} if kind == "saliency" else _gradients(weights))}


def _gradients(weights: Sequence[nn.Parameter]) -> dict[str, Tensor]:
    return {f"weight {index}": weight.grad for index, weight in enumerate(weights) if weight.grad is not None}


def _unit_scales(network: nn.Module) -> None:
    """As lightstream's own ConvNeXt: layer scales of one while it measures; it restores the weights behind."""
    for layer in network.modules():
        if hasattr(layer, "layer_scale"):
            layer.layer_scale.data.fill_(1.0)
