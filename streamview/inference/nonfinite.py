"""Where NaN or infinity comes from: the first weight, value, call or gradient that is not finite, in words.

Looked for only after an answer turned out not to be finite, by running once more with an eye on every value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from streamview.streaming.capture.calls import path_of
from streamview.streaming.graph import Bound, Key
from streamview.streaming.ops import Statistic
from streamview.streaming.run.run import Run
from streamview.streaming.step import Span

__all__ = ["bad_call", "bad_gradient", "bad_value", "bad_weight"]

ReadImage = Callable[[Span, Span], Tensor]


class _Found(Exception):
    """Ends a run at the first value that is not finite."""


def bad_weight(module: nn.Module) -> str | None:
    """The first parameter that holds NaN or infinity, or buffer that holds NaN: ``"features.3.weight holds NaN"``."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        # infinity is usual in buffers: masks
        wrong = tensor.isnan() if not isinstance(tensor, nn.Parameter) else ~tensor.isfinite()
        if tensor.is_floating_point() and wrong.any():
            return f"{name} holds {_what(tensor)}"
    return None


def bad_value(run: Run, read: ReadImage, done: Callable[[], None] = lambda: None) -> str | None:
    """The first layer whose output is not finite, and the part of the image; None where the local part and its bridges are in order.

    Parameters
    ----------
    run
        Not yet run; its `tensors` are filled when None is returned.
    read
        Pixels of the image, as for `Run.forward`.
    done
        Called after every step.
    """
    graph = run.bound.graph

    def see(value: int, piece: Tensor, rows: Span, cols: Span) -> None:
        if piece.isfinite().all():
            return
        where = _region(run.bound, value, rows, cols)
        if value == 0:
            raise _Found(f"the normalised pixels hold {_what(piece)} in {where}")
        node = graph.nodes[value]
        said = f"{node.name} is the first to give {_what(piece)}, in {where}"
        for index in node.weights:
            operand = graph.operands[index]
            if isinstance(operand, Statistic) and not run.operands[index].isfinite().all():
                said += f"; {operand.name}, computed of the whole map before it, holds {_what(run.operands[index])}"
        raise _Found(said)

    try:
        run.forward(read, done, see=see)
    except _Found as found:
        return str(found)
    wrong = [(key, t) for key, t in run.tensors.items() if isinstance(key, str) and not t.isfinite().all()]
    return f"{wrong[0][0]}, computed of whole maps, holds {_what(wrong[0][1])}" if wrong else None


def bad_call(module: fx.GraphModule, arguments: Sequence[Tensor]) -> str | None:
    """The first call of a head whose output is not finite."""
    watched = _Watched(module)
    watched.extra_traceback = False  # which would be added to the message
    try:
        with torch.no_grad():
            watched.run(*arguments)
    except _Found as found:
        return str(found)
    return None


class _Watched(fx.Interpreter):
    """Runs a graph call by call, up to the first that does not give finite numbers."""

    def run_node(self, n: fx.Node) -> Any:
        """Run one call."""
        made = super().run_node(n)
        if isinstance(made, Tensor) and n.op not in ("placeholder", "get_attr", "output") and not made.isfinite().all():
            raise _Found(f"{path_of(n)}, behind the last map, is the first to give {_what(made)}")
        return made


def bad_gradient(run: Run, read: ReadImage, grads: Mapping[Key, Tensor | None], done: Callable[[], None] = lambda: None) -> str | None:
    """The layer in whose backward pass the gradient is first not finite, and the part of the image.

    Parameters
    ----------
    run
        After its forward pass.
    read
        Pixels of the image, as for `Run.backward`.
    grads
        Gradients of `run.tensors` that the head took.
    done
        Called after every step.
    """
    graph = run.bound.graph
    wrong = [grad for grad in grads.values() if grad is not None and not grad.isfinite().all()]
    if wrong:
        return f"the gradient that the head gives holds {_what(wrong[0])}"

    def see(value: int, grad: Tensor, rows: Span, cols: Span) -> None:
        if grad.isfinite().all():
            return
        readers = dict.fromkeys(node.name for node in graph.nodes.values() if value in node.inputs)
        through = f"the backward pass of {' or '.join(readers)}" if readers else "the calls behind the last map"
        raise _Found(f"{through} is the first to give {_what(grad)}, in {_region(run.bound, value, rows, cols)}")

    try:
        run.backward(read, grads, lambda *_: None, done=done, see=see)
    except _Found as found:
        return str(found)
    return None


def _what(tensor: Tensor) -> str:
    return "NaN" if tensor.isnan().any() else "infinity"


def _region(bound: Bound, value: int, rows: Span, cols: Span) -> str:
    """Where the piece of a value lies in the image."""
    (height, width), (h, w) = bound.sizes[0], bound.sizes[value]
    (top, bottom), (left, right) = ((s[0] * n // m, -(-s[1] * n // m)) for s, n, m in ((rows, height, h), (cols, width, w)))
    return f"rows {top} to {bottom} and columns {left} to {right} of the region"
