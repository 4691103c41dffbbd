"""Capture of a network as a graph of values, split into a local body, which streams, and a head, which runs once.

`torch.fx` traces the network; every call is lowered to an operation where it is local (see `ops`). The cut is the set of local
values that calls which are not local use; a global pooling there becomes a running reduction, so that the map is never held.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from streamview.errors import NotStreamableError
from streamview.streaming.ops import Local, NotLocal, Op, Reduction, Value, Weight, lower
from streamview.streaming.ops.combine import Add
from streamview.streaming.ops.pointwise import BatchNorm, Rectified, Relu
from streamview.streaming.ops.window import Convolution

__all__ = ["Node", "Program", "Sink", "capture", "refuse_hooks"]

_MOST_CHANNELS = 129
_SHAPE_QUERIES = {"size", "dim", "ndim", "shape", "dtype", "device"}


@dataclass(frozen=True, slots=True)
class Node:
    """One operation of the local body; node ``i`` makes value ``i + 1``, value 0 being the image.

    Parameters
    ----------
    name
        Path of the module (or name of the call) for messages.
    op
        The operation.
    inputs, weights
        Values and weights it reads, by index.
    """

    name: str
    op: Op
    inputs: tuple[int, ...]
    weights: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sink:
    """A value handed to the head.

    Parameters
    ----------
    value
        The value.
    kind
        ``"map"`` (assembled whole), ``"mean"``, ``"sum"``, ``"max"`` (running reductions) or ``"shape"`` (only its shape is asked).
    keepdim
        Whether a reduction keeps its two dimensions of length one.
    """

    value: int
    kind: str
    keepdim: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A captured network.

    Parameters
    ----------
    nodes
        The local body in topological order.
    sinks
        What the head takes, in the order of its arguments.
    head
        The rest of the network, a module over the sinks.
    weights
        Tensors of the body, each read anew at every call.
    channels
        Channels of every value.
    modules
        Submodules that the body replaces, by path; hooks on them would be skipped.
    """

    nodes: tuple[Node, ...]
    sinks: tuple[Sink, ...]
    head: nn.Module
    weights: tuple[Weight, ...]
    channels: tuple[int, ...]
    modules: Mapping[str, nn.Module]

    def with_channels(self, image: int) -> Program | None:
        """The same program for an image of so many channels; None where it does not fit."""
        channels = _channels(self.nodes, self.weights, image)
        return None if channels is None else replace(self, channels=channels)

    @property
    def inputs(self) -> list[tuple[int, ...]]:
        """Values that each node reads."""
        return [node.inputs for node in self.nodes]


class _Body:
    """The local body while it is being captured: nodes, and which fx node stands for which value."""

    def __init__(self) -> None:
        self.nodes: list[tuple[str, Op, tuple[int, ...], tuple[Weight, ...]]] = []
        self.values: dict[fx.Node, int] = {}
        self.reductions: dict[fx.Node, Reduction] = {}
        self.refusals: dict[fx.Node, str] = {}
        self.modules: dict[str, nn.Module] = {}

    def add(self, name: str, local: Local) -> int:
        """Append an operation and return the value that it makes."""
        self.nodes.append((name, local.op, tuple(v.index for v in local.inputs), local.weights))
        return len(self.nodes)


class _Proxy(fx.Proxy):
    """A proxy for which ``a += b`` is recorded as what it is, a change of a in place."""


def _augmented(function: Callable[[Any, Any], Any]) -> Callable[[_Proxy, Any], Any]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _function in (operator.iadd, operator.isub, operator.imul, operator.itruediv):
    setattr(_Proxy, f"__{_function.__name__}__", _augmented(_function))


class _Tracer(fx.Tracer):
    """Records in-place arithmetic, and refuses contexts inside the network, which a trace would forget."""

    def __init__(self) -> None:
        super().__init__()
        self._contexts = _contexts()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _contexts() != self._contexts:
            raise NotStreamableError(
                "the network switches gradients or autocast within itself: freeze by requires_grad, and put autocast around the call"
            )
        return super().create_node(*args, **kwargs)


def _contexts() -> tuple[bool, ...]:
    return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


def refuse_hooks(module: nn.Module, program: Program | None = None) -> None:
    """Raise where hooks would be skipped: on containers, which a trace dissolves, and on layers that the body of a program replaces.

    Hooks of weight and spectral norm are run instead.

    Raises
    ------
    NotStreamableError
        Naming the module.
    """
    tracer = fx.Tracer()
    replaced = dict(program.modules) if program is not None else {}
    replaced.update((path, m) for path, m in module.named_modules() if not path or not tracer.is_leaf_module(m, path))
    for path, replacement in replaced.items():
        found = [*replacement._forward_hooks.values(), *replacement._backward_hooks.values(), *replacement._backward_pre_hooks.values()]
        for hook in replacement._forward_pre_hooks.values():
            if type(hook).__module__ in ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm"):
                hook(replacement, ())
            else:
                found.append(hook)
        if found:
            name = path or type(module).__name__
            raise NotStreamableError(f"{name} has a hook, which streaming would skip: remove it, or hook `cut` of the streamed module")


def capture(module: nn.Module, *, reduce: bool = True) -> Program:
    """Capture a network in its present mode.

    Parameters
    ----------
    module
        Any module that torch.fx can trace, taking one image (N, C, H, W).
    reduce
        Whether a global pooling at the cut is streamed; if not, the map before it is handed to the head.

    Returns
    -------
    Program

    Raises
    ------
    NotStreamableError
        When the network cannot be traced, takes more than one image, or has no local part worth streaming.
    """
    refuse_hooks(module)
    try:
        graph = _Tracer().trace(module)
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise NotStreamableError(
            f"{type(module).__name__} cannot be traced: {str(error).splitlines()[0]}. Control flow that depends on the image keeps a "
            "network from being streamed; stream a submodule without it"
        ) from error
    images = [node for node in graph.nodes if node.op == "placeholder" and not node.args and node.type is not type(None)]
    if len(images) != 1:
        raise NotStreamableError(f"{type(module).__name__} takes {len(images)} inputs: only networks of one image can be streamed")
    body = _lower_body(module, graph, images[0])
    if not reduce:
        body.reductions.clear()
    return _finish(module, graph, body)


def _lower_body(module: nn.Module, graph: fx.Graph, image: fx.Node) -> _Body:
    """Walk the graph and lower every call that is local."""
    body = _Body()
    body.values[image] = 0
    constants = _constants(module, graph)
    slices: dict[int, int] = {}  # value that may share memory -> the value it shares it with
    spoilt: dict[int, str] = {}  # value that the head changes in place -> the call that does
    for node in graph.nodes:
        if node.op not in ("call_module", "call_function", "call_method") or node in constants:
            continue
        if not any(source in body.values for source in node.all_input_nodes):
            continue
        target: Any = module.get_submodule(node.target) if node.op == "call_module" else node.target
        name = str(node.target) if node.op == "call_module" else _path(node)
        try:
            if not all(source in body.values or source in constants for source in node.all_input_nodes):
                raise NotLocal("it joins a map with the result of a layer that needs the whole map")
            operands: Any = {s: Value(body.values[s]) if s in body.values else _constant(constants[s]) for s in node.all_input_nodes}
            args: Any = fx.node.map_arg(node.args, operands.__getitem__)
            kwargs: Any = fx.node.map_arg(node.kwargs, operands.__getitem__)
            lowered = lower(target, args, kwargs)
        except NotLocal as reason:
            body.refusals[node] = f"{name}: {reason}"
            if node.args and node.args[0] in body.values and _in_place(node, target):
                spoilt[body.values[node.args[0]]] = name
            continue
        late = next((spoilt[body.values[s]] for s in node.all_input_nodes if s in body.values and body.values[s] in spoilt), None)
        if late is not None:
            raise NotStreamableError(f"{late} changes a value in place that {name} reads: do not do it in place")
        if isinstance(lowered, Reduction):
            body.reductions[node] = lowered
            continue
        if node.op == "call_module":
            body.modules[name] = target
        changed = body.values.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        body.values[node] = lowered.index if isinstance(lowered, Value) else body.add(name, lowered)
        if target in (operator.getitem, "contiguous") and isinstance(lowered, Local):
            slices[body.values[node]] = lowered.inputs[0].index
        if changed not in (None, body.values[node]) and _in_place(node, target):
            read = {body.values.get(source) for reader in body.refusals for source in reader.all_input_nodes}
            if changed in slices or changed in slices.values() or changed in read:
                raise NotStreamableError(
                    f"{name} changes a value in place that shares memory with a slice, or that the head reads too: do not do it in place"
                )
            # whoever reads the old value afterwards sees the changed one, as in plain torch
            body.values.update({n: body.values[node] for n, value in body.values.items() if value == changed})
    return body


def _constant(read: Callable[[], Any]) -> Any:
    """A weight, or the value itself where it is no tensor, such as a size of one."""
    value = read()
    return Weight(read) if isinstance(value, Tensor) else value


def _path(node: fx.Node) -> str:
    """Where a function was called: the path of the module around it, and its name."""
    stack = node.meta.get("nn_module_stack")
    inside = next(reversed(stack.values()))[0] if stack else ""
    return f"{inside}.{node.name}" if inside else node.name


def _in_place(node: fx.Node, target: Any) -> bool:
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if isinstance(target, nn.Module):
        return bool(getattr(target, "inplace", False))
    augmented = target in (operator.iadd, operator.isub, operator.imul, operator.itruediv)
    return augmented or bool(node.kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__"))


def _constants(module: nn.Module, graph: fx.Graph) -> dict[fx.Node, Callable[[], Any]]:
    """Every node that does not depend on an input, with the function that evaluates it anew."""
    constants: dict[fx.Node, Callable[[], Any]] = {}

    def evaluate(node: fx.Node) -> Any:
        target: Any = node.target
        if node.op == "get_attr":
            return operator.attrgetter(target)(module)
        if node.op == "placeholder":
            return node.args[0]
        args: Any = fx.node.map_arg(node.args, evaluate)
        kwargs: Any = fx.node.map_arg(node.kwargs, evaluate)
        if node.op == "call_module":
            return module.get_submodule(target)(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)

    for node in graph.nodes:
        given = node.op == "get_attr" or (node.op == "placeholder" and node.args)
        if given or (node.op.startswith("call_") and all(s in constants for s in node.all_input_nodes)):
            constants[node] = partial(evaluate, node)
    return constants


def _finish(module: nn.Module, graph: fx.Graph, body: _Body) -> Program:
    """Split at the cut: sinks, head, then the body's nodes that lead to a sink."""
    constants = _constants(module, graph)
    live = _live(module, graph, body, constants)
    head_graph, sinks = fx.Graph(), {}
    for node in graph.nodes:
        if node in body.reductions:
            reduction = body.reductions[node]
            if any(user in live for user in node.users):
                sinks[node] = Sink(reduction.value.index, reduction.kind, reduction.keepdim)
        elif node in body.values:
            readers = [user for user in node.users if user in live]
            if readers:
                sinks[node] = Sink(body.values[node], "shape" if all(map(_asks_shape, readers)) else "map")
    if not body.nodes or not sinks:
        reason = next(iter(body.refusals.values()), "it has no convolution or pooling")
        raise NotStreamableError(f"{type(module).__name__} cannot be streamed: {reason}")
    # one argument for each distinct sink: fx nodes that stand for the same value share it
    distinct = list(dict.fromkeys(sinks.values()))
    arguments = [head_graph.placeholder(f"cut{index}") for index in range(len(distinct))]
    crossing: dict[fx.Node, Any] = {node: arguments[distinct.index(sink)] for node, sink in sinks.items()}
    for node in graph.nodes:
        if node.op == "placeholder" and node in constants:
            crossing[node] = node.args[0]
        elif node in live:
            crossing[node] = head_graph.node_copy(node, lambda source: crossing[source])
    head = fx.GraphModule(module, head_graph, class_name="Head")

    nodes, kept = _fuse(body, [sink.value for sink in distinct])
    renumber = {0: 0, **{old: new + 1 for new, old in enumerate(kept)}}
    weights = list(dict.fromkeys(weight for _, _, _, ws in nodes for weight in ws))
    program_nodes = tuple(
        Node(name, op, tuple(renumber[v] for v in inputs), tuple(weights.index(w) for w in ws)) for name, op, inputs, ws in nodes
    )
    program_sinks = tuple(Sink(renumber[sink.value], sink.kind, sink.keepdim) for sink in distinct)
    tried = (_channels(program_nodes, weights, image) for image in (3, 1, 2, *range(4, _MOST_CHANNELS)))
    channels = next((found for found in tried if found is not None), None)
    if channels is None:
        raise NotStreamableError(f"{type(module).__name__} fits no image of fewer than {_MOST_CHANNELS} channels")
    program = Program(program_nodes, program_sinks, head, tuple(weights), channels, body.modules)
    for node, sink in sinks.items():
        reasons = [
            body.refusals[user] for user in node.users if user in body.refusals and not _shrinks(module, user) and not _asks_shape(user)
        ]
        if sink.kind == "map" and reasons and _share_of_image(program, renumber[sink.value]) >= 1:
            raise NotStreamableError(
                f"{type(module).__name__} cannot be streamed: {reasons[0]}; the whole map it needs is no smaller than the image itself"
            )
    return program


def _shrinks(module: nn.Module, node: fx.Node) -> bool:
    """Whether a call makes a whole map small at once, so that it is worth assembling whatever its size."""
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), _POOLS | nn.Flatten)
    name = str(getattr(node.target, "__name__", node.target))
    return name.startswith("adaptive_") or name in ("mean", "sum", "amax", "amin") or (name == "flatten" and node.args[1:] == (1,))


_POOLS = nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d


def _share_of_image(program: Program, value: int) -> float:
    """Elements of a value for each element of the image."""
    area = [1]
    for node in program.nodes:
        area.append(area[node.inputs[0]] * node.op.rows.stride * node.op.cols.stride)
    return program.channels[value] / area[value] / program.channels[0]


def _live(module: nn.Module, graph: fx.Graph, body: _Body, constants: Mapping[fx.Node, Any]) -> set[fx.Node]:
    """The calls that the head makes: those that the output, a change in place or a module's own state depends on."""
    live: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node in body.values or node in body.reductions or node.op == "placeholder":
            continue
        effect = node.op in ("output", "call_module") and node not in constants
        target = module.get_submodule(str(node.target)) if node.op == "call_module" else node.target
        if effect or (node not in constants and _in_place(node, target)) or any(user in live for user in node.users):
            live.add(node)
    return live


def _asks_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _SHAPE_QUERIES
    return node.op == "call_function" and node.target is getattr and node.args[1] in _SHAPE_QUERIES


_Raw = tuple[str, Op, tuple[int, ...], tuple[Weight, ...]]


def _fuse(body: _Body, wanted: Sequence[int]) -> tuple[list[_Raw], list[int]]:
    """Drop what no sink needs, fold BatchNorm into the convolution before it, and let ReLU act in place on the value before it.

    Folding ``w' = w * s, b' = (b - mean) * s + shift`` with ``s = scale / sqrt(variance + eps)`` is part of the weights' own
    autograd graph, so the gradients of all of them stay exact.
    """
    nodes: dict[int, _Raw] = {index + 1: node for index, node in enumerate(body.nodes)}
    needed = set(wanted)
    for index in reversed(nodes):
        if index in needed:
            needed.update(nodes[index][2])
    nodes = {index: node for index, node in nodes.items() if index in needed}
    readers = {index: [i for i, node in nodes.items() if index in node[2]] for index in needed}
    for index in sorted(nodes):
        _, op, inputs, weights = nodes[index]
        before = nodes.get(inputs[0])
        if before is None or readers[inputs[0]] != [index] or inputs[0] in wanted:
            continue
        source_name, source, source_inputs, source_weights = before
        if isinstance(op, BatchNorm) and isinstance(source, Convolution):
            nodes[index] = (source_name, source, source_inputs, _folded(source_weights, weights, op.eps))
        elif isinstance(op, Relu) and isinstance(source, Convolution | BatchNorm | Add):
            rectified: Op = Rectified(source)
            nodes[index] = (source_name, rectified, source_inputs, source_weights)
        else:
            continue
        del nodes[inputs[0]]
        for value in source_inputs:
            readers[value] = [index if i == inputs[0] else i for i in readers[value]]
    kept = sorted(nodes)
    return [nodes[index] for index in kept], kept


def _folded(convolution: Sequence[Weight], norm: Sequence[Weight], eps: float) -> tuple[Weight, Weight]:
    """Kernel and bias of a convolution that includes the normalisation behind it."""

    def scale() -> Tensor:
        found = torch.rsqrt(norm[1].read() + eps)
        return found * norm[2].read() if len(norm) > 2 else found

    def kernel() -> Tensor:
        found = convolution[0].read()
        return (found * scale()[:, None, None, None]).to(found.dtype)

    def bias() -> Tensor:
        shift = -norm[0].read() if len(convolution) < 2 else convolution[1].read() - norm[0].read()
        shift = shift * scale()
        return (shift + norm[3].read() if len(norm) > 2 else shift).to(convolution[0].read().dtype)

    return Weight(kernel), Weight(bias)


def _channels(nodes: Sequence[Node], weights: Sequence[Weight], image: int) -> tuple[int, ...] | None:
    """Channels of every value for an image of so many; None where a convolution or normalisation takes another number."""
    channels = [image]
    for node in nodes:
        op = node.op.inner if isinstance(node.op, Rectified) else node.op
        found = [channels[v] for v in node.inputs]
        if isinstance(op, Convolution) and weights[node.weights[0]].read().shape[1] * op.groups != found[0]:
            return None
        if isinstance(op, BatchNorm) and weights[node.weights[0]].read().shape[0] != found[0]:
            return None
        channels.append(op.channels(found))
    return tuple(channels)
