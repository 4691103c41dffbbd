"""The lowered calls of a network divided: bridges behind each pass, the head, and the operations that lead to what these take."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from streamview.errors import NotStreamableError, RegionError
from streamview.streaming.capture.calls import asks_shape, asserts, in_place, name_of, path_of, picks
from streamview.streaming.capture.lowering import Lowering, values_of
from streamview.streaming.capture.nominal import shaped
from streamview.streaming.graph import Bridge, Graph, Key, Node, Sink, bind
from streamview.streaming.ops import Statistic, Value, Weight
from streamview.streaming.ops.combine import Add
from streamview.streaming.ops.layouts import is_canonical, to_layout
from streamview.streaming.ops.pointwise import BatchNorm, Rectified, Relu
from streamview.streaming.ops.reshape import reduced
from streamview.streaming.ops.window import Convolution, MaxPool

__all__ = ["divide"]

_Node = Node[Weight | Statistic]
_EMBEDDING = 2  # operations of a patch embedding: a convolution and a normalisation


def divide(capture: Lowering, reduce: bool) -> Graph:
    """Divide the lowered calls.

    Parameters
    ----------
    capture
        After its walk.
    reduce
        Whether reductions that only the head reads are streamed; if not, it gets the maps before them.

    Raises
    ------
    NotStreamableError
        When nothing is worth streaming.
    """
    inner = _inner(capture, _live(capture))
    if not reduce:
        capture.reductions = {node: found for node, found in capture.reductions.items() if node in inner}
    live = _live(capture)
    phases = [capture.results[node].phase for node in inner]
    passes = max(phases, default=-1) + 1
    parts = [[node for node in capture.calls.nodes if node in inner and capture.results[node].phase == phase] for phase in range(passes)]
    bridges = [_bridge(capture, part, inner, live) for part in parts]
    head = _head(capture, live - inner)
    sinks = dict.fromkeys(key for bridge in (*bridges, head) for key in bridge.takes if isinstance(key, Sink))
    if not capture.nodes or not any(sink.kind != "shape" for sink in sinks):
        reason = next(iter(capture.refusals.values()), "it has no convolution or pooling")
        raise NotStreamableError(f"{capture.title} cannot be streamed: {reason}")

    crossing = {v for index, node in enumerate(capture.nodes) for v in node.inputs if capture.phases[v] < capture.phases[index + 1]}
    # folding reads a kernel twice, which would advance the state of a parametrization (spectral norm) twice a call
    advancing = {name for name, layer in capture.modules.items() if layer.training and is_parametrized(layer)}
    nodes = _fuse(capture.nodes, {sink.value for sink in sinks if sink.kind != "shape"}, crossing, advancing)
    operands = list(dict.fromkeys(weight for node in nodes.values() for weight in node.weights))
    number = {weight: index for index, weight in enumerate(operands)}

    def numbered(node: _Node) -> Node[int]:
        return Node(node.name, node.op, node.inputs, tuple(number.get(w, 0) for w in node.weights))

    graph = Graph(
        lowered=tuple(map(numbered, capture.nodes)),
        nodes={value: numbered(node) for value, node in nodes.items()},
        channels=tuple(capture.channels),
        phases=tuple(capture.phases),
        operands=tuple(operands),
        bridges=tuple(bridges),
        head=head,
        modules=capture.modules,
        refusals=tuple(capture.refusals[n] for n in capture.refusals if not asks_shape(n)),
    )
    _refuse_large_maps(capture, graph, live | inner)
    return graph


def _inner(capture: Lowering, live: set[fx.Node]) -> set[fx.Node]:
    """The calls between passes: those that feed a statistic the output depends on."""
    inner: set[fx.Node] = set()
    while True:
        used = _used(capture, live | inner)
        feeding = _feeding(capture, {w.name for v in used for w in capture.nodes[v - 1].weights if isinstance(w, Statistic)})
        if feeding <= inner:
            return inner
        inner |= feeding


def _used(capture: Lowering, calls: set[fx.Node]) -> set[int]:
    """Values that these calls read, and those that they are made of, but for the image."""
    sources = [s for node in calls if not asks_shape(node) for s in node.all_input_nodes]
    pending = [value.index for s in sources for value in values_of(capture.known.get(s))]
    pending += [capture.reductions[s].value.index for s in sources if s in capture.reductions]
    found: set[int] = set()
    while pending:
        index = pending.pop()
        if index and index not in found:
            found.add(index)
            pending += capture.nodes[index - 1].inputs
    return found


def _feeding(capture: Lowering, statistics: set[str]) -> set[fx.Node]:
    """The calls on gathered tensors that statistics come from."""
    found: set[fx.Node] = set()
    for node in reversed(capture.calls.nodes):
        if node in capture.results and (node.name in statistics or any(user in found for user in node.users)):
            found.add(node)
    return found


def _live(capture: Lowering) -> set[fx.Node]:
    """The calls that the head makes: those that the output, a change in place or a module's own state depends on."""
    live: set[fx.Node] = set()
    for node in reversed(capture.calls.nodes):
        streamed = node in capture.reductions or values_of(capture.known.get(node))
        if streamed or node.op == "placeholder":
            continue
        effect = (node.op in ("output", "call_module") or (asserts(node) and node in capture.refusals)) and node not in capture.constants
        target = capture.root.get_submodule(str(node.target)) if node.op == "call_module" else node.target
        # a constant that is changed in place and not used is a count that the network keeps
        changes = in_place(node, target) and not (node in capture.constants and node.users)
        if effect or (node.op != "get_attr" and changes) or any(user in live for user in node.users):
            live.add(node)
    return live


class _Writer:
    """A graph of calls on gathered tensors while it is written; what it takes becomes its arguments."""

    def __init__(self, capture: Lowering, inside: set[fx.Node]) -> None:
        self.capture, self.inside = capture, inside
        self.graph = fx.Graph()
        self.takes: dict[Key, fx.Node] = {}
        self.copies: dict[fx.Node, Any] = {}

    def argument(self, key: Key) -> fx.Node:
        if key not in self.takes:
            last = next(reversed(self.takes.values())) if self.takes else None
            with self.graph.inserting_after(last) if last else self.graph.inserting_before(next(iter(self.graph.nodes), None)):
                self.takes[key] = self.graph.placeholder(f"cut{len(self.takes)}")
        return self.takes[key]

    def copy(self, node: fx.Node) -> Any:
        """What stands for a call here: an argument, or a copy of the call."""
        if node not in self.copies:
            self.copies[node] = self._copy(node)
        return self.copies[node]

    def _copy(self, node: fx.Node) -> Any:
        capture = self.capture
        if node.op == "placeholder" and node in capture.constants:
            return node.args[0]
        if node in capture.reductions:
            found = capture.reductions[node]
            gathered = self.argument(Sink(found.value.index, found.kind, found.dtype, found.count))
            layout, dropped = reduced(found.value.layout, found.keepdim, found.value.channels)
            if is_canonical(layout) and dropped in ((), (2, 3)):
                return self.graph.call_function(torch.flatten, (gathered, 1)) if dropped else gathered
            return self.graph.call_function(shaped, (gathered, layout, dropped))
        known = capture.known.get(node)
        if values_of(known):
            return self._arguments(known, "shape" if all(map(asks_shape, self._readers(node))) else "map")
        if node in capture.results and node not in self.inside:
            return self.argument(node.name)
        if node in capture.refusals and isinstance(capture.known.get(node.all_input_nodes[0]), tuple) and picks(node):
            raise NotStreamableError(f"{capture.title} cannot be streamed: {capture.refusals[node]}")
        if "retype" in node.meta:
            return self.graph.output(self.graph.call_function(node.meta["retype"], (fx.node.map_arg(node.args[0], self.copy),)))
        return self.graph.node_copy(node, self.copy)

    def _readers(self, node: fx.Node) -> list[fx.Node]:
        """The calls written here that read a value."""
        capture = self.capture
        shape = [user for user in node.users if user in capture.known and not values_of(capture.known[user])]
        return [user for user in node.users if (user in self.inside and user not in capture.reductions) or user in shape]

    def _arguments(self, known: Any, kind: str) -> Any:
        if not isinstance(known, Value):
            return tuple(self._arguments(k, kind) for k in known)
        gathered = self.argument(Sink(known.index, kind))
        if is_canonical(known.layout):
            return gathered
        found = self.graph.call_function(to_layout, (gathered, known.layout))
        # as the network would have it where it asks for a view
        return self.graph.call_method("contiguous", (found,)) if kind == "map" else found

    def bridge(self, gives: Sequence[str] = ()) -> Bridge:
        return Bridge(fx.GraphModule(self.capture.root, self.graph, class_name="Bridge"), tuple(self.takes), tuple(gives))


def _bridge(capture: Lowering, part: Sequence[fx.Node], inner: set[fx.Node], live: set[fx.Node]) -> Bridge:
    """Calls between two passes; it gives what statistics, later bridges or the head need of them."""
    writer = _Writer(capture, set(part))
    statistics = {w.name for made in capture.nodes for w in made.weights if isinstance(w, Statistic)}
    gives: dict[str, Any] = {}
    for node in part:
        copied = writer.copy(node)
        outside = [user for user in node.users if user not in writer.inside and (user in inner or user in live)]
        reduction = node in capture.reductions
        if node.name in statistics or (outside and not reduction):
            gives[node.name] = copied
    writer.graph.output(tuple(gives.values()))
    return writer.bridge(tuple(gives))


def _head(capture: Lowering, live: set[fx.Node]) -> Bridge:
    writer = _Writer(capture, live)
    for node in capture.calls.nodes:
        if node in live:
            writer.copy(node)
    return writer.bridge()


def _fuse(lowered: Sequence[_Node], gathered: set[int], crossing: set[int], unfolded: Collection[str] = ()) -> dict[int, _Node]:
    """Drop what nothing gathered is made of, fold BatchNorm into the convolution before it, and let ReLU act in place on the value
    before it, or on that behind a max-pool.

    Folding ``w' = w * s, b' = (b - mean) * s + shift`` with ``s = scale / sqrt(variance + eps)`` is part of the weights' own
    autograd graph, so the gradients of all of them stay exact.
    """
    needed: set[int] = set()
    for index in range(len(lowered), 0, -1):
        if index in gathered or index in needed:
            needed.add(index)
            needed.update(lowered[index - 1].inputs)
    nodes = {index: node for index, node in enumerate(lowered, 1) if index in needed}
    whole = gathered | crossing  # what a later pass reads is not fused away
    readers = {index: [i for i, node in nodes.items() if index in node.inputs] for index in needed}
    for index in sorted(nodes):
        node = nodes[index]
        source = nodes.get(node.inputs[0])
        if source is None or readers[node.inputs[0]] != [index] or node.inputs[0] in whole:
            continue
        if isinstance(node.op, BatchNorm) and (source.name in unfolded or not all(isinstance(w, Weight) for w in node.weights)):
            continue
        if isinstance(node.op, BatchNorm) and isinstance(source.op, Convolution):
            weights = _folded(source.weights, node.weights, node.op.eps)
            nodes[index] = replace(source, weights=weights)
        elif isinstance(node.op, Relu) and isinstance(source.op, Convolution | BatchNorm | Add):
            nodes[index] = replace(source, op=Rectified(source.op))
        elif isinstance(node.op, MaxPool) and isinstance(source.op, Rectified):
            # the same maximum, rectified where there is less of it
            nodes[node.inputs[0]] = replace(source, op=source.op.inner)
            nodes[index] = replace(node, op=Rectified(node.op))
            continue
        else:
            continue
        del nodes[node.inputs[0]]
        for value in source.inputs:
            readers[value] = [index if i == node.inputs[0] else i for i in readers[value]]
    return nodes


def _folded(convolution: Sequence[Any], norm: Sequence[Any], eps: float) -> tuple[Weight, Weight]:
    """Kernel and bias of a convolution that includes the normalisation behind it."""

    def scale() -> Tensor:
        found: Tensor = torch.rsqrt(norm[1].read() + eps)
        return found * norm[2].read() if len(norm) > 2 else found

    def kernel() -> Tensor:
        found: Tensor = convolution[0].read()
        return (found * scale()[:, None, None, None]).to(found.dtype)

    def bias() -> Tensor:
        shift = -norm[0].read() if len(convolution) < 2 else convolution[1].read() - norm[0].read()
        shift = shift * scale()
        found: Tensor = (shift + norm[3].read() if len(norm) > 2 else shift).to(convolution[0].read().dtype)
        return found

    return Weight(kernel), Weight(bias)


_POOLS = nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d


def _shrinks(module: nn.Module, node: fx.Node) -> bool:
    """Whether a call makes a whole map small at once, so that it is worth assembling whatever its size."""
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), _POOLS | nn.Flatten)
    name = name_of(node)
    return name.startswith("adaptive_") or name in ("mean", "sum", "amax", "amin") or (name == "flatten" and node.args[1:] == (1,))


def _attention(capture: Lowering, live: set[fx.Node]) -> str:
    """Path of the first attention over a map among these calls, if there is any."""
    names = ("scaled_dot_product_attention", "softmax", "Softmax", "MultiheadAttention", "multi_head_attention_forward")
    for node, found in capture.results.items():
        called: Any = type(capture.root.get_submodule(str(node.target))).__name__ if node.op == "call_module" else name_of(node)
        # a softmax over a map itself says better what is wrong
        if node in live and found.whole and called in names and not (node in capture.refusals and called.lower() == "softmax"):
            return path_of(node)
    return ""


def _refuse_large_maps(capture: Lowering, graph: Graph, live: set[fx.Node]) -> None:
    """Refuse a network whose head needs a map as large as the image for a layer that is not local, or is all but the whole network."""
    attention = _attention(capture, live)
    if attention and len(graph.nodes) <= _EMBEDDING:
        raise NotStreamableError(
            f"{capture.title} cannot be streamed: {attention}: attention over the whole image behind nothing but a patch embedding; apply "
            "the network to patches by PatchEncoder"
        )
    maps = {sink.value for sink in graph.sinks if sink.kind == "map"}
    reasons: dict[int, str] = {}
    for node, reason in capture.refusals.items():
        if not _shrinks(capture.root, node) and not asks_shape(node):
            for source in node.all_input_nodes:
                for value in values_of(capture.known.get(source)):
                    reasons.setdefault(value.index, reason)
    for side in (512, 1024, 2048, 4096):
        with contextlib.suppress(RegionError):
            sizes = bind(graph, (side, side)).sizes
            for index in sorted(maps & set(reasons)):
                height, width = sizes[index]
                if graph.channels[index] * height * width >= graph.channels[0] * side * side:
                    raise NotStreamableError(
                        f"{capture.title} cannot be streamed: {reasons[index]}; the whole map it needs is no smaller than the image itself"
                        + (f" (attention in {attention})" if attention else "")
                    )
            return
