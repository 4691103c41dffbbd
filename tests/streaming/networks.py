"""Random networks for property tests, and small ones for the rest."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

__all__ = ["Case", "RandomNetwork", "cases", "seed_network"]


def seed_network(width: int = 4, blocks: int = 7, outputs: int = 2) -> nn.Sequential:
    """The paper's Table 2 narrowed, without normalisation (`camelyon17`)."""
    layers: list[nn.Module] = []
    before = 3
    for block in range(blocks):
        after = width * min(2**block, 16)
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.Conv2d(after, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        before = after
    layers[-1] = nn.AdaptiveMaxPool2d(1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before, outputs))


class RandomNetwork(nn.Module):
    """Layers applied to earlier values: `steps` holds (kind, index of the layer, indices of the values it takes)."""

    def __init__(self, layers: list[nn.Module], steps: list[tuple[str, int, tuple[int, ...]]], head: str, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.steps, self.head = steps, head
        self.scale = nn.Parameter(torch.randn(1, channels, 1, 1))
        self.last = nn.Linear(channels, 3)

    def forward(self, image: Tensor) -> Tensor:
        values = [image]
        for kind, layer, sources in self.steps:
            a = values[sources[0]]
            if kind == "layer":
                values.append(self.layers[layer](a))
            elif kind == "add":
                values.append(a + values[sources[1]])
            elif kind == "iadd":
                a += values[sources[1]]
                values.append(a)
            elif kind == "sub":
                values.append(torch.sub(a, values[sources[1]], alpha=2))
            elif kind == "mul":
                values.append(a * values[sources[1]])
            elif kind == "cat":
                values.append(torch.cat([a, values[sources[1]]], 1))
            elif kind == "half":
                values.append(a[:, :1])
            else:
                values.append(1.5 - a.mul(0.5) / 2)
        out = values[-1] * self.scale
        if self.head == "map":
            return out
        if self.head == "mean":
            return self.last(out.mean((2, 3)))
        if self.head == "max":
            return self.last(nn.functional.adaptive_max_pool2d(out, 1).flatten(1))
        if self.head == "both":
            return self.last(nn.functional.adaptive_avg_pool2d(out, 1).flatten(1)) + out.amax((2, 3)).mean(1, keepdim=True)
        return nn.functional.adaptive_avg_pool2d(out, 2).sum((2, 3)) + out.size(2)


class Case:
    """A random network, an image for it and a tile."""

    def __init__(self, network: RandomNetwork, image: Tensor, tile: tuple[int, int]) -> None:
        self.network, self.image, self.tile = network, image, tile

    def __repr__(self) -> str:
        network = self.network
        return f"Case(image={tuple(self.image.shape)}, tile={self.tile}, head={network.head}, {network.steps}, {network.layers})"


_ACTIVATIONS = (
    nn.ReLU, lambda: nn.ReLU(True), nn.GELU, lambda: nn.SiLU(True), nn.Hardswish, nn.PReLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.ReLU6,
    lambda: nn.LeakyReLU(0.1), nn.Mish, nn.Softplus, nn.Softmax2d, nn.Dropout, nn.Identity,
)  # fmt: skip


@st.composite
def _layers(draw: st.DrawFn, channels: int) -> nn.Module:
    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kind = draw(st.sampled_from(["conv", "conv", "conv", "same", "act", "act", "max", "avg", "norm", "pad"]))
    if kind == "conv":
        groups = draw(st.sampled_from([1, channels]))
        out = groups * draw(st.integers(1, max(1, 6 // groups)))
        dilation = pair(1, 2)
        return nn.Conv2d(channels, out, pair(1, 7), pair(1, 3), pair(0, 3), dilation, groups, bias=draw(st.booleans()))
    if kind == "same":
        return nn.Conv2d(channels, draw(st.integers(1, 5)), pair(1, 6), padding="same", dilation=pair(1, 2))
    if kind == "act":
        return draw(st.sampled_from(_ACTIVATIONS))()
    kernel = pair(1, 4) if draw(st.booleans()) else (2, 2)
    padding = (draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2)))
    stride = pair(1, 3) if draw(st.booleans()) else kernel
    ceil = draw(st.booleans())
    if kind == "max":
        return nn.MaxPool2d(kernel, stride, padding, pair(1, 2), ceil_mode=ceil)
    if kind == "avg":
        return nn.AvgPool2d(kernel, stride, padding, ceil, draw(st.booleans()), draw(st.sampled_from([None, 5])))
    if kind == "norm":
        norm = nn.BatchNorm2d(channels, affine=draw(st.booleans()))
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        return norm
    return nn.ConstantPad2d(tuple(draw(st.integers(-2, 3)) for _ in range(4)), draw(st.sampled_from([0.0, 0.5])))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A random network of two to nine layers with branches, an odd image and a tile, all of float64."""
    torch.manual_seed(draw(st.integers(0, 2**20)))
    image = torch.randn(draw(st.integers(1, 2)), 3, draw(st.integers(7, 41)), draw(st.integers(7, 41)), dtype=torch.float64)
    layers: list[nn.Module] = []
    steps: list[tuple[str, int, tuple[int, ...]]] = []
    values = [image]
    for _ in range(draw(st.integers(2, 9))):
        first = draw(st.integers(max(0, len(values) - 3), len(values) - 1))
        a = values[first]
        twins = [i for i, v in enumerate(values) if v.shape[2:] == a.shape[2:]]
        joins = [i for i in twins if values[i].shape[1] in (a.shape[1], 1)]
        kind = draw(st.sampled_from(["layer", "layer", "layer", "layer", "add", "iadd", "sub", "mul", "cat", "half", "scalar"]))
        second = draw(st.sampled_from(twins if kind == "cat" else joins))
        if kind == "iadd" and first == 0:
            continue
        if kind == "layer":
            layer = draw(_layers(a.shape[1])).double().eval()
            try:
                with torch.no_grad():
                    out = layer(a.clone())
            except RuntimeError:
                continue
            if min(out.shape[2:]) < 1 or out.numel() > 60000:
                continue
            layers.append(layer)
            steps.append(("layer", len(layers) - 1, (first,)))
            values.append(out)
            continue
        steps.append((kind, 0, (first, second)))
        b = values[second]
        values.append(torch.cat([a, b], 1) if kind == "cat" else a[:, :1] if kind == "half" else a if kind == "scalar" else a + b)
    head = draw(st.sampled_from(["map", "mean", "max", "both", "grid"]))
    network = RandomNetwork(layers, steps, head, values[-1].shape[1]).double().eval()
    tile = draw(st.integers(1, image.shape[2] + 9)), draw(st.integers(1, image.shape[3] + 9))
    return Case(network, image, tile)
