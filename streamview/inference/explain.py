"""The public functions of a run: each prepares it and asks it for one thing. `streamview.inference.prepared` has the run itself."""

from __future__ import annotations

import os
from collections.abc import Sequence

from streamview.geometry import Region
from streamview.inference.compute import Compute
from streamview.inference.forecast import Forecast
from streamview.inference.prepared import Source, prepare
from streamview.networks import Model
from streamview.progress import Report
from streamview.results import Prediction, Saliency, Target

__all__ = ["explain", "forecast", "predict", "saliency"]


def forecast(
    model: Model,
    source: Source,
    region: Region | None = None,
    *,
    targets: int = 0,
    out: str | os.PathLike[str] | None = None,
    compute: Compute = Compute(),
    mpp: float | None = None,
    pad_to: int | None = None,
) -> Forecast:
    """Say what `predict` (or, with `targets`, `explain`) will take: the plan from shapes alone, the time from a sample of the region.

    To run the plan that is forecast, prepare the run once: `prepare`.

    Parameters
    ----------
    targets
        How many will be explained; 0 for the prediction alone.
    out
        Where the maps will be written; None: they are kept in memory.
    model, source, region, compute, mpp, pad_to
        As for `prepare`.

    Raises
    ------
    SlideError, RegionError, ModelError, NotStreamableError, MemoryBudgetError
        As for `predict`.

    Examples
    --------
    >>> import numpy as np, streamview
    >>> pixels = np.full((256, 256, 3), 230, np.uint8)
    >>> print(streamview.forecast(streamview.load_model("demo"), pixels, mpp=0.5))  # doctest: +ELLIPSIS
    256 x 256 px in 1 step of 256 x 256 px on cpu: peak memory ...
    """
    return prepare(model, source, region, compute=compute, mpp=mpp, pad_to=pad_to).forecast(targets, out)


def predict(
    model: Model,
    source: Source,
    region: Region | None = None,
    *,
    compute: Compute = Compute(),
    mpp: float | None = None,
    pad_to: int | None = None,
    report: Report | None = None,
) -> Prediction:
    """Predict for a region.

    Parameters
    ----------
    report
        Called after every step; may raise `Cancelled`.
    model, source, region, compute, mpp, pad_to
        As for `prepare`.

    Returns
    -------
    Prediction

    Raises
    ------
    SlideError, RegionError, ModelError, NotStreamableError, MemoryBudgetError
        When source, region, model or memory do not fit; see each.

    Examples
    --------
    >>> import streamview
    >>> with streamview.open_slide("slide.svs") as slide:
    ...     prediction = streamview.predict(streamview.load_model("demo"), slide, streamview.Region(0, 256, 512, 256))
    >>> prediction.label, prediction.class_names
    ('lesion', ('normal', 'lesion'))
    """
    return prepare(model, source, region, compute=compute, mpp=mpp, pad_to=pad_to).predict(report=report)


def saliency(
    model: Model,
    source: Source,
    region: Region | None = None,
    target: int | str | Target | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    compute: Compute = Compute(),
    mpp: float | None = None,
    pad_to: int | None = None,
    report: Report | None = None,
) -> Saliency:
    """Explain a prediction at the full resolution of the network's grid, from one forward and one backward pass.

    `compute` may name another method than the gradient, such as ``Compute(method=ExplanationMethod("smoothgrad"))``, of more passes.

    Parameters
    ----------
    target
        Class to explain, by name or index, or the difference of two logits as ``"a-b"``; default `Prediction.usual_target`: the class of
        interest that the card names, else the predicted one (regression: the first output).
    out
        Folder ``NAME.ome.zarr`` to write the maps to as they finish; default keeps them in memory.
    report
        As for `predict`.
    model, source, region, compute, mpp, pad_to
        As for `prepare`.

    Returns
    -------
    Saliency
        With the maps ``"absolute"``, max over channels of ``|d logit / d normalised input|`` (Simonyan et al., 2014,
        https://arxiv.org/abs/1312.6034), ``"signed"``, the sum over channels of gradient x (input - glass), and where the head
        is pooling and a linear layer ``"evidence"`` (see `streamview.inference.class_evidence`). By other methods ``"absolute"`` and
        ``"signed"``, or by Grad-CAM ``"evidence"`` alone; `SaliencyMap.reduction` says how each was computed.

    Raises
    ------
    SlideError, RegionError, ModelError, NotStreamableError, MemoryBudgetError
        As for `predict`; ModelError also for an unknown target.

    Examples
    --------
    >>> import streamview
    >>> with streamview.open_slide("slide.svs") as slide:
    ...     result = streamview.saliency(streamview.load_model("demo"), slide, target="lesion", out="map.ome.zarr")
    >>> list(result.maps), result.maps["absolute"].values.shape
    (['absolute', 'signed', 'evidence'], (512, 768))
    """
    run = prepare(model, source, region, compute=compute, mpp=mpp, pad_to=pad_to)
    return run.explain([target], outs=None if out is None else [out], report=report)[0]


def explain(
    model: Model,
    source: Source,
    region: Region | None = None,
    targets: Sequence[int | str | Target | None] = (None,),
    *,
    outs: Sequence[str | os.PathLike[str]] | None = None,
    compute: Compute = Compute(),
    mpp: float | None = None,
    pad_to: int | None = None,
    report: Report | None = None,
) -> list[Saliency]:
    """Explain a prediction for several targets, from one forward pass and one backward pass for each.

    Parameters
    ----------
    targets
        Each as `target` of `saliency`; ``model.card.class_names`` for every class.
    outs
        One folder ``NAME.ome.zarr`` for each target; all take their places when the last pass is done. Default keeps the maps in memory.
    report
        As for `predict`.
    model, source, region, compute, mpp, pad_to
        As for `prepare`.

    Returns
    -------
    list of Saliency
        In the order of the targets, each as `saliency` would give it.

    Raises
    ------
    SlideError, RegionError, ModelError, NotStreamableError, MemoryBudgetError
        As for `saliency`.
    ValueError
        When `targets` is empty or a bare string, or `outs` does not have a folder of its own for each.

    Examples
    --------
    >>> import streamview
    >>> with streamview.open_slide("slide.svs") as slide:
    ...     results = streamview.explain(streamview.load_model("demo"), slide, targets=["lesion", "lesion-normal"])
    >>> [str(result.target) for result in results]
    ['lesion', 'lesion-normal']
    """
    return prepare(model, source, region, compute=compute, mpp=mpp, pad_to=pad_to).explain(targets, outs=outs, report=report)
