"""A model, a source and a region brought together: the pixels that both passes read and the results that they write."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamview.errors import MemoryBudgetError, ModelError, RegionError
from streamview.geometry import Region
from streamview.inference.evidence import Evidence, linear_head, pooled_sink
from streamview.inference.nonfinite import bad_call, bad_gradient, bad_value, bad_weight
from streamview.networks import Model, as_model
from streamview.networks.suitability import Overview, contradicted_scale, unsuitable
from streamview.progress import Progress, Report
from streamview.results import Identity, Precision, Prediction, Target
from streamview.slides import Slide, as_slide
from streamview.slides.padding import PaddedSampler
from streamview.slides.readahead import ReadAhead
from streamview.slides.sampling import SAMPLING_VERSION, Sampler
from streamview.streaming.capture.capture import capture, refuse_hooks
from streamview.streaming.cuda import free_memory_of, full_float32, reserved_memory
from streamview.streaming.graph import Bound, Demands, Key, Sink, bind, demands, placed
from streamview.streaming.memory import format_bytes, parse_bytes, return_freed_blocks
from streamview.streaming.ops import OtherChannels
from streamview.streaming.plan.plan import Plan, make_plan
from streamview.streaming.run.half import narrow_weights, narrowed
from streamview.streaming.run.out_of_memory import persist, ran_out
from streamview.streaming.run.run import Run
from streamview.streaming.step import Span, build_grid
from streamview.system.machine import find_device, resident_memory, total_memory

__all__ = ["PRECISIONS", "NotFinite", "Passed", "Session", "Source", "identify"]

Source = Slide | NDArray[np.uint8]
PRECISIONS: Mapping[str, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_Result = TypeVar("_Result")
_LARGEST = 4  # exponent of the largest gradient that enters the body: half of fp16's room above it is for growth, more for decay below
_PX_BYTES = 60  # on CUDA, for each px of a step: its pixels as numbers, and what the reduction of their gradient takes
_SIZE_SLACK = 1.1  # a region's side may differ by this factor from what the card states before a warning


class NotFinite(Exception):
    """Logits, or the gradient of a target, hold NaN or infinity; the message says which."""

    def __init__(self, found: str, target: Target | None = None) -> None:
        super().__init__(f"{found}: not finite")
        self.target = target


@dataclass(frozen=True, slots=True, eq=False)
class Passed:
    """What a forward pass leaves for reverse passes.

    Parameters
    ----------
    logits
        (K,), with a graph of autograd that ends at `taken`.
    taken
        What the head took, by key: leaves, so that the gradient of a score there leaves out the bridges, which `Run.backward` adds.
    evidence
        Where it was asked for and the network offers it.
    """

    logits: Tensor
    taken: Mapping[Key, Tensor]
    evidence: Evidence | None = None


@dataclass(slots=True, eq=False)
class Session:
    """A model, a source and a region brought together: what both passes read and write."""

    model: Model
    slide: Slide
    sampler: Sampler | PaddedSampler
    kept: tuple[int, int]
    bound: Bound
    weights: Sequence[Tensor]
    device: torch.device
    warnings: tuple[str, ...]
    mean: Tensor
    scale: Tensor
    glass: Tensor
    precision: Precision
    overview: Overview
    last: tuple[tuple[int, int, int, int], Tensor] | None = None
    ahead: ReadAhead[Tensor] | None = None
    room: int = 0  # bytes that a run may take on the device
    parts: dict[tuple[int, int, int, int], Tensor] = field(default_factory=dict)  # decoded parts that stay on the device

    @classmethod
    def prepare(
        cls,
        model: Model,
        source: Source,
        region: Region | None,
        mpp: float | None,
        device: str,
        precision: Precision = "float32",
        pad_to: int | None = None,
    ) -> Session:
        """Check that model, source and region fit together. The region's own part of the grid is `kept` of what the network sees."""
        if precision not in PRECISIONS:
            raise ModelError(f"precision {precision!r} is unknown: expected {', '.join(PRECISIONS)}")
        card = as_model(model).card
        slide = as_slide(source, mpp)
        plain = Sampler(slide, region, card.mpp)
        try:
            sampler: Sampler | PaddedSampler = plain if pad_to is None else PaddedSampler(plain, (pad_to, pad_to))
        except RegionError as error:
            raise RegionError(f"{slide.name}: {error}") from None
        where = find_device(device)
        # the caller's module stays where it is
        module = model.module if where.type == "cpu" else copy.deepcopy(model.module).to(where)
        try:
            graph = model.captures.graph(model.module, channels=3)
        except OtherChannels:
            found = f"the model {card.name} takes images of {capture(module).channels[0]} channels, a slide has 3"
            raise ModelError(f"{found}: use a model for RGB") from None
        if module is not model.module:
            graph = capture(module, channels=3)
        refuse_hooks(module, graph)
        try:
            bound = bind(graph, sampler.shape)
        except RegionError as error:
            raise RegionError(f"{slide.name}: {error}") from None
        weights = [w.read().detach() for w in graph.weights]
        if precision != "float32":
            bound, weights = narrowed(bound), narrow_weights(graph, weights, PRECISIONS[precision])
        # pixel p becomes (p / 255 - mean) / std, as p * scale - mean / std
        std, mean = (torch.tensor(v, device=where).view(1, 3, 1, 1) for v in (card.std, card.mean))
        glass = torch.tensor(slide.background, dtype=torch.float32, device=where).view(1, 3, 1, 1)
        scale = 1 / (255 * std)
        zero = glass * scale - mean / std
        warnings = _warnings(model, slide, sampler, plain.shape)
        overview = Overview(plain.shape)
        return cls(model, slide, sampler, plain.shape, bound, weights, where, warnings, mean / std, scale, zero, precision, overview)

    @property
    def dtype(self) -> torch.dtype:
        """Of pixels, weights and values of the streamed part; bridges and head run in float32."""
        return PRECISIONS[self.precision]

    @property
    def reads_ahead(self) -> bool:
        """Whether parts are read in a thread: on CUDA, where the processor is idle meanwhile."""
        return self.device.type == "cuda"

    @property
    def _keeps_parts(self) -> bool:
        """Whether the decoded region stays on the device, as uint8, for later passes over it: where that is little of what is free."""
        return self.device.type == "cuda" and self._region_bytes <= self.room // 8

    @property
    def _region_bytes(self) -> int:
        return 3 * self.sampler.shape[0] * self.sampler.shape[1]

    @property
    def needs(self) -> Demands:
        """Gradients of the image alone."""
        return demands(self.bound.graph, True, [False] * len(self.weights))

    def read(self, rows: tuple[int, int], cols: tuple[int, int]) -> Tensor:
        """Normalised pixels of a part of the grid, (1, 3, h, w) float32; the last part is remembered."""
        key = (*rows, *cols)
        if self.last is None or self.last[0] != key:
            pixels = self.parts.get(key)
            if pixels is None:
                decoded = self._fetch(rows, cols) if self.ahead is None else self.ahead.read(rows, cols)
                pixels = decoded.to(self.device, non_blocking=True)
                if self._keeps_parts:
                    self.parts[key] = pixels
            # cuDNN works on (N, C, H, W) in float32, and would lay out anew whatever comes with the channels last
            planes = self.device.type == "cuda" and self.dtype == torch.float32
            layout = torch.contiguous_format if planes else torch.preserve_format
            image = pixels.permute(2, 0, 1)[None].to(torch.float32, memory_format=layout).mul_(self.scale).sub_(self.mean)
            self.last = key, image
        return self.last[1]

    def _fetch(self, rows: tuple[int, int], cols: tuple[int, int]) -> Tensor:
        """Pixels of a part of the grid, uint8 (h, w, 3), in memory that the device reads by itself."""
        array = self.sampler.read(*rows, *cols)
        self.overview.add(array, rows, cols)
        pixels = torch.from_numpy(array)
        return pixels.pin_memory() if self.device.type == "cuda" else pixels

    @contextlib.contextmanager
    def reading(self, plan: Plan, *, backwards: bool = False) -> Iterator[None]:
        """Decode each part while the one before is computed, where that saves time."""
        order = [part for part in self._order(plan) if (*part[0], *part[1]) not in self.parts] if self.reads_ahead else []
        if not order:
            yield
            return
        with ReadAhead(self._fetch, order[::-1] if backwards else order) as self.ahead:
            try:
                yield
            finally:
                self.ahead = None

    def _order(self, plan: Plan) -> list[tuple[Span, Span]]:
        """Parts of the grid as a forward pass reads them."""
        found: list[tuple[Span, Span]] = []
        stored = plan.stored(self.bound.graph)
        for phase, chosen in enumerate(plan.passes):
            program = self.bound.program(phase, stored)
            if program.values[0] == 0:  # the image is the first of a pass's sources, if it is one
                grid = build_grid(program, chosen.tile)
                found += [(grid.rows.new(0, i), grid.cols.new(0, j)) for i, j in grid.steps()]
        return found

    def run(self, plan: Plan, needs: Demands | None) -> Run:
        """The passes by a plan, in this session's precision."""
        return Run(self.bound, plan, self.weights, needs, torch.float32)

    def pixels(self, rows: tuple[int, int], cols: tuple[int, int]) -> Tensor:
        """As `read`, in the type of the streamed part."""
        return self.read(rows, cols).to(self.dtype)

    def reduce(self, grad: Tensor, rows: tuple[int, int], cols: tuple[int, int], scale: float = 1.0) -> NDArray[np.float32]:
        """Both maps of a finished part of the image's gradient (1, 3, h, w), which is `scale` times too large: float32 (2, h, w)."""
        grad = grad.to(torch.float32)
        if scale != 1:
            grad = grad / scale
        signed = (self.read(rows, cols) - self.glass).mul_(grad).sum(1)
        return torch.stack([grad.abs().amax(1), signed]).squeeze(1).cpu().numpy()

    def plan(self, needs: Demands | None, memory: str | int | None, tile: tuple[int, int] | None, results: int) -> Plan:
        """Choose the steps so that the process stays below `memory` bytes, `results` of them held for the result."""
        growth = free_memory_of(self.device) // 2
        return_freed_blocks()  # what earlier work of the process freed would count against the budget
        if memory is not None:
            limit = parse_bytes(memory, total_memory(self.device))
            growth = limit - self.base() - self._beside(needs, results)
            if growth <= 0:
                raise MemoryBudgetError(
                    f"memory {format_bytes(limit)}: the process needs {format_bytes(limit - growth)} before the first step; give more"
                )
        self.room = growth
        if self._keeps_parts:
            growth -= self._region_bytes
        plan = self._make(needs, memory=growth, tile=tile)
        return plan if memory is not None else replace(plan, budget=None)

    def _beside(self, needs: Demands | None, results: int) -> int:
        """Bytes that a run takes beside its steps: decoding, rows of results, the evidence; on CUDA only what lies on the device."""
        evidence = 0 if needs is None else self._evidence_bytes()
        return evidence if self.device.type == "cuda" else evidence + results + self.reserve((256, self.sampler.shape[1]))

    def _make(self, needs: Demands | None, memory: int | None, tile: tuple[int, int] | None, barriers: str = "auto") -> Plan:
        return make_plan(
            self.bound, 1, self.dtype, needs, self.weights,
            memory=memory, tile=tile, barriers=barriers, gathered=torch.float32, outside=_PX_BYTES if self.device.type == "cuda" else 0,
        )  # fmt: skip

    @property
    def evidence_size(self) -> tuple[int, int]:
        """Height and width of the evidence map; (0, 0) where the network offers none."""
        layer, pooled = linear_head(self.bound.graph), pooled_sink(self.bound.graph)
        return (0, 0) if layer is None or pooled is None else self.bound.sizes[pooled.value]

    def _evidence_bytes(self) -> int:
        """What `Evidence` will hold until the target is known."""
        layer, (height, width) = linear_head(self.bound.graph), self.evidence_size
        return 0 if layer is None else 4 * min(layer.out_features, layer.in_features) * height * width

    def complete(
        self, plan: Plan, needs: Demands | None, attempt: Callable[[Plan, tuple[str, ...]], _Result], report: Report | None
    ) -> _Result:
        """Run `attempt` by the plan, in full float32 where that is asked for (CUDA convolves in TF32 by default).

        Where memory runs out it runs again in smaller steps, and gets a warning for the result; where it finds what is not finite,
        the cause is looked for.
        """
        barriers = "spilled" if plan.barriers == "kept" else plan.barriers

        def replan(tile: tuple[int, int]) -> Plan:
            return self._make(needs, None, tile, barriers)

        def noted(chosen: Plan) -> _Result:
            rows, cols = (min(n, side) for n, side in zip(plan.tile, self.sampler.shape, strict=True))
            said = f"Memory ran out in steps of {rows} x {cols} px; this was computed in steps of {chosen.tile[0]} x {chosen.tile[1]} px."
            return attempt(chosen, () if chosen is plan else (said,))

        shape, device = self.sampler.shape, self.device
        kept = self._region_bytes if self._keeps_parts else 0
        limit = None if plan.budget is None else self.base() + plan.budget + kept + self._beside(needs, 0)
        with full_float32(device), torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            try:
                return persist(noted, plan, replan, shape, device, limit)
            except NotFinite as error:
                found, target = str(error), error.target
            cause = persist(lambda chosen: self._cause(chosen, needs, target, report), plan, replan, shape, device, limit)
        raise ModelError(f"the model {self.model.card.name} {found}; {cause}")

    def _cause(self, plan: Plan, needs: Demands | None, target: Target | None, report: Report | None) -> str:
        """Why logits, or the gradient of a target, are not finite, and what to do."""
        found = bad_weight(self.model.module)
        if found is not None:
            return f"{found}: get sound weights"
        run = self.run(plan, None if target is None else needs)
        progress = Progress("search for the cause", run.steps * (1 if target is None else 2), report)
        found = bad_value(run, self.pixels, progress.advance)
        if found is None and target is None:
            found = bad_call(self.bound.graph.head.module, self._taken(run)[0])
        elif found is None and target is not None:
            grads, _ = self.gradients(run, Passed(*self._answer(run)), target)
            with torch.no_grad():
                found = bad_gradient(run, self.pixels, grads, progress.advance)
        remedy = "check its weights and normalisation" if self.precision != "fp16" else "fp16 ends at 65504: use bf16 or float32"
        return f"{found or 'a second run found no cause'}; {remedy}"

    def base(self) -> int:
        """Bytes resident in the process now (on CUDA: reserved on the device)."""
        if self.device.type == "cuda":
            return reserved_memory(self.device)
        return resident_memory()

    def reserve(self, tile: tuple[int, int]) -> int:
        """Bytes beside the steps themselves: decoding and buffers of rows. On CUDA none: plans count them there."""
        return 0 if self.device.type == "cuda" else 128 * 2**20 + 24 * min(tile[0], self.sampler.shape[0]) * self.sampler.shape[1]

    def forward(self, run: Run, report: Report | None, *, explain: bool = False) -> Passed:
        """Run the forward pass and the head, with `explain` for reverse passes."""
        graph = self.bound.graph
        layer, pooled = (linear_head(graph), pooled_sink(graph)) if explain else (None, None)
        evidence = None if layer is None or pooled is None else Evidence(layer, self.bound.sizes[pooled.value])
        progress = Progress("forward pass", run.steps, report)

        def watch(value: int, piece: Tensor, rows: tuple[int, int], cols: tuple[int, int]) -> None:
            if evidence is not None and pooled is not None and value == pooled.value:
                evidence.add(piece, rows, cols)

        with self.reading(run.plan):
            run.forward(self.pixels, progress.advance, watch)
        logits, taken = self._answer(run)
        if not logits.isfinite().all():
            raise NotFinite(f"answered {logits.tolist()}")
        return Passed(logits, taken, evidence)

    def _taken(self, run: Run) -> tuple[list[Tensor], dict[Key, Tensor]]:
        """The head's arguments, and the leaves that they come from."""
        arguments, taken = [], {}
        for key in self.bound.graph.head.takes:
            if isinstance(key, Sink) and key.kind == "shape":
                arguments.append(run.argument(key))
                continue
            given = run.tensors[key]
            taken[key] = given.detach().requires_grad_(run.needs is not None and given.requires_grad)
            # a copy of what is small, since calls may change their argument in place, which autograd refuses for a leaf
            arguments.append(taken[key] if isinstance(key, Sink) and key.kind == "map" else taken[key].clone())
        return arguments, taken

    def _answer(self, run: Run) -> tuple[Tensor, dict[Key, Tensor]]:
        """Run the head: the logits (K,), and what it took."""
        with torch.set_grad_enabled(run.needs is not None):
            arguments, taken = self._taken(run)
            try:
                logits = self.bound.graph.head.module(*arguments)
            except RuntimeError as error:
                if ran_out(error):
                    raise
                height, width = self.sampler.shape
                found = f"{self.slide.name}: the model {self.model.card.name} cannot answer for {width} x {height} px"
                raise RegionError(f"{found} ({str(error).splitlines()[0]}); use a region of the size it was made for") from None
        if not isinstance(logits, Tensor) or logits.shape != (1, len(self.model.card.class_names)):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ModelError(f"the model {self.model.card.name} answered {shape}: expected one logit for each of its classes")
        return logits[0], taken

    def gradients(self, run: Run, passed: Passed, target: Target, *, retain: bool = False) -> tuple[dict[Key, Tensor | None], float]:
        """Gradients of a score at what the head took, and the power of two that they were multiplied by so that the body can hold them."""
        logits = passed.logits
        score = logits[target.index] if target.against is None else logits[target.index] - logits[target.against]
        leaves = {key: tensor for key, tensor in passed.taken.items() if tensor.requires_grad}
        found = torch.autograd.grad(score, list(leaves.values()), retain_graph=retain, allow_unused=True)
        grads: dict[Key, Tensor | None] = dict(zip(leaves, found, strict=True))
        if self.precision == "float32":
            return grads, 1.0
        largest = 0.0  # of a single element of a map at the cut
        for key, grad in grads.items():
            if isinstance(key, Sink) and grad is not None:
                shared = math.prod(self.bound.sizes[key.value]) if key.kind == "mean" else 1
                largest = max(largest, float(grad.abs().max()) / shared)
        if not 0 < largest < math.inf:
            return grads, 1.0
        scale = 2.0 ** max(-100, min(100, _LARGEST - math.frexp(largest)[1]))  # within float32 itself
        return {key: None if grad is None else grad * scale for key, grad in grads.items()}, scale

    def prediction(self, logits: Tensor, warnings: tuple[str, ...] = ()) -> Prediction:
        """The result of a forward pass."""
        card, sampler, mpp = self.model.card, self.sampler, self.slide.mpp
        identity = _identity(self.model, self.slide, sampler, self.precision)
        values = logits.detach().cpu().numpy().astype(np.float32)
        area = None if mpp is None else math.prod(mpp) * math.prod(sampler.region.shape) / 1e6
        unfit = unsuitable(self.overview.pixels, card, area)
        return Prediction(
            self.slide.name, sampler.region, self.kept, sampler.mpp, card.task, card.class_names, values, identity, card.name,
            card.trained, (*self.warnings, *unfit, *warnings),
        )  # fmt: skip

    def placed(self, value: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """Step and origin (y, x), in level-0 pixels, of a value's elements: where the centre of what each sees lies."""
        strides, centres = placed(self.bound, value)
        start = (self.sampler.region.y, self.sampler.region.x)
        scale = self.sampler.scale
        step = (strides[0] * scale[0], strides[1] * scale[1])
        origin = tuple(start[a] + (centres[a] + 0.5) * scale[a] - 0.5 for a in (0, 1))
        return step, (origin[0], origin[1])

    def wait(self) -> None:
        """Wait for the device to finish."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def identify(
    model: Model, slide: Slide, region: Region | None = None, *, precision: Precision = "float32", pad_to: int | None = None
) -> Identity:
    """Return the identity that the result of such a run will have, before it runs.

    Raises
    ------
    SlideError, RegionError
        When slide, region and model do not fit together.
    """
    plain = Sampler(slide, region, model.card.mpp)
    try:
        sampler: Sampler | PaddedSampler = plain if pad_to is None else PaddedSampler(plain, (pad_to, pad_to))
    except RegionError as error:
        raise RegionError(f"{slide.name}: {error}") from None
    return _identity(model, slide, sampler, precision)


def _identity(model: Model, slide: Slide, sampler: Sampler | PaddedSampler, precision: Precision) -> Identity:
    return Identity(
        weights_sha256=model.sha256,
        card_sha256=model.card.sha256,
        source=slide.identity,
        region=sampler.region,
        mpp=sampler.mpp,
        precision=precision,
        padded=sampler.shape if isinstance(sampler, PaddedSampler) else None,
        slide_mpp=slide.mpp,
        slide_mpp_source="unknown" if slide.mpp is None else "given" if slide.mpp_source.startswith("given") else "file",
        pixel_source=slide.pixel_source,
        background=slide.background,
        level=sampler.level,
        sampling=SAMPLING_VERSION,
    )


def _warnings(model: Model, slide: Slide, sampler: Sampler | PaddedSampler, kept: tuple[int, int]) -> tuple[str, ...]:
    """What the reader of a result must know: of how region and card differ, and of what was assumed when the model was loaded."""
    card, found = model.card, []
    height, width = sampler.shape
    if not card.trained:
        found.append("The weights are random (untrained=True): the answer and the maps mean nothing.")
    if isinstance(sampler, PaddedSampler):
        found.append(f"The region is {kept[1]} x {kept[0]} px; zeros at the right and below make it {width} x {height} px for the network.")
    if card.input_size is not None:
        low, high = card.input_size
        if min(height, width) * _SIZE_SLACK < low or max(height, width) > high * _SIZE_SLACK:
            sides = f"{low} px" if low == high else f"{low} to {high} px"
            what = "padded region" if isinstance(sampler, PaddedSampler) else "region"
            found.append(f"The {what} is {width} x {height} px on the network's grid; the model was trained on sides of {sides}.")
    if card.mpp is None:
        found.append("The card states no mpp: the region was read at the slide's full resolution as it is.")
    elif sampler.mpp is not None and max(abs(m / card.mpp - 1) for m in sampler.mpp) > 0.01:
        found.append(f"The region was read at {sampler.mpp[0]:.3f} um/px; the model was trained at {card.mpp:.3f} um/px.")
    scale = contradicted_scale(slide.mpp, slide.stated_mpp)
    return (*found, *([] if scale is None else [scale]), *model.notes)
