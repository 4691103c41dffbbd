"""The passes over a region: forward to the logits, and back from a score to rows of saliency maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamview.errors import ModelError, RegionError
from streamview.inference.class_evidence import Evidence, linear_head, pooled_sink
from streamview.inference.reader import PixelReader
from streamview.networks.cards import ModelCard
from streamview.progress import Progress
from streamview.results import Target
from streamview.streaming.graph import Key, Sink
from streamview.streaming.run.out_of_memory import ran_out
from streamview.streaming.run.run import Run, Watch
from streamview.streaming.step import Span

__all__ = [
    "ForwardResult",
    "NotFinite",
    "Reduce",
    "backward_pass",
    "forward_pass",
    "head_arguments",
    "run_head",
    "score_gradients",
    "score_of",
]

Reduce = Callable[[Tensor, Span, Span, float], Tensor]
"""Gives rows of maps, float32 (c, h, w), of a gradient (1, 3, h, w), its rows and columns, and by how much it is too large."""

_LARGEST = 4  # exponent of the largest gradient that enters the body: half of fp16's room above it is for growth, more for decay below


class NotFinite(Exception):
    """Logits, or the gradient of a target, hold NaN or infinity; the message says which."""

    def __init__(self, text: str, target: Target | None = None) -> None:
        super().__init__(f"{text}: not finite")
        self.target = target


@dataclass(frozen=True, slots=True, eq=False)
class ForwardResult:
    """What a forward pass leaves for backward passes.

    Parameters
    ----------
    logits
        (K,), with a graph of autograd that ends at `leaves`.
    leaves
        What the head took, by key, so that the gradient of a score there leaves out the bridges, which `Run.backward` adds.
    evidence
        Where it was asked for and the network offers it.
    """

    logits: Tensor
    leaves: Mapping[Key, Tensor]
    evidence: Evidence | None = None


def forward_pass(
    run: Run,
    reader: PixelReader,
    card: ModelCard,
    progress: Progress,
    *,
    explain: bool = False,
    watch: Watch | None = None,
    head_grad: bool = False,
) -> ForwardResult:
    """Run the forward pass and the head; with `explain` gather the class evidence too.

    `watch` sees every piece of what is gathered; with `head_grad` a score can be differentiated as far as the leaves.

    Raises
    ------
    NotFinite
        When the logits hold NaN or infinity.
    ModelError, RegionError
        When the network does not answer with a logit for each class, or not for images of this size.
    """
    graph = run.bound.graph
    layer, pooled = (linear_head(graph), pooled_sink(graph)) if explain else (None, None)
    evidence = None if layer is None or pooled is None else Evidence(layer, run.bound.sizes[pooled.value])

    def see(value: int, piece: Tensor, rows: Span, cols: Span) -> None:
        if watch is not None:
            watch(value, piece, rows, cols)
        if evidence is not None and pooled is not None and value == pooled.value:
            evidence.add(piece, rows, cols)

    with reader.reading(run.call, run.plan):
        run.forward(reader.pixels, progress.advance, see)
    logits, leaves = run_head(run, card, head_grad)
    if not logits.isfinite().all():
        raise NotFinite(f"answered {logits.tolist()}")
    return ForwardResult(logits, leaves, evidence)


def head_arguments(run: Run, grad: bool = False) -> tuple[list[Tensor], dict[Key, Tensor]]:
    """The head's arguments after a forward pass, and the leaves that they come from; with `grad` the head alone is differentiated."""
    head = run.bound.graph.head
    leaves: dict[Key, Tensor] = {}
    for key in head.tensors:
        tensor = run.tensors[key]
        leaves[key] = tensor.detach().requires_grad_(tensor.is_floating_point() if grad else run.needs is not None and tensor.requires_grad)
    return run.arguments(head.takes, leaves), leaves


def run_head(run: Run, card: ModelCard, grad: bool = False) -> tuple[Tensor, dict[Key, Tensor]]:
    """Run the head: the logits (K,), and the leaves that they come from."""
    with torch.set_grad_enabled(grad or run.needs is not None):
        arguments, leaves = head_arguments(run, grad)
        try:
            logits = run.bound.graph.head.module(*arguments)
        except RuntimeError as error:
            if ran_out(error):
                raise
            height, width = run.call.size
            text = f"the model {card.name} cannot answer for {width} x {height} px ({str(error).splitlines()[0]})"
            raise RegionError(f"{text}; use a region of the size it was made for") from None
    if not isinstance(logits, Tensor) or logits.shape != (1, len(card.class_names)):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(f"the model {card.name} answered {shape}: expected one logit for each of its classes")
    return logits[0], leaves


def score_of(logits: Tensor, target: Target) -> Tensor:
    """The target's logit, or the difference of two."""
    return logits[target.index] if target.against is None else logits[target.index] - logits[target.against]


def score_gradients(run: Run, result: ForwardResult, target: Target, *, retain: bool = False) -> tuple[dict[Key, Tensor | None], float]:
    """Gradients of a score at what the head took, and the power of two by which they were multiplied so that half precision can hold them.

    The score is the target's logit, or the difference of two; `retain` keeps the head's graph for another target.
    """
    score = score_of(result.logits, target)
    leaves = {key: tensor for key, tensor in result.leaves.items() if tensor.requires_grad}
    at_leaves = torch.autograd.grad(score, list(leaves.values()), retain_graph=retain, allow_unused=True)
    grads: dict[Key, Tensor | None] = dict(zip(leaves, at_leaves, strict=True))
    if run.call.dtype == torch.float32:
        return grads, 1.0
    largest = 0.0  # of a single element of a map at the cut
    for key, grad in grads.items():
        if isinstance(key, Sink) and grad is not None:
            shared = math.prod(run.bound.sizes[key.value]) if key.kind == "mean" else 1
            largest = max(largest, float(grad.abs().max()) / shared)
    if not 0 < largest < math.inf:
        return grads, 1.0
    scale = 2.0 ** max(-100, min(100, _LARGEST - math.frexp(largest)[1]))  # within float32 itself
    return {key: None if grad is None else grad * scale for key, grad in grads.items()}, scale


def backward_pass(
    run: Run,
    reader: PixelReader,
    result: ForwardResult,
    target: Target,
    write: Callable[[int, NDArray[np.float32]], None],
    *,
    progress: Progress,
    last: bool,
    reduce: Reduce | None = None,
    channels: int = 2,
) -> None:
    """Run one backward pass; hand out the maps of each row of steps, float32 (channels, rows, width), from the last to the first.

    The `last` one lets go of the forward pass as it proceeds. `reduce` makes as many `channels` of the gradient; None: the reader's two.

    Raises
    ------
    NotFinite
        When the gradient holds NaN or infinity.
    """
    grads, scale = score_gradients(run, result, target, retain=not last)
    reduce = reduce or reader.reduce
    strip: NDArray[np.float32] = np.empty(0, np.float32)
    width = run.call.size[1]

    def read(rows: Span, cols: Span) -> Tensor:
        progress.advance(0)  # steps that are recomputed can be cancelled too
        return reader.pixels(rows, cols)

    def take(grad: Tensor | None, rows: Span, cols: Span) -> None:
        nonlocal strip
        reduced = None if grad is None else reduce(grad, rows, cols, scale).numpy()
        if reduced is not None and not np.isfinite(reduced).all():
            raise NotFinite(f"gave a gradient of {target}", target)
        if reduced is not None and cols == (0, width):
            strip = reduced
        else:
            if cols[1] == width:
                strip = np.zeros((channels, rows[1] - rows[0], width), np.float32)
            if reduced is not None:
                strip[:, :, cols[0] : cols[1]] = reduced
        if cols[0] == 0:
            write(rows[0], strip)

    with torch.no_grad(), reader.reading(run.call, run.plan, backwards=True):
        run.backward(read, grads, take, done=progress.advance, release=last)
