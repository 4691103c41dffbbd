"""Capture of a network: which of its calls are local and stream, which reduce a map, and which the head makes once.

The graph of calls (see `trace`) is walked once, and every call is lowered to an operation where it is local (see `lowering`). A call
on reductions of maps whose result a later local call needs becomes part of a *bridge* between two passes. What is left is the head
(see `division`).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.prune import BasePruningMethod

from streamview.errors import NotStreamableError
from streamview.streaming.capture.calls import Constants
from streamview.streaming.capture.check import check as compare
from streamview.streaming.capture.division import divide
from streamview.streaming.capture.fingerprint import Fingerprint
from streamview.streaming.capture.intact import state_restored
from streamview.streaming.capture.lowering import Lowering
from streamview.streaming.capture.trace import is_container, trace
from streamview.streaming.graph import Graph
from streamview.streaming.ops import OtherChannels

__all__ = ["Captures", "capture", "refuse_hooks"]

_MOST_CHANNELS = 129
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks")
_WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
    "AveragedModel": "module",
    "ModelEma": "module",
    "ModelEmaV2": "module",
    "ModelEmaV3": "module",
    "OptimizedModule": "_orig_mod",
}
_REFUSALS = 16  # numbers of channels that are tried where a layer refuses for another reason


def refuse_hooks(module: nn.Module, graph: Graph | None = None) -> None:
    """Raise where hooks would be skipped: global ones, on containers, which a trace dissolves, and on layers that a graph's nodes replace.

    Hooks of weight and spectral norm are run instead.

    Raises
    ------
    NotStreamableError
        Naming the module.
    """
    _refuse_wrappers(module)
    if any(not _observes(hook) for hooks in _GLOBAL_HOOKS for hook in getattr(nn.modules.module, hooks).values()):
        raise NotStreamableError(
            "a global hook of all modules is registered (torch.nn.modules.module.register_module_...), which streaming would skip: remove "
            "it while the network is streamed, or hook `cut` of the streamed module"
        )
    replaced = dict(graph.modules) if graph is not None else {}
    replaced.update((path, m) for path, m in module.named_modules() if is_container(m, path))
    for path, replacement in replaced.items():
        found = [*replacement._forward_hooks.values(), *replacement._backward_hooks.values(), *replacement._backward_pre_hooks.values()]
        for hook in replacement._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod):
                name = path or type(module).__name__
                raise NotStreamableError(
                    f"{name} is pruned by a hook of torch.nn.utils.prune, which streaming would skip: make the pruning permanent by "
                    f'torch.nn.utils.prune.remove(layer, "{hook._tensor_name}") for every pruned layer'
                )
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


def _state_restored(capture: Callable[..., Graph]) -> Callable[..., Graph]:
    """Leave what layers in training mode advance at every call, such as a spectral norm's power iteration, as it was."""

    @functools.wraps(capture)
    def restored(module: nn.Module, **options: Any) -> Graph:
        with state_restored(module):
            return capture(module, **options)

    return restored


def _observes(hook: Callable[..., Any]) -> bool:
    """Whether a global hook is one by which torch itself counts and names modules, such as that of FlopCounterMode."""
    return (getattr(hook, "__module__", None) or type(hook).__module__).startswith(("torch.utils.", "torch.distributed._tools."))


def _refuse_wrappers(module: nn.Module) -> None:
    """Raise where a network is inside something that runs it in another way."""
    for path, part in module.named_modules():
        names = {base.__name__ for base in type(part).__mro__}
        kind, attribute = next(((kind, inner) for kind, inner in _WRAPPERS.items() if kind in names), ("", ""))
        if kind and isinstance(getattr(part, attribute, None), nn.Module):
            remedy = f"give the network inside, its .{attribute}" if not path else f"put {path}.{attribute} in its place"
            raise NotStreamableError(f"{path or 'the network'} is inside {kind}, which runs it in its own way: {remedy}")
        if isinstance(part, torch.jit.ScriptModule):
            raise NotStreamableError(
                f"{path or 'the network'} was compiled by torch.jit, which cannot be captured: give the nn.Module that it was made from"
            )


@functools.cache
def _one_thread_after_a_fork() -> None:
    """Have processes that are forked from this one compute with one thread: torch waits for ever for threads that a fork does not copy."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))


@_state_restored
def capture(module: nn.Module, *, channels: int | None = None, reduce: bool = True, check: bool = False, exported: bool = False) -> Graph:
    """Capture a network in its present mode.

    Parameters
    ----------
    module
        Any module of one image (N, C, H, W) that torch.fx or torch.export can trace.
    channels
        Of the image; None: the number that fits, three if any does.
    reduce
        Whether a global pooling at the cut is streamed; if not, the map before it is handed to the head.
    check
        Whether the capture is compared with the network itself on a small image (see `check`).
    exported
        Whether to use torch.export without trying torch.fx.

    Returns
    -------
    Graph

    Raises
    ------
    NotStreamableError
        When the network cannot be traced, takes more than one image, has layers that do not fit each other, has no local part worth
        streaming, or differs from its capture.
    OtherChannels
        When it takes no image of `channels` channels.
    """
    _one_thread_after_a_fork()
    refuse_hooks(module)
    title = type(module).__name__
    counts = _counts(module) if channels is None else [channels]
    calls, root, known, frozen = trace(module, counts if channels is not None else [*_first_layer(module), *counts], exported)
    images = _images(calls)
    if len(images) != 1:
        raise NotStreamableError(f"{title} takes {len(images)} inputs: only networks of one image can be streamed")
    refusals: list[tuple[int, Exception]] = []  # with the number of calls that were lowered
    untouched, constants = _copied(calls), Constants(root, calls)
    for count in counts if known is None else (known,):
        lowering = _lowering(module, root, calls, constants)
        try:
            graph = _divided(module, lowering, count, reduce)
        except (OtherChannels, NotStreamableError) as refusal:
            refusals.append((len(lowering.known), refusal))
            if lowering.rewired:
                calls = _copied(untouched)
                constants = Constants(root, calls)
            if sum(isinstance(other, NotStreamableError) for _, other in refusals) == _REFUSALS:
                break
            continue
        graph = replace(graph, frozen=frozen, tracer="torch.fx" if root is module else "torch.export")
        if not check:
            return replace(graph, unchecked="not asked for")

        def again(twin: nn.Module, twin_root: nn.Module, count: int = count) -> Graph:
            copied = _copied(untouched)
            return _divided(twin, _lowering(twin, twin_root, copied, Constants(twin_root, copied)), count, reduce)

        return replace(graph, unchecked=compare(module, root, graph, again))
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


def _images(calls: fx.Graph) -> list[fx.Node]:
    """The inputs without a default."""
    return [node for node in calls.nodes if node.op == "placeholder" and not node.args and node.type is not type(None)]


def _copied(calls: fx.Graph) -> fx.Graph:
    """The same calls: a walk over them may change which reads which."""
    copied = fx.Graph()
    copied.output(copied.graph_copy(calls, {}))
    return copied


def _lowering(module: nn.Module, root: nn.Module, calls: fx.Graph, constants: Constants) -> Lowering:
    """The walk over the calls of a network."""
    # torch.export dissolves every layer, also those of the head
    dissolved = {} if root is module else dict(module.named_modules())
    return Lowering(root, calls, type(module).__name__, constants, modules=dissolved)


def _divided(module: nn.Module, lowering: Lowering, channels: int, reduce: bool) -> Graph:
    """Lower and divide the calls of a network."""
    lowering.walk(_images(lowering.calls)[0], channels)
    graph = divide(lowering, reduce)
    refuse_hooks(module, graph)
    return graph


@dataclass(slots=True)
class Captures:
    """The last capture of a network, used again while nothing that it depends on has changed."""

    _last: tuple[Any, Fingerprint, Graph] | None = None

    def __reduce__(self) -> tuple[type[Captures], tuple[()]]:
        """Copies begin anew: a capture refers to the very network."""
        return Captures, ()

    def graph(self, module: nn.Module, *, channels: int | None = None, reduce: bool = True, check: bool = True) -> Graph:
        """As `capture`, which runs only where the network is another one, or was changed: a layer, a mode, an attribute of its own."""
        if self._last is not None:
            key, fingerprint, graph = self._last
            if key == (reduce, check) and channels in (None, graph.channels[0]) and fingerprint.fits(module):
                return graph
        graph = capture(module, channels=channels, reduce=reduce, check=check)
        # taken afterwards, since a trace may leave its mark on the network
        self._last = (reduce, check), Fingerprint.of(module, graph.frozen), graph
        return graph
