"""The local part of a network as one function of autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamview.errors import NotStreamableError
from streamview.streaming.graph import Key
from streamview.streaming.lazy import LazyImage
from streamview.streaming.ops import Statistic
from streamview.streaming.plan.plan import Plan
from streamview.streaming.run.out_of_memory import retry_smaller
from streamview.streaming.run.run import Run
from streamview.streaming.step import Span

__all__ = ["Body", "StreamedBody"]


@dataclass(slots=True, eq=False)
class Body:
    """The local part in one call of a streamed module: its run, and what torch must know besides."""

    run: Run  # another one where memory ran out
    between: Sequence[Tensor]
    autocast: tuple[str, torch.dtype, bool]
    guards: Sequence[Tensor]
    done: Callable[[], None]
    source: LazyImage | None
    limit: int | None

    @property
    def keys(self) -> list[Key]:
        """What the head takes."""
        return self.run.bound.graph.head.tensors

    def pixels(self, image: Tensor | None) -> LazyImage:
        """The pixels of the call: its own, or those of the tensor that it was called with."""
        if self.source is not None:
            return self.source
        assert image is not None
        return LazyImage.of(image.detach())

    def forward(self, pixels: LazyImage) -> list[Tensor]:
        """What the head takes, in one graph of autograd with the bridges."""

        def attempt(plan: Plan) -> list[Tensor]:
            if plan is not self.run.plan:
                self.run = Run(self.run.call, plan)
            tensors = self.run.forward(pixels.read, self.done)
            return [tensors[key] for key in self.keys]

        return retry_smaller(attempt, self.run.call, self.run.plan, self.limit)

    def backward(self, image: Tensor | None, grads: Sequence[Tensor | None], image_wanted: bool, release: bool) -> list[Tensor | None]:
        """Gradients of the image, the weights and the bridges' parameters, given those of what the head took."""
        device, dtype, enabled = self.autocast
        pixels = self.pixels(image)

        def attempt(plan: Plan) -> list[Tensor | None]:
            with torch.no_grad(), torch.autocast(device, dtype, enabled):
                if plan is not self.run.plan:
                    self.run = Run(self.run.call, plan)
                    self.run.forward(pixels.read)
                image_grad = torch.zeros_like(image) if image is not None and image_wanted else None
                return self._reverse(pixels, grads, image_grad, release)

        return retry_smaller(attempt, self.run.call, self.run.plan, self.limit)

    def _reverse(self, pixels: LazyImage, grads: Sequence[Tensor | None], image_grad: Tensor | None, release: bool) -> list[Tensor | None]:
        def write(part: Tensor | None, rows: Span, cols: Span) -> None:
            if image_grad is not None and part is not None:
                image_grad[:, :, rows[0] : rows[1], cols[0] : cols[1]] = part

        at_head = dict(zip(self.keys, grads, strict=True))
        write_image = None if image_grad is None else write
        gradients = self.run.backward(pixels.read, at_head, write_image, self.between, self.done, release=release)
        mixed = self.run.call.gathered is not None  # the weights themselves are wider than those that it computes with
        summed = [
            None if grad is None else grad if mixed else grad.to(value.dtype)
            for grad, value, operand in zip(gradients.operands, self.run.operands, self.run.bound.graph.operands, strict=True)
            if not isinstance(operand, Statistic)
        ]
        return [image_grad if gradients.reach_image else None, *summed, *gradients.parameters]


class StreamedBody(torch.autograd.Function):
    """The local part as one function of the image, the body's weights and the bridges' parameters; it returns what the head takes."""

    @staticmethod
    def forward(ctx: Any, body: Body, image: Tensor | None, *weights: Tensor) -> tuple[Tensor, ...]:
        """Run the passes; the outputs are what the head takes."""
        ctx.body = body
        # the guards are saved only so that torch notices when a weight is changed in place before the backward pass
        ctx.save_for_backward(image, *weights, *body.guards)
        ctx.set_materialize_grads(False)  # an output that is not used has no gradient, nor has what only it depends on
        # new tensors: autograd marks those it returns, and the body must not hold what holds the body
        gathered = body.forward(body.pixels(image))
        results = tuple(t.detach() for t in gathered)
        ctx.mark_non_differentiable(*(result for result, t in zip(results, gathered, strict=True) if not t.requires_grad))
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Run the passes in reverse."""
        image, *weights = ctx.saved_tensors[: len(ctx.needs_input_grad) - 1]
        if any(grad is not None and torch._C._functorch.is_legacy_batchedtensor(grad) for grad in grads):
            raise NotStreamableError("batched gradients cannot run through a streamed pass: ask for one gradient after the other")
        detached = [None if grad is None else grad.detach() for grad in grads]
        results = ctx.body.backward(image, detached, ctx.needs_input_grad[1], release=not _graph_is_kept())
        if torch.is_grad_enabled():
            # so that a second derivative raises: a gradient cut off here would silently count as zero
            present = [index for index, grad in enumerate(results) if grad is not None]
            sources = [t for t in (image, *weights, *grads) if t is not None]
            once = _Once.apply(len(present), *(results[index] for index in present), *sources)  # type: ignore[no-untyped-call]
            for index, grad in zip(present, once, strict=True):
                results[index] = grad
        return (None, *results)


def _graph_is_kept() -> bool:
    """Whether the backward pass that is under way may be repeated (``retain_graph``); yes where this torch does not say."""
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return ask is None or bool(ask())


class _Once(torch.autograd.Function):
    """Hands gradients on, tied to what they depend on; cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise NotStreamableError(
            "a streamed network can be differentiated once: second derivatives (a gradient penalty, a Hessian) need the plain network"
        )
