"""A model, a source and a region brought together: the pixels that both passes read and the results that they write."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamview.errors import MemoryBudgetError, ModelError, RegionError
from streamview.evidence import Evidence, linear_head, pooled_sink
from streamview.geometry import Region
from streamview.loading import Model
from streamview.machine import find_device, resident_memory
from streamview.progress import Progress, Report
from streamview.results import Identity, Prediction
from streamview.slides import Slide, as_slide
from streamview.slides.sampling import Sampler
from streamview.streaming.capture import capture, refuse_hooks
from streamview.streaming.graph import Bound, Demands, Key, Sink, bind, demands, placed
from streamview.streaming.ops import OtherChannels
from streamview.streaming.plan import Plan, format_bytes, free_memory, make_plan, parse_bytes, return_freed_blocks
from streamview.streaming.run import Run

__all__ = ["Passed", "Session", "Source"]

Source = Slide | NDArray[np.uint8]
_SIZE_SLACK = 1.1  # a region's side may differ by this factor from what the card states before a warning


@dataclass(frozen=True, slots=True, eq=False)
class Passed:
    """What a forward pass leaves for reverse passes.

    Parameters
    ----------
    logits
        (K,), with a graph of autograd that ends at `taken`.
    evidence
        Where it was asked for and the network offers it.
    taken
        What the head took, by key: leaves, so that the gradient of a score there leaves out the bridges, which `Run.backward` adds.
    """

    logits: Tensor
    evidence: Evidence | None
    taken: Mapping[Key, Tensor]


@dataclass(slots=True, eq=False)
class Session:
    """A model, a source and a region brought together: what both passes read and write."""

    model: Model
    slide: Slide
    sampler: Sampler
    bound: Bound
    weights: Sequence[Tensor]
    device: torch.device
    warnings: tuple[str, ...]
    mean: Tensor
    scale: Tensor
    glass: Tensor
    last: tuple[tuple[int, int, int, int], Tensor] | None = None

    @classmethod
    def prepare(cls, model: Model, source: Source, region: Region | None, mpp: float | None, device: str) -> Session:
        """Check that model, source and region fit together."""
        slide = as_slide(source, mpp)
        card = model.card
        sampler = Sampler(slide, region, card.mpp)
        where = find_device(device)
        # the caller's module stays where it is
        module = model.module if where.type == "cpu" else copy.deepcopy(model.module).to(where)
        try:
            graph = capture(module, channels=3)
        except OtherChannels:
            found = f"the model {card.name} takes images of {capture(module).channels[0]} channels, a slide has 3"
            raise ModelError(f"{found}: use a model for RGB") from None
        refuse_hooks(module, graph)
        try:
            bound = bind(graph, sampler.shape)
        except RegionError as error:
            raise RegionError(f"{slide.name}: {error}") from None
        weights = [w.read().detach() for w in graph.weights]
        # pixel p becomes (p / 255 - mean) / std, as p * scale - mean / std
        std, mean = (torch.tensor(v, device=where).view(1, 3, 1, 1) for v in (card.std, card.mean))
        glass = torch.tensor(slide.background, dtype=torch.float32, device=where).view(1, 3, 1, 1)
        scale = 1 / (255 * std)
        return cls(model, slide, sampler, bound, weights, where, _warnings(model, sampler), mean / std, scale, glass * scale - mean / std)

    @property
    def needs(self) -> Demands:
        """Gradients of the image alone."""
        return demands(self.bound.graph, True, [False] * len(self.weights))

    def read(self, rows: tuple[int, int], cols: tuple[int, int]) -> Tensor:
        """Normalised pixels of a part of the grid, (1, 3, h, w) float32; the last part is remembered."""
        key = (*rows, *cols)
        if self.last is None or self.last[0] != key:
            pixels = torch.from_numpy(self.sampler.read(*rows, *cols)).to(self.device)
            image = pixels.permute(2, 0, 1)[None].to(torch.float32).mul_(self.scale).sub_(self.mean)
            self.last = key, image
        return self.last[1]

    def reduce(self, grad: Tensor, rows: tuple[int, int], cols: tuple[int, int]) -> NDArray[np.float32]:
        """Both maps of a finished part of the image's gradient (1, 3, h, w): float32 (2, h, w)."""
        signed = (self.read(rows, cols) - self.glass).mul_(grad).sum(1)
        return torch.stack([grad.abs().amax(1), signed]).squeeze(1).cpu().numpy()

    def plan(self, needs: Demands | None, memory: str | int | None, tile: tuple[int, int] | None, results: int) -> Plan:
        """Choose the steps so that the process stays below `memory` bytes, `results` of them held for the result."""
        growth = free_memory() // 2
        if needs is not None:
            results += self._evidence_bytes()
        if memory is not None:
            return_freed_blocks()
            limit = parse_bytes(memory)
            growth = limit - self.base() - self.reserve((256, self.sampler.shape[1])) - results
            if growth <= 0:
                raise MemoryBudgetError(
                    f"memory {format_bytes(limit)}: the process needs {format_bytes(limit - growth)} before the first step; give more"
                )
        return make_plan(self.bound, 1, torch.float32, needs, self.weights, memory=growth, tile=tile)

    @property
    def evidence_size(self) -> tuple[int, int]:
        """Height and width of the evidence map; (0, 0) where the network offers none."""
        layer, pooled = linear_head(self.bound.graph), pooled_sink(self.bound.graph)
        return (0, 0) if layer is None or pooled is None else self.bound.sizes[pooled.value]

    def _evidence_bytes(self) -> int:
        """What `Evidence` will hold until the target is known."""
        layer, (height, width) = linear_head(self.bound.graph), self.evidence_size
        return 0 if layer is None else 4 * min(layer.out_features, layer.in_features) * height * width

    @contextlib.contextmanager
    def running(self, plan: Plan) -> Iterator[None]:
        """Run in full float32 (CUDA convolves in TF32 by default), and say what was planned where torch runs out of memory."""
        cudnn = torch.backends.cudnn
        try:
            with cudnn.flags(enabled=True, allow_tf32=False) if self.device.type == "cuda" else contextlib.nullcontext():
                yield
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            raise MemoryBudgetError(
                f"{self.device} ran out of memory in a run planned for {format_bytes(plan.peak_bytes)} in steps of "
                f"{plan.tile[0]} x {plan.tile[1]} px: give a smaller --memory, or a smaller region"
            ) from None

    def base(self) -> int:
        """Bytes resident in the process now (on CUDA: reserved on the device)."""
        if self.device.type == "cuda":
            return int(torch.cuda.memory_reserved(self.device))
        return resident_memory()

    def reserve(self, tile: tuple[int, int]) -> int:
        """Bytes beside the steps themselves: decoding and buffers of rows."""
        return 128 * 2**20 + 24 * min(tile[0], self.sampler.shape[0]) * self.sampler.shape[1]

    def forward(self, run: Run, report: Report | None, *, explain: bool = False) -> Passed:
        """Run the forward pass and the head, with `explain` for reverse passes."""
        graph = self.bound.graph
        layer, pooled = (linear_head(graph), pooled_sink(graph)) if explain else (None, None)
        evidence = None if layer is None or pooled is None else Evidence(layer, self.bound.sizes[pooled.value])
        progress = Progress("forward pass", run.steps, report)

        def watch(value: int, piece: Tensor, rows: tuple[int, int], cols: tuple[int, int]) -> None:
            if evidence is not None and pooled is not None and value == pooled.value:
                evidence.add(piece, rows, cols)

        run.forward(self.read, progress.advance, watch)
        taken: dict[Key, Tensor] = {}
        with torch.set_grad_enabled(run.needs is not None):
            arguments = []
            for key in graph.head.takes:
                if isinstance(key, Sink) and key.kind == "shape":
                    arguments.append(run.argument(key))
                    continue
                given = run.tensors[key]
                taken[key] = given.detach().requires_grad_(run.needs is not None and given.requires_grad)
                # a copy of what is small, since calls may change their argument in place, which autograd refuses for a leaf
                arguments.append(taken[key] if isinstance(key, Sink) and key.kind == "map" else taken[key].clone())
            try:
                logits = graph.head.module(*arguments)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                height, width = self.sampler.shape
                found = f"{self.slide.name}: the model {self.model.card.name} cannot answer for {width} x {height} px"
                raise RegionError(f"{found} ({str(error).splitlines()[0]}); use a region of the size it was made for") from None
        if not isinstance(logits, Tensor) or logits.shape != (1, len(self.model.card.class_names)):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ModelError(f"the model {self.model.card.name} answered {shape}: expected one logit for each of its classes")
        if not logits.isfinite().all():
            raise ModelError(
                f"the model {self.model.card.name} answered {logits.tolist()}: not finite; check its weights and normalisation"
            )
        return Passed(logits[0], evidence, taken)

    def prediction(self, logits: Tensor) -> Prediction:
        """The result of a forward pass."""
        card, sampler = self.model.card, self.sampler
        identity = Identity(self.model.sha256, card.sha256, self.slide.identity, sampler.region, sampler.mpp, "float32")
        values = logits.detach().cpu().numpy().astype(np.float32)
        return Prediction(
            self.slide.name, sampler.region, sampler.shape, sampler.mpp, card.task, card.class_names, values, identity, card.name,
            card.trained, self.warnings,
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


def _warnings(model: Model, sampler: Sampler) -> tuple[str, ...]:
    """What the reader of a result must know: of how region and card differ, and of what was assumed when the model was loaded."""
    card, found = model.card, []
    height, width = sampler.shape
    if not card.trained:
        found.append("The weights are random (--untrained): the answer and the maps mean nothing.")
    if card.input_size is not None:
        low, high = card.input_size
        if min(height, width) * _SIZE_SLACK < low or max(height, width) > high * _SIZE_SLACK:
            sides = f"{low} px" if low == high else f"{low} to {high} px"
            found.append(f"The region is {width} x {height} px on the network's grid; the model was trained on sides of {sides}.")
    if card.mpp is None:
        found.append("The card states no mpp: the region was read at the slide's full resolution as it is.")
    elif sampler.mpp is not None and max(abs(m / card.mpp - 1) for m in sampler.mpp) > 0.01:
        found.append(f"The region was read at {sampler.mpp[0]:.3f} um/px; the model was trained at {card.mpp:.3f} um/px.")
    return (*found, *model.notes)
