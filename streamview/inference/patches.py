"""One answer for each patch of a region, as networks made for patches give them (WSInfer's), and the files that hold them.

Patches lie edge to edge on the network's grid, from the region's top left corner. Each is a forward pass of its own, so nothing is
streamed: they run in batches that fit into memory. Where there is no tissue nothing is computed, and what is not computed is absent: NaN in
the arrays, no row in the tables, transparent in the pictures.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import math
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from streamview.errors import MemoryBudgetError, ModelError, RegionError, SlideError
from streamview.files import atomic
from streamview.geometry import Region
from streamview.inference.compute import Compute
from streamview.inference.identity import identify
from streamview.inference.prepared import Source
from streamview.networks import Model
from streamview.networks.cards import ModelCard
from streamview.networks.suitability import contradicted_scale, unsuitable
from streamview.progress import Progress, Report
from streamview.results import RESEARCH_USE, Identity, Plane, Prediction, Saliency, SaliencyMap, Target
from streamview.slides import Slide, as_slide
from streamview.slides.readahead import ReadAhead
from streamview.slides.sampling import Sampler
from streamview.slides.thumbnail import thumbnail
from streamview.slides.tissue import Tissue, find_tissue
from streamview.streaming.memory import format_bytes, free_memory, parse_bytes
from streamview.streaming.run.out_of_memory import ran_out
from streamview.system.machine import find_device, resident_memory, total_memory

__all__ = ["PatchPlan", "PatchPredictions", "patch_side", "predict_patches", "write_patch_geojson", "write_patch_table"]

_LEAST_TISSUE = 0.1  # share of a patch from which on it is computed
_MOST = 64  # patches of a batch: more are no faster
_OVERVIEW = 256  # px of a side, at most, of the picture by which a region is judged
_RESERVE = 128 * 2**20  # bytes beside the batches: decoding and libraries


@dataclass(frozen=True, slots=True)
class PatchPlan:
    """What a run over patches will take.

    Parameters
    ----------
    count, total
        Patches that are computed, and that the region has.
    side
        Of a patch, px of the network's grid.
    batch
        Patches computed at once.
    peak_bytes
        Peak of the process's resident memory (on CUDA: of reserved device memory) at most.
    seconds, disk_bytes, disk_free
        As of a `streamview.inference.forecast.Forecast`; not measured.
    """

    count: int
    total: int
    side: int
    batch: int
    peak_bytes: int
    seconds: float | None = None
    disk_bytes: int = 0
    disk_free: int | None = None

    def __str__(self) -> str:
        """One line for people."""
        without = f", {self.total - self.count} without tissue are left out" if self.count < self.total else ""
        return f"{self.count} patches of {self.side} px in batches of {self.batch}{without}: at most {format_bytes(self.peak_bytes)}"


@dataclass(frozen=True, slots=True, eq=False)
class PatchPredictions:
    """A network's answers for the patches of one region of one slide.

    Parameters
    ----------
    slide_name
        File name of the slide, without folder.
    region
        What the patches cover, in level-0 pixels.
    side
        Of a patch, px of the network's grid.
    step
        ``(y, x)`` level-0 pixels from patch to patch.
    mpp
        ``(y, x)`` um/px of the slide's level 0.
    card
        Of the network.
    logits
        float32 (rows, columns, K); NaN where a patch was not computed.
    identity
        What decided the values.
    warnings
        What the reader must know, one sentence each.
    """

    slide_name: str
    region: Region
    side: int
    step: tuple[float, float]
    mpp: tuple[float, float]
    card: ModelCard
    logits: NDArray[np.float32]
    identity: Identity
    warnings: tuple[str, ...] = ()

    @property
    def computed(self) -> NDArray[np.bool_]:
        """bool (rows, columns)."""
        return np.asarray(~np.isnan(self.logits[..., 0]), np.bool_)

    @property
    def values(self) -> NDArray[np.float32]:
        """float32 (rows, columns, K): probabilities, of a regression the outputs; NaN where a patch was not computed."""
        logits = self.logits.astype(np.float64)
        if self.card.task == "class":
            shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
            return np.asarray(shares / shares.sum(axis=-1, keepdims=True), np.float32)
        if self.card.task == "multilabel":
            return np.asarray(0.5 * (1 + np.tanh(logits / 2)), np.float32)
        return self.logits

    @property
    def prediction(self) -> Prediction:
        """The mean of the patches' probabilities (of a regression: outputs) as one answer; its grid is that of the patches."""
        mean = self.values[self.computed].astype(np.float64).mean(axis=0).clip(1e-30 if self.card.task != "regression" else None)
        logits = mean
        if self.card.task == "class":
            logits = np.log(mean)
        elif self.card.task == "multilabel":
            logits = np.log(mean) - np.log1p(-mean.clip(max=1 - 1e-12))
        count, (rows, columns) = int(self.computed.sum()), self.logits.shape[:2]
        of = "outputs" if self.card.task == "regression" else "probabilities"
        said = f"The answer is the mean of the {of} of {count} patches of {self.side} px; it is no answer of the network for the whole."
        pitch = self.step[0] * self.mpp[0], self.step[1] * self.mpp[1]
        return Prediction(
            self.slide_name, self.region, (rows, columns), pitch, self.card.task, self.card.class_names, logits.astype(np.float32),
            self.identity, self.card.name, self.card.trained, (said, *self.warnings), self.card.positive,
        )  # fmt: skip

    def patches(self) -> Iterator[tuple[Region, NDArray[np.float32]]]:
        """Yield each patch that was computed, in level-0 pixels, and its values (K,), row by row."""
        height, width = (max(round(step), 1) for step in self.step)
        values = self.values
        for i, j in np.argwhere(self.computed).tolist():
            place = round(self.region.y + i * self.step[0]), round(self.region.x + j * self.step[1])
            yield Region(*place, height, width), values[i, j]

    def map_of(self, target: Target) -> Saliency:
        """Return the values of a class as a coarse map, a pixel for each patch, which pictures, exports and viewers show."""
        values = self.values[..., target.index]
        origin = self.region.y + self.step[0] / 2 - 0.5, self.region.x + self.step[1] / 2 - 0.5
        found = SaliencyMap("patches", Plane(np.ascontiguousarray(values)), self.step, origin)
        return Saliency(self.prediction, target, self.card.std, (255, 255, 255), {"patches": found})


def patch_side(card: ModelCard) -> int:
    """Side of the patches that a network answers for, px of its grid.

    Raises
    ------
    ModelError
        When the card states no size of patches or no um/px.
    """
    if card.patch_size_pixels is None or card.spacing_um_px is None:
        raise ModelError(f"the card of the model {card.name} states no patch_size_pixels and spacing_um_px, so its patches are not known")
    return card.resize or card.patch_size_pixels


def predict_patches(
    model: Model,
    source: Source,
    region: Region | None = None,
    *,
    tissue: Tissue | None = None,
    every: bool = False,
    compute: Compute = Compute(),
    mpp: float | None = None,
    announce: Callable[[PatchPlan], None] | None = None,
    report: Report | None = None,
) -> PatchPredictions:
    """Predict for each patch of a region.

    Parameters
    ----------
    model
        From `load_model`; its card states `patch_size_pixels` and `spacing_um_px`.
    source
        A slide, a pyramid or a uint8 (H, W, 3) array.
    region
        In level-0 pixels; None for all. The last row and column of patches may reach over it, never over the slide.
    tissue
        From `find_tissue` of the source, where it is at hand.
    every
        Whether to compute patches of which less than a tenth is tissue, too.
    compute
        Where to run, and in how much memory; patches are computed in float32 and not in steps, so its `tile` must be None.
    mpp
        Micrometres per level-0 pixel of the source, where it does not say itself.
    announce
        Told what it will take, before the first patch.
    report
        Called after every batch; may raise `Cancelled`.

    Returns
    -------
    PatchPredictions

    Raises
    ------
    SlideError, RegionError, ModelError, MemoryBudgetError
        When source, region, model or budget do not fit; RegionError also when no patch holds tissue.
    """
    if compute.tile is not None or compute.precision != "float32":
        raise ModelError(f"{compute}: patches run whole, in float32; leave out tile and precision")
    card, slide, side = model.card, as_slide(source, mpp), patch_side(model.card)
    sampler, (rows, columns) = _grid(slide, region, card, side)
    step = side * sampler.scale[0], side * sampler.scale[1]
    chosen, warnings = np.ones((rows, columns), np.bool_), list(model.notes)
    if not card.trained:
        warnings.append("The weights are random (untrained=True): the answers mean nothing.")
    area = None if slide.mpp is None else math.prod(slide.mpp) * math.prod(sampler.region.shape) / 1e6
    scale = contradicted_scale(slide.mpp, slide.stated_mpp)
    seen = thumbnail(slide, sampler.region, (min(sampler.shape[0], _OVERVIEW), min(sampler.shape[1], _OVERVIEW)))
    warnings += [*([] if scale is None else [scale]), *unsuitable(seen.reshape(-1, 3), card, area)]
    if not every:
        try:
            chosen = _share(tissue or find_tissue(slide), sampler.region, step, (rows, columns)) >= _LEAST_TISSUE
        except SlideError:
            warnings.append("The tissue could not be found: every patch was computed.")
    places = np.argwhere(chosen)
    if not len(places):
        raise RegionError(f"{slide.name}: no patch of the region {sampler.region} holds tissue; name a part of the slide that does")
    where = find_device(compute.device)
    # the caller's module stays where it is
    module = model.module if where.type == "cpu" else copy.deepcopy(model.module).to(where)
    plan = _plan(module, side, len(places), rows * columns, compute.memory, where)
    if announce is not None:
        announce(plan)
    logits = np.full((rows, columns, len(card.class_names)), np.nan, np.float32)
    for first, values in _answers(module, card, sampler, places, plan, where, Progress("patches", len(places), report)):
        i, j = places[first : first + len(values)].T
        logits[i, j] = values
    identity = patch_identity(model, slide, region)
    assert slide.mpp is not None  # or the sampler would have refused
    return PatchPredictions(slide.name, sampler.region, side, step, slide.mpp, card, logits, identity, tuple(warnings))


def plan_patches(
    model: Model, slide: Slide, region: Region | None = None, *, tissue: Tissue | None = None, compute: Compute = Compute()
) -> PatchPlan:
    """Say what the patches of a region will take, without computing them.

    Raises
    ------
    SlideError, RegionError, ModelError, MemoryBudgetError
        As `predict_patches`.
    """
    side = patch_side(model.card)
    sampler, (rows, columns) = _grid(slide, region, model.card, side)
    step = side * sampler.scale[0], side * sampler.scale[1]
    count = int((_share(tissue or find_tissue(slide), sampler.region, step, (rows, columns)) >= _LEAST_TISSUE).sum())
    return _plan(model.module, side, count, rows * columns, compute.memory, find_device(compute.device))


def patch_identity(model: Model, slide: Slide, region: Region | None = None) -> Identity:
    """Return the identity that the predictions for a region's patches will have, before they are computed.

    Raises
    ------
    SlideError, RegionError, ModelError
        As `predict_patches`.
    """
    side = patch_side(model.card)
    return replace(identify(model, slide, _grid(slide, region, model.card, side)[0].region), patch=side)


def _grid(slide: Slide, region: Region | None, card: ModelCard, side: int) -> tuple[Sampler, tuple[int, int]]:
    """The network's grid over all patches, and how many there are down and across."""
    plain = Sampler(slide, region, card.mpp)
    start, counts, extent = (plain.region.y, plain.region.x), [], []
    for first, length, whole, scale in zip(start, plain.region.shape, slide.shape, plain.scale, strict=True):
        pitch = side * scale
        count = min(math.ceil(length / pitch - 1e-6), math.floor((whole - first) / pitch + 1e-6))
        if count < 1:
            raise RegionError(
                f"{slide.name}: the region {plain.region} has no room for a patch of {pitch:.0f} level-0 px ({side} px for the model"
                f" {card.name}); give a larger one"
            )
        counts.append(count)
        extent.append(min(math.ceil(count * pitch - 1e-6), whole - first))
    return Sampler(slide, Region(*start, *extent), card.mpp), (counts[0], counts[1])


def _share(tissue: Tissue, region: Region, step: tuple[float, float], counts: tuple[int, int]) -> NDArray[np.float64]:
    """Share (0..1) of each patch that is tissue, (rows, columns)."""
    down, across = (
        (np.minimum.outer(first + (np.arange(n) + 1) * pitch, edges[1:]) - np.maximum.outer(first + np.arange(n) * pitch, edges[:-1])).clip(
            min=0
        )
        for first, pitch, n, edges in (
            (region.y, step[0], counts[0], np.arange(tissue.mask.shape[0] + 1) * tissue.step[0]),
            (region.x, step[1], counts[1], np.arange(tissue.mask.shape[1] + 1) * tissue.step[1]),
        )
    )
    return np.asarray(down @ tissue.mask @ across.T / (step[0] * step[1]), np.float64)


class _Counter(TorchDispatchMode):
    """Adds up the bytes of all that operations return."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.total += sum(leaf.nbytes for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result


def _patch_bytes(module: nn.Module, side: int) -> int | None:
    """What one patch takes at most: all feature maps at once, from a run without values; None where that cannot be."""
    tensors = {name: torch.empty_like(tensor, device="meta") for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    counter = _Counter()
    try:
        with torch.no_grad(), counter:
            torch.func.functional_call(module, tensors, (torch.empty(1, 3, side, side, device="meta"),))
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return None  # of the network's own making; the real run will say what is wrong, if anything is
    return counter.total


def _plan(module: nn.Module, side: int, count: int, total: int, memory: str | int | None, device: torch.device) -> PatchPlan:
    base = torch.cuda.memory_reserved(device) if device.type == "cuda" else resident_memory()
    growth = (torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()) // 2
    if memory is not None:
        growth = parse_bytes(memory, total_memory(device)) - base
    one = _patch_bytes(module, side)
    needed = _RESERVE + (one or 0)
    if growth < needed:
        raise MemoryBudgetError(f"memory {format_bytes(base + growth)}: a patch needs {format_bytes(base + needed)}; give more")
    batch = 1 if one is None else min(max((growth - _RESERVE) // max(one, 1), 1), _MOST, count)
    return PatchPlan(count, total, side, batch, base + _RESERVE + batch * (one or 0))


def _answers(
    module: nn.Module,
    card: ModelCard,
    sampler: Sampler,
    places: NDArray[np.intp],
    plan: PatchPlan,
    device: torch.device,
    progress: Progress,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Number of the first patch and logits (n, K) of each batch; of smaller batches where memory runs out."""
    side, batch, first = plan.side, plan.batch, 0
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (card.mean, card.std))

    def fetch(numbers: tuple[int, int], _: tuple[int, int]) -> NDArray[np.uint8]:
        return np.stack([sampler.read(i * side, (i + 1) * side, j * side, (j + 1) * side) for i, j in places[slice(*numbers)].tolist()])

    def run(pixels: NDArray[np.uint8]) -> Any:
        image = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).to(torch.float32)
        return module(image.div_(255).sub_(mean).div_(std))

    order = [((start, min(start + batch, len(places))), (0, 1)) for start in range(0, len(places), batch)]
    with ReadAhead(fetch, order) as ahead, torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        while first < len(places):
            pixels = ahead.read((first, min(first + batch, len(places))), (0, 1))
            try:
                logits = run(pixels)
            except RuntimeError as error:
                if not ran_out(error):
                    reason = str(error).splitlines()[0]
                    raise ModelError(f"the model {card.name} cannot answer for patches of {side} px ({reason})") from error
                if batch == 1:
                    raise MemoryBudgetError(f"{device} ran out of memory with a single patch: end what else takes memory there") from None
                batch //= 2
                continue
            expected = (len(pixels), len(card.class_names))
            if not isinstance(logits, Tensor) or logits.shape != expected:
                found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise ModelError(f"the model {card.name} answered {found}: expected {expected}, one logit for each of its classes")
            values = logits.to(torch.float32).cpu().numpy()
            if not np.isfinite(values).all():
                raise ModelError(f"the model {card.name} answered NaN or infinity for a patch: check its weights and normalisation")
            yield first, values
            first += len(pixels)
            progress.advance(len(pixels))


def write_patch_table(patches: PatchPredictions, path: str | os.PathLike[str]) -> None:
    """Write the patches as WSInfer does: ``minx,miny,width,height`` in level-0 pixels and ``prob_<class>`` (regression: ``value_<name>``).

    Raises
    ------
    StreamviewError
        When the disk is full or `path` may not be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["minx", "miny", "width", "height", *_columns(patches)])
    for box, values in patches.patches():
        writer.writerow([box.x, box.y, box.width, box.height, *(f"{value:.8g}" for value in values.tolist())])
    atomic.write_text(Path(path), text.getvalue())


def write_patch_geojson(patches: PatchPredictions, path: str | os.PathLike[str]) -> None:
    """Write the patches as tiles for QuPath, with the same numbers as measurements.

    Raises
    ------
    StreamviewError
        When the disk is full or `path` may not be written.
    """
    names, key = _columns(patches), patches.identity.key
    features = []
    for box, values in patches.patches():
        corners = [[box.x, box.y], [box.x_stop, box.y], [box.x_stop, box.y_stop], [box.x, box.y_stop], [box.x, box.y]]
        measurements = {name: float(f"{value:.8g}") for name, value in zip(names, values.tolist(), strict=True)}
        properties = {
            "objectType": "tile",
            "isLocked": True,
            "measurements": measurements,
            "metadata": {"identity": key, "note": RESEARCH_USE},
        }
        geometry = {"type": "Polygon", "coordinates": [corners]}
        features.append(
            {"type": "Feature", "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{key} {box}")), "geometry": geometry, "properties": properties}
        )
    atomic.write_text(Path(path), json.dumps({"type": "FeatureCollection", "features": features}) + "\n")


def _columns(patches: PatchPredictions) -> list[str]:
    kind = "value" if patches.card.task == "regression" else "prob"
    return [f"{kind}_{name}" for name in patches.card.class_names]
