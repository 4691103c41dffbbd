"""Proxies that record in-place arithmetic as torch.fx records any other call."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx
from torch.fx.proxy import GraphAppendingTracer

__all__ = ["AppendingTracer", "RecordingProxy"]


class RecordingProxy(fx.Proxy):
    """A proxy for which ``a += b`` is recorded as what it is, a change of a in place."""


def _augmented(function: Callable[[Any, Any], Any]) -> Callable[[RecordingProxy, Any], Any]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _function in (operator.iadd, operator.isub, operator.imul, operator.itruediv):
    setattr(RecordingProxy, f"__{_function.__name__}__", _augmented(_function))


class AppendingTracer(GraphAppendingTracer):
    """Records calls behind others of a graph, as the tracer of `streamview.streaming.capture.trace` does."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """What stands for the result of a call."""
        return RecordingProxy(node, self)
