"""A run prepared once: model, source and region checked against each other, from which forecast, prediction and maps follow."""

from __future__ import annotations

import contextlib
import copy
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamview.errors import MemoryBudgetError, ModelError, RegionError
from streamview.geometry import Region
from streamview.inference.class_evidence import linear_head, pooled_sink
from streamview.inference.compute import Compute
from streamview.inference.explaining import Asked, explained
from streamview.inference.forecast import Forecast, seconds_of, stored_bytes
from streamview.inference.identity import identity_of, sample_region
from streamview.inference.methods import check_method, last_features, map_bytes, passes_of
from streamview.inference.nonfinite import bad_call, bad_gradient, bad_value, bad_weight
from streamview.inference.notes import region_warnings
from streamview.inference.passes import ForwardResult, NotFinite, forward_pass, head_arguments, run_head, score_gradients
from streamview.inference.reader import PixelReader
from streamview.inference.strips import Watch
from streamview.inference.targets import find_target
from streamview.networks import Model, as_model
from streamview.networks.suitability import unsuitable
from streamview.progress import Progress, Report
from streamview.results import GRADIENT, Identity, Plane, Prediction, Saliency, SaliencyMap, Target
from streamview.slides import Slide, as_slide
from streamview.slides.flat import FlatSampler
from streamview.slides.padding import AnySampler, flat_part
from streamview.streaming.call import Call
from streamview.streaming.capture.capture import capture, refuse_hooks
from streamview.streaming.cuda import free_memory_of, full_float32, reserved_memory
from streamview.streaming.graph import Graph, Sink, bind, demands, placed
from streamview.streaming.head import accepted_sides, head_takes
from streamview.streaming.memory import format_bytes, parse_bytes, return_freed_blocks
from streamview.streaming.ops import OtherChannels
from streamview.streaming.plan.plan import Plan, make_plan
from streamview.streaming.run.half import narrow_weights, narrowed
from streamview.streaming.run.out_of_memory import retry_smaller
from streamview.streaming.run.run import Run
from streamview.system.machine import find_device, free_disk, resident_memory, total_memory

__all__ = ["PreparedRun", "Source", "prepare"]

Source = Slide | NDArray[np.uint8]
_Result = TypeVar("_Result")
_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_READER_BYTES = 60  # on CUDA, for each px of a step: its pixels as numbers, and what the reduction of their gradient takes
_DECODING_BYTES = 128 * 2**20  # beside the steps on a processor: the decoder and its libraries
_EDGES = 1.5  # parts of a map on disk beside the tissue, whose rest is empty
_CACHED_SHARE = 8  # the decoded region stays on the GPU where it takes at most this fraction of what the run may take


def prepare(
    model: Model,
    source: Source,
    region: Region | None = None,
    *,
    compute: Compute = Compute(),
    mpp: float | None = None,
    pad_to: int | None = None,
) -> PreparedRun:
    """Check that model, source and region fit together, and make ready to run.

    Parameters
    ----------
    model
        From `load_model`.
    source
        A slide, a pyramid or a uint8 (H, W, 3) array.
    region
        In level-0 pixels; None for all.
    compute
        Where and how to run.
    mpp
        Micrometres per level-0 pixel of the source, where it does not say itself.
    pad_to
        Side in px of the square, on the network's grid, that the region is zero-padded to at the right and below, as in the paper's data
        preparation; default as it is. Maps leave out what was padded.

    Returns
    -------
    PreparedRun

    Raises
    ------
    SlideError, RegionError, ModelError, NotStreamableError
        When source, region or model do not fit; see each.

    Examples
    --------
    >>> import numpy as np, streamview
    >>> pixels = np.full((256, 256, 3), 230, np.uint8)
    >>> run = streamview.prepare(streamview.load_model("demo"), pixels, mpp=0.5)
    >>> forecast = run.forecast(targets=1)
    >>> (saliency,) = run.explain(["lesion"], plan=forecast.plan)
    >>> saliency.maps["absolute"].values.shape
    (256, 256)
    """
    card = as_model(model).card
    slide = as_slide(source, mpp)
    sampler, inside = sample_region(model, slide, region, pad_to, compute.glass)
    device = find_device(compute.device)
    # the caller's module stays where it is
    module = model.module if device.type == "cpu" else copy.deepcopy(model.module).to(device)
    try:
        graph = model.captures.graph(model.module, channels=3)
    except OtherChannels:
        text = f"the model {card.name} takes images of {capture(module).channels[0]} channels, a slide has 3"
        raise ModelError(f"{text}: use a model for RGB") from None
    if module is not model.module:
        graph = capture(module, channels=3)
    refuse_hooks(module, graph)
    try:
        bound = bind(graph, sampler.shape)
    except RegionError as error:
        raise RegionError(f"{slide.name}: {error}") from None
    if not head_takes(bound):
        raise _wrong_size(graph, slide, card.name, sampler.shape)
    weights = [w.read().detach() for w in graph.weights]
    dtype = _DTYPES[compute.precision]
    if dtype != torch.float32:
        bound, weights = narrowed(bound), narrow_weights(graph, weights, dtype)
    reader_bytes = _READER_BYTES if device.type == "cuda" else 0
    # steps of smoothgrad are noise all over, glass differs from a black baseline, and steps beside a padded region are black
    everywhere = compute.method.name == "smoothgrad" or (
        compute.method.name == "integrated-gradients" and compute.method.baseline == "black"
    )
    flat = sampler if isinstance(sampler, FlatSampler) and not everywhere else None
    parts = None if flat is None else flat.parts
    forward = Call(bound, 1, dtype, None, weights, torch.float32, reader_bytes=reader_bytes, parts=parts)
    caches = device.type == "cuda" and 3 * math.prod(sampler.shape) <= _free_bytes(compute, device) // _CACHED_SHARE
    return PreparedRun(model, slide, sampler, inside, compute, forward, caches, region_warnings(model, slide, sampler, inside))


def _wrong_size(graph: Graph, slide: Slide, name: str, shape: tuple[int, int]) -> RegionError:
    """Say which sizes a network takes whose head does not take that of a region."""
    height, width = shape
    refusal = f"{slide.name}: the model {name} cannot answer for {width} x {height} px on its grid, as a layer of it has a fixed size"
    sides = accepted_sides(graph)
    if not sides:
        return RegionError(f"{refusal}; choose a region of the size that it was made for")
    expected = f"{sides[0]} px" if sides[0] == sides[-1] else f"{sides[0]} to {sides[-1]} px"
    return RegionError(f"{refusal}; expected sides of {expected}: choose a smaller region, or a network that takes regions of any size")


@dataclass(frozen=True, slots=True, eq=False)
class PreparedRun:
    """A model, a source and a region that fit together; made by `prepare`.

    Nothing here changes: a forecast, a prediction and maps may be asked for in any order, and a plan that was shown can be run.

    Parameters
    ----------
    model, slide, compute
        What it was made from.
    sampler
        The region on the network's grid, padded where that was asked for.
    inside
        Height and width of the region's own part of the grid.
    forward
        What a prediction computes.
    caches_pixels
        Whether the decoded region stays on the device between passes.
    warnings
        What the reader of a result must know, one sentence each.

    Examples
    --------
    >>> import streamview
    >>> with streamview.open_slide("slide.svs") as slide:
    ...     run = streamview.prepare(streamview.load_model("demo"), slide)
    ...     forecast = run.forecast()
    ...     prediction = run.predict(forecast.plan)
    >>> prediction.identity == run.identity
    True
    """

    model: Model
    slide: Slide
    sampler: AnySampler
    inside: tuple[int, int]
    compute: Compute
    forward: Call
    caches_pixels: bool
    warnings: tuple[str, ...]

    @property
    def both(self) -> Call:
        """What an explanation computes: forward, and the gradient of the image."""
        return replace(self.forward, needs=demands(self.forward.bound.graph, True, [False] * len(self.forward.weights)))

    def call(self, targets: int) -> Call:
        """What is computed to predict, or to explain so many targets."""
        return self.both if targets and self.compute.method.name not in ("grad-cam", "occlusion") else self.forward

    @property
    def device(self) -> torch.device:
        """Where it will run."""
        return self.forward.device

    @property
    def identity(self) -> Identity:
        """What decides the values of the result."""
        return identity_of(self.model, self.slide, self.sampler, self.compute.precision)

    @property
    def maps_identity(self) -> Identity:
        """What decides the values of maps: also the method."""
        return identity_of(self.model, self.slide, self.sampler, self.compute.precision, self.compute.method)

    def forecast(self, targets: int = 0, out: str | os.PathLike[str] | None = None, *, timed: bool = True) -> Forecast:
        """Say what the run will take: the plan from shapes alone, the time from a sample of the region.

        Parameters
        ----------
        targets
            How many will be explained; 0 for the prediction alone.
        out
            Where their maps will be written; None: they are kept in memory.
        timed
            Whether to time a sample; otherwise the time is left open.

        Raises
        ------
        SlideError, MemoryBudgetError
            When the sample cannot be read, or no step fits the memory.
        """
        call, shape, method = self.call(targets), self.sampler.shape, self.compute.method
        plan = self.plan(targets, out is not None)
        passes = passes_of(method, targets, self.inside)
        base = self._base_bytes()  # before the sample, which leaves memory with the allocator that the run will use again
        read = self.slide, self.sampler, self.inside
        seconds = seconds_of(call, plan, read, passes, self.model.timings, method if targets else GRADIENT) if timed else None
        peak = base + plan.peak_bytes + (0 if self.device.type == "cuda" else self._decoding_bytes(plan.tile[0]))
        if targets and method.name != "gradient" and self.device.type != "cuda":
            peak += map_bytes(method, math.prod(shape), targets, stored=out is not None) + self._feature_bytes()
        expected = Forecast(plan, shape, peak, seconds, str(self.device), targets, passes=passes)
        if out is None:
            return expected
        written = (0, 0) if method.name == "grad-cam" else shape
        evidence = (0, 0) if method.name not in ("gradient", "grad-cam") else self._evidence_size
        flat = flat_part(self.sampler)
        if flat is not None:  # maps end beside the tissue
            written = written[0], math.ceil(written[1] * min(1.0, _EDGES * float(flat.parts.mean())))
        return replace(expected, disk_bytes=stored_bytes(written, evidence, targets), disk_free=free_disk(out))

    def plan(self, targets: int = 0, stored: bool = False) -> Plan:
        """Choose the steps for as many targets; `stored` where their maps are written as they finish.

        Raises
        ------
        MemoryBudgetError
            When no step fits the memory; the message names the least that would do.
        """
        call, device = self.call(targets), self.device
        method = self.compute.method
        if targets:
            check_method(method, self.forward.bound.graph, self.model.card.name, self.inside)
        held = map_bytes(method, math.prod(self.sampler.shape), targets, stored=stored)
        growth = free_memory_of(device) // 2
        return_freed_blocks()  # what earlier work of the process freed would count against the budget
        if self.compute.memory is not None:
            limit = parse_bytes(self.compute.memory, total_memory(device))
            growth = limit - self._base_bytes() - self._bytes_beside(call, held)
            if growth <= 0:
                raise MemoryBudgetError(
                    f"memory {format_bytes(limit)}: the process needs {format_bytes(limit - growth)} before the first step; give more"
                )
        plan = make_plan(call, memory=growth - self._cached_bytes, tile=self.compute.tile)
        return plan if self.compute.memory is not None else replace(plan, budget=None)

    def predict(self, plan: Plan | None = None, report: Report | None = None) -> Prediction:
        """Predict for the region.

        Parameters
        ----------
        plan
            That of a `forecast` without targets, instead of choosing one.
        report
            Called after every step; may raise `Cancelled`.

        Raises
        ------
        SlideError, RegionError, ModelError, MemoryBudgetError
            When pixels cannot be read, the network cannot answer, or no step fits the memory.
        """

        def attempt(run: Run, reader: PixelReader, notes: tuple[str, ...]) -> Prediction:
            progress = Progress("forward pass", run.steps, report)
            return self.prediction_of(self.forward_of(run, reader, progress).logits, reader, notes)

        return self._complete(self.forward, plan or self.plan(), attempt, report)

    def explain(
        self,
        targets: Sequence[int | str | Target | None] = (None,),
        plan: Plan | None = None,
        outs: Sequence[str | os.PathLike[str]] | None = None,
        report: Report | None = None,
        watch: Watch | None = None,
    ) -> list[Saliency]:
        """Explain the prediction for several targets, from one forward pass and one backward pass for each.

        Parameters
        ----------
        targets
            Each a class by name or index, or the difference of two logits as ``"a-b"``; None for `Prediction.usual_target`: the class
            of interest that the card names, else the predicted one.
        plan
            That of a `forecast` for as many targets, instead of choosing one.
        outs
            One folder ``NAME.ome.zarr`` for each target; all take their places when the last pass is done. Default keeps the maps in
            memory.
        report
            Called after every step; may raise `Cancelled`.
        watch
            Called with every `streamview.inference.strips.Strip` as it is finished, in the thread that computes.

        Returns
        -------
        list of Saliency
            In the order of the targets; see `streamview.saliency` for the maps.

        Raises
        ------
        SlideError, RegionError, ModelError, MemoryBudgetError
            As `predict`; ModelError also for an unknown target.
        ValueError
            When `targets` is empty or a bare string, or `outs` does not have a folder of its own for each.
        """
        if isinstance(targets, str) or not targets:
            raise ValueError(f"targets {targets!r}: expected a list of one target or more")
        if outs is not None and len({os.path.abspath(out) for out in outs}) != len(targets):
            raise ValueError(f"{len(targets)} targets, but {len(outs)} folders: give each a folder of its own")
        chosen = [None if target is None else find_target(self.model, target) for target in targets]
        attempt = partial(explained, self, Asked(chosen, outs, report, watch))
        return self._complete(self.call(len(chosen)), plan or self.plan(len(chosen), outs is not None), attempt, report)

    def forward_of(self, run: Run, reader: PixelReader, progress: Progress, **options: Any) -> ForwardResult:
        """A forward pass of a run that was not yet run; `options` as of `streamview.inference.passes.forward_pass`."""
        try:
            return forward_pass(run, reader, self.model.card, progress, **options)
        except RegionError as error:
            raise RegionError(f"{self.slide.name}: {error}") from None

    def evidence_of(self, result: ForwardResult, target: Target) -> SaliencyMap | None:
        """The evidence map of a target, where the network offers it; that of a difference is the difference of both."""
        pooled = pooled_sink(self.forward.bound.graph)
        if result.evidence is None or pooled is None:
            return None
        values = result.evidence.of(target.index)
        if target.against is not None:
            values = values - result.evidence.of(target.against)
        return self.feature_map(pooled.value, values)

    def feature_map(self, value: int, values: NDArray[np.float32]) -> SaliencyMap:
        """A map of the features of a value, float32 (h, w), in its place on the slide, without what was padded."""
        (step, origin), by = self.placed(value), self.maps_identity.method
        if self.inside == self.sampler.shape:
            return SaliencyMap("evidence", Plane(values), step, origin, (), by)
        # of a padded region the cells centred on the slide
        stops = self.sampler.region.y_stop, self.sampler.region.x_stop
        rows, columns = (max(math.ceil((stop - 0.5 - first) / pitch), 1) for stop, first, pitch in zip(stops, origin, step, strict=True))
        return SaliencyMap("evidence", Plane(np.ascontiguousarray(values[:rows, :columns])), step, origin, (), by)

    def prediction_of(self, logits: Tensor, reader: PixelReader, notes: tuple[str, ...]) -> Prediction:
        """The answer with these logits (K,), of pixels that were read."""
        card, sampler, mpp = self.model.card, self.sampler, self.slide.mpp
        values = logits.detach().cpu().numpy().astype(np.float32)
        area_mm2 = None if mpp is None else math.prod(mpp) * math.prod(sampler.region.shape) / 1e6
        warnings = (*self.warnings, *unsuitable(reader.overview.pixels, card, area_mm2), *notes)
        return Prediction(
            self.slide.name, sampler.region, self.inside, sampler.mpp, card.task, card.class_names, values, self.identity, card.name,
            card.trained, warnings, card.positive,
        )  # fmt: skip

    def placed(self, value: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """Step and origin (y, x), in level-0 pixels, of a value's elements: where the centre of what each sees lies."""
        (pitch_y, pitch_x), (centre_y, centre_x) = placed(self.forward.bound, value)
        region, (scale_y, scale_x) = self.sampler.region, self.sampler.scale
        origin = region.y + (centre_y + 0.5) * scale_y - 0.5, region.x + (centre_x + 0.5) * scale_x - 0.5
        return (pitch_y * scale_y, pitch_x * scale_x), origin

    def _complete(
        self, call: Call, plan: Plan, attempt: Callable[[Run, PixelReader, tuple[str, ...]], _Result], report: Report | None
    ) -> _Result:
        """Run `attempt` by the plan, in full float32 where that is asked for (CUDA convolves in TF32 by default).

        Where memory runs out it runs again in smaller steps, and gets a warning for the result; where it meets what is not finite, the
        cause is looked for.
        """
        device = self.device

        def planned(chosen: Plan) -> _Result:
            rows, cols = (min(n, side) for n, side in zip(plan.tile, self.sampler.shape, strict=True))
            note = f"Memory ran out in steps of {rows} x {cols} px; this was computed in steps of {chosen.tile[0]} x {chosen.tile[1]} px."
            with self.reader(call) as reader:
                return attempt(Run(call, chosen), reader, () if chosen is plan else (note,))

        limit = None if plan.budget is None else self._base_bytes() + plan.budget + self._cached_bytes + self._bytes_beside(call, 0)
        on_device = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
        # maps are gradients, also where the caller wants none of its own
        with full_float32(device), on_device, torch.inference_mode(False), torch.enable_grad():
            try:
                return retry_smaller(planned, call, plan, limit)
            except NotFinite as error:
                problem, target = str(error), error.target
            cause = retry_smaller(partial(self._cause, call, target, report), call, plan, limit)
        raise ModelError(f"the model {self.model.card.name} {problem}; {cause}")

    def reader(self, call: Call) -> PixelReader:
        """What reads the pixels for the passes of a call."""
        return PixelReader(self.sampler, self.inside, self.model.card, self.slide.background, call, self.caches_pixels)

    def _cause(self, call: Call, target: Target | None, report: Report | None, plan: Plan) -> str:
        """Why logits, or the gradient of a target, are not finite, and what to do."""
        cause = bad_weight(self.model.module)
        if cause is not None:
            return f"{cause}: get sound weights"
        run, card = Run(call, plan), self.model.card
        progress = Progress("search for the cause", run.steps * (1 if target is None else 2), report)
        with self.reader(call) as reader:
            cause = bad_value(run, reader.pixels, progress.advance)
            if cause is None and target is None:
                cause = bad_call(call.bound.graph.head.module, head_arguments(run)[0])
            elif cause is None and target is not None:
                grads, _ = score_gradients(run, ForwardResult(*run_head(run, card)), target)
                with torch.no_grad():
                    cause = bad_gradient(run, reader.pixels, grads, progress.advance)
        remedy = "check its weights and normalisation" if self.compute.precision != "fp16" else "fp16 ends at 65504: use bf16 or float32"
        return f"{cause or 'a second run found no cause'}; {remedy}"

    @property
    def _cached_bytes(self) -> int:
        """Of the decoded region, where it stays on the device."""
        return 3 * math.prod(self.sampler.shape) if self.caches_pixels else 0

    @property
    def _evidence_size(self) -> tuple[int, int]:
        """Height and width of the map of evidence, or by Grad-CAM; (0, 0) where the network offers none."""
        bound = self.forward.bound
        if self.compute.method.name == "grad-cam":
            return bound.sizes[(last_features(bound.graph) or [Sink(0, "map")])[0].value]
        layer, pooled = linear_head(bound.graph), pooled_sink(bound.graph)
        return (0, 0) if layer is None or pooled is None else bound.sizes[pooled.value]

    def _bytes_beside(self, call: Call, map_bytes: int) -> int:
        """Bytes that a run takes beside its steps: the evidence; on a processor also the decoder, rows of maps, and maps held in memory."""
        layer = None if call.needs is None else linear_head(call.bound.graph)
        evidence = 0 if layer is None else 4 * min(layer.out_features, layer.in_features) * math.prod(self._evidence_size)
        return evidence if self.device.type == "cuda" else evidence + map_bytes + self._feature_bytes() + self._decoding_bytes(256)

    def _feature_bytes(self) -> int:
        """Bytes of the features that Grad-CAM keeps."""
        sinks = last_features(self.forward.bound.graph) if self.compute.method.name == "grad-cam" else None
        return 4 * self.forward.bound.graph.channels[sinks[0].value] * math.prod(self._evidence_size) if sinks else 0

    def _decoding_bytes(self, rows: int) -> int:
        """Bytes of the decoder and of buffers of so many rows, on a processor; on CUDA plans count them."""
        return _DECODING_BYTES + 24 * min(rows, self.sampler.shape[0]) * self.sampler.shape[1]

    def _base_bytes(self) -> int:
        return _base_bytes(self.device)


def _base_bytes(device: torch.device) -> int:
    """Bytes resident in the process now (on CUDA: reserved on the device)."""
    return reserved_memory(device) if device.type == "cuda" else resident_memory()


def _free_bytes(compute: Compute, device: torch.device) -> int:
    """Bytes by which a run may let the process grow."""
    if compute.memory is None:
        return free_memory_of(device) // 2
    return parse_bytes(compute.memory, total_memory(device)) - _base_bytes(device)
