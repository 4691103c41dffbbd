"""A captured network: a graph of streamed values, cut into passes where a whole map must be reduced before the next layer can run.

A value has a *phase*: the image has phase 0, and a value that uses a statistic of a value of phase p (the gates of
squeeze-excitation, the moments of GroupNorm) has phase p + 1 or more. One pass runs the layers of one phase. What a later pass
reads of an earlier one is stored in between, or regenerated from the image.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, fx, nn

from streamview.errors import RegionError
from streamview.streaming.ops import Op, Size, Statistic, Weight
from streamview.streaming.ops.registry import Sized, at_sizes

__all__ = ["Bound", "Bridge", "Demands", "Graph", "Key", "Node", "Program", "Sink", "bind", "demands", "gathered", "placed"]


_Operand = TypeVar("_Operand")


@dataclass(frozen=True, slots=True)
class Node(Generic[_Operand]):
    """One operation.

    Parameters
    ----------
    name
        Path of the module (or name of the call) for messages.
    op
        The operation, or what makes it for one size of the image.
    inputs
        Values that it reads.
    weights
        What else it reads: operands while the graph is captured, then indices into the graph's operands.
    """

    name: str
    op: Op | Sized
    inputs: tuple[int, ...]
    weights: tuple[_Operand, ...]


@dataclass(frozen=True, slots=True)
class Sink:
    """What is gathered of a value over a whole pass.

    Parameters
    ----------
    value
        The value.
    kind
        ``"map"`` (assembled whole); ``"mean"``, ``"sum"``, ``"max"``, ``"spread"``, ``"positions"``, ``"attention"`` (running reductions
        to (N, C, 1, 1); see `Reduction`), ``"top"``, ``"bottom"`` (to (N, C, count, 1)); or ``"shape"`` (only its shape is asked).
    dtype
        Of a sum or mean, if not that of the map.
    count
        Numbers per channel.
    """

    value: int
    kind: str
    dtype: torch.dtype | None = None
    count: int = 1


Key = Sink | str
"""A small tensor between passes: what a sink gathered, or the result of a call on such tensors, by its name."""


@dataclass(frozen=True, slots=True, eq=False)
class Bridge:
    """Calls on gathered tensors, run once.

    Parameters
    ----------
    module
        Takes the tensors `takes`; returns a tuple of the tensors `gives`, or the network's own output if it is the head.
    takes, gives
        By key.
    """

    module: fx.GraphModule
    takes: tuple[Key, ...]
    gives: tuple[str, ...] = ()

    @property
    def tensors(self) -> list[Key]:
        """Those of `takes` of which the values are read, not the shape alone."""
        return [key for key in self.takes if not isinstance(key, Sink) or key.kind != "shape"]

    @property
    def weights(self) -> list[Tensor]:
        """Parameters that it reads, each once, and other tensors that require a gradient."""
        return [*self.module.parameters(), *(buffer for buffer in self.module.buffers() if buffer.requires_grad)]


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A captured network, whatever the image's size.

    Parameters
    ----------
    lowered
        All operations in order; the first makes value 1, value 0 being the image.
    nodes
        Those that lead to a sink, some fused with those before them, by the value that they make.
    channels, phases
        Of every value.
    operands
        Tensors that the nodes read besides values.
    bridges
        What runs behind each pass but the last.
    head
        What runs behind the last.
    modules
        Submodules that the nodes replace, by path; hooks on them would be skipped.
    refusals
        Calls that the head makes because they are not local, and why.
    tracer
        What recorded the calls, ``"torch.fx"`` or ``"torch.export"``.
    frozen
        Tensors of the network whose numbers are constants of the graph.
    unchecked
        Why the graph was not compared with the network itself; empty if it was, and agreed.
    """

    lowered: tuple[Node[int], ...]
    nodes: Mapping[int, Node[int]]
    channels: tuple[int, ...]
    phases: tuple[int, ...]
    operands: tuple[Weight | Statistic, ...]
    bridges: tuple[Bridge, ...]
    head: Bridge
    modules: Mapping[str, nn.Module]
    refusals: tuple[str, ...]
    tracer: str = "torch.fx"
    frozen: tuple[Tensor, ...] = ()
    unchecked: str = ""

    @property
    def passes(self) -> int:
        """Number of passes; one if nothing stands between the image and the cut."""
        return len(self.bridges) + 1

    @property
    def sinks(self) -> list[Sink]:
        """What the bridges and the head take of values."""
        taken = (key for bridge in (*self.bridges, self.head) for key in bridge.takes)
        return list(dict.fromkeys(key for key in taken if isinstance(key, Sink)))

    @property
    def weights(self) -> list[Weight]:
        """The operands that do not depend on the image."""
        return [operand for operand in self.operands if isinstance(operand, Weight)]

    @property
    def between(self) -> list[Tensor]:
        """What the bridges read that gradients are asked of; each once, however many of them read it."""
        return list({id(weight): weight for bridge in self.bridges for weight in bridge.weights}.values())

    def last_reader(self, value: int) -> int:
        """Phase of the last pass that reads a value."""
        return max((self.phases[v] for v, node in self.nodes.items() if value in node.inputs), default=self.phases[value])

    @property
    def crossing(self) -> list[int]:
        """Values, other than the image, that a later pass reads."""
        read = {v for value, node in self.nodes.items() for v in node.inputs if self.phases[v] < self.phases[value]}
        return sorted(read - {0})


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """What one pass runs, for one size of the image, with values numbered anew: the sources, then what each node makes.

    Parameters
    ----------
    sources
        Size (height, width) of every source.
    nodes
        In topological order.
    channels
        Of every value.
    values
        The graph's value behind every value.
    sinks
        For every value that is gathered, and what of it: a `Sink` of the graph, or None where the map is stored for later passes.
    """

    sources: tuple[Size, ...]
    nodes: tuple[Node[int], ...]
    channels: tuple[int, ...]
    values: tuple[int, ...]
    sinks: tuple[tuple[int, Sink | None], ...]

    @property
    def inputs(self) -> list[tuple[int, ...]]:
        """Values that each node reads."""
        return [node.inputs for node in self.nodes]

    def op(self, value: int) -> Op:
        """The operation that makes a value."""
        op = self.nodes[value - len(self.sources)].op
        assert not isinstance(op, Sized)  # a program is made of what `bind` gave
        return op


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """A graph for one size of the image.

    Parameters
    ----------
    graph
        The graph.
    sizes
        Height and width of every value.
    ops
        The operation that makes each value of `graph.nodes`.
    """

    graph: Graph
    sizes: tuple[Size, ...]
    ops: Mapping[int, Op]

    def program(self, phase: int, stored: Collection[int]) -> Program:
        """What the pass of a phase runs if these values are stored as soon as they are known: back to them or to the image."""
        graph = self.graph
        sinks: list[tuple[int, Sink | None]] = [(s.value, s) for s in graph.sinks if graph.phases[s.value] == phase and s.kind != "shape"]
        sinks += [(value, None) for value in stored if graph.phases[value] == phase]
        wanted, sources, nodes = {value for value, _ in sinks}, set(), []
        for value in range(max(wanted, default=0), -1, -1):
            if value not in wanted:
                continue
            if value == 0 or (value in stored and graph.phases[value] < phase):
                sources.add(value)
            else:
                nodes.append(value)
                wanted.update(graph.nodes[value].inputs)
        values = (*sorted(sources), *reversed(nodes))
        number = {value: index for index, value in enumerate(values)}
        made = tuple(
            Node(node.name, self.ops[value], tuple(number[v] for v in node.inputs), node.weights)
            for value in reversed(nodes)
            for node in [graph.nodes[value]]
        )
        return Program(
            tuple(self.sizes[value] for value in sorted(sources)),
            made,
            tuple(graph.channels[value] for value in values),
            values,
            tuple((number[value], sink) for value, sink in sinks),
        )


def bind(graph: Graph, size: Size) -> Bound:
    """The graph for an image of this height and width.

    Raises
    ------
    RegionError
        When the image is too small for a layer, or maps that are joined differ in size; the message names the layer.
    """
    sizes, ops = [size], {}
    found = f"image of {size[0]} x {size[1]} px (height x width)"
    for index, node in enumerate(graph.lowered):
        lengths = {sizes[v] for v in node.inputs}
        if len(lengths) > 1:
            listed = " and ".join(f"{h} x {w}" for h, w in sorted(lengths))
            raise RegionError(f"{found}: layer {node.name} joins maps of {listed}; use a region whose sides the network's strides divide")
        op = at_sizes(node.op, sizes)
        height, width = sizes[node.inputs[0]]
        made = op.rows.size(height), op.cols.size(width)
        if min(made) <= 0:
            raise RegionError(f"{found}: the image is too small for it at layer {node.name}; use a larger region")
        sizes.append(made)
        if index + 1 in graph.nodes:
            ops[index + 1] = at_sizes(graph.nodes[index + 1].op, sizes)
    return Bound(graph, tuple(sizes), ops)


def gathered(bound: Bound, sink: Sink) -> tuple[int, Size]:
    """Channels, and height and width, of what a sink gives."""
    value = bound.graph.lowered[sink.value - 1].inputs[0] if sink.kind == "attention" else sink.value
    return bound.graph.channels[value], bound.sizes[sink.value] if sink.kind in ("map", "shape") else (sink.count, 1)


@dataclass(frozen=True, slots=True)
class Demands:
    """Which gradients a backward pass needs: of every value, and of every operand."""

    values: tuple[bool, ...]
    operands: tuple[bool, ...]


def demands(graph: Graph, image: bool, weights: Sequence[bool]) -> Demands:
    """A value needs a gradient if and only if it depends on an input or weight that does.

    Parameters
    ----------
    image, weights
        Whether the gradient of the image, and of each of the graph's weights, is wanted.
    """
    asked = iter(weights)
    operands = [False if isinstance(operand, Statistic) else next(asked) for operand in graph.operands]
    index = {operand.name: i for i, operand in enumerate(graph.operands) if isinstance(operand, Statistic)}
    values = [image] + [False] * len(graph.lowered)
    given: dict[str, bool] = {}
    for phase in range(graph.passes):
        for value, node in graph.nodes.items():
            if graph.phases[value] == phase:
                values[value] = any(values[v] for v in node.inputs) or any(operands[w] for w in node.weights)
        if phase < len(graph.bridges):
            bridge = graph.bridges[phase]
            needs = any(values[key.value] if isinstance(key, Sink) else given[key] for key in bridge.takes)
            needs = needs or any(weight.requires_grad for weight in bridge.weights)
            for name in bridge.gives:
                given[name] = needs
                if name in index:
                    operands[index[name]] = needs
    return Demands(tuple(values), tuple(operands))


def placed(bound: Bound, value: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Distance between the centres of what neighbouring elements of a value see, and the first centre, in px of the image, (y, x)."""
    found: list[tuple[tuple[float, float], tuple[float, float]]] = [((1.0, 1.0), (0.0, 0.0))]
    for node in bound.graph.lowered[:value]:
        (sy, sx), (cy, cx) = found[node.inputs[0]]
        height, width = bound.sizes[node.inputs[0]]
        op = at_sizes(node.op, bound.sizes)
        (ty, oy), (tx, ox) = op.rows.place(height), op.cols.place(width)
        found.append(((sy * ty, sx * tx), (cy + sy * oy, cx + sx * ox)))
    return found[value]
