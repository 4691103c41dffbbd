"""Capture of a network: which of its calls are local and stream, which reduce a map, and which the head makes once.

The graph of calls (see `trace`) is walked once, and every call is lowered to an operation where it is local (see `lowering`). A call
on reductions of maps whose result a later local call needs becomes part of a *bridge* between two passes. What is left is the head
(see `division`).
"""

from __future__ import annotations

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
_REFUSALS = 16  # numbers of channels that are tried where a layer refuses for another reason


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


def capture(module: nn.Module, *, channels: int | None = None, reduce: bool = True, exported: bool = False) -> Graph:
    """Capture a network in its present mode.

    Parameters
    ----------
    module
        Any module of one image (N, C, H, W) that torch.fx or torch.export can trace.
    channels
        Of the image; None: the number that fits, three if any does.
    reduce
        Whether a global pooling at the cut is streamed; if not, the map before it is handed to the head.
    exported
        Whether to use torch.export without trying torch.fx.

    Returns
    -------
    Graph

    Raises
    ------
    NotStreamableError
        When the network cannot be traced, takes more than one image, has layers that do not fit each other, or has no local part worth
        streaming.
    OtherChannels
        When it takes no image of `channels` channels.
    """
    refuse_hooks(module)
    title = type(module).__name__
    counts = _counts(module) if channels is None else [channels]
    calls, root, known = trace(module, counts if channels is not None else [*_first_layer(module), *counts], exported)
    images = [node for node in calls.nodes if node.op == "placeholder" and not node.args and node.type is not type(None)]
    if len(images) != 1:
        raise NotStreamableError(f"{title} takes {len(images)} inputs: only networks of one image can be streamed")
    # torch.export dissolves every layer, also those of the head
    dissolved = {} if root is module else dict(module.named_modules())
    refusals: list[tuple[int, Exception]] = []  # with the number of calls that were lowered
    for count in counts if known is None else (known,):
        lowering = Lowering(root, calls, title, modules=dict(dissolved))
        try:
            lowering.walk(images[0], count)
            graph = divide(lowering, reduce)
            refuse_hooks(module, graph)
            return graph if root is module else replace(graph, tracer="torch.export")
        except (OtherChannels, NotStreamableError) as refusal:
            refusals.append((len(lowering.known), refusal))
        if sum(isinstance(refusal, NotStreamableError) for _, refusal in refusals) == _REFUSALS:
            break
    # the number of channels that the network takes gets furthest
    furthest = max(refusals, key=lambda r: (r[0], isinstance(r[1], NotStreamableError)))[1]
    if channels is None and isinstance(furthest, OtherChannels):
        raise NotStreamableError(f"{title} cannot be streamed: {furthest}") from None
    raise furthest


def _first_layer(module: nn.Module) -> list[int]:
    """Channels that the first layer which says so takes: the likeliest of the image, where each trial is costly."""
    for layer in module.modules():
        count = getattr(layer, "in_channels", None) or getattr(layer, "num_features", None)
        if isinstance(layer, nn.Conv2d | nn.modules.batchnorm._BatchNorm) and count:
            return [count]
    return []


def _counts(module: nn.Module) -> list[int]:
    """Numbers of channels that an image may have: the usual ones, then lengths that the network's tensors have, then all others."""
    tensors = (*module.parameters(), *module.buffers())
    lengths = {n for t in tensors if not nn.parameter.is_lazy(t) for n in t.shape if n < _MOST_CHANNELS}
    return list(dict.fromkeys([3, 1, 4, 2, *sorted(lengths - {0}), *range(1, _MOST_CHANNELS)]))
