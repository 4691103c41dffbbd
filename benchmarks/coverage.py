"""What streaming needs where networks are not local all the way: barriers, U-Nets, patch encoders.

    OMP_WAIT_POLICY=passive python -m benchmarks.coverage [--cases efficientnet unet patches] [--picture docs/images/coverage.png]

Every row is a process of its own, which prints the growth of its peak resident memory over a forward and a backward pass (VmHWM of
Linux, beyond the libraries, the network and the image) and its process time. Errors are the largest difference to the plain
network's, divided by its largest value.

efficientnet
    EfficientNet-B0 (timm; 16 squeeze-excitations) at 2048 x 2048, float32, gradient of the image: plain, and the maps in front of
    the squeeze-excitations kept, spilled and regenerated, in strips of 256 rows that save nothing.
unet
    A U-Net of four levels, gradients of all weights, float32, at 1024 and 2048, in strips of 128 rows; and in float64, for the error.
patches
    A vision transformer of 12 blocks as `PatchEncoder` with attention pooling over 4096 x 4096, float64: prediction and gradient of
    the image against the same network with its encoder checkpointed by torch, batch by batch.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from streamview.streaming import PatchEncoder, stream
from streamview.system.machine import peak_memory

Row = dict[str, float | list[float] | str]


class UNet(nn.Module):
    """Four levels, bilinear upsampling, skip connections by concatenation."""

    def __init__(self, width: int = 16, outputs: int = 2) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(4)]
        self.down = nn.ModuleList(_block(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(_block(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.last = nn.Conv2d(width, outputs, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of every pixel."""
        skips = []
        x = image
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for block, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = block(torch.cat([F.interpolate(x, size=skip.shape[-2:], mode="bilinear"), skip], 1))
        return self.last(x)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class ViT(nn.Module):
    """A small vision transformer: patches of 16 px, class token, learnt positions."""

    def __init__(self, size: int = 224, width: int = 192, depth: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, (size // 16) ** 2 + 1, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, patches: Tensor) -> Tensor:
        """Features (n, width) of patches (n, 3, 224, 224)."""
        x = self.patch(patches).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.norm(self.blocks(x)[:, 0])


class AttentionPooling(nn.Module):
    """Gated attention over the patches (Ilse et al., ICML 2018), then a linear layer."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.value, self.gate, self.score, self.last = (
            nn.Linear(width, 64),
            nn.Linear(width, 64),
            nn.Linear(64, 1),
            nn.Linear(width, outputs),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, outputs) of a map (N, D, h, w)."""
        tokens = features.flatten(2).transpose(1, 2)
        weights = torch.softmax(self.score(torch.tanh(self.value(tokens)) * torch.sigmoid(self.gate(tokens))), 1)
        return self.last((weights * tokens).sum(1))


class Checkpointed(nn.Module):
    """A `PatchEncoder` that torch's checkpointing keeps small: an oracle that shares no code with the engine."""

    def __init__(self, encoder: PatchEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> Tensor:
        """The same map."""
        size, step = self.encoder.size, self.encoder.stride
        windows = image.unfold(2, size, step).unfold(3, size, step)  # (N, C, h, w, size, size)
        patches = windows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        found = [checkpoint(self.encoder.module, part, use_reentrant=False) for part in patches.split(4)]
        return torch.cat(found).unflatten(0, (windows.shape[0], *windows.shape[2:4])).permute(0, 3, 1, 2)


def measure(module: nn.Module, image: Tensor, *, train: bool) -> tuple[Row, list[Tensor]]:
    """Output and gradients of one pass, and what it took."""
    module.requires_grad_(train)
    image.requires_grad_(not train)
    before, start = peak_memory(), time.process_time()
    out = module(image)
    torch.manual_seed(1)
    cotangent = torch.randn_like(out)
    found = torch.autograd.grad(out, [*module.parameters()] if train else [image], cotangent)
    row: Row = {"MB": (peak_memory() - before) / 2**20, "seconds": time.process_time() - start}
    return row, [out.detach(), *found]


def efficientnet(way: str) -> Row:
    """One way with the barriers of EfficientNet-B0; the plain network's result is computed behind it, for the error."""
    sys.path.append(str(Path(__file__).parents[1]))
    from tests.support.zoo import import_timm  # which torchvision's wheel for processors needs help with

    timm = import_timm()
    network = timm.create_model("efficientnet_b0").eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_var, 0.5, 2)
    network = network.to(memory_format=torch.channels_last)
    image = torch.rand(1, 3, 2048, 2048).to(memory_format=torch.channels_last)
    return _against(network, stream(network, tile=(256, 2048), barriers=way) if way != "plain" else network, image, train=False)


def _against(plain: nn.Module, module: nn.Module, image: Tensor, *, train: bool) -> Row:
    row, found = measure(module, image, train=train)
    if module is not plain:
        _, expected = measure(plain, image.detach(), train=train)
        row["error"] = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, expected, strict=True))
    return row


def unet(way: str) -> Row:
    """Gradients of all weights of a U-Net."""
    kind, side = way.split("-")
    network = UNet().eval().to(memory_format=torch.channels_last)
    image = torch.rand(1, 3, int(side), int(side)).to(memory_format=torch.channels_last)
    if kind == "exact":
        network, image = network.double(), image.double()
    return _against(network, network if kind == "plain" else stream(network, tile=(128, int(side))), image, train=True)


def patches(way: str) -> Row:
    """Prediction and gradient of the image through a vision transformer and attention pooling."""
    encoder, pooling = PatchEncoder(ViT(), 224), AttentionPooling(192, 2)
    network = nn.Sequential(encoder, pooling).eval().double()
    image = torch.rand(1, 3, 4096, 4096, dtype=torch.float64)
    return _against(nn.Sequential(Checkpointed(encoder), pooling).eval(), stream(network, tile=(224, 4096)), image, train=False)


CASES: dict[str, tuple[Callable[[str], Row], tuple[str, ...]]] = {
    "efficientnet": (efficientnet, ("plain", "kept", "spilled", "regenerated")),
    "unet": (unet, ("plain-1024", "streamed-1024", "plain-2048", "streamed-2048", "exact-1024")),
    "patches": (patches, ("streamed",)),
}


def draw(rows: list[tuple[str, str, Row]], path: str) -> None:
    """Bars of peak memory, one panel for each case with something to compare, the process time beside each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = {
        "efficientnet": "EfficientNet-B0, gradient of 2048 x 2048 px",
        "unet": "U-Net, gradients of all weights",
    }
    cases = [case for case in dict.fromkeys(case for case, _, _ in rows) if case in titles]
    shown = [[(way, row) for found, way, row in rows if found == case and not way.startswith("exact")] for case in cases]
    heights = [len(part) + 1 for part in shown]
    figure, axes = pyplot.subplots(len(cases), figsize=(8, 0.42 * sum(heights)), gridspec_kw={"height_ratios": heights}, squeeze=False)
    for axis, case, part in zip(axes[:, 0], cases, shown, strict=True):
        bars = axis.barh(
            [way for way, _ in part], [row["MB"] for _, row in part], color=["#9aa5b1" if "plain" in way else "#2a6f97" for way, _ in part]
        )
        axis.bar_label(bars, [f" {row['MB']:,.0f} MB, {row['seconds']:.0f} s" for _, row in part], fontsize=9)
        axis.set_title(titles[case], loc="left", fontsize=10)
        axis.invert_yaxis()
        axis.margins(x=0.25)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.tick_params(left=False, bottom=False, labelbottom=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--picture", metavar="FILE.png", help="also draw the peaks (needs matplotlib)")
    parser.add_argument("--row", nargs=2, metavar=("CASE", "WAY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        ctypes.CDLL("libc.so.6").mallopt(-3, 2**20)  # blocks of a megabyte on go back when freed, so that peaks are of what is used
        torch.manual_seed(0)
        case, way = options.row
        print(json.dumps(CASES[case][0](way)))
        return
    rows = []
    print(f"{'case':<14}{'way':<16}{'peak MB':>9}{'seconds':>9}{'error':>10}")
    for case in options.cases:
        for way in CASES[case][1]:
            command = [sys.executable, "-m", "benchmarks.coverage", "--row", case, way]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            rows.append((case, way, row))
            error = f"{row['error']:.1e}" if "error" in row else ""
            print(f"{case:<14}{way:<16}{row['MB']:>9.0f}{row['seconds']:>9.1f}{error:>10}", flush=True)
    if options.picture:
        draw(rows, options.picture)


if __name__ == "__main__":
    main()
