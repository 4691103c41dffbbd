"""Capture of a network: which of its calls are local and stream, which reduce a map, and which the head makes once.

The graph of calls (see `trace`) is walked once, and every call is lowered to an operation where it is local (see `lowering`). A call
on reductions of maps whose result a later local call needs becomes part of a *bridge* between two passes. What is left is the head
(see `division`).
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

from torch import nn

from streamview.errors import NotStreamableError
from streamview.streaming.division import divide
from streamview.streaming.graph import Graph
from streamview.streaming.lowering import Lowering
from streamview.streaming.ops import OtherChannels
from streamview.streaming.trace import is_container, trace

__all__ = ["capture", "refuse_hooks"]

_MOST_CHANNELS = 129


def refuse_hooks(module: nn.Module, graph: Graph | None = None) -> None:
    """Raise where hooks would be skipped: on containers, which a trace dissolves, and on layers that the nodes of a graph replace.

    Hooks of weight and spectral norm are run instead.

    Raises
    ------
    NotStreamableError
        Naming the module.
    """
    replaced = dict(graph.modules) if graph is not None else {}
    replaced.update((path, m) for path, m in module.named_modules() if is_container(m, path))
    for path, replacement in replaced.items():
        found = [*replacement._forward_hooks.values(), *replacement._backward_hooks.values(), *replacement._backward_pre_hooks.values()]
        for hook in replacement._forward_pre_hooks.values():
            if type(hook).__module__ in ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm"):
                hook(replacement, ())
            else:
                found.append(hook)
        if found:
            name = path or type(module).__name__
            raise NotStreamableError(
                f"{name} has a hook, which streaming would skip: remove it, or hook `cut` of the streamed module. Explanations that change "
                "the backward rule of layers (guided backpropagation, deconvolution, LRP) are therefore not possible"
            )


def capture(module: nn.Module, *, channels: int | None = None, reduce: bool = True) -> Graph:
    """Capture a network in its present mode.

    Parameters
    ----------
    module
        Any module of one image (N, C, H, W) that torch.fx or torch.export can trace.
    channels
        Of the image; None: the number that fits, three if any does.
    reduce
        Whether a global pooling at the cut is streamed; if not, the map before it is handed to the head.

    Returns
    -------
    Graph

    Raises
    ------
    NotStreamableError
        When the network cannot be traced, takes more than one image, or has no local part worth streaming.
    """
    refuse_hooks(module)
    calls, root = trace(module, channels or 3)
    images = [node for node in calls.nodes if node.op == "placeholder" and not node.args and node.type is not type(None)]
    if len(images) != 1:
        raise NotStreamableError(f"{type(module).__name__} takes {len(images)} inputs: only networks of one image can be streamed")
    for count in (3, 1, 2, *range(4, _MOST_CHANNELS)) if channels is None else (channels,):
        with contextlib.suppress(OtherChannels):
            # torch.export dissolves every layer, also those of the head
            dissolved = {} if root is module else dict(module.named_modules())
            lowering = Lowering(root, calls, type(module).__name__, modules=dissolved)
            lowering.walk(images[0], count)
            graph = divide(lowering, reduce)
            refuse_hooks(module, graph)
            return graph if root is module else replace(graph, tracer="torch.export")
    wanted = f"{channels} channels" if channels is not None else f"fewer than {_MOST_CHANNELS} channels"
    raise OtherChannels(f"{type(module).__name__} fits no image of {wanted}")
