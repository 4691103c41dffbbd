"""Answers to be kept in a job folder, without a network."""

from __future__ import annotations

import numpy as np

from streamview.geometry import Region
from streamview.jobs import RegionResult, StoredMap
from streamview.results import Identity, Prediction, Target

__all__ = ["NORMAL", "TUMOUR", "answer"]

NORMAL, TUMOUR = Target("normal", 0), Target("tumour", 1)


def answer(slide: str = "a.svs", logits: tuple[float, float] = (0.0, 1.0), weights: str = "ab", x: int = 0) -> RegionResult:
    region = Region(10, x, 2048, 4096)
    prediction = Prediction(
        slide_name=slide,
        region=region,
        shape=(1024, 2048),
        mpp=(0.5, 0.5),
        task="class",
        class_names=("normal", "tumour"),
        logits=np.array(logits, np.float32),
        identity=Identity(weights, "cd", slide, region, (0.5, 0.5), "float32"),
        model_name="demo",
        trained=True,
    )
    return RegionResult(prediction, "run-1", (0.25, 0.25), 0.75, (StoredMap(f"saliency/{slide}/r.ome.zarr", TUMOUR, "r.png"),))
