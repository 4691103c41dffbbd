"""Half precision for the streamed part: which weights are narrowed, and what is not.

What is computed of whole maps (the scale and shift of GroupNorm, the gates of squeeze-excitation) stays in float32 and meets its
map there: rounded, its error would be the same at every position and would not average out. So does BatchNorm, as in autocast.
Maps are in half precision throughout, also where the network converts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from streamview.streaming.graph import Bound, Graph
from streamview.streaming.ops import Op, Piece, Statistic, Wants
from streamview.streaming.ops.conversions import converted
from streamview.streaming.ops.pointwise import Around, BatchNorm, Copy, Pointwise

__all__ = ["Narrowed", "narrow_weights", "narrowed"]


class Narrowed(Around):
    """An operation that takes wider tensors beside its map, and gives its result in the map's own type."""

    __slots__ = ()

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], piece: Piece, wants: Wants | None) -> tuple[Tensor, Any]:
        """Run the inner operation, then round."""
        out, saved = self.inner.run(inputs, weights, piece, wants)
        return out.to(inputs[0].dtype), saved

    def vjp(
        self, grad: Tensor, saved: Any, weights: Sequence[Tensor], piece: Piece, wants: Wants
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Gradients by the inner operation, from the gradient in the wider type."""
        wide = grad
        for weight in weights:
            wide = wide.to(torch.promote_types(wide.dtype, weight.dtype))
        return self.inner.vjp(wide, saved, weights, piece, wants)


def narrowed(bound: Bound) -> Bound:
    """The graph whose operations keep their maps' type beside statistics, which are in float32, and convert no map."""
    graph = bound.graph

    def narrow(value: int, op: Op) -> Op:
        if isinstance(op, Pointwise) and op.function is converted:
            return Copy()
        return Narrowed(op) if any(isinstance(graph.operands[w], Statistic) for w in graph.nodes[value].weights) else op

    return replace(bound, ops={value: narrow(value, op) for value, op in bound.ops.items()})


def narrow_weights(graph: Graph, weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The graph's weights in another type, but for those of BatchNorm and those that are no floating point numbers."""
    norms = {w for node in graph.nodes.values() if _is_norm(node.op) for w in node.weights}
    index = [i for i, operand in enumerate(graph.operands) if not isinstance(operand, Statistic)]
    return [w if i in norms or not w.is_floating_point() else w.to(dtype) for i, w in zip(index, weights, strict=True)]


def _is_norm(op: Any) -> bool:
    return isinstance(op.inner if isinstance(op, Around) else op, BatchNorm)
