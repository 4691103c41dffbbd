"""Train the demo's network on synthetic regions.

Run ``python -m streamview_models.demo.train``: it takes a few minutes on two cores, writes ``weights.safetensors`` beside itself
and prints how the network does on regions it has not seen. With ``--stain`` it only prints what the card says of the stain.

First the linear layer is put on every position of the last map and learns from small windows which positions show lesion. Then the
network learns from whole regions. It pools their maximum, so the more tissue, the higher every feature: trained on small regions
alone it would call every large one a lesion. Two facts make it fit for large ones at little cost: the pooled features of a region
made of parts are the maximum over those of its parts, and the pooled features of negative regions seen lately can be kept.
So every region is learned as it is, and as part of one of up to 16 megapixels whose other parts are negative.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy

from streamview.networks.cards import parse_card, read_document
from streamview.networks.suitability import tissue_density
from streamview.slides.synthetic import synthetic_region
from streamview_models.demo import build

__all__ = ["main", "stain_statistics", "train"]

_HERE = Path(__file__).parent
_CARD = parse_card(read_document(_HERE / "card.json"), name="demo", file="card.json")
_UNSEEN = 1_000_000  # seeds from here on are kept for validation
_PARTS = 32  # negative regions, of half a megapixel on average, that make up a large one
_STRIDE = 32  # of the last map, px


@dataclass(frozen=True, slots=True, eq=False)
class _Region:
    """Pixels uint8 (h, w, 3) and the mask bool (h, w) of the lesion; sides are multiples of `_STRIDE`."""

    pixels: npt.NDArray[np.uint8]
    lesion: npt.NDArray[np.bool_]

    def cells(self) -> Tensor:
        """Share (h, w) of the lesion in every position of the last map."""
        height, width = self.lesion.shape
        shares = self.lesion.reshape(height // _STRIDE, _STRIDE, width // _STRIDE, _STRIDE).mean((1, 3), dtype=np.float32)
        return torch.from_numpy(shares)

    def normalised(self) -> Tensor:
        """Return the network's input (1, 3, h, w), channels_last."""
        pixels = torch.from_numpy(np.array(self.pixels, order="C")) / 255
        return ((pixels - torch.tensor(_CARD.mean)) / torch.tensor(_CARD.std))[None].permute(0, 3, 1, 2)


class _Parts:
    """The network taken apart, for losses between its layers."""

    def __init__(self, network: nn.Module) -> None:
        self.features, head = network.get_submodule("features"), network.get_submodule("head")
        self.pool, self.linear = head.get_submodule("0"), head.get_submodule("2")
        assert isinstance(self.linear, nn.Linear)
        self.weight, self.bias = self.linear.weight, self.linear.bias

    def evidence(self, features: Tensor) -> Tensor:
        """Map features (1, channels, h, w) to the evidence for every class (1, 2, h, w): the linear layer at every position."""
        return conv2d(features, self.weight[:, :, None, None], self.bias)


def train(regions: int, seed: int) -> nn.Module:
    """Train the network and return it in eval mode.

    Parameters
    ----------
    regions
        Number of synthetic regions, half of them with a lesion on 2 to 60 % of the tissue.
    seed
        Of the regions, their order and the first weights.
    """
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    network = build()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parts = _Parts(network)
    # both classes start from nothing, so that what speaks for one speaks against the other
    nn.init.zeros_(parts.weight)
    seen = _training_regions(regions, seed, rng)
    negatives: deque[Tensor] = deque([torch.zeros(parts.weight.shape[1])], maxlen=_PARTS)
    _optimise(network, "windows", 250, 3e-3, lambda: _window_loss(parts, seen, rng))
    _optimise(network, "regions", 200, 1e-3, lambda: _region_loss(parts, seen, negatives, rng))
    return network.eval()


def stain_statistics(regions: int, seed: int) -> dict[str, list[float]]:
    """Optical density of the tissue of the training regions, for the card: mean and standard deviation of the regions' means."""
    seen = _training_regions(regions, seed, np.random.default_rng(seed))
    means = np.array([tissue_density(region.pixels[::2, ::2].reshape(-1, 3)).mean(axis=0) for region in seen])
    return {"od_mean": means.mean(0).round(3).tolist(), "od_std": means.std(0).round(3).tolist()}


def _training_regions(regions: int, seed: int, rng: np.random.Generator) -> list[_Region]:
    return [_paint(number % 2 == 1, int(rng.choice((512, 768, 1024))), seed * 10_000 + number, rng) for number in range(regions)]


def _optimise(network: nn.Module, stage: str, steps: int, rate: float, loss_of_step: Callable[[], Tensor]) -> None:
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    start = time.monotonic()
    for step in range(steps):
        loss = loss_of_step()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if (step + 1) % 25 == 0:
            print(f"{stage}, step {step + 1}/{steps}: loss {loss.item():.3f} ({time.monotonic() - start:.0f} s)", flush=True)


def _window_loss(parts: _Parts, seen: list[_Region], rng: np.random.Generator) -> Tensor:
    """Loss of every position of sixteen windows."""
    windows = [_vary(seen[rng.integers(len(seen))], 256, rng) for _ in range(16)]
    features = parts.features(torch.cat([window.normalised() for window in windows]))
    return _position_loss(parts.evidence(features), torch.stack([window.cells() for window in windows]))


def _region_loss(parts: _Parts, seen: list[_Region], negatives: deque[Tensor], rng: np.random.Generator) -> Tensor:
    """Loss of four whole regions, of the same as parts of larger ones, and of their positions; keeps what was pooled from negatives."""
    labels = torch.arange(4) % 2
    regions = [seen[2 * rng.integers(len(seen) // 2) + int(label)] for label in labels]
    regions = [_vary(region, len(region.pixels), rng) for region in regions]
    maps = [parts.features(region.normalised()) for region in regions]
    pooled = torch.cat([parts.pool(features).flatten(1) for features in maps])
    others = torch.stack(list(negatives)[-int(rng.integers(1, _PARTS + 1)) :]).amax(0)
    negatives.extend(pooled[labels == 0].detach())
    positions = [_position_loss(parts.evidence(features), region.cells()[None]) for features, region in zip(maps, regions, strict=True)]
    alone, within = (cross_entropy(parts.linear(features), labels) for features in (pooled, torch.maximum(pooled, others)))
    return alone + within + torch.stack(positions).mean()


def _position_loss(evidence: Tensor, lesion: Tensor) -> Tensor:
    """Cross-entropy of the evidence (n, 2, h, w) where the share of lesion (n, h, w) is clear; both classes weigh the same."""
    loss = cross_entropy(evidence, (lesion > 0.5).long(), reduction="none")
    return sum((loss[cells].mean() for cells in (lesion == 0, lesion > 0.5) if cells.any()), torch.zeros(()))


def main() -> None:
    """Train, write the weights, validate."""
    parser = argparse.ArgumentParser(description="Train the demo's network and write its weights.")
    parser.add_argument("--regions", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=_HERE / "weights.safetensors")
    parser.add_argument("--stain", action="store_true", help="print the optical density of the training regions and train nothing")
    arguments = parser.parse_args()
    if arguments.stain:
        print(json.dumps(stain_statistics(arguments.regions, arguments.seed)))
        return
    network = train(arguments.regions, arguments.seed)
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    safetensors.torch.save_file(state, arguments.output)
    print(f"wrote {arguments.output}")
    for side, count in ((1024, 12), (2048, 6), (4096, 2)):
        _validate(network, side, count)


@torch.no_grad()
def _validate(network: nn.Module, side: int, count: int) -> None:
    """Print, for unseen regions of one size, the accuracy and the share of the class evidence that lies in the lesion."""
    rng = np.random.default_rng(_UNSEEN)
    parts = _Parts(network)
    margins, ratios = [], []
    for number in range(2 * count):
        region = _paint(number % 2 == 1, side, _UNSEEN + side * 100 + number, rng, shares=(0.03, 0.06))
        features = parts.features(region.normalised())
        logits = parts.linear(parts.pool(features).flatten(1))[0]
        margins.append(float(logits[1] - logits[0]))
        if number % 2:
            evidence, cells = parts.evidence(features)[0, 1].clamp(min=0), region.cells()
            ratios.append(float((evidence * cells).sum() / evidence.sum() / cells.mean()))
    normal, lesion = np.array(margins[::2]), np.array(margins[1::2])
    print(
        f"{side} px: {(normal < 0).sum() + (lesion > 0).sum()} of {2 * count} right; logit(lesion) - logit(normal) is "
        f"{normal.mean():.1f} without lesion (largest {normal.max():.1f}), {lesion.mean():.1f} with one (smallest {lesion.min():.1f}); "
        f"mass of the evidence in the lesion: {np.mean(ratios):.1f} x its share of area"
    )


def _paint(lesion: bool, side: int, seed: int, rng: np.random.Generator, shares: tuple[float, float] = (0.02, 0.6)) -> _Region:
    """Paint a region and pass it through JPEG, as a slide's pixels are."""
    share = float(np.exp(rng.uniform(*np.log(shares)))) if lesion else 0.0
    image, mask = synthetic_region(side, side, seed=seed, lesion_share=share)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(rng.integers(75, 96)))
    return _Region(np.asarray(Image.open(file)), mask)


def _vary(region: _Region, side: int, rng: np.random.Generator) -> _Region:
    """Cut a window that holds some pixel (of the lesion, if there is one); turn, flip and tint it."""
    pixels, lesion = region.pixels, region.lesion
    candidates = np.flatnonzero(lesion) if lesion.any() else np.arange(lesion.size)
    corner = np.unravel_index(rng.choice(candidates), lesion.shape) - rng.integers(side, size=2)
    y, x = np.clip(corner, 0, len(pixels) - side)
    pixels, lesion = pixels[y : y + side, x : x + side], lesion[y : y + side, x : x + side]
    turns, flip = int(rng.integers(4)), 1 - 2 * int(rng.integers(2))
    pixels, lesion = np.rot90(pixels, turns)[::flip], np.rot90(lesion, turns)[::flip]
    tint = rng.uniform(0.94, 1.06, 3) * rng.uniform(0.95, 1.05)
    return _Region(np.clip(pixels * tint, 0, 255).astype(np.uint8), lesion)


if __name__ == "__main__":
    main()
