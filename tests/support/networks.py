"""Random networks for property tests, and small ones for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

__all__ = ["Case", "Excite", "Inverted", "RandomNetwork", "Response", "cases", "seed_network"]


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


class Excite(nn.Module):
    """Squeeze-and-excitation: every channel times a gate computed from the means of all."""

    def __init__(self, channels: int, bridge: nn.Module | None = None) -> None:
        super().__init__()
        self.bridge = bridge or nn.Sequential(nn.Linear(channels, 3), nn.SiLU(), nn.Linear(3, channels))

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.bridge(F.adaptive_avg_pool2d(x, 1).flatten(1)))
        return x * gate.view(x.size(0), -1, 1, 1)


class Response(nn.Module):
    """Global response normalisation of ConvNeXt V2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.randn(1, channels, 1, 1)), nn.Parameter(torch.randn(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.norm(x, p=2, dim=(2, 3), keepdim=True)
        return self.scale * (x * (norm / (norm.mean(1, keepdim=True) + 1e-2))) + self.shift + x


class Inverted(nn.Module):
    """The block of ConvNeXt behind its convolution: normalised and mixed with the channels last, then scaled and added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.act = nn.LayerNorm(channels, eps=1e-2), nn.GELU()
        self.wide, self.narrow = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)
        self.gamma = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.permute(0, 2, 3, 1))
        y = self.gamma * self.narrow(self.act(self.wide(y)))
        return x + y.permute(0, 3, 1, 2)


class Normalised(nn.Module):
    """A normalisation over whole maps of something bounded, since variances lose digits where means are large."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.tanh())


class Powered(nn.Module):
    """LPPool2d of something positive, since its gradient is undefined where a window is zero."""

    def __init__(self, kernel: tuple[int, int], stride: int) -> None:
        super().__init__()
        self.pool = nn.LPPool2d(3, kernel, stride, ceil_mode=stride == 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x.abs() + 0.1)


def _summed(x: Tensor, score: Tensor) -> Tensor:
    """The sum of a map's positions by the softmax of a score, (N, C)."""
    return (score.flatten(2).softmax(-1) * x.flatten(2)).sum(-1)


class RandomNetwork(nn.Module):
    """Layers applied to earlier values: `steps` holds (kind, index of the layer or another number, indices of the values it takes)."""

    def __init__(self, layers: list[nn.Module], steps: list[tuple[str, int, tuple[int, ...]]], head: str, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.steps, self.head = steps, head
        self.scale = nn.Parameter(torch.randn(1, channels, 1, 1))
        self.last = nn.Linear(channels, 3)

    def forward(self, image: Tensor) -> Any:
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
            elif kind == "swap":
                b, c = a.chunk(2, 1)
                values.append(torch.cat([c, b * 2], 1))
            elif kind == "split":
                b, c = torch.split(a, [1, a.size(1) - 1], dim=1)
                values.append(torch.cat([c.relu(), b - 1], 1))
            elif kind == "shuffle":
                n, channels, height, width = a.shape
                values.append(a.view(n, 2, channels // 2, height, width).transpose(1, 2).reshape(n, channels, height, width))
            elif kind == "nearest":
                values.append(F.interpolate(a, size=values[sources[1]].shape[-2:]))
            elif kind == "bilinear":
                size = values[sources[1]].size(2), values[sources[1]].size(3)
                values.append(F.interpolate(a, size=size, mode="bilinear", align_corners=len(values) % 2 == 0))
            elif kind == "fit":
                b = values[sources[1]]
                dy, dx = b.size(2) - a.size(2), b.size(3) - a.size(3)
                values.append(F.pad(a, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2]))
            elif kind == "gate":
                values.append(a * values[sources[1]].mean((2, 3), keepdim=True).sigmoid())
            elif kind == "halves":
                values.append(a * values[sources[1]].mean(-1).mean(-1)[:, :, None, None].sigmoid())
            elif kind == "own":
                b = values[sources[1]]
                values.append(a * F.avg_pool2d(b, (b.size(2), b.size(3))).sigmoid() + F.max_pool2d(b, b.shape[2:]).tanh())
            elif kind == "pooled":
                b = F.adaptive_avg_pool2d(values[sources[1]], 1).tanh()
                mode = ("bilinear", "nearest", "area")[layer % 3]
                values.append(torch.cat([a, F.interpolate(b, size=a.shape[-2:], mode=mode)], 1))
            elif kind == "expanded":
                b = values[sources[1]].mean((2, 3), keepdim=True)
                values.append(torch.cat([a, b.expand(-1, -1, a.size(2), a.size(3))], 1))
            elif kind == "attention":
                values.append(a + _summed(a, values[sources[1]])[:, :, None, None].tanh())
            elif kind == "top":
                values.append(a * a.flatten(2).topk(layer, 2)[0].mean(2)[:, :, None, None].sigmoid())
            elif kind == "area":
                values.append(F.interpolate(a, size=values[sources[1]].shape[-2:], mode="area"))
            elif kind == "flip":
                values.append(a.flip(1))
            elif kind == "order":
                values.append(a[:, [(layer + 3 * i) % a.size(1) for i in range(1 + layer % 4)]])
            elif kind == "alternate":
                values.append(torch.cat([a[:, ::2], a[:, 1::2].roll(1, 1)], 1))
            elif kind == "convert":
                values.append(a.type_as(self.scale).to(image.dtype).to(self.scale.device))
            elif kind == "constant":
                values.append((a - torch.tensor([0.5] * a.size(1), dtype=a.dtype).view(1, -1, 1, 1)) / torch.tensor(2.0))
            elif kind == "filled":
                values.append(a + self.scale[:, :1].expand_as(a))
            elif kind == "masked":
                values.append(a[:, torch.arange(a.size(1)) % 3 != 1])
            elif kind == "narrow":
                values.append(a * a.narrow(1, -1, 1))
            elif kind == "rows":
                gate = F.group_norm(values[sources[1]].mean((2, 3)), 1, eps=1e-2)
                values.append(a * gate[:, :, None, None].sigmoid())
            elif kind == "variance":
                values.append(a * (values[sources[1]].tanh().var((2, 3), keepdim=True) + 0.1).sqrt())
            elif kind == "maximum":
                values.append(a - values[sources[1]].max(-1, keepdim=True)[0].max(-2, keepdim=True)[0].tanh())
            else:
                values.append(1.5 - a.mul(0.5) / 2)
        out = values[-1] * self.scale
        if self.head == "map":
            return out
        if self.head == "mean":
            return self.last(out.mean((2, 3)))
        if self.head == "max":
            return self.last(nn.functional.adaptive_max_pool2d(out, 1).flatten(1))
        if self.head == "gem":
            return self.last(F.avg_pool2d(out.clamp(min=1e-3).pow(2), out.shape[-2:]).flatten(1))
        if self.head == "attention":
            return self.last(_summed(out, out[:, :1]))
        if self.head == "top":
            return self.last(out.flatten(2).topk(1, -1).values.mean(-1))
        if self.head == "flat":
            return self.last(out.flatten(2).max(2)[0] + out.sum(3).sum(2) / (out.size(2) * out.size(3)))
        if self.head == "several":
            return {"map": out, "answers": (self.last(out.mean((2, 3))), [image.mean((2, 3)), out.max(3)[0].max(2)[0]])}
        if self.head == "both":
            return self.last(nn.functional.adaptive_avg_pool2d(out, 1).flatten(1)) + out.amax((2, 3)).mean(1, keepdim=True)
        return nn.functional.adaptive_avg_pool2d(out, 2).sum((2, 3)) + out.size(2)


@dataclass
class Case:
    """A random network, an image for it, and how it is streamed: the share of steps that are saved, how the rest is remembered."""

    network: RandomNetwork
    image: Tensor
    tile: tuple[int, int]
    barriers: str
    worthwhile: int
    saved_steps: float
    segment: int
    spill: bool
    exported: bool = False

    def __repr__(self) -> str:
        network = self.network
        how = f"image={tuple(self.image.shape)}, tile={self.tile}, {self.barriers}, {self.worthwhile} positions at once, "
        how += f"{self.saved_steps} of the steps saved, segments of {self.segment}{' in a file' * self.spill}, head={network.head}, "
        how += "torch.export" if self.exported else "torch.fx"
        return f"Case({how}, {network.steps}, {network.layers})"


_ACTIVATIONS = (
    nn.ReLU, lambda: nn.ReLU(True), nn.GELU, lambda: nn.SiLU(True), nn.Hardswish, nn.PReLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.ReLU6,
    lambda: nn.LeakyReLU(0.1), nn.Mish, nn.Softplus, nn.Softmax2d, nn.Dropout, nn.Identity,
)  # fmt: skip


@st.composite
def _layers(draw: st.DrawFn, channels: int) -> nn.Module:
    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kind = draw(
        st.sampled_from(
            [*["conv"] * 3, *["act"] * 2, *["up"] * 2, "same", "max", "avg", "norm", "pad", "mirror", "spread", "local", "whole", "power"]
        )
    )
    if kind == "conv":
        groups = draw(st.sampled_from([1, channels]))
        out = groups * draw(st.integers(1, max(1, 6 // groups)))
        dilation = pair(1, 2)
        return nn.Conv2d(channels, out, pair(1, 7), pair(1, 3), pair(0, 3), dilation, groups, bias=draw(st.booleans()))
    if kind == "power":
        return Powered(pair(1, 3), draw(st.integers(1, 2)))
    if kind == "same":
        return nn.Conv2d(channels, draw(st.integers(1, 5)), pair(1, 6), padding="same", dilation=pair(1, 2))
    if kind == "act":
        return draw(st.sampled_from(_ACTIVATIONS))()
    if kind == "spread":
        strides, groups = pair(1, 4), draw(st.sampled_from([1, channels]))
        extra, dilation = (draw(st.integers(0, strides[0] - 1)), draw(st.integers(0, strides[1] - 1))), pair(1, 2)
        out = groups * draw(st.integers(1, max(1, 4 // groups)))
        return nn.ConvTranspose2d(channels, out, pair(1, 5), strides, pair(0, 2), extra, groups, draw(st.booleans()), dilation)
    if kind == "up":
        mode = draw(st.sampled_from(["nearest", "nearest-exact", "bilinear"]))
        corners = draw(st.booleans()) if mode == "bilinear" else None
        if draw(st.integers(0, 3)) == 0:
            return nn.Upsample(size=pair(1, 30), mode=mode, align_corners=corners)
        scale = draw(st.sampled_from([2, 3, (2, 1), 1.5, 0.5, 1.7, 0.6]))
        return nn.Upsample(scale_factor=scale, mode=mode, align_corners=corners, recompute_scale_factor=draw(st.sampled_from([None, True])))
    if kind == "mirror":
        amounts = tuple(draw(st.integers(0, 4)) for _ in range(4))
        return draw(st.sampled_from([nn.ReflectionPad2d, nn.ReplicationPad2d]))(amounts)
    if kind == "local":
        return draw(
            st.sampled_from([Inverted, lambda c: nn.ChannelShuffle(c), lambda c: nn.Conv2d(c, 3, 3, 1, 2, padding_mode="reflect")])
        )(channels)
    if kind == "whole":
        norms = [
            Excite, Response, lambda c: Normalised(nn.GroupNorm(draw(st.sampled_from([1, c])), c, eps=1e-2)),
            lambda c: Normalised(nn.InstanceNorm2d(c, eps=1e-2, affine=True)),
        ]  # fmt: skip
        return draw(st.sampled_from(norms))(channels)
    kernel = pair(1, 4) if draw(st.booleans()) else (2, 2)
    padding = (draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2)))
    stride = pair(1, 3) if draw(st.booleans()) else kernel
    ceil = draw(st.booleans())
    if kind == "max":
        return nn.MaxPool2d(kernel, stride, padding, pair(1, 2), ceil_mode=ceil)
    if kind == "avg":
        return nn.AvgPool2d(kernel, stride, padding, ceil, draw(st.booleans()), draw(st.sampled_from([None, 5])))
    if kind == "norm":
        norm = draw(st.sampled_from([nn.BatchNorm2d, nn.SyncBatchNorm]))(channels, affine=draw(st.booleans()))
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        return norm
    return nn.ConstantPad2d(tuple(draw(st.integers(-2, 3)) for _ in range(4)), draw(st.sampled_from([0.0, 0.5])))


_KINDS = (
    *["layer"] * 8, "add", "iadd", "sub", "mul", "cat", "half", "scalar", "swap", "split", "shuffle", "nearest", "bilinear", "fit", "gate",
    "again", "again", "halves", "own", "pooled", "expanded", "attention", "top", "area", "flip", "order", "alternate", "convert",
    "constant", "maximum", "filled", "masked", "narrow", "rows", "variance",
)  # fmt: skip


_SIZED = ("nearest", "bilinear", "fit", "area")  # to the size of another value
_WHOLE = ("gate", "halves", "own", "attention", "maximum", "rows", "variance")  # with a number for each channel of another value


@st.composite
def cases(draw: st.DrawFn, exported: float = 0) -> Case:
    """A random network of two to nine layers with branches, an odd image and a tile, all of float64; a share captured by torch.export."""
    torch.manual_seed(draw(st.integers(0, 2**20)))
    image = torch.randn(
        draw(st.integers(1, 2)),
        draw(st.sampled_from([3, 3, 3, 1, 4])),
        draw(st.integers(7, 29)),
        draw(st.integers(7, 29)),
        dtype=torch.float64,
    )
    layers: list[nn.Module] = []
    steps: list[tuple[str, int, tuple[int, ...]]] = []
    values = [image]
    for _ in range(draw(st.integers(2, 9))):
        first = draw(st.integers(max(0, len(values) - 3), len(values) - 1))
        a = values[first]
        twins = [i for i, v in enumerate(values) if v.shape[2:] == a.shape[2:]]
        joins = [i for i in twins if values[i].shape[1] in (a.shape[1], 1)]
        kind = draw(st.sampled_from(_KINDS))
        second = draw(st.sampled_from(twins if kind == "cat" else joins))
        if kind in (*_SIZED, "pooled", "expanded"):
            second = draw(st.integers(0, len(values) - 1))
        if kind in _WHOLE and kind != "attention":
            second = draw(st.sampled_from([i for i, v in enumerate(values) if v.shape[1] in (a.shape[1], 1)]))
        if (kind == "iadd" and first == 0) or (kind in ("swap", "shuffle") and a.shape[1] % 2) or (kind == "split" and a.shape[1] < 2):
            continue
        if kind == "attention":
            second = draw(st.sampled_from([i for i in twins if values[i].shape[1] in (a.shape[1], 1)]))
        if kind == "layer" or (kind == "again" and layers):
            number = len(layers) if kind == "layer" else draw(st.integers(0, len(layers) - 1))
            layer = draw(_layers(a.shape[1])).double().eval() if kind == "layer" else layers[number]
            try:
                with torch.no_grad():
                    out = layer(a.clone())
            except (RuntimeError, ValueError):  # it takes other channels, or a larger map
                continue
            # torch corrupts memory in the backward pass of a max-pool window that a dilation keeps from meeting the map: minus infinity
            if min(out.shape[2:]) < 1 or out.numel() > 20000 or out.isinf().any():
                continue
            layers = layers if layer in layers else [*layers, layer]
            steps.append(("layer", number, (first,)))
            values.append(out)
            continue
        b = values[second]
        if kind == "fit" and any(n + 6 < m for n, m in zip(b.shape[2:], a.shape[2:], strict=True)):
            continue
        if kind == "again" or (kind == "alternate" and a.shape[1] < 2):
            continue
        if (kind == "rows" and b.shape[1] < 2) or (kind == "variance" and b.shape[2] * b.shape[3] < 2):  # of which there is no variance
            continue
        many = a.shape[2] * a.shape[3]
        number = draw(st.integers(1, min(3, many)) if kind == "top" else st.integers(0, 11) if kind in ("order", "pooled") else st.just(0))
        steps.append((kind, number, (first, second)))
        if kind in _SIZED:
            values.append(a[:, :, :1, :1].expand(-1, -1, *b.shape[2:]))
            continue
        values.append(
            torch.cat([a, b], 1) if kind == "cat"
            else torch.cat([a, b[:, :, :1, :1].expand(-1, -1, *a.shape[2:])], 1) if kind in ("pooled", "expanded")
            else a[:, :1] if kind == "half"
            else a[:, [0] * (1 + number % 4)] if kind == "order"
            else a[:, torch.arange(a.shape[1]) % 3 != 1] if kind == "masked"
            else a + b if kind in ("add", "sub", "mul", "iadd")
            else a
        )  # fmt: skip
    head = draw(st.sampled_from(["map", "mean", "max", "both", "grid", "gem", "attention", "top", "flat", "several"]))
    network = RandomNetwork(layers, steps, head, values[-1].shape[1]).double().eval()
    tile = draw(st.integers(1, image.shape[2] + 9)), draw(st.integers(1, image.shape[3] + 9))
    ties = head == "top" or any(kind == "top" for kind, *_ in steps)  # of which torch takes any
    if draw(st.booleans()) and not ties:
        image[:, :, : draw(st.integers(0, 29)), draw(st.integers(0, 7)) :] = 0.7  # even background
    return Case(
        network,
        image,
        tile,
        barriers=draw(st.sampled_from(["kept", "spilled", "regenerated"])),
        worthwhile=draw(st.sampled_from([1, 1, 30, 512])),
        saved_steps=draw(st.sampled_from([0.0, 0.0, 0.4, 1.0])),
        segment=draw(st.sampled_from([0, 0, 1, 2, 3])),
        spill=draw(st.booleans()),
        exported=draw(st.floats(0, 1)) < exported,
    )
