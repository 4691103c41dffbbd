"""The report on a network before it runs, as plain data with JSON and table output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from streamview.streaming.memory import format_bytes
from streamview.streaming.ops import Size
from streamview.streaming.plan.plan import Plan
from streamview.streaming.run.timing import format_seconds

__all__ = ["Barrier", "Cut", "Outlook", "Refusal", "Sides", "Streamability"]


@dataclass(frozen=True, slots=True)
class Cut:
    """An input of the head.

    Parameters
    ----------
    layer
        The layer that computes the map: path of a module, or of the module around a function with the function's name.
    kind
        ``"map"`` (assembled whole), or a running reduction that never holds it: ``"mean"``, ``"sum"``, ``"max"``, ``"top"`` and
        ``"bottom"`` (the k largest or smallest), ``"attention"`` (the sum by a softmax over all positions).
    channels
        Channels of the map.
    stride
        Distance between neighbouring elements in px of the image, (y, x); below 1 if the map is finer than the image.
    field
        Receptive field (rows, columns; px of the image) of an element away from the borders; None: the whole image, because of a barrier
        or because the field grows with the image.
    local_field
        The receptive field through the local layers alone, without the barriers' statistics.
    """

    layer: str
    kind: str
    channels: int
    stride: tuple[float, float]
    field: Size | None
    local_field: Size | None


@dataclass(frozen=True, slots=True)
class Barrier:
    """A layer that needs statistics of whole maps, so that a pass ends before it.

    Parameters
    ----------
    layers
        Paths of the modules that use the statistics.
    statistics
        The statistics: ``"mean of 32 channels"``.
    bytes
        Size of the maps that later passes read, for one image of the report's size, if they are kept or spilled.
    """

    layers: tuple[str, ...]
    statistics: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """A call that the head makes because it is not local.

    Parameters
    ----------
    layer
        Path of the module, or of the module around a function with the function's name.
    reason
        Why.
    """

    layer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Outlook:
    """Forecast for a square image on this machine, in float32 and by default within half of the free memory.

    Parameters
    ----------
    side
        In px.
    prediction, saliency
        Plans of a forward pass, and of one with the gradient of the image; None if not even the smallest steps fit.
    """

    side: int
    prediction: Plan | None
    saliency: Plan | None

    def __str__(self) -> str:
        parts = []
        for task, plan in (("prediction", self.prediction), ("saliency", self.saliency)):
            if plan is None:
                parts.append(f"{task} does not fit")
                continue
            duration = "" if plan.seconds is None else f", about {format_seconds(plan.seconds)}"
            again = f", {plan.overhead:.2f} of conventional operations" if plan.overhead > 1.005 else ""
            parts.append(f"{task} {format_bytes(plan.peak_bytes)}{duration}{again}")
        return f"{self.side} x {self.side} px: {'; '.join(parts)}"


@dataclass(frozen=True, slots=True)
class Sides:
    """The heights and widths of an image, in px, that the network accepts.

    Parameters
    ----------
    smallest
        Smallest side of a square image.
    period
        Period with which the accepted sides repeat; 1: all from the smallest on. None: no period was found.
    remainders
        Remainders of the accepted sides divided by the period.
    largest
        Largest side, if a layer has a fixed number of positions (a flattened map, an embedding); None: no limit.
    """

    smallest: int
    period: int | None
    remainders: tuple[int, ...]
    largest: int | None

    def __str__(self) -> str:
        if self.largest is not None:
            only = f"{self.smallest}" if self.largest == self.smallest else f"{self.smallest} to {self.largest}"
            return f"sides of {only} px only: a layer has a fixed number of positions"
        if self.period == 1:
            return f"any sides from {self.smallest} px on"
        if self.period is None:
            return f"some sides from {self.smallest} px on"
        if self.remainders == (0,):
            return f"sides that {self.period} divides, from {self.smallest} px on"
        rest = " or ".join(map(str, self.remainders))
        return f"sides that leave {rest} when divided by {self.period}, from {self.smallest} px on"


@dataclass(frozen=True, slots=True)
class Streamability:
    """How a network streams.

    Parameters
    ----------
    network
        Name of its class.
    streams
        Whether it can be streamed.
    reason, layer
        If not, why, and the path of the responsible layer, if there is one.
    advice
        What to do about it, or how to stream more of it.
    tracer
        How it was captured: ``"torch.fx"``, ``"torch.export"``, or ``"its own graph"``.
    channels
        Channels of the image.
    sides
        The accepted images; None if none was found.
    cuts
        Inputs of the head.
    barriers
        One between two passes.
    image
        Height and width, in px, for which `Barrier.bytes` and `crossing_bytes` are stated.
    crossing_bytes
        Total size of the maps that cross barriers.
    operations
        Number of operations that run in pieces; normalisations and ReLUs are counted with the layer before them.
    between
        Number of calls that run once between passes.
    head
        Modules, and functions outside of them, of the calls that run once after the last pass.
    refusals
        Calls left to the head because they are not local.
    piecewise_linear
        Whether the local part has only convolutions, ReLUs, poolings, sums and the like: the gradient of the pixels then needs one bit
        per activation instead of the activations.
    outlooks
        Forecasts for images of some sizes on this machine.
    """

    network: str
    streams: bool
    reason: str | None = None
    layer: str | None = None
    advice: tuple[str, ...] = ()
    tracer: str | None = None
    channels: int | None = None
    sides: Sides | None = None
    cuts: tuple[Cut, ...] = ()
    barriers: tuple[Barrier, ...] = ()
    image: Size | None = None
    crossing_bytes: int = 0
    operations: int = 0
    between: int = 0
    head: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    piecewise_linear: bool = False
    outlooks: tuple[Outlook, ...] = ()

    @property
    def passes(self) -> int:
        """Number of passes over the image or over kept maps."""
        return len(self.barriers) + 1 if self.streams else 0

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {**asdict(self), "passes": self.passes}

    def __str__(self) -> str:
        rows = list(self._rows())
        width = max((len(name) for name, _ in rows), default=0)
        return "\n".join([self._title(), *(f"  {name:<{width}}  {text}" for name, text in rows)])

    def _title(self) -> str:
        return f"{self.network} streams (captured by {self.tracer})" if self.streams else f"{self.network} cannot be streamed"

    def _rows(self) -> Iterator[tuple[str, str]]:
        if self.reason is not None:
            yield "reason", self.reason
        if self.layer is not None:
            yield "layer", self.layer
        if self.streams:
            yield "image", f"{_count(self.channels or 0, 'channel')}, {self.sides or 'sides not known'}"
            between = f", {_count(self.between, 'call')} between them" if self.barriers else ""
            linear = ", piecewise linear" if self.piecewise_linear else ""
            yield "local", f"{_count(self.operations, 'operation')} in {_count(self.passes, 'pass')}{between}{linear}"
        for cut in self.cuts:
            what = f"{cut.layer}, the whole map" if cut.kind == "map" else f"{cut.kind} of {cut.layer}"
            yield "cut", f"{what}: {_count(cut.channels, 'channel')}, stride {_extent(cut.stride)}"
            yield "sees", _seen(cut)
        if self.streams:
            yield "head", _grouped(self.head) or "nothing"
        for refusal in self.refusals:
            yield "left to it", f"{refusal.layer}: {refusal.reason}"
        for barrier in self.barriers:
            yield "barrier", f"{', '.join(barrier.layers)}: {', '.join(barrier.statistics)}; {format_bytes(barrier.bytes)} of maps cross it"
        if self.barriers and self.image is not None:
            height, width = self.image
            yield (
                "",
                f"{format_bytes(self.crossing_bytes)} in all cross barriers at {height} x {width} px in float32; see `stream(barriers=)`",
            )
        for number, outlook in enumerate(self.outlooks):
            yield "" if number else "forecast", str(outlook)
        for text in self.advice:
            yield "advice", text


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 'es' if what.endswith('s') else 's'}"


def _extent(sides: tuple[float, float]) -> str:
    return f"{sides[0]:.6g} x {sides[1]:.6g} px{'' if sides[0] == sides[1] else ' (height x width)'}"


def _seen(cut: Cut) -> str:
    if cut.local_field is None:
        return "the whole image, or a part that grows with it"
    local = _extent(cut.local_field)
    return local if cut.field is not None else f"the whole image, by the barriers; {local} along the local layers alone"


def _grouped(head: tuple[str, ...]) -> str:
    """The names if there are few, else their number in each of the outermost modules."""
    if len(head) <= 8:
        return ", ".join(head)
    outermost = [name.partition(".")[0] for name in head]
    return ", ".join(f"{name} ({outermost.count(name)})" if outermost.count(name) > 1 else name for name in dict.fromkeys(outermost))
