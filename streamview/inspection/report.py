"""What can be said of a network before it runs, as plain data: kept as JSON, shown as a table."""

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
    """What the head takes of a map.

    Parameters
    ----------
    layer
        What makes the map: path of a module, or of the module around a function with the function's name.
    kind
        ``"map"`` (assembled whole), or a running reduction that never holds it: ``"mean"``, ``"sum"``, ``"max"``, ``"top"`` and
        ``"bottom"`` (the k largest or smallest), ``"attention"`` (the sum by a softmax over all positions).
    channels
        Of the map.
    stride
        Distance between neighbouring elements in px of the image, (y, x); below 1 where the map is finer than the image.
    field
        Rows and columns of the image, in px, that an element away from the borders depends on (its receptive field); None: on the
        whole image, because of a barrier or since the field grows with the image.
    local_field
        The same along the local layers alone, without what the barriers tell of the rest of the image.
    """

    layer: str
    kind: str
    channels: int
    stride: tuple[float, float]
    field: Size | None
    local_field: Size | None


@dataclass(frozen=True, slots=True)
class Barrier:
    """Where the network needs numbers from whole maps before it can go on, and a pass ends.

    Parameters
    ----------
    layers
        Paths of the modules that use these numbers.
    statistics
        What is gathered: ``"mean of 32 channels"``.
    bytes
        Of the maps that later passes read behind the barrier, for one image of the report's size, if they are kept or spilled.
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
    """What a square image will take on this machine, in float32 and by default at most half of its free memory.

    Parameters
    ----------
    side
        In px.
    prediction, saliency
        How a forward pass, and one with the gradient of the image, will run; None where not even the smallest steps fit.
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
    """Which heights and widths of an image, in px, the network takes.

    Parameters
    ----------
    smallest
        Of a square image.
    period
        Only some sides fit, and which of them repeats with this period; 1: all from the smallest on. None: no period was found.
    remainders
        Of the sides that fit, divided by the period.
    largest
        None: no bound. Else a layer with a fixed number of positions (a flattened map, an embedding) takes no larger one.
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
    """What is known of a network before it runs.

    Parameters
    ----------
    network
        Name of its class.
    streams
        Whether it can be streamed.
    reason, layer
        If not, why, and the path of the layer where one is to blame.
    advice
        What to do about it, or to stream more of it.
    tracer
        What captured it: ``"torch.fx"``, ``"torch.export"``, or ``"its own graph"``.
    channels
        Of the image.
    sides
        Which images it takes; None where none was found that it takes.
    cuts
        What the head takes of maps.
    barriers
        One between two passes.
    image
        Height and width, in px, that `Barrier.bytes` and `crossing_bytes` are stated for.
    crossing_bytes
        Of all maps that cross barriers, together.
    operations
        How many run in pieces, normalisations and ReLUs counted with the layer before them.
    between
        How many calls run once between passes.
    head
        Modules, and functions outside of them, of the calls that run once behind the last pass.
    refusals
        Calls left to the head because they are not local.
    piecewise_linear
        Whether the local part has nothing but convolutions, ReLUs, poolings, sums and their like: the gradient of the pixels then
        needs bits of its maps, never the maps.
    outlooks
        What images of some sizes will take here.
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
        """How often the image, or what is kept of it, is passed through."""
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
    """The names themselves where they are few, else how many there are in each of the outermost modules."""
    if len(head) <= 8:
        return ", ".join(head)
    outermost = [name.partition(".")[0] for name in head]
    return ", ".join(f"{name} ({outermost.count(name)})" if outermost.count(name) > 1 else name for name in dict.fromkeys(outermost))
