"""Which rows and columns of every value exist, and are still needed, after each step: integers only, no torch.

A *value* is a source (the image, or a map that an earlier pass stored) or the output of an operation. Along one axis an operation
has a geometry: a `Window` (output ``o`` reads the inputs ``[o * stride - before, o * stride - before + extent)``), a `Spread`
(transposed convolution) or a `Table` (anything else, such as resampling). Stepping through the sources, a value has been
*produced* up to P and is *kept* from K = min(P, first input that a later output of any consumer still reads). Both grow
monotonically, K <= P, and the last P is the whole axis, so the pieces [P_before, P) partition every value exactly: nothing is
computed twice. The two-dimensional schedule is rows x columns; strips are tiles as wide as the image.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["IDENTITY", "Axis", "AxisSchedule", "Spread", "Table", "Window", "schedule_axis"]


class Axis(Protocol):
    """Geometry of one operation along one axis, in elements of its input of length `n`."""

    def size(self, n: int) -> int:
        """Number of outputs; zero or negative when the input is too small."""

    def frontier(self, p: int, n: int) -> int:
        """How many outputs can exist once the first `p` inputs exist."""

    def first(self, o: int, n: int) -> int:
        """The first input that outputs from `o` on still read."""

    def need(self, o0: int, o1: int, n: int) -> tuple[int, int, int, int]:
        """What the outputs [o0, o1) read: first and last + 1 of the inputs, then the padding before and after them."""

    def place(self, n: int) -> tuple[float, float]:
        """Distance between the centres of what neighbouring outputs see, and the centre of what the first one sees, in inputs."""


@dataclass(frozen=True, slots=True)
class Window:
    """Geometry of one operation along one axis, in elements of its input.

    Parameters
    ----------
    kernel, stride, dilation
        As in convolution and pooling.
    before, after
        Padding at the true ends of the axis; negative values crop.
    ceil
        Round the number of outputs up, as pooling's ``ceil_mode`` does.
    """

    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    before: int = 0
    after: int = 0
    ceil: bool = False

    @property
    def extent(self) -> int:
        """Inputs from the first to the last that one output reads."""
        return (self.kernel - 1) * self.dilation + 1

    def size(self, n: int) -> int:
        """Number of outputs for `n` inputs; zero or negative when the input is too small."""
        room = n + self.before + self.after - self.extent
        if not self.ceil:
            return room // self.stride + 1
        outputs = -(-room // self.stride) + 1
        # torch drops a last window that would start in the padding behind the image
        return outputs - 1 if (outputs - 1) * self.stride >= n + self.before else outputs

    def frontier(self, p: int, n: int) -> int:
        """How many outputs can exist once the first `p` of `n` inputs exist."""
        if p >= n:
            return self.size(n)
        return min(max((p + self.before - self.extent) // self.stride + 1, 0), self.size(n))

    def first(self, o: int, n: int) -> int:
        """The first of `n` inputs that outputs from `o` on still read."""
        return min(max(o * self.stride - self.before, 0), n)

    def need(self, o0: int, o1: int, n: int) -> tuple[int, int, int, int]:
        """What the outputs [o0, o1) read: first and last + 1 of the `n` inputs, then the padding before and after them."""
        start, stop = o0 * self.stride - self.before, (o1 - 1) * self.stride - self.before + self.extent
        i0 = min(max(start, 0), n)
        i1 = min(max(stop, i0), n)
        before = min(max(i0 - start, 0), stop - start)
        return i0, i1, before, stop - start - before - (i1 - i0)

    def place(self, n: int) -> tuple[float, float]:
        """Distance between the centres of what neighbouring outputs see, and the centre of what the first one sees, in inputs."""
        return self.stride, (self.extent - 1) / 2 - self.before

    def symmetric(self, before: int, after: int, length: int, outputs: int) -> int | None:
        """A padding of both sides of `length` inputs that yields just these outputs, or None when there is none."""
        if before == after or (length + 2 * before - self.extent) // self.stride + 1 == outputs:
            return before
        return None


IDENTITY = Window()


@dataclass(frozen=True, slots=True)
class Spread:
    """Geometry of a transposed convolution: input ``i`` adds to the outputs ``[i * stride - before, i * stride - before + extent)``.

    Parameters
    ----------
    kernel, stride, dilation
        As in convolution.
    before, after
        Outputs dropped at the two ends of the axis; a negative `after` appends outputs that no input reaches.
    """

    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    before: int = 0
    after: int = 0

    @property
    def extent(self) -> int:
        """Outputs from the first to the last that one input adds to."""
        return (self.kernel - 1) * self.dilation + 1

    def size(self, n: int) -> int:
        """Number of outputs."""
        return (n - 1) * self.stride + self.extent - self.before - self.after

    def frontier(self, p: int, n: int) -> int:
        """Outputs before the first one that input `p` adds to."""
        return self.size(n) if p >= n else min(max(p * self.stride - self.before, 0), self.size(n))

    def first(self, o: int, n: int) -> int:
        """The first input that adds to output `o`."""
        return min(max(-(-(o + self.before - self.extent + 1) // self.stride), 0), n)

    def need(self, o0: int, o1: int, n: int) -> tuple[int, int, int, int]:
        """Inputs that add to the outputs [o0, o1); there is no padding."""
        i0 = self.first(o0, n)
        return i0, min(max((o1 - 1 + self.before) // self.stride + 1, i0), n), 0, 0

    def place(self, n: int) -> tuple[float, float]:
        """As in `Axis`."""
        return 1 / self.stride, (self.before - (self.extent - 1) / 2) / self.stride


@dataclass(frozen=True, slots=True)
class Table:
    """Geometry given output by output, for one length of the input.

    Parameters
    ----------
    low
        For every output the first input that it or any later output reads.
    high
        For every output one more than the last input that it or any earlier output reads.
    step, centre
        What `place` returns.
    """

    low: tuple[int, ...]
    high: tuple[int, ...]
    step: float
    centre: float

    @classmethod
    def of(cls, low: Sequence[int], high: Sequence[int], step: float, centre: float) -> Table:
        """From the first and last input of every output."""
        lows, highs = list(low), [h + 1 for h in high]
        for o in range(len(lows) - 1, 0, -1):
            lows[o - 1] = min(lows[o - 1], lows[o])
        for o in range(1, len(highs)):
            highs[o] = max(highs[o], highs[o - 1])
        return cls(tuple(lows), tuple(highs), step, centre)

    def size(self, n: int) -> int:
        """Number of outputs."""
        return len(self.low)

    def frontier(self, p: int, n: int) -> int:
        """Outputs that read none but the first `p` inputs."""
        return bisect_right(self.high, p)

    def first(self, o: int, n: int) -> int:
        """The first input that outputs from `o` on still read."""
        return self.low[o] if o < len(self.low) else n

    def need(self, o0: int, o1: int, n: int) -> tuple[int, int, int, int]:
        """Inputs that the outputs [o0, o1) read, and perhaps some that are at hand besides."""
        return self.low[o0], self.high[o1 - 1], 0, 0

    def place(self, n: int) -> tuple[float, float]:
        """As in `Axis`."""
        return self.step, self.centre


@dataclass(frozen=True, slots=True)
class AxisSchedule:
    """The schedule of every value along one axis.

    Parameters
    ----------
    sizes
        Length of every value.
    produced, kept
        ``produced[v][t]`` and ``kept[v][t]``: P and K of value v before step t; the last entry is after the last step.
    """

    sizes: tuple[int, ...]
    produced: tuple[tuple[int, ...], ...]
    kept: tuple[tuple[int, ...], ...]

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.produced[0]) - 1

    def new(self, value: int, step: int) -> tuple[int, int]:
        """Range of `value` that `step` produces."""
        return self.produced[value][step], self.produced[value][step + 1]

    def block(self, value: int, step: int) -> tuple[int, int]:
        """Range of `value` that is at hand in `step`: carried from before, and new."""
        return self.kept[value][step], self.produced[value][step + 1]


def schedule_axis(
    axes: Sequence[Axis], inputs: Sequence[tuple[int, ...]], sources: Sequence[int], step: int, granules: Sequence[int] | None = None
) -> AxisSchedule:
    """Schedule every value along one axis.

    Parameters
    ----------
    axes, inputs
        Operation ``i`` makes value ``len(sources) + i`` from the values ``inputs[i]``, all of them earlier.
    sources
        Lengths of the sources.
    step
        New elements of the longest source in each step; the others grow in proportion.
    granules
        For every value the least number of elements worth producing at once; a value waits until it can produce a multiple.

    Returns
    -------
    AxisSchedule
    """
    sizes = list(sources)
    for axis, read in zip(axes, inputs, strict=True):
        sizes.append(axis.size(sizes[read[0]]))
    longest = max(sources)
    count = -(-longest // step)
    produced = [[min(-(-step * t * n // longest), n) for t in range(count + 1)] for n in sources]
    for axis, read in zip(axes, inputs, strict=True):
        size = sizes[len(produced)]
        granule = granules[len(produced)] if granules else 1
        ready = [min(axis.frontier(produced[s][t], sizes[s]) for s in read) for t in range(count + 1)]
        ready[0] = 0
        produced.append([p if p == size else p // granule * granule for p in ready])

    kept = [list(p) for p in produced]
    for index, (axis, read) in enumerate(zip(axes, inputs, strict=True)):
        made, size = produced[len(sources) + index], sizes[len(sources) + index]
        for source in read:
            for t in range(count + 1):
                if made[t] < size:
                    kept[source][t] = min(kept[source][t], axis.first(made[t], sizes[source]))
    return AxisSchedule(tuple(sizes), tuple(map(tuple, produced)), tuple(map(tuple, kept)))
