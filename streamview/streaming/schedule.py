"""Which rows and columns of every value exist, and are still needed, after each step: integers only, no torch.

A *value* is the image or the output of an operation. Along one axis an operation is a `Window`: output ``o`` reads the inputs
``[o * stride - before, o * stride - before + extent)``. Stepping through the image, a value has been *produced* up to P and is
*kept* from K = min(P, first input that a later output of any consumer still reads). Both grow monotonically, K <= P, and the
last P is the whole axis, so the pieces [P_before, P) partition every value exactly: nothing is computed twice. The
two-dimensional schedule is rows x columns; strips are tiles as wide as the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["IDENTITY", "AxisSchedule", "Window", "schedule_axis"]


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

    def symmetric(self, before: int, after: int, length: int, outputs: int) -> int | None:
        """A padding of both sides of `length` inputs that yields just these outputs, or None when there is none."""
        if before == after or (length + 2 * before - self.extent) // self.stride + 1 == outputs:
            return before
        return None


IDENTITY = Window()


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
    windows: Sequence[Window], inputs: Sequence[tuple[int, ...]], n: int, step: int, granules: Sequence[int] | None = None
) -> AxisSchedule:
    """Schedule every value along one axis.

    Parameters
    ----------
    windows, inputs
        Operation ``i`` makes value ``i + 1`` from the values ``inputs[i]``, all of them earlier; value 0 is the image.
    n
        Length of the image.
    step
        New elements of the image in each step.
    granules
        For every value the least number of elements worth producing at once; a value waits until it can produce a multiple.

    Returns
    -------
    AxisSchedule

    Raises
    ------
    ValueError
        When an operation would have no output, or its inputs differ in length; ``args[1]`` is the operation's index.
    """
    sizes = [n]
    for index, (window, sources) in enumerate(zip(windows, inputs, strict=True)):
        lengths = {sizes[source] for source in sources}
        if len(lengths) > 1:
            raise ValueError(f"its inputs differ in length: {sorted(lengths)}", index)
        size = window.size(lengths.pop())
        if size <= 0:
            raise ValueError("the image is too small for it", index)
        sizes.append(size)

    count = -(-n // step)
    produced = [[0, *(min(step * (t + 1), n) for t in range(count))]]
    for index, (window, sources) in enumerate(zip(windows, inputs, strict=True)):
        granule = granules[index + 1] if granules else 1
        ready = [min(window.frontier(produced[s][t], sizes[s]) for s in sources) for t in range(count + 1)]
        ready[0] = 0
        produced.append([p if p == sizes[index + 1] else p // granule * granule for p in ready])

    kept = [list(p) for p in produced]
    for index, (window, sources) in enumerate(zip(windows, inputs, strict=True)):
        made = produced[index + 1]
        for source in sources:
            for t in range(count + 1):
                if made[t] < sizes[index + 1]:
                    kept[source][t] = min(kept[source][t], window.first(made[t], sizes[source]))
    return AxisSchedule(tuple(sizes), tuple(map(tuple, produced)), tuple(map(tuple, kept)))
