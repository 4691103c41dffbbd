"""From a source, a model and a region to a prediction and its saliency map, read and computed step by step.

The region never exists as a whole float image: a step's pixels are read, normalised by the card, and run; gradients are reduced
over channels and handed out as rows finish.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamview.errors import MemoryBudgetError, ModelError, RegionError
from streamview.evidence import Evidence, linear_head
from streamview.geometry import Region
from streamview.loading import Model
from streamview.progress import Progress, Report
from streamview.results import Identity, MapWriter, Prediction, Saliency, SaliencyMap
from streamview.slides import Slide, as_slide
from streamview.slides.sampling import Sampler
from streamview.streaming.execute import Backward, Forward, Grid, build_grid, wanted
from streamview.streaming.graph import Program, capture
from streamview.streaming.module import check_size
from streamview.streaming.ops import Wants
from streamview.streaming.plan import Plan, format_bytes, make_plan, parse_bytes, return_freed_blocks
from streamview.streaming.sinks import Sinks

__all__ = ["Forecast", "find_device", "find_target", "forecast", "format_seconds", "predict", "saliency"]

Source = Slide | NDArray[np.uint8]
_SIZE_SLACK = 1.1  # a region's side may differ by this factor from what the card states before a warning
_SAMPLE = (512, 1024)  # rows and columns that a forecast times


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run will take, said before it starts.

    Parameters
    ----------
    plan
        Its steps.
    shape
        Height and width of the network's grid in px.
    peak_bytes
        Peak of the process's resident memory (on CUDA: of reserved device memory).
    seconds
        Time on this machine; None for a region so small that timing a sample would take as long as the run.
    device
        Where it will run.
    """

    plan: Plan
    shape: tuple[int, int]
    peak_bytes: int
    seconds: float | None
    device: str

    def __str__(self) -> str:
        """One line for people."""
        rows, cols = self.plan.tile
        step = f"{self.plan.steps} steps of {min(rows, self.shape[0])} x {min(cols, self.shape[1])} px"
        duration = "a few seconds" if self.seconds is None else f"about {format_seconds(self.seconds)}"
        return f"{self.shape[1]} x {self.shape[0]} px in {step} on {self.device}: peak memory {format_bytes(self.peak_bytes)}, {duration}"


def format_seconds(seconds: float) -> str:
    """Seconds for people: ``"2 min 5 s"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if whole else "under 1 s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def find_device(name: str = "auto") -> torch.device:
    """The device of this name; ``"auto"`` takes CUDA where there is one.

    Raises
    ------
    ModelError
        When the device is unknown or absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelError(f"device {name!r} is unknown: expected auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {name!r} was asked for, but torch sees no CUDA device: use --device cpu, or see `streamview doctor`")
    return device


def predict(
    model: Model,
    source: Source,
    region: Region | None = None,
    *,
    memory: str | int | None = None,
    tile: tuple[int, int] | None = None,
    device: str = "auto",
    mpp: float | None = None,
    report: Report | None = None,
) -> Prediction:
    """Predict for a region.

    Parameters
    ----------
    model
        From `load_model`.
    source
        A slide, a pyramid or a uint8 (H, W, 3) array.
    region
        In level-0 pixels; None for all.
    memory
        Bound on the peak resident memory of the process (CUDA: of the device), bytes or ``"2GB"``; default half of what is free.
    tile
        Rows and columns of a step on the network's grid, instead of choosing them.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    mpp
        Micrometres per level-0 pixel of the source, where it does not say itself.
    report
        Called after every step; may raise `Cancelled`.

    Returns
    -------
    Prediction

    Raises
    ------
    SlideError, RegionError, ModelError, NotStreamableError, MemoryBudgetError
        When source, region, model or budget do not fit; see each.
    """
    run = _Run.prepare(model, source, region, mpp, device)
    plan = run.plan(None, memory, tile, 0)
    grid = build_grid(run.program, run.sampler.shape, plan.tile)
    logits, _, _ = run.forward(Forward(run.program, grid, run.weights, None), grid, None, report)
    return run.prediction(logits)


def saliency(
    model: Model,
    source: Source,
    region: Region | None = None,
    target: int | str | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    memory: str | int | None = None,
    tile: tuple[int, int] | None = None,
    device: str = "auto",
    mpp: float | None = None,
    report: Report | None = None,
) -> Saliency:
    """Explain a prediction at the full resolution of the network's grid, from one forward and one backward pass.

    Parameters
    ----------
    target
        Class to explain, by name or index; default the predicted one (regression: the first output).
    out
        Folder ``NAME.ome.zarr`` to write the maps to as they finish; default keeps them in memory.
    model, source, region, memory, tile, device, mpp, report
        As for `predict`.

    Returns
    -------
    Saliency
        With the maps ``"absolute"``, max over channels of |d logit / d normalised input| (Simonyan et al., 2014,
        https://arxiv.org/abs/1312.6034), ``"signed"``, the sum over channels of gradient x (input - glass), and where the head
        is pooling and a linear layer ``"evidence"`` (see `streamview.evidence`).

    Raises
    ------
    SlideError, RegionError, ModelError, NotStreamableError, MemoryBudgetError
        As for `predict`; ModelError also for an unknown target.
    """
    run = _Run.prepare(model, source, region, mpp, device)
    fixed = None if target is None else find_target(model, target)
    height, width = run.sampler.shape
    plan = run.plan(run.wants, memory, tile, 0 if out is not None else 8 * height * width)
    grid = build_grid(run.program, run.sampler.shape, plan.tile)
    passed = Forward(run.program, grid, run.weights, run.wants, plan.tapes)
    logits, sinks, evidence = run.forward(passed, grid, linear_head(run.program), report)
    prediction = run.prediction(logits)
    chosen = fixed if fixed is not None else int(logits.argmax()) if model.card.task != "regression" else 0
    grads = torch.autograd.grad(logits[chosen], sinks[1])

    step, origin = run.placed(0)
    found = None if evidence is None else SaliencyMap("evidence", evidence.of(chosen), *run.placed(run.program.sinks[0].value))
    progress = Progress("backward pass", plan.steps, report)
    maps = np.zeros((2, height, width), np.float32) if out is None else None
    backward = Backward(passed, release=True)

    gradient = partial(sinks[0].gradient, grads)
    if maps is not None:
        with torch.no_grad():
            backward.run(run.read, gradient, lambda g, r, c: _store(maps, 0, run.reduce(g, r, c), r, c), progress.advance)
        planes: dict[Any, SaliencyMap] = {
            "absolute": SaliencyMap("absolute", maps[0], step, origin),
            "signed": SaliencyMap("signed", maps[1], step, origin),
        }
        if found is not None:
            planes["evidence"] = found
        name = prediction.class_names[chosen]
        return Saliency(prediction, name, chosen, model.card.std, run.slide.background, planes)
    assert out is not None
    with MapWriter(out, (height, width), step=step, origin=origin) as writer, torch.no_grad():
        strip = _Strip(grid, writer)
        backward.run(
            run.read, gradient, lambda g, r, c: _store(strip.rows(r), r[0], run.reduce(g, r, c), r, c), lambda: strip.done(progress)
        )
        return writer.finish(prediction, target_index=chosen, std=model.card.std, glass=run.slide.background, evidence=found)


def forecast(
    model: Model,
    source: Source,
    region: Region | None = None,
    *,
    explain: bool = False,
    out: bool = True,
    memory: str | int | None = None,
    tile: tuple[int, int] | None = None,
    device: str = "auto",
    mpp: float | None = None,
) -> Forecast:
    """Say what `predict` (or, with `explain`, `saliency`) will take: the plan by its shapes, the time from a sample of the region.

    Parameters
    ----------
    explain
        Whether the gradient is wanted too.
    out
        Whether the maps will be written to disk rather than kept in memory.
    model, source, region, memory, tile, device, mpp
        As for `predict`.

    Raises
    ------
    SlideError, RegionError, ModelError, NotStreamableError, MemoryBudgetError
        As for `predict`.
    """
    run = _Run.prepare(model, source, region, mpp, device)
    height, width = run.sampler.shape
    wants = run.wants if explain else None
    base = run.base()  # before the sample, which leaves memory with the allocator that the run will use again
    plan = run.plan(wants, memory, tile, 0 if out or not explain else 8 * height * width)
    seconds = None
    if height * width >= 4 * _SAMPLE[0] * _SAMPLE[1]:
        forward, again, backward = run.time_sample(explain)
        untaped = (plan.steps - plan.tapes) / plan.steps if explain else 0.0
        seconds = (forward + untaped * again + backward) * height * width
    return Forecast(plan, (height, width), base + plan.peak_bytes + run.reserve(plan.tile), seconds, str(run.device))


def find_target(model: Model, target: int | str) -> int:
    """Index of a class given by name or index.

    Raises
    ------
    ModelError
        When the model has no such class.
    """
    names = model.card.class_names
    if isinstance(target, str) and target in names:
        return names.index(target)
    if not isinstance(target, str) and 0 <= target < len(names):
        return target
    raise ModelError(
        f"target {target!r}: the model {model.card.name} has {', '.join(names[:10])}{' ...' if len(names) > 10 else ''}; name one of them"
    )


def _store(into: NDArray[np.float32], top: int, maps: NDArray[np.float32], rows: tuple[int, int], cols: tuple[int, int]) -> None:
    into[:, rows[0] - top : rows[1] - top, cols[0] : cols[1]] = maps


class _Strip:
    """The rows of maps that the steps of one row of the grid finish, handed to the writer when all its columns are done."""

    def __init__(self, grid: Grid, writer: MapWriter) -> None:
        self._grid, self._writer = grid, writer
        self._width = grid.cols.sizes[0]
        self._left = grid.cols.steps
        self._row = grid.rows.steps - 1
        self._rows: NDArray[np.float32] | None = None

    def rows(self, span: tuple[int, int]) -> NDArray[np.float32]:
        """Float32 (2, rows, width) of the strip being filled; zero where no gradient arrives."""
        if self._rows is None:
            self._rows = np.zeros((2, span[1] - span[0], self._width), np.float32)
        return self._rows

    def done(self, progress: Progress) -> None:
        """Count a step; write the strip after its last."""
        self._left -= 1
        if not self._left:
            span = self._grid.rows.new(0, self._row)
            self._writer.write(span[0], self.rows(span))
            self._rows, self._left, self._row = None, self._grid.cols.steps, self._row - 1
        progress.advance()


@dataclass(slots=True, eq=False)
class _Run:
    """A model, a source and a region brought together: what both passes read and write."""

    model: Model
    slide: Slide
    sampler: Sampler
    program: Program
    weights: Sequence[Tensor]
    device: torch.device
    warnings: tuple[str, ...]
    mean: Tensor
    scale: Tensor
    glass: Tensor
    last: tuple[tuple[int, int, int, int], Tensor] | None = None

    @classmethod
    def prepare(cls, model: Model, source: Source, region: Region | None, mpp: float | None, device: str) -> _Run:
        """Check that model, source and region fit together."""
        slide = as_slide(source, mpp)
        card = model.card
        sampler = Sampler(slide, region, card.mpp)
        where = find_device(device)
        module = model.module.to(where)
        program = capture(module)
        if program.channels[0] != 3:
            raise ModelError(f"the model {card.name} takes images of {program.channels[0]} channels, a slide has 3: use a model for RGB")
        try:
            check_size(program, sampler.shape)
        except RegionError as error:
            raise RegionError(f"{slide.name}: {error}") from None
        weights = [w.read().detach() for w in program.weights]
        # pixel p becomes (p / 255 - mean) / std, as p * scale - mean / std
        std, mean = (torch.tensor(v, device=where).view(1, 3, 1, 1) for v in (card.std, card.mean))
        glass = torch.tensor(slide.background, dtype=torch.float32, device=where).view(1, 3, 1, 1)
        scale = 1 / (255 * std)
        return cls(model, slide, sampler, program, weights, where, _warnings(model, sampler), mean / std, scale, glass * scale - mean / std)

    @property
    def wants(self) -> list[Wants]:
        """Gradients of the image alone."""
        return wanted(self.program, True, [False] * len(self.weights))

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

    def plan(self, wants: Sequence[Wants] | None, memory: str | int | None, tile: tuple[int, int] | None, results: int) -> Plan:
        """Choose the steps so that the process stays below `memory` bytes, `results` of them held for the result."""
        growth = None
        if memory is not None:
            return_freed_blocks()
            limit = parse_bytes(memory)
            growth = limit - self.base() - self.reserve((256, self.sampler.shape[1])) - results
            if growth <= 0:
                raise MemoryBudgetError(
                    f"memory {format_bytes(limit)}: the process needs {format_bytes(limit - growth)} before the first step; give more"
                )
        return make_plan(self.program, (1, 3, *self.sampler.shape), torch.float32, wants, self.weights, memory=growth, tile=tile)

    def base(self) -> int:
        """Bytes resident in the process now (on CUDA: reserved on the device)."""
        if self.device.type == "cuda":
            return int(torch.cuda.memory_reserved(self.device))
        return resident_bytes()

    def reserve(self, tile: tuple[int, int]) -> int:
        """Bytes beside the steps themselves: decoding and buffers of rows."""
        return 96 * 2**20 + 24 * min(tile[0], self.sampler.shape[0]) * self.sampler.shape[1]

    def forward(
        self, passed: Forward, grid: Grid, layer: torch.nn.Linear | None, report: Report | None
    ) -> tuple[Tensor, tuple[Sinks, list[Tensor]], Evidence | None]:
        """Run the forward pass and the head: logits (K,), the sinks with their tensors, the evidence if a linear layer is given."""
        sinks = Sinks(self.program, grid)
        cut = self.program.sinks[0].value
        evidence = None if layer is None else Evidence(layer, grid.size(cut))
        progress = Progress("forward pass", len(grid.steps()), report)

        def emit(value: int, piece: Tensor, rows: tuple[int, int], cols: tuple[int, int]) -> None:
            sinks.add(value, piece, rows, cols)
            if evidence is not None and value == cut:
                evidence.add(piece, rows, cols)

        with torch.no_grad():
            passed.run(self.read, emit, progress.advance)
        tensors = [t.requires_grad_(passed.wants is not None) for t in sinks.results()]
        arguments = iter(tensors)
        with torch.set_grad_enabled(passed.wants is not None):
            heads = [self._argument(sink, arguments, grid) for sink in self.program.sinks]
            try:
                logits = self.program.head(*heads)
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
        return logits[0], (sinks, tensors), evidence

    def _argument(self, sink: Any, tensors: Any, grid: Grid) -> Tensor:
        if sink.kind == "shape":
            return torch.empty((), device=self.device).expand(1, self.program.channels[sink.value], *grid.size(sink.value))
        found: Tensor = next(tensors)
        return found if sink.keepdim else found.flatten(1)

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
        strides, centres = _centres(self.program, value)
        start = (self.sampler.region.y, self.sampler.region.x)
        scale = self.sampler.scale
        step = (strides[0] * scale[0], strides[1] * scale[1])
        origin = tuple(start[a] + (centres[a] + 0.5) * scale[a] - 0.5 for a in (0, 1))
        return step, (origin[0], origin[1])

    def time_sample(self, explain: bool) -> tuple[float, float, float]:
        """Seconds per pixel of the forward pass, of computing a step again, and of the reverse pass, reading included."""
        height, width = (min(s, n) for s, n in zip(_SAMPLE, self.sampler.shape, strict=True))
        try:
            check_size(self.program, (height, width))
        except RegionError:
            height, width = self.sampler.shape
        pixels = height * width
        top, left = (self.sampler.shape[0] - height) // 2, (self.sampler.shape[1] - width) // 2
        image = torch.rand((1, 3, height, width), device=self.device).to(memory_format=torch.channels_last)

        def part(rows: tuple[int, int], cols: tuple[int, int]) -> Tensor:
            return image[:, :, rows[0] : rows[1], cols[0] : cols[1]]

        grid = build_grid(self.program, (height, width), (256, width))
        wants = self.wants if explain else None
        times: list[tuple[float, float, float]] = []
        for _ in range(2):  # the first run also pays for what torch sets up once
            with torch.no_grad():
                start = time.perf_counter()
                self.sampler.read(top, top + height, left, left + width)
                reading = time.perf_counter() - start
                sinks = Sinks(self.program, grid)
                passed = Forward(self.program, grid, self.weights, wants, len(grid.steps()))
                start = time.perf_counter()
                passed.run(part, sinks.add)
                results = sinks.results()
                self._wait()
                forward = time.perf_counter() - start
                backward = 0.0
                if explain:
                    grads = [torch.ones_like(t) for t in results]
                    start = time.perf_counter()
                    Backward(passed).run(part, partial(sinks.gradient, grads), _drop)
                    self._wait()
                    backward = time.perf_counter() - start + reading
                times.append(((forward + reading) / pixels, forward / pixels, backward / pixels))
        return times[-1]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _drop(grad: Tensor, rows: tuple[int, int], cols: tuple[int, int]) -> None:
    """Take a finished gradient and forget it."""


def _centres(program: Program, value: int) -> tuple[tuple[int, int], tuple[float, float]]:
    """Total stride, and centre of what the first element sees, of a value, (y, x) in pixels of the image."""
    found: list[tuple[tuple[int, int], tuple[float, float]]] = [((1, 1), (0.0, 0.0))]
    for node in program.nodes:
        (sy, sx), (cy, cx) = found[node.inputs[0]]
        rows, cols = node.op.rows, node.op.cols
        centre = cy + sy * ((rows.extent - 1) / 2 - rows.before), cx + sx * ((cols.extent - 1) / 2 - cols.before)
        found.append(((sy * rows.stride, sx * cols.stride), centre))
    return found[value]


def _warnings(model: Model, sampler: Sampler) -> tuple[str, ...]:
    """What the reader of a result must know of how region and card differ."""
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
    return tuple(found)


def resident_bytes() -> int:
    """Bytes of this process that are resident in memory now."""
    try:
        with open("/proc/self/statm") as info:
            return int(info.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if os.uname().sysname == "Darwin" else 1024)
