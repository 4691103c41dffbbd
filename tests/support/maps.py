"""Saliency maps made by the tests: no network, no file."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamview.geometry import Region
from streamview.results import Identity, Prediction, Saliency, SaliencyMap, Target

__all__ = ["make_maps"]


def make_maps(
    values: np.ndarray,
    *,
    mpp: tuple[float, float] | None = (0.5, 0.5),
    place: tuple[int, int] = (0, 0),
    step: int = 1,
    source: str = "slide",
    weights: str = "ab" * 32,
    target: Target | None = None,
) -> Saliency:
    """A result whose signed map is `values`, its pixels `step` level-0 pixels wide; absolute and evidence follow from it."""
    height, width = values.shape
    values = values.astype(np.float32)
    region = Region(*place, height * step, width * step)
    identity = Identity(weights, "cd" * 32, source, region, mpp, "float32")
    logits = np.array([0.0, 2.0], np.float32)
    prediction = Prediction("planted.svs", region, (height, width), mpp, "class", ("normal", "lesion"), logits, identity, "demo", True)
    origin = place[0] + (step - 1) / 2, place[1] + (step - 1) / 2
    coarse = values[: height // 16 * 16, : width // 16 * 16].reshape(height // 16, 16, width // 16, 16).mean((1, 3))
    wide = 16.0 * step
    maps: dict[Any, SaliencyMap] = {
        "absolute": SaliencyMap("absolute", np.abs(values), (step, step), origin),
        "signed": SaliencyMap("signed", values, (step, step), origin),
        "evidence": SaliencyMap("evidence", coarse, (wide, wide), (place[0] + (wide - 1) / 2, place[1] + (wide - 1) / 2)),
    }
    return Saliency(prediction, target or Target("lesion", 1), (0.2, 0.2, 0.2), (255, 255, 255), maps)
