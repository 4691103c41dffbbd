"""Capture of a network: which of its calls are local and stream, which reduce a map, and which the head makes once.

The graph of calls (see `trace`) is walked once; every call is lowered to an operation where it is local (see `ops`). A call on
reductions of maps whose result a later local call needs becomes part of a *bridge* between two passes. What is left is the head.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from streamview.errors import NotStreamableError, RegionError
from streamview.streaming.graph import Bridge, Graph, Key, Node, Sink, bind
from streamview.streaming.ops import Extent, Local, NotLocal, Op, OtherChannels, Reduction, Statistic, Value, Weight, computed, lower
from streamview.streaming.ops.combine import Add
from streamview.streaming.ops.layouts import canonical, is_canonical, to_layout
from streamview.streaming.ops.pointwise import BatchNorm, Copy, Rectified, Relu
from streamview.streaming.ops.registry import BATCH, Size, Sized
from streamview.streaming.ops.reshape import reduced
from streamview.streaming.ops.window import Convolution
from streamview.streaming.trace import admit, is_container, trace

__all__ = ["capture", "refuse_hooks"]

_MOST_CHANNELS = 129
_SHAPE_QUERIES = {"size", "dim", "ndim", "shape", "dtype", "device", "sym_size"}
_VIEWS = {
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "getitem", "select", "slice", "narrow", "transpose", "permute",
    "expand", "expand_as", "chunk", "split", "split_with_sizes", "unbind", "detach", "t", "swapaxes", "contiguous", "alias", "view_as",
}  # fmt: skip
_NOMINAL = (10007, 4099, 6151)  # images, height and width where only a shape must be known: primes that no layer has


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
            graph = _Capture(root, calls, type(module).__name__, modules=dissolved).run(images[0], count, reduce)
            refuse_hooks(module, graph)
            return graph if root is module else replace(graph, tracer="torch.export")
    wanted = f"{channels} channels" if channels is not None else f"fewer than {_MOST_CHANNELS} channels"
    raise OtherChannels(f"{type(module).__name__} fits no image of {wanted}")


@dataclass(slots=True)
class _Global:
    """A call on gathered tensors: the pass behind which it can run, and whether it needs a whole map."""

    phase: int
    whole: bool


@dataclass(slots=True)
class _Made:
    """An operation while the graph is captured; its weights themselves."""

    name: str
    op: Op | Sized
    inputs: tuple[int, ...]
    weights: tuple[Weight | Statistic, ...]


@dataclass(slots=True)
class _Capture:
    """One walk over the calls of a network."""

    root: nn.Module
    calls: fx.Graph
    title: str
    made: list[_Made] = field(default_factory=list)
    channels: list[int] = field(default_factory=list)
    phases: list[int] = field(default_factory=list)
    known: dict[fx.Node, Any] = field(default_factory=dict)  # what a call stands for: values, numbers, and tuples of them
    reductions: dict[fx.Node, Reduction] = field(default_factory=dict)
    results: dict[fx.Node, _Global] = field(default_factory=dict)
    refusals: dict[fx.Node, str] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    constants: dict[fx.Node, Callable[[], Any]] = field(default_factory=dict)
    shapes: dict[fx.Node, Any] = field(default_factory=dict)  # results of calls on tensors without memory
    fakes: FakeTensorMode = field(default_factory=lambda: FakeTensorMode(allow_non_fake_inputs=True))

    def run(self, image: fx.Node, channels: int, reduce: bool) -> Graph:
        """Lower every call, then divide the graph."""
        self.constants = _constants(self.root, self.calls)
        self.channels, self.phases = [channels], [0]
        self.known[image] = Value.plain(0, channels)
        self._walk()
        inner = self._inner()
        if not reduce:
            self.reductions = {node: found for node, found in self.reductions.items() if node in inner}
        return _divide(self, inner)

    def _walk(self) -> None:
        slices: dict[int, int] = {}  # value that may share memory -> the value it shares it with
        spoilt: dict[int, str] = {}  # value that the head changes in place -> the call that does
        for node in self.calls.nodes:
            sources = node.all_input_nodes
            if node.op not in ("call_module", "call_function", "call_method") or node in self.constants:
                continue
            target: Any = self.root.get_submodule(node.target) if node.op == "call_module" else node.target
            name = _path(node)
            read = [v.index for s in sources for v in _values(self.known.get(s))]
            if not read and not all(s in self.known or s in self.constants for s in sources):
                self.results[node] = self._result(node)
                self._rename(node, target)
                self._spoil(node, target, slices, spoilt)
                continue
            try:
                lowered = self._lower(node, target)
            except OtherChannels as reason:
                raise OtherChannels(f"{name}: {reason}") from None
            except NotLocal as reason:
                self.refusals[node] = f"{name}: {reason}"
                self.results[node] = self._result(node)
                self._spoil(node, target, slices, spoilt)
                continue
            late = next((spoilt[index] for index in read if index in spoilt), None)
            if late is not None:
                raise NotStreamableError(f"{late} changes a value in place that {name} reads: do not do it in place")
            if isinstance(lowered, Reduction):
                self.reductions[node] = lowered
                self.results[node] = _Global(self.phases[lowered.value.index], False)
                continue
            if node.op == "call_module":
                self.modules[name] = target
            elif "rewritten" in node.meta:
                self.modules[node.meta["rewritten"]] = self.root.get_submodule(node.meta["rewritten"])
            changed = self._changed(node)
            if isinstance(lowered, list):
                self.known[node] = tuple(self._add(name, local, slices) for local in lowered)
            else:
                self.known[node] = self._add(name, lowered, slices) if isinstance(lowered, Local) else lowered
            found = self.known[node]
            if changed is not None and isinstance(found, Value) and found.index != changed and _in_place(node, target):
                self._update(changed, found, slices, node)

    def _lower(self, node: fx.Node, target: Any) -> Any:
        """Lower one call on values or numbers."""
        for source in node.all_input_nodes:
            if source in self.results and (self.results[source].whole or self._shape(source) is None):
                raise NotLocal(f"it joins a map with the result of a layer that needs the whole map{self._cause(source)}")
        operands: Any = {s: self._operand(s) for s in node.all_input_nodes}
        args: Any = fx.node.map_arg(node.args, operands.__getitem__)
        kwargs: Any = fx.node.map_arg(node.kwargs, operands.__getitem__)
        args, kwargs = _plain(args), _plain(kwargs)
        if node.op == "call_module" and node.target == "_guards_fn":
            return _guarded(target, args[0])
        if any(isinstance(operands[s], Value) or _values(operands[s]) for s in operands) and not (
            _picks(node) and isinstance(args[0], tuple)
        ):
            return lower(target, args, kwargs)
        if target is getattr and args[1:] == ("values",):
            return args[0][0]
        if _asserts(node) and not isinstance(args[0], bool):
            raise NotLocal("a condition on the image")
        # numbers and tuples alone
        try:
            return computed(target, args, kwargs)
        except (TypeError, AttributeError, IndexError, RuntimeError, AssertionError) as error:
            raise NotLocal(f"{node.name}: {error}") from None

    def _cause(self, node: fx.Node) -> str:
        """Which call made a result that is not local, and why; in brackets, or nothing."""
        while node not in self.refusals:
            sources = [s for s in node.all_input_nodes if s in self.results]
            if not sources:
                return ""
            node = next((s for s in sources if self.results[s].whole), sources[0])
        reason = self.refusals[node]
        return f" ({reason})" if "(" not in reason else reason[reason.index("(") - 1 :]

    def _operand(self, node: fx.Node) -> Any:
        if node in self.known:
            return self.known[node]
        if node in self.constants:
            value = self.constants[node]()
            return Weight(self.constants[node]) if isinstance(value, Tensor) else value
        fake = self._shape(node)
        if not isinstance(fake, Tensor):
            raise NotLocal(f"{node.name} is a number or tuple that depends on the size of the image")
        return Statistic(node.name, tuple(0 if n == _NOMINAL[0] else n for n in fake.shape))

    def _add(self, name: str, local: Local, slices: dict[int, int]) -> Value:
        """Append an operation and return the value that it makes."""
        self.made.append(_Made(name, local.op, tuple(v.index for v in local.inputs), local.weights))
        first = local.inputs[0]
        channels = first.channels if local.channels is None else local.channels
        layout = local.layout
        if layout is None:
            layout = canonical(channels) if is_canonical(first.layout) else first.layout
        statistics = {w.name for w in local.weights if isinstance(w, Statistic)}
        self.channels.append(channels)
        self.phases.append(
            max(
                [self.phases[v.index] for v in local.inputs]
                + [1 + found.phase for node, found in self.results.items() if node.name in statistics]
            )
        )
        index = len(self.made)
        if local.shares:
            slices[index] = first.index
        return Value(index, channels, layout)

    def _spoil(self, node: fx.Node, target: Any, slices: Mapping[int, int], spoilt: dict[int, str]) -> None:
        """Remember what value the head changes in place, which local calls behind may then not read."""
        changed = self._changed(node)
        if changed is None or not _in_place(node, target):
            return
        if changed in slices or changed in slices.values():
            raise NotStreamableError(f"{_path(node)} changes a value in place that shares memory with a slice: do not do it in place")
        spoilt[changed] = _path(node)

    def _changed(self, node: fx.Node) -> int | None:
        """The value whose memory the first argument of a call is, or is a view of."""
        argument = node.args[0] if node.args else node.kwargs.get("input")
        while isinstance(argument, fx.Node) and argument in self.results and _name(argument) in _VIEWS:
            argument = argument.args[0] if argument.args else argument.kwargs.get("input")
        first = self.known.get(argument) if isinstance(argument, fx.Node) else None
        return first.index if isinstance(first, Value) else None

    def _update(self, changed: int, found: Value, slices: Mapping[int, int], node: fx.Node) -> None:
        """Whoever reads a value that was changed in place sees the changed one, as in plain torch."""
        before = self._until(node)
        # a reduction is done with its map once it has run
        heads = [reader for reader in self.results if reader not in self.reductions]
        read = {v.index for reader in heads for source in reader.all_input_nodes for v in _values(self.known.get(source))}
        later = {v.index for source, known in self.known.items() if not before.issuperset(source.users) for v in _values(known)}
        shared = {index for index in range(len(self.channels)) if _base(index, slices) == _base(changed, slices)}
        if shared & read or (shared - {changed}) & later:
            raise NotStreamableError(
                f"{_path(node)} changes a value in place that shares memory with a slice, or that the head reads too: do not do it in place"
            )
        self.known |= {node: _renumbered(known, changed, found.index) for node, known in self.known.items()}

    def _rename(self, node: fx.Node, target: Any) -> None:
        """Let later calls read what a call changed in place from that call, so that it is made before them wherever they are."""
        changed = node.args[0] if node.args else None
        if isinstance(changed, fx.Node) and changed in self.results and _in_place(node, target):
            before = self._until(node)
            memory = _memory(changed)
            others = (other for other in self.results if other not in (changed, node) and _memory(other) is memory)
            if any(not before.issuperset(other.users) for other in others):
                raise NotStreamableError(f"{_path(node)} changes a tensor in place of which another is a view: do not do it in place")
            for user in [user for user in changed.users if user not in before]:
                user.replace_input_with(changed, node)

    def _until(self, node: fx.Node) -> set[fx.Node]:
        """A call and those before it."""
        return {*itertools.takewhile(lambda other: other is not node, self.calls.nodes), node}

    def _result(self, node: fx.Node) -> _Global:
        """A call that is not local."""
        sources = node.all_input_nodes
        phases = [self.phases[v.index] for s in sources for v in _values(self.known.get(s))]
        phases += [self.results[s].phase for s in sources if s in self.results]
        whole = any(_values(self.known.get(s)) for s in sources) and not _asks_shape(node)
        return _Global(max(phases, default=0), whole or any(self.results[s].whole for s in sources if s in self.results))

    def _shape(self, node: fx.Node) -> Any:
        """The result of a call on gathered tensors, without memory; None where it cannot be known beforehand.

        Only asked for where a local call needs it: modules of the head are not run to find out.
        """
        if node not in self.shapes:
            self.shapes[node] = self._run_without_memory(node)
        return self.shapes[node]

    def _run_without_memory(self, node: fx.Node) -> Any:
        if node in self.reductions:
            found = self.reductions[node]
            layout, dropped = reduced(found.value.layout, found.keepdim, found.value.channels)
            with self.fakes:
                gathered = torch.empty(_NOMINAL[0], found.value.channels, 1, 1, dtype=found.dtype or self._dtype)
                return _shaped(gathered, layout, dropped)
        target: Any = node.target
        if node.op == "call_module":
            target = self._without_effect(self.root.get_submodule(target))
        nominal: Any = {s: self._nominal(s) for s in node.all_input_nodes}
        args: Any = fx.node.map_arg(node.args, nominal.__getitem__)
        kwargs: Any = fx.node.map_arg(node.kwargs, nominal.__getitem__)
        try:
            with self.fakes, torch.no_grad():
                return getattr(args[0], target)(*args[1:], **kwargs) if isinstance(target, str) else target(*args, **kwargs)
        except Exception:  # noqa: BLE001 - whatever fails on a nominal shape is left to the head, which runs on true ones
            return None

    def _without_effect(self, module: nn.Module) -> Callable[..., Any]:
        """A module's forward without its hooks, on tensors without memory, so that running statistics stay as they are."""
        plain = _Plain(module)
        named = (*plain.named_parameters(), *plain.named_buffers())
        tensors: dict[str, Tensor] = {name: self.fakes.from_tensor(tensor.detach()) for name, tensor in named}
        return lambda *args, **kwargs: functional_call(plain, tensors, args, kwargs)

    def _nominal(self, node: fx.Node) -> Any:
        if node in self.constants:
            value = self.constants[node]()
            return self.fakes.from_tensor(value.detach()) if isinstance(value, Tensor) else value
        return self._shape(node) if node in self.results else self._nominal_of(self.known[node])

    def _nominal_of(self, known: Any) -> Any:
        """Something of the kind that is known, of a nominal size."""
        if isinstance(known, Value):
            images, height, width = _NOMINAL
            with self.fakes:
                return to_layout(torch.empty(images, known.channels, height, width, dtype=self._dtype), known.layout)
        if isinstance(known, Extent):
            return _NOMINAL[1 + known.axis]
        if known is BATCH:
            return _NOMINAL[0]
        return tuple(map(self._nominal_of, known)) if isinstance(known, tuple) else known

    @property
    def _dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.root.parameters() if p.is_floating_point()), torch.float32)

    def _inner(self) -> set[fx.Node]:
        """The calls between passes: those that a statistic comes from which something that is needed in the end was made with."""
        inner: set[fx.Node] = set()
        live = _live(self)
        while True:
            used = self._used(live | inner)
            found = self._feeding({w.name for v in used for w in self.made[v - 1].weights if isinstance(w, Statistic)})
            if found <= inner:
                return inner
            inner |= found

    def _used(self, calls: set[fx.Node]) -> set[int]:
        """Values that these calls read, and those that they are made of, but for the image."""
        sources = [s for node in calls if not _asks_shape(node) for s in node.all_input_nodes]
        pending = [value.index for s in sources for value in _values(self.known.get(s))]
        pending += [self.reductions[s].value.index for s in sources if s in self.reductions]
        found: set[int] = set()
        while pending:
            index = pending.pop()
            if index and index not in found:
                found.add(index)
                pending += self.made[index - 1].inputs
        return found

    def _feeding(self, statistics: set[str]) -> set[fx.Node]:
        """The calls on gathered tensors that statistics come from."""
        found: set[fx.Node] = set()
        for node in reversed(self.calls.nodes):
            if node in self.results and (node.name in statistics or any(user in found for user in node.users)):
                found.add(node)
        return found


class _Plain(nn.Module):
    """A module whose own hooks are not run."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.forward(*args, **kwargs)


def _plain(argument: Any) -> Any:
    """The immutable lists and dicts of a graph as ordinary ones."""
    if isinstance(argument, dict):
        return {key: _plain(value) for key, value in argument.items()}
    if isinstance(argument, tuple):
        return tuple(map(_plain, argument))
    return [_plain(a) for a in argument] if isinstance(argument, list) else argument


def _values(known: Any) -> list[Value]:
    """The values in what a call stands for."""
    if isinstance(known, tuple | list):
        return [value for part in known for value in _values(part)]
    return [known] if isinstance(known, Value) else []


def _memory(node: fx.Node) -> fx.Node:
    """The call that made the memory of a result."""
    while isinstance(node.args[0] if node.args else None, fx.Node) and _name(node).removesuffix("_copy") in _VIEWS:
        (node,) = [s for s in node.args[:1] if isinstance(s, fx.Node)]
    return node


def _name(node: fx.Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.split("::")[1]
    return str(getattr(node.target, "__name__", node.target))


def _base(value: int, slices: Mapping[int, int]) -> int:
    """The value that has the memory of this one."""
    while value in slices:
        value = slices[value]
    return value


def _renumbered(known: Any, old: int, new: int) -> Any:
    """What a call stands for, once value `old` is value `new`."""
    if isinstance(known, tuple | list):
        return type(known)(_renumbered(part, old, new) for part in known)
    return replace(known, index=new) if isinstance(known, Value) and known.index == old else known


def _path(node: fx.Node) -> str:
    """Where a call was made: the path of the module, or of the module around a function with the function's name."""
    if node.op == "call_module" or "rewritten" in node.meta:
        return str(node.meta.get("rewritten", node.target))
    stack = node.meta.get("nn_module_stack")
    inside = next(reversed(stack.values()))[0] if stack else ""
    return f"{inside}.{node.name}" if inside else node.name


def _in_place(node: fx.Node, target: Any) -> bool:
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if name in ("setitem", "__setitem__"):
        return True
    if isinstance(target, nn.Module):
        return bool(getattr(target, "inplace", False))
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.is_mutable
    augmented = target in (operator.iadd, operator.isub, operator.imul, operator.itruediv)
    return augmented or bool(node.kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__"))


def _guarded(guards: nn.Module, image: Value) -> Local:
    """A copy of the image that nothing reads; it is made only for the sizes for which torch.export recorded the network."""

    def sized(sizes: Sequence[Size]) -> Op:
        try:
            admit(guards, 2, image.channels, sizes[0])
        except ValueError as error:
            raise RegionError(f"the network was recorded by torch.export, and {error}") from None
        return Copy()

    return Local(sized, (image,))


def _asserts(node: fx.Node) -> bool:
    """Whether a call only raises where the image is not as the network wants it."""
    return node.target in (torch._assert, torch.ops.aten._assert_scalar.default, torch.ops.aten._assert_async.msg)


def _picks(node: fx.Node) -> bool:
    """Whether a call takes one of several results of another."""
    return node.target in (operator.getitem, getattr)


def _asks_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _SHAPE_QUERIES
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.split("::")[1] in _SHAPE_QUERIES
    return node.op == "call_function" and node.target is getattr and node.args[1] in _SHAPE_QUERIES


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


def _shaped(gathered: Tensor, layout: Any, dropped: Sequence[int]) -> Tensor:
    """A reduction (N, C, 1, 1) as the network sees it."""
    found = to_layout(gathered, layout)
    return found.squeeze(tuple(dropped)) if dropped else found


# ------------------------------------------------------------------------------------------------------------------------ division


def _divide(capture: _Capture, inner: set[fx.Node]) -> Graph:
    """Divide the captured calls: bridges behind each pass, the head, and the nodes that lead to what these take."""
    live = _live(capture)
    phases = [capture.results[node].phase for node in inner]
    passes = max(phases, default=-1) + 1
    parts = [[node for node in capture.calls.nodes if node in inner and capture.results[node].phase == phase] for phase in range(passes)]
    bridges = [_bridge(capture, part, inner, live) for part in parts]
    head = _head(capture, live - inner)
    sinks = dict.fromkeys(key for bridge in (*bridges, head) for key in bridge.takes if isinstance(key, Sink))
    if not capture.made or not any(sink.kind != "shape" for sink in sinks):
        reason = next(iter(capture.refusals.values()), "it has no convolution or pooling")
        raise NotStreamableError(f"{capture.title} cannot be streamed: {reason}")

    crossing = {
        v for index, made in enumerate(capture.made) for v in made.inputs if capture.phases[v] < capture.phases[index + 1]
    }  # what a later pass reads is not fused away
    nodes = _fuse(capture.made, {sink.value for sink in sinks} | crossing)
    operands = list(dict.fromkeys(weight for made in nodes.values() for weight in made.weights))
    number = {weight: index for index, weight in enumerate(operands)}

    def node(made: _Made) -> Node:
        return Node(made.name, made.op, made.inputs, tuple(number.get(w, 0) for w in made.weights))

    graph = Graph(
        lowered=tuple(map(node, capture.made)),
        nodes={value: node(made) for value, made in nodes.items()},
        channels=tuple(capture.channels),
        phases=tuple(capture.phases),
        operands=tuple(operands),
        bridges=tuple(bridges),
        head=head,
        modules=capture.modules,
        refusals=tuple(capture.refusals[n] for n in capture.refusals if not _asks_shape(n)),
    )
    _refuse_large_maps(capture, graph)
    return graph


def _live(capture: _Capture) -> set[fx.Node]:
    """The calls that the head makes: those that the output, a change in place or a module's own state depends on."""
    live: set[fx.Node] = set()
    for node in reversed(capture.calls.nodes):
        streamed = node in capture.reductions or _values(capture.known.get(node))
        if streamed or node.op == "placeholder":
            continue
        effect = (node.op in ("output", "call_module") or (_asserts(node) and node in capture.refusals)) and node not in capture.constants
        target = capture.root.get_submodule(str(node.target)) if node.op == "call_module" else node.target
        # a constant that is changed in place and not used is a count that the network keeps
        changes = _in_place(node, target) and not (node in capture.constants and node.users)
        if effect or (node.op != "get_attr" and changes) or any(user in live for user in node.users):
            live.add(node)
    return live


class _Writer:
    """A graph of calls on gathered tensors while it is written; what it takes becomes its arguments."""

    def __init__(self, capture: _Capture, inside: set[fx.Node]) -> None:
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
            gathered = self.argument(Sink(found.value.index, found.kind, found.dtype))
            layout, dropped = reduced(found.value.layout, found.keepdim, found.value.channels)
            if is_canonical(layout) and dropped in ((), (2, 3)):
                return self.graph.call_function(torch.flatten, (gathered, 1)) if dropped else gathered
            return self.graph.call_function(_shaped, (gathered, layout, dropped))
        known = capture.known.get(node)
        if _values(known):
            return self._values(known, "shape" if all(map(_asks_shape, self._readers(node))) else "map")
        if node in capture.results and node not in self.inside:
            return self.argument(node.name)
        if node in capture.refusals and isinstance(capture.known.get(node.all_input_nodes[0]), tuple) and _picks(node):
            raise NotStreamableError(f"{capture.title} cannot be streamed: {capture.refusals[node]}")
        return self.graph.node_copy(node, self.copy)

    def _readers(self, node: fx.Node) -> list[fx.Node]:
        """The calls written here that read a value."""
        capture = self.capture
        shape = [user for user in node.users if user in capture.known and not _values(capture.known[user])]
        return [user for user in node.users if (user in self.inside and user not in capture.reductions) or user in shape]

    def _values(self, known: Any, kind: str) -> Any:
        if not isinstance(known, Value):
            return tuple(self._values(k, kind) for k in known)
        gathered = self.argument(Sink(known.index, kind))
        if is_canonical(known.layout):
            return gathered
        found = self.graph.call_function(to_layout, (gathered, known.layout))
        # as the network would have it where it asks for a view
        return self.graph.call_method("contiguous", (found,)) if kind == "map" else found

    def bridge(self, gives: Sequence[str] = ()) -> Bridge:
        return Bridge(fx.GraphModule(self.capture.root, self.graph, class_name="Bridge"), tuple(self.takes), tuple(gives))


def _bridge(capture: _Capture, part: Sequence[fx.Node], inner: set[fx.Node], live: set[fx.Node]) -> Bridge:
    """Calls between two passes; it gives what statistics, later bridges or the head need of them."""
    writer = _Writer(capture, set(part))
    statistics = {w.name for made in capture.made for w in made.weights if isinstance(w, Statistic)}
    gives: dict[str, Any] = {}
    for node in part:
        copied = writer.copy(node)
        outside = [user for user in node.users if user not in writer.inside and (user in inner or user in live)]
        reduction = node in capture.reductions
        if node.name in statistics or (outside and not reduction):
            gives[node.name] = copied
    writer.graph.output(tuple(gives.values()))
    return writer.bridge(tuple(gives))


def _head(capture: _Capture, live: set[fx.Node]) -> Bridge:
    writer = _Writer(capture, live)
    for node in capture.calls.nodes:
        if node in live:
            writer.copy(node)
    return writer.bridge()


def _fuse(made: Sequence[_Made], wanted: set[int]) -> dict[int, _Made]:
    """Drop what no sink needs, fold BatchNorm into the convolution before it, and let ReLU act in place on the value before it.

    Folding ``w' = w * s, b' = (b - mean) * s + shift`` with ``s = scale / sqrt(variance + eps)`` is part of the weights' own
    autograd graph, so the gradients of all of them stay exact.
    """
    needed: set[int] = set()
    sunk = set(wanted)
    # a value that a later pass reads is needed only if what reads it is
    nodes = {index + 1: node for index, node in enumerate(made)}
    for index in reversed(nodes):
        if index in sunk or index in needed:
            needed.add(index)
            needed.update(nodes[index].inputs)
    nodes = {index: node for index, node in nodes.items() if index in needed}
    readers = {index: [i for i, node in nodes.items() if index in node.inputs] for index in needed}
    for index in sorted(nodes):
        node = nodes[index]
        source = nodes.get(node.inputs[0])
        if source is None or readers[node.inputs[0]] != [index] or node.inputs[0] in wanted:
            continue
        if isinstance(node.op, BatchNorm) and isinstance(source.op, Convolution):
            weights = _folded(source.weights, node.weights, node.op.eps)
            nodes[index] = _Made(source.name, source.op, source.inputs, weights)
        elif isinstance(node.op, Relu) and isinstance(source.op, Convolution | BatchNorm | Add):
            nodes[index] = _Made(source.name, Rectified(source.op), source.inputs, source.weights)
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
    name = str(getattr(node.target, "__name__", node.target))
    return name.startswith("adaptive_") or name in ("mean", "sum", "amax", "amin") or (name == "flatten" and node.args[1:] == (1,))


def _attention(capture: _Capture) -> str:
    """Where attention over a map is, if the head has any."""
    names = ("scaled_dot_product_attention", "softmax", "Softmax", "MultiheadAttention", "multi_head_attention_forward")
    for node, found in capture.results.items():
        called: Any = type(capture.root.get_submodule(str(node.target))).__name__ if node.op == "call_module" else _name(node)
        if found.whole and called in names:
            return f" (attention in {_path(node)})"
    return ""


def _refuse_large_maps(capture: _Capture, graph: Graph) -> None:
    """Refuse a network whose head needs a map as large as the image, to give it to a layer that is not local."""
    maps = {sink.value for sink in graph.sinks if sink.kind == "map"}
    reasons: dict[int, str] = {}
    for node, reason in capture.refusals.items():
        if not _shrinks(capture.root, node) and not _asks_shape(node):
            for source in node.all_input_nodes:
                for value in _values(capture.known.get(source)):
                    reasons.setdefault(value.index, reason)
    for side in (512, 1024, 2048, 4096):
        with contextlib.suppress(RegionError):
            sizes = bind(graph, (side, side)).sizes
            for index in sorted(maps & set(reasons)):
                height, width = sizes[index]
                if graph.channels[index] * height * width >= graph.channels[0] * side * side:
                    raise NotStreamableError(
                        f"{capture.title} cannot be streamed: {reasons[index]}; the whole map it needs is no smaller than the image itself"
                        + _attention(capture)
                    )
            return
