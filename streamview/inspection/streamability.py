"""Report whether a network streams, where it is cut, its receptive field and the images it accepts, without running it."""

from __future__ import annotations

import contextlib
import math
import re
from fractions import Fraction

import torch
from torch import Tensor, fx, nn

from streamview.errors import NotStreamableError, RegionError
from streamview.inspection.report import Barrier, Cut, Refusal, Sides, Streamability
from streamview.streaming.capture.capture import capture, refuse_hooks
from streamview.streaming.capture.intact import state_restored
from streamview.streaming.graph import Bound, Bridge, Graph, Sink, bind, gathered, placed
from streamview.streaming.head import LARGEST, head_takes
from streamview.streaming.ops import Piece, Size, Statistic
from streamview.streaming.ops.combine import Add, Channels, Concatenate
from streamview.streaming.ops.margins import Pad
from streamview.streaming.ops.patches import PatchEncoder
from streamview.streaming.ops.pointwise import BatchNorm, Copy, Pointwise, Rectified, Relu
from streamview.streaming.ops.resample import Resample, TransposedConvolution
from streamview.streaming.ops.reshape import Shuffle
from streamview.streaming.ops.window import AveragePool, Convolution, MaxPool

__all__ = ["streamability"]

_LARGEST = 2**14  # px; largest receptive field searched for
_PHASES = 64  # largest number of neighbouring elements whose receptive fields are compared
_LINEAR = (
    Convolution, TransposedConvolution, Relu, MaxPool, AveragePool, BatchNorm, Add, Concatenate, Channels, Copy, Shuffle, Pad, Resample,
)  # fmt: skip
_LINEAR_CALLS = ("mul", "div", "add", "sub", "neg", "rsub")
_PATCHES = "attention needs all its patches at once: stream(PatchEncoder(module, size=...)) encodes patch by patch, for a pooling behind it"
_ONE_SIZE = "a larger image is encoded patch by patch: stream(PatchEncoder(module, size={})), for a pooling behind it"
_DIVIDE = "where a part of it is local, divide it by hand: stream(module, body=..., head=...)"
_EVAL = "call .eval() first: BatchNorm and dropout in training mode end the local part"
_UNHOOK = "remove the hook, or hook `cut` of the streamed module"


def streamability(module: nn.Module, *, side: int = 8192) -> Streamability:
    """Report how a network would be streamed. It is captured in its current mode; nothing is computed.

    Parameters
    ----------
    module
        As for `stream`. For a network split by hand, pass ``stream(..., body=..., head=...).module``.
    side
        Side of the square image, in px, for which bytes are stated; if it does not fit, the next larger one that does.

    Returns
    -------
    Streamability
        Also for a network that cannot be streamed.

    Notes
    -----
    The receptive field is computed by arithmetic: the range of a middle element is traced back through the geometry of every operation,
    in an image so large that it reaches no border. Holes of dilated layers inside the range count.
    """
    title = type(module).__name__
    try:
        graph = capture(module, check=True)
        with state_restored(module):
            refuse_hooks(module, graph)
    except NotStreamableError as refused:
        return _refused(module, str(refused))
    binder = _Binder(graph)
    bound = binder.first(side) or binder.first(1)
    if bound is None:
        return Streamability(title, False, "no image fits it: the maps that its layers join differ in size, whatever the image")
    refusals = tuple(Refusal(*refusal.split(": ", 1)) for refusal in dict.fromkeys(graph.refusals))
    sides = _sides(module, binder)
    advice = _advice(module, bool(refusals))
    if sides is not None and sides.largest is not None and _PATCHES not in advice:
        advice = (*advice, _ONE_SIZE.format(sides.smallest))
    return Streamability(
        title,
        True,
        advice=advice,
        tracer="its own graph" if isinstance(module, fx.GraphModule) else graph.tracer,
        channels=graph.channels[0],
        sides=sides,
        cuts=tuple(_cut(binder, bound, key) for key in graph.head.takes if isinstance(key, Sink) and key.kind != "shape"),
        barriers=tuple(_barrier(bound, phase) for phase in range(graph.passes - 1)),
        image=bound.sizes[0],
        crossing_bytes=sum(_bytes(bound, value) for value in graph.crossing),
        operations=len(graph.nodes),
        between=sum(len(_calls(bridge)) for bridge in graph.bridges),
        head=tuple(dict.fromkeys(map(_named, _calls(graph.head)))),
        refusals=refusals,
        piecewise_linear=all(_is_linear(bound, value) for value in graph.nodes),
    )


# -------------------------------------------------------------------------------------------------------------------------- refusals


def _refused(module: nn.Module, reason: str) -> Streamability:
    """The report on a network that cannot be streamed: the layer named in the reason, and what to do."""
    title = type(module).__name__
    named = re.match(r"(?:\w+ cannot be streamed: )?(\w[\w.]*)(?:: | has a hook| changes a value)", reason)
    layer = named[1] if named and named[1] != title else None
    advice = (_UNHOOK,) if " has a hook" in reason else (*_advice(module, True), _DIVIDE)
    return Streamability(title, False, reason, layer, advice)


def _advice(module: nn.Module, refusals: bool) -> tuple[str, ...]:
    """Advice on how to stream a network, or more of it, if calls were refused."""
    advice = []
    if any(m.training and isinstance(m, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd) for m in module.modules()):
        advice.append(_EVAL)
    encoded = {id(part) for m in module.modules() if isinstance(m, PatchEncoder) for part in m.modules()}
    kinds = [type(m).__name__.lower() for m in module.modules() if id(m) not in encoded]
    if refusals and any("attention" in kind and "pool" not in kind for kind in kinds):
        advice.append(_PATCHES)
    return tuple(advice)


# ------------------------------------------------------------------------------------------------------------------------------ parts


def _cut(binder: _Binder, bound: Bound, key: Sink) -> Cut:
    graph, value = bound.graph, key.value
    layer = graph.lowered[value - 1].name if value else "the image"
    field = _field(binder, value)
    whole = graph.phases[value] > 0  # depends on a statistic of a whole map
    stride = placed(bound, value)[0]
    return Cut(layer, key.kind, gathered(bound, key)[0], stride, None if whole else field, field)


def _barrier(bound: Bound, phase: int) -> Barrier:
    """The barrier between the pass of a phase and the next."""
    graph = bound.graph
    bridge = graph.bridges[phase]
    operands = {i for i, operand in enumerate(graph.operands) if isinstance(operand, Statistic) and operand.name in bridge.gives}
    names = [node.name for node in graph.nodes.values() if operands & set(node.weights)] or list(bridge.gives)
    layers = [name if name in graph.modules else name.rpartition(".")[0] or name for name in names]
    statistics = [
        f"{'map' if key.kind == 'map' else key.kind} of {gathered(bound, key)[0]} channels"
        for key in bridge.takes
        if isinstance(key, Sink) and key.kind != "shape"
    ]
    crossing = [value for value in graph.crossing if graph.phases[value] <= phase < graph.last_reader(value)]
    size = sum(_bytes(bound, value) for value in crossing)
    return Barrier(tuple(dict.fromkeys(layers)), tuple(dict.fromkeys(statistics)), size)


def _bytes(bound: Bound, value: int) -> int:
    height, width = bound.sizes[value]
    return bound.graph.channels[value] * height * width * torch.float32.itemsize


def _calls(bridge: Bridge) -> list[fx.Node]:
    return [node for node in bridge.module.graph.nodes if node.op.startswith("call_")]


def _named(node: fx.Node) -> str:
    """The module that a call is, or is part of; outside of all modules the name of the function."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack")
    path = str(next(reversed(stack.values()))[0]) if stack else ""
    return node.name if not path or path.startswith("_empty") else path  # torch.export's mark of generated calls


def _is_linear(bound: Bound, value: int) -> bool:
    """Whether an operation is linear in its maps, apart from the choices of ReLU and max-pooling."""
    node, op = bound.graph.nodes[value], bound.ops[value]
    op = op.inner if isinstance(op, Rectified) else op
    if isinstance(op, Pointwise):
        plain = not any(isinstance(bound.graph.operands[w], Statistic) for w in node.weights)
        return plain and len(node.inputs) == 1 and getattr(op.function, "__name__", "") in _LINEAR_CALLS
    return isinstance(op, _LINEAR)


# --------------------------------------------------------------------------------------------------------------------------- geometry


class _Binder:
    """Binds a graph to square images, with a cache by side."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._bound: dict[int, Bound | None] = {}

    def __call__(self, side: int) -> Bound | None:
        """Bind to an image of this side; None if it does not fit."""
        if side not in self._bound:
            self._bound[side] = None
            with contextlib.suppress(RegionError):
                self._bound[side] = bind(self.graph, (side, side))
        return self._bound[side]

    def first(self, side: int) -> Bound | None:
        """Bind to the smallest fitting image of at least this side."""
        return next((bound for n in range(side, side + LARGEST) if (bound := self(n)) is not None), None)


def _steps(bound: Bound, axis: int) -> dict[int, Fraction]:
    """Stride of every value, in px of the image."""
    steps = {0: Fraction(1)}
    for value, node in bound.graph.nodes.items():
        source, op = node.inputs[0], bound.ops[value]
        step = (op.rows if axis == 0 else op.cols).place(bound.sizes[source][axis])[0]
        steps[value] = steps[source] * Fraction(step).limit_denominator(_LARGEST)
    return steps


def _field(binder: _Binder, value: int) -> Size | None:
    """Receptive field of an element away from the borders through the local layers; None if it grows with the image."""
    side = 256
    while side <= _LARGEST:
        field, larger = _reach(binder.first(side), value), None
        if field is not None:
            larger = _reach(binder.first(4 * side), value)
        if field is not None and larger is not None:
            # with odd resampling factors, middle elements of another image may have a slightly larger receptive field
            bounded = all(b <= 1.5 * a + 1 for a, b in zip(field, larger, strict=True))
            return (max(field[0], larger[0]), max(field[1], larger[1])) if bounded else None
        side *= 2
    return None


def _reach(bound: Bound | None, value: int) -> Size | None:
    """Lengths of the ranges of rows and columns that a middle element depends on; None if one reaches a border.

    The length depends on an element's position relative to those of coarser maps; the longest counts.
    """
    longest = [0, 0]
    for axis in (0, 1):
        if bound is None:
            return None
        steps = _steps(bound, axis)
        period = math.lcm(*(s.numerator for s in steps.values())) / math.gcd(*(s.denominator for s in steps.values()))
        length = bound.sizes[value][axis]
        count = min(math.ceil(period / steps[value]), _PHASES, length)
        for element in range((length - count) // 2, (length + count) // 2):
            reached = _range(bound, value, element, axis)
            if reached is None:
                return None
            longest[axis] = max(longest[axis], reached[1] - reached[0])
    return (longest[0], longest[1]) if all(longest) else (0, 0)  # elements between the taps of a transposed convolution depend on no pixels


def _range(bound: Bound, value: int, element: int, axis: int) -> tuple[int, int] | None:
    """The pixels that an element depends on, first and last + 1; None if it depends on the border of any map."""
    ranges = {value: (element, element + 1)}
    for result in range(value, 0, -1):
        if result not in ranges:
            continue
        op = bound.ops[result]
        for source in bound.graph.nodes[result].inputs:
            n = bound.sizes[source][axis]
            low, high, before, after = (op.rows if axis == 0 else op.cols).need(*ranges[result], n)
            if before > 0 or after > 0 or (low < high and (low == 0 or high == n)):
                return None
            if low < high:
                earlier = ranges.get(source, (low, high))
                ranges[source] = min(low, earlier[0]), max(high, earlier[1])
    return ranges.get(0, (0, 0))


# ------------------------------------------------------------------------------------------------------------------------------ sides


def _sides(module: nn.Module, binder: _Binder) -> Sides | None:
    """Find the accepted square images by trial."""
    takes = _Takes(module, binder)
    first = binder.first(1)
    if first is None:
        return None
    for base in (*(2**k for k in range(5, 12)), first.sizes[0][0]):
        bound, larger = binder(base), binder.first(2 * base)
        if bound is None or larger is None or not takes(base) or not takes(larger.sizes[0][0]):
            continue
        coarsest = max(step for axis in (0, 1) for step in _steps(bound, axis).values())
        span = min(math.ceil(coarsest), LARGEST)
        fits = [takes(n) for n in range(base, base + 2 * span)]
        period = next((p for p in range(1, span + 1) if all(a == b for a, b in zip(fits, fits[p:], strict=False))), None)
        remainders = () if period is None else tuple(sorted({n % period for n, fit in enumerate(fits, base) if fit}))
        return Sides(next(n for n in range(1, base + 1) if takes(n)), period, remainders, None)
    accepted = [n for n in range(1, LARGEST + 1) if takes(n)]
    return Sides(accepted[0], None, (), accepted[-1]) if accepted else None


class _Takes:
    """Whether a network accepts square images of a side: its layers, constants and head fit the maps."""

    def __init__(self, module: nn.Module, binder: _Binder) -> None:
        self._binder = binder
        graph = binder.graph
        self._constants = [
            (value, torch.empty(operand.shape, device="meta"))
            for value, node in graph.nodes.items()
            if isinstance(node.op, Pointwise) and node.op.broadcasts
            for operand in (graph.operands[w] for w in node.weights)
            if not isinstance(operand, Statistic)
        ]
        # in training mode a call may change the head's state, and hooks would see tensors without memory
        quiet = not any(m.training or m._forward_hooks or m._forward_pre_hooks for m in module.modules())
        self._tries = quiet and all(isinstance(key, Sink) for key in graph.head.takes)
        self._known: dict[tuple[Size, ...], bool] = {}

    def __call__(self, side: int) -> bool:
        bound = self._binder(side)
        if bound is None or not all(_fits(bound, value, constant) for value, constant in self._constants):
            return False
        if not self._tries:
            return True
        sizes = tuple(gathered(bound, key)[1] for key in bound.graph.head.takes if isinstance(key, Sink))
        if sizes not in self._known:
            self._known[sizes] = head_takes(bound)
        return self._known[sizes]


def _fits(bound: Bound, value: int, constant: Tensor) -> bool:
    op, (height, width) = bound.ops[value], bound.sizes[value]
    assert isinstance(op, Pointwise)
    try:
        op._slices(constant, Piece((0, height), (0, width), (height, width), (0, 0, 0, 0)))
    except RegionError:
        return False
    return True
