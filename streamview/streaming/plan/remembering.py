"""What a pass remembers for its backward pass within a budget: activations, carries of steps or of segments, in memory or in a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamview.streaming.ops import Size
from streamview.streaming.plan.costs import PassCosts

__all__ = ["PassPlan", "choose_saved", "options_of"]


@dataclass(frozen=True, slots=True)
class PassPlan:
    """How one pass will run.

    Parameters
    ----------
    tile
        Rows and columns of a step, in px of the pass's largest source: of the image in the first pass.
    steps
        Number of steps.
    saved_steps
        How many of them, the last ones, save their activations, so that they are not recomputed.
    segment
        The others are recomputed in segments of so many rows of steps, each from what its first row took over; 0: every step
        from what it took over itself.
    spill
        Whether what they are computed from is kept in a file.
    rerun
        Whether the backward pass first runs the whole pass again, so that nothing of it is remembered in between.
    """

    tile: Size
    steps: int
    saved_steps: int = 0
    segment: int = 0
    spill: bool = False
    rerun: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Option:
    """One way to remember a pass.

    Parameters
    ----------
    segment, spill
        As in `PassPlan`.
    bytes
        By the number of saved steps: the most held at once, which is their activations, the carries, and what is recomputed at a time.
    """

    segment: int
    spill: bool
    bytes: Tensor

    def most(self, room: int) -> int:
        """The largest number of saved steps that fits; the number that takes the least if none does."""
        fitting = (self.bytes <= room).nonzero()
        return int(fitting[-1] if len(fitting) else self.bytes.argmin())


def options_of(cost: PassCosts, busy: NDArray[np.bool_] | None) -> Iterator[Option]:
    """The ways to remember a pass, of whose steps only those that are `busy` save anything."""
    rows, columns = len(cost.rows), len(cost.columns)
    states = torch.tensor(cost.states, dtype=torch.float64)
    carries = (states[:, None] / columns + cost.left / (rows * columns)).expand(-1, columns).flatten()
    shares = torch.tensor(cost.rows, dtype=torch.float64)[:, None] * torch.tensor(cost.columns, dtype=torch.float64)
    saved = shares.flatten() * cost.saved
    if busy is not None:
        saved = saved * torch.from_numpy(busy.flatten())
        carries = carries * torch.from_numpy(busy.flatten())
    saved_by_last, saved_by_first = _with_leading_zero(saved.flip(0).cumsum(0)), _with_leading_zero(saved.cumsum(0))

    def bytes_by_saved_steps(carried: Tensor, recomputed: Tensor) -> Tensor:
        # the last steps keep theirs, and these are gone when those of the first ones are recomputed
        carried, recomputed = _with_leading_zero(carried.cumsum(0)).flip(0), _with_leading_zero(recomputed.cummax(0).values).flip(0)
        return (carried + torch.maximum(saved_by_last, recomputed)).ceil().long()

    yield Option(0, False, bytes_by_saved_steps(carries, saved))
    segment = 1 if columns > 1 else 2
    while segment < rows:
        row = torch.arange(rows)
        begins = (row - row % segment).repeat_interleave(columns)
        # a segment that is recomputed is at hand as a whole, and so is what it hands down
        recomputed = saved_by_first[1:] - saved_by_first[begins * columns] + states.max()
        starts = torch.zeros(rows, columns, dtype=torch.float64)
        starts[::segment, 0] = states[::segment]
        yield Option(segment, False, bytes_by_saved_steps(starts.flatten(), recomputed))
        yield Option(segment, True, bytes_by_saved_steps(torch.zeros_like(saved), recomputed + states[::segment].max()))
        segment *= 2


def _with_leading_zero(cumulative: Tensor) -> Tensor:
    """Cumulative values of the first steps, with a leading zero for none of them."""
    return torch.cat([cumulative.new_zeros(1), cumulative])


def choose_saved(
    lean: Sequence[PassPlan], options: Sequence[list[Option]], peaks: Sequence[int], fixed: int, budget: int | None
) -> tuple[tuple[PassPlan, ...], int]:
    """What each pass saves for its backward pass, later passes chosen first.

    Parameters
    ----------
    lean
        The passes with nothing saved.
    options
        Of every pass, the ways to save.
    peaks
        Bytes of every pass besides what it saves.
    fixed
        Bytes held throughout.
    budget
        Bytes for all; None: save nothing.

    Returns
    -------
    tuple
        The passes, and the peak in bytes, `fixed` included.
    """
    if budget is None:
        options = [[option for option in ways if not option.segment] for ways in options]
    least = [min(int(option.bytes[0]) for option in ways) for ways in options]
    rerun, passes = lean[0].rerun, list[PassPlan]()
    # Bytes of the passes behind this one: they remember nothing yet when it runs, and nothing any more in its backward pass.
    behind = 0
    for p in reversed(range(len(lean))):
        # a pass that is run again is alone in memory
        others = fixed + (peaks[p] if rerun else max(peaks[p], behind) + sum(least[:p]))
        saved_steps, option = (0, options[p][0]) if budget is None else _chosen(options[p], budget - others)
        remembered = int(option.bytes[saved_steps])
        behind = max(behind, peaks[p] + remembered) if rerun else max(peaks[p], behind) + remembered
        passes.insert(0, replace(lean[p], saved_steps=saved_steps, segment=option.segment, spill=option.spill))
    return tuple(passes), fixed + behind


def _chosen(options: Sequence[Option], room: int) -> tuple[int, Option]:
    """How many steps are saved, and how the others are remembered.

    In a file only where memory alone does not do; what takes the least if nothing fits.
    """
    ways = [(saved_steps, option, int(option.bytes[saved_steps])) for option in options for saved_steps in [option.most(room)]]
    fitting = [way for way in ways if way[2] <= room]
    held = [way for way in fitting if not way[1].spill]
    least = [min(ways, key=lambda way: way[2])]
    saved_steps, option, _ = max(held or fitting or least, key=lambda way: (way[0], -way[2]))
    return saved_steps, option
