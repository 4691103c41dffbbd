"""The walk over the calls of a network: which are local and become operations, which reduce a map, and which are left."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

from streamview.errors import NotStreamableError, RegionError
from streamview.streaming.capture.calls import VIEWS, Constants, asks_shape, asserts, in_place, memory_of, name_of, path_of, picks
from streamview.streaming.capture.decompositions import decompose
from streamview.streaming.capture.nominal import Nominal, Result, statistic
from streamview.streaming.capture.trace import admit
from streamview.streaming.graph import Node
from streamview.streaming.ops import (
    Extent,
    Local,
    NotLocal,
    Op,
    OtherChannels,
    Partial,
    Reduction,
    Statistic,
    Trait,
    Value,
    Weight,
    computed,
    lower,
)
from streamview.streaming.ops.layouts import Layout, canonical, is_canonical
from streamview.streaming.ops.partials import PARTIALS
from streamview.streaming.ops.pointwise import Copy, Pointwise, Slot
from streamview.streaming.ops.registry import BATCH, Size, Sized
from streamview.streaming.ops.reshape import reduced
from streamview.streaming.schedule import Window

__all__ = ["Lowering", "values_of"]

_JOINS = "it joins a map with the result of a layer that needs the whole map"
_WIDENING = {"interpolate", "upsample", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "expand", "repeat"}
_WIDENING |= {"adaptive_avg_pool2d"}  # how torch.export records interpolation by area
_NEW = {"new_tensor", "new_full", "new_zeros", "new_ones"}


@dataclass(slots=True)
class Lowering:
    """One walk over the calls of a network."""

    root: nn.Module
    calls: fx.Graph
    title: str
    constants: Constants
    nodes: list[Node[Weight | Statistic]] = field(default_factory=list)
    channels: list[int] = field(default_factory=list)
    phases: list[int] = field(default_factory=list)
    known: dict[fx.Node, Any] = field(default_factory=dict)  # what a call stands for: values, numbers, constants, and tuples of them
    reductions: dict[fx.Node, Reduction] = field(default_factory=dict)
    results: dict[fx.Node, Result] = field(default_factory=dict)
    refusals: dict[fx.Node, str] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    partials: dict[fx.Node, Partial] = field(default_factory=dict)  # results that later calls may complete to reductions
    rewired: bool = False  # whether a call now reads another than the network's code says
    nominal: Nominal = field(init=False)
    dtype: torch.dtype = field(init=False)  # of the image, which is taken to be that of the network
    device: torch.device = field(init=False)

    def __post_init__(self) -> None:
        self.nominal = Nominal(self.root, self.constants, self.known, self.reductions, self.results)
        self.dtype, self.device = self.nominal.dtype, self.nominal.device

    def walk(self, image: fx.Node, channels: int) -> None:
        """Lower every call, for an image of so many channels."""
        self.channels, self.phases = [channels], [0]
        self.known[image] = Value.plain(0, channels)
        slices: dict[int, int] = {}  # value that may share memory -> the value it shares it with
        spoilt: dict[int, str] = {}  # value that the head changes in place -> the call that does
        for node in self._decomposed():
            sources = node.all_input_nodes
            if node.op not in ("call_module", "call_function", "call_method") or node in self.constants:
                continue
            target: Any = self.root.get_submodule(str(node.target)) if node.op == "call_module" else node.target
            name = path_of(node)
            read = [v.index for s in sources for v in values_of(self.known.get(s))]
            unfinished = [s for s in sources if s in self.partials]
            widened = self._widened(node)
            if widened is not None:
                self.known[node] = self._add(name, widened, slices)
                continue
            if unfinished and not node.users:
                continue
            if not read and not unfinished and not all(s in self.known or s in self.constants for s in sources):
                self.results[node] = self._result(node)
                self._rename(node, target)
                self._spoil(node, target, slices, spoilt)
                continue
            try:
                lowered = self._lower(node, target)
                self._compare(node, lowered)
            except OtherChannels as reason:
                raise OtherChannels(f"{name}: {reason}") from None
            except NotLocal as reason:
                self.refusals[node] = f"{name}: {reason}"
                self._unfinish(unfinished, reason)
                self.results[node] = self._result(node)
                self._spoil(node, target, slices, spoilt)
                continue
            late = next((spoilt[index] for index in read if index in spoilt), None)
            if late is not None:
                raise NotStreamableError(f"{late} changes a value in place that {name} reads: do not do it in place")
            if isinstance(lowered, Reduction):
                if lowered.before is not None:
                    index = self._add(name, lowered.before, slices).index
                    lowered = replace(lowered, value=replace(lowered.value, index=index), before=None)
                self.reductions[node] = lowered
                self.results[node] = Result(self.phases[lowered.value.index], False)
                continue
            if isinstance(lowered, PARTIALS):
                self.partials[node] = lowered
                self.results[node] = self._result(node)
                continue
            if node.op == "call_module":
                self.modules[name] = target
            elif "rewritten" in node.meta:
                self.modules[node.meta["rewritten"]] = self.root.get_submodule(node.meta["rewritten"])
            changed = self._changed(node)
            if isinstance(lowered, list) and any(isinstance(local, Local) for local in lowered):
                self.known[node] = tuple(self._add(name, local, slices) for local in lowered)
            else:
                self.known[node] = self._add(name, lowered, slices) if isinstance(lowered, Local) else lowered
            found = self.known[node]
            if changed is not None and isinstance(found, Value) and found.index != changed and in_place(node, target):
                self._update(changed, found, slices, node)

    def _decomposed(self) -> Iterator[fx.Node]:
        """Every call, in place of those on maps the calls that they consist of."""
        node = next(iter(self.calls.nodes))
        while node.op != "root":
            on_map = any(values_of(self.known.get(s)) for s in node.all_input_nodes)
            parts = decompose(self.calls, node, self.root) if on_map else []
            for part in parts:
                self.constants.note(part)
            if not parts:
                yield node
            node = parts[0] if parts else node.next

    def _lower(self, node: fx.Node, target: Any) -> Any:
        """Lower one call on values or numbers."""
        for source in node.all_input_nodes:
            if source in self.partials or source not in self.results:
                continue
            if self.results[source].whole:
                raise NotLocal(f"{_JOINS}{self._cause(source)}")
            if self.nominal.of(source) is None:
                reason = f" ({self.nominal.failures[source]})" if source in self.nominal.failures else self._cause(source)
                raise NotLocal(f"it joins a map with the result of {path_of(source)}, whose shape is not known{reason}")
        operands: Any = {s: self._operand(s) for s in node.all_input_nodes}
        args: Any = fx.node.map_arg(node.args, operands.__getitem__)
        kwargs: Any = fx.node.map_arg(node.kwargs, operands.__getitem__)
        args, kwargs = _plain(args), _plain(kwargs)
        if node.op == "call_module" and node.target == "_guards_fn":
            return _guarded(target, args[0])
        for partial in (operands[s] for s in node.all_input_nodes if s in self.partials):
            result: Any = partial.then(name_of(node), target, args, kwargs)
            return result
        if self._is_constant(node, args, kwargs):
            return self._deferred(target, args, kwargs)
        if any(isinstance(operands[s], Value) or values_of(operands[s]) for s in operands) and not (
            picks(node) and isinstance(args[0], tuple)
        ):
            lowered = lower(target, args, kwargs)
            return replace(lowered, example=self._example()) if isinstance(lowered, Trait) else lowered
        if target is getattr and args[1:] == ("values",):
            return args[0][0]
        if asserts(node) and not isinstance(args[0], bool):
            raise NotLocal("a condition on the image")
        # numbers and tuples alone
        try:
            return computed(target, args, kwargs)
        except (TypeError, AttributeError, IndexError, RuntimeError, AssertionError) as error:
            raise NotLocal(f"{node.name}: {error}") from None

    def _unfinish(self, nodes: Sequence[fx.Node], reason: NotLocal) -> None:
        """Refuse calls that would have been streamed, had a later call completed them to a reduction."""
        for node in nodes:
            self.refusals[node] = f"{path_of(node)}: {reason}"
            self._unfinish([s for s in node.all_input_nodes if s in self.partials], reason)

    def _cause(self, node: fx.Node) -> str:
        """Which call made a result that is not local, and why; in brackets, or nothing."""
        while node not in self.refusals:
            sources = [s for s in node.all_input_nodes if s in self.results]
            if not sources:
                return ""
            node = next((s for s in sources if self.results[s].whole), sources[0])
        reason = self.refusals[node]
        inherited = reason.partition(f"{_JOINS} (")[2]
        return f" ({inherited or reason + ')'}"

    def _operand(self, node: fx.Node) -> Any:
        if node in self.known:
            known = self.known[node]
            return Weight(lambda: known) if isinstance(known, Tensor) else known
        if node in self.partials:
            return self.partials[node]
        if node in self.constants:
            value = self.constants[node]()
            return Weight(self.constants[node]) if isinstance(value, Tensor) else value
        fake = self.nominal.of(node)
        if not isinstance(fake, Tensor):
            raise NotLocal(f"{node.name} is a number or tuple that depends on the size of the image")
        if not self._gathers(node):
            raise NotLocal(f"{node.name} is a tensor that depends on the size of the image")
        return statistic(node.name, fake)

    def _add(self, name: str, local: Local, slices: dict[int, int]) -> Value:
        """Append an operation and return the value that it makes."""
        self.nodes.append(Node(name, local.op, tuple(v.index for v in local.inputs), local.weights))
        first, layout = local.inputs[0], _layout_of(local)
        channels = first.channels if local.channels is None else local.channels
        statistics = {w.name for w in local.weights if isinstance(w, Statistic)}
        self.channels.append(channels)
        self.phases.append(
            max(
                [self.phases[v.index] for v in local.inputs]
                + [1 + found.phase for node, found in self.results.items() if node.name in statistics]
            )
        )
        index = len(self.nodes)
        if local.shares:
            slices[index] = first.index
        same = not isinstance(local.op, Sized) and _keeps_length(local.op.rows) and _keeps_length(local.op.cols)
        return Value(index, channels, layout, first.like if same else index, _dtype_of(local))

    def _compare(self, node: fx.Node, lowered: Any) -> None:
        """Refuse a call whose result would not have the shape that torch.export recorded."""
        recorded = node.meta.get("val")
        if recorded is None:
            return
        several = isinstance(lowered, list) and any(isinstance(part, Local) for part in lowered)
        if several and not isinstance(recorded, list | tuple):
            raise NotLocal("it would have several results where torch.export recorded one")
        parts = zip(lowered, recorded, strict=False) if several else [(lowered, recorded)]
        for part, like in parts:
            if isinstance(part, Reduction):
                layout, dropped = reduced(part.value.layout, part.keepdim, part.value.channels)
                layout = tuple(d for i, d in enumerate(layout) if i not in dropped)
            elif isinstance(part, Local):
                layout = _layout_of(part)
            elif isinstance(part, Value):
                layout = part.layout
            else:
                continue
            lengths = like.shape if isinstance(like, Tensor) else ()
            pairs = zip(layout, lengths, strict=False)
            if len(layout) != len(lengths) or any(isinstance(d, tuple) and isinstance(n, int) and d[1] != n for d, n in pairs):
                raise NotLocal(f"its result would not have the shape {tuple(map(str, lengths))} that torch.export recorded")

    def _is_constant(self, node: fx.Node, args: Any, kwargs: Any) -> bool:
        """Whether a call makes a tensor of weights and numbers, and reads of maps only their type or device."""
        leaves = _pytree.tree_leaves((args, kwargs))
        if any(isinstance(a, Statistic | Extent) or a is BATCH for a in leaves):
            return False
        name, given = name_of(node), [*args, *kwargs.values()]
        first: Any = given[0] if given else None
        if any(isinstance(a, Value) for a in leaves):
            others = [a for a in _pytree.tree_leaves(given[1:]) if isinstance(a, Value)]
            made = name in _NEW and not others
            return made or (name in ("to", "type_as") and isinstance(first, Weight) and len(others) == 1 and not isinstance(first, Value))
        return any(isinstance(a, Weight | Trait) for a in leaves) and (isinstance(first, Weight) or not picks(node))

    def _deferred(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A tensor made of weights, numbers, and the type and device of the image, which are taken to be those of the network."""
        if self._example() is None and any(isinstance(a, Value | Trait) for a in _pytree.tree_leaves((args, kwargs))):
            raise NotLocal("it depends on the type of the image, and the network has no weights that tell it")

        def value(a: Any) -> Any:
            if isinstance(a, Weight):
                return a.read()
            example = torch.empty((), dtype=self.dtype, device=self.device)
            return getattr(example, a.name) if isinstance(a, Trait) else example if isinstance(a, Value) else a

        def read() -> Tensor:
            given: Any = _pytree.tree_map(value, args)
            named: Any = _pytree.tree_map(value, kwargs)
            result: Tensor = getattr(given[0], target)(*given[1:], **named) if isinstance(target, str) else target(*given, **named)
            return result

        example = read()
        if isinstance(example, torch.dtype | torch.device):
            raise NotLocal("a type or device that depends on the image's")
        return Weight(read) if isinstance(example, Tensor) else example

    def _example(self) -> Weight | None:
        """A tensor of the type and device of the image, which are taken to be those of the network."""
        if not any(t.is_floating_point() for t in (*self.root.parameters(), *self.root.buffers())):
            return None
        return Weight(lambda: torch.zeros((), dtype=self.dtype, device=self.device))

    def _gathers(self, node: fx.Node) -> bool:
        """Whether a result comes from a reduction, or from a whole map, rather than from sizes alone."""
        if node in self.reductions or self.results[node].whole:
            return True
        return any(self._gathers(s) for s in node.all_input_nodes if s in self.results)

    def _widened(self, node: fx.Node) -> Local | None:
        """A result of one position, given the height and width of a map: pooled branches that are interpolated or expanded."""
        sources = [s for s in node.all_input_nodes if s in self.results]
        if len(sources) != 1 or name_of(node) not in _WIDENING or node.op == "call_module" or node.args[:1] != (sources[0],):
            return None
        known = {s: self.known.get(s) for s in node.all_input_nodes if s is not sources[0]}
        arguments: Any = fx.node.map_arg((node.args[1:], node.kwargs), known.get)
        like = [a.like for a in _pytree.tree_leaves(arguments) if isinstance(a, Extent)]
        axes = [a.axis for a in _pytree.tree_leaves(arguments) if isinstance(a, Extent)]
        maps = [a for a in _pytree.tree_leaves(arguments) if isinstance(a, Value)]
        if name_of(node) == "expand_as" or len(maps) + len(like) == 0 or self.results[sources[0]].whole or not self._gathers(sources[0]):
            return None
        shape, widened = self.nominal.of(sources[0]), self.nominal.of(node)
        if not isinstance(shape, Tensor) or shape.dim() != 4 or tuple(shape.shape[2:]) != (1, 1) or not isinstance(widened, Tensor):
            return None
        if axes != [0, 1] or None in like or like[0] != like[1] or widened.shape[1] != shape.shape[1]:
            return None
        channels = int(shape.shape[1])
        first = Value.plain(int(like[0] or 0), self.channels[int(like[0] or 0)])
        return Local(Pointwise(_everywhere, (Slot(0), Slot(1)), {}), (first,), (statistic(sources[0].name, shape),), channels)

    def _spoil(self, node: fx.Node, target: Any, slices: Mapping[int, int], spoilt: dict[int, str]) -> None:
        """Remember what value the head changes in place, which local calls behind may then not read."""
        changed = self._changed(node)
        if changed is None or not in_place(node, target):
            return
        if changed in slices or changed in slices.values():
            raise NotStreamableError(
                f"{path_of(node)} changes a value in place that shares memory with a slice or a conversion: do not do it in place"
            )
        spoilt[changed] = path_of(node)

    def _changed(self, node: fx.Node) -> int | None:
        """The value whose memory the first argument of a call is, or is a view of."""
        argument = node.args[0] if node.args else node.kwargs.get("input")
        while isinstance(argument, fx.Node) and argument in self.results and name_of(argument) in VIEWS:
            argument = argument.args[0] if argument.args else argument.kwargs.get("input")
        first = self.known.get(argument) if isinstance(argument, fx.Node) else None
        return first.index if isinstance(first, Value) else None

    def _update(self, changed: int, found: Value, slices: Mapping[int, int], node: fx.Node) -> None:
        """Whoever reads a value that was changed in place sees the changed one, as in plain torch."""
        before = self._until(node)
        # a reduction is done with its map once it has run
        heads = [reader for reader in self.results if reader not in self.reductions]
        read = {v.index for reader in heads for source in reader.all_input_nodes for v in values_of(self.known.get(source))}
        later = {v.index for source, known in self.known.items() if not before.issuperset(source.users) for v in values_of(known)}
        shared = {index for index in range(len(self.channels)) if _base(index, slices) == _base(changed, slices)}
        if shared & read or (shared - {changed}) & later:
            raise NotStreamableError(
                f"{path_of(node)} changes a value in place that shares memory with a slice or a conversion, or that the head reads "
                "too: do not do it in place"
            )
        self.known |= {node: _renumbered(known, changed, found.index) for node, known in self.known.items()}

    def _rename(self, node: fx.Node, target: Any) -> None:
        """Let later calls read what a call changed in place from that call, so that it is made before them wherever they are."""
        changed = node.args[0] if node.args else None
        if isinstance(changed, fx.Node) and changed in self.results and in_place(node, target):
            before = self._until(node)
            memory = memory_of(changed)
            others = (other for other in self.results if other not in (changed, node) and memory_of(other) is memory)
            if any(not before.issuperset(other.users) for other in others):
                raise NotStreamableError(f"{path_of(node)} changes a tensor in place of which another is a view: do not do it in place")
            for user in [user for user in changed.users if user not in before]:
                user.replace_input_with(changed, node)
                self.rewired = True

    def _until(self, node: fx.Node) -> set[fx.Node]:
        """A call and those before it."""
        return {*itertools.takewhile(lambda other: other is not node, self.calls.nodes), node}

    def _result(self, node: fx.Node) -> Result:
        """A call that is not local."""
        sources = node.all_input_nodes
        phases = [self.phases[v.index] for s in sources for v in values_of(self.known.get(s))]
        phases += [self.results[s].phase for s in sources if s in self.results]
        whole = any(values_of(self.known.get(s)) for s in sources) and not asks_shape(node)
        return Result(max(phases, default=0), whole or any(self.results[s].whole for s in sources if s in self.results))


def _plain(argument: Any) -> Any:
    """The immutable lists and dicts of a graph as ordinary ones."""
    if isinstance(argument, dict):
        return {key: _plain(value) for key, value in argument.items()}
    if isinstance(argument, tuple):
        return tuple(map(_plain, argument))
    return [_plain(a) for a in argument] if isinstance(argument, list) else argument


def values_of(known: Any) -> list[Value]:
    """The values in what a call stands for."""
    if isinstance(known, tuple | list):
        return [value for part in known for value in values_of(part)]
    return [known] if isinstance(known, Value) else []


def _layout_of(local: Local) -> Layout:
    """Layout of the tensor that an operation's output stands for."""
    first = local.inputs[0]
    if local.layout is not None:
        return local.layout
    return canonical(first.channels if local.channels is None else local.channels) if is_canonical(first.layout) else first.layout


def _dtype_of(local: Local) -> torch.dtype | None:
    """The type that conversions gave an output; None: that of the image. Of maps of different types a conversion's is the wider one."""
    if local.to is not None:
        return local.to.of
    set_by_conversion = [value.dtype for value in local.inputs if value.dtype is not None]
    return functools.reduce(torch.promote_types, set_by_conversion) if set_by_conversion else None


def _keeps_length(axis: Any) -> bool:
    """Whether there are as many outputs as inputs, whatever their number."""
    return isinstance(axis, Window) and axis.stride == 1 and axis.before + axis.after == axis.extent - 1


def _everywhere(map: Tensor, statistic: Tensor) -> Tensor:
    """A statistic at every position of a map."""
    return statistic.expand(map.shape[0], -1, *map.shape[2:])


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


def _guarded(guards: nn.Module, image: Value) -> Local:
    """A copy of the image that nothing reads; it is made only for the sizes for which torch.export recorded the network."""

    def sized(sizes: Sequence[Size]) -> Op:
        try:
            admit(guards, 2, image.channels, sizes[0])
        except ValueError as error:
            raise RegionError(f"the network was recorded by torch.export, and {error}") from None
        return Copy()

    return Local(Sized(sized), (image,))
