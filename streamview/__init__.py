"""Exact streamed prediction and full-resolution saliency of whole-slide regions, in bounded memory.

Names are imported on first use, so that ``import streamview`` costs nothing: no torch, zarr or Qt.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamview.errors import StreamviewError
    from streamview.evaluation import evaluate
    from streamview.finetuning import finetune
    from streamview.geometry import Region
    from streamview.inference.compute import Compute
    from streamview.inference.explain import explain, forecast, predict, saliency
    from streamview.inference.prepared import PreparedRun, prepare
    from streamview.inspection.model import inspect_model
    from streamview.inspection.verification import verify
    from streamview.labels.regions import read_labels
    from streamview.networks import Model, load_model
    from streamview.results.maps import Saliency
    from streamview.results.methods import ExplanationMethod
    from streamview.results.prediction import Prediction
    from streamview.slides import Slide, open_slide
    from streamview.slides.pyramid import build_pyramid, open_pyramid
    from streamview.streaming import stream

__all__ = [
    "Compute",
    "ExplanationMethod",
    "PreparedRun",
    "Model",
    "Prediction",
    "Region",
    "Saliency",
    "Slide",
    "StreamviewError",
    "__version__",
    "build_pyramid",
    "evaluate",
    "explain",
    "finetune",
    "forecast",
    "inspect_model",
    "load_model",
    "open_pyramid",
    "open_slide",
    "predict",
    "prepare",
    "read_labels",
    "saliency",
    "stream",
    "verify",
]
__version__ = "0.1.0"

_HOMES = {
    "Compute": "inference.compute",
    "ExplanationMethod": "results.methods",
    "PreparedRun": "inference.prepared",
    "Model": "networks",
    "Prediction": "results.prediction",
    "Region": "geometry",
    "Saliency": "results.maps",
    "Slide": "slides",
    "StreamviewError": "errors",
    "build_pyramid": "slides.pyramid",
    "evaluate": "evaluation",
    "explain": "inference.explain",
    "finetune": "finetuning",
    "forecast": "inference.explain",
    "inspect_model": "inspection.model",
    "load_model": "networks",
    "open_pyramid": "slides.pyramid",
    "open_slide": "slides",
    "predict": "inference.explain",
    "read_labels": "labels.regions",
    "prepare": "inference.prepared",
    "saliency": "inference.explain",
    "stream": "streaming",
    "verify": "inspection.verification",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'streamview' has no attribute {name!r}")
    return getattr(importlib.import_module(f"streamview.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
