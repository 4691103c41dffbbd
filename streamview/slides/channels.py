"""One channel of an image that is not RGB, seen as grey."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streamview.errors import SlideError

__all__ = ["Channel", "find_channel", "in_words"]


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel, and how its values become grey.

    Parameters
    ----------
    number
        From 0.
    name
        As the file says; may be empty.
    bits
        8 or 16 a value.
    low, high
        Values shown as 0 and 255; 0 and 255 for 8 bits, which are shown as they are.
    """

    number: int
    name: str
    bits: int
    low: int
    high: int

    def to_grey(self, values: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.uint8]:
        """8-bit values as they are; others scaled linearly from `low` to `high`, clipped, rounded half up."""
        if values.dtype == np.uint8:
            return values.astype(np.uint8, copy=False)
        share = (values.astype(np.float32) - self.low) * (255 / (self.high - self.low))
        grey: npt.NDArray[np.uint8] = np.floor(share + np.float32(0.5)).clip(0, 255).astype(np.uint8)
        return grey

    @property
    def token(self) -> str:
        """What decides the pixels, for `Slide.pixel_source`."""
        return f"channel={self.number}" if self.bits == 8 else f"channel={self.number}:{self.low}-{self.high}"

    def __str__(self) -> str:
        scaled = "" if self.bits == 8 else f", {self.low} to {self.high} of its {self.bits} bit shown as 0 to 255"
        return f"channel {self.number}{f' ({self.name})' if self.name else ''} as grey{scaled}"


def in_words(dtype: np.dtype[np.generic], count: int, names: Sequence[str]) -> str:
    """What an image holds: ``"3 channels of 16 bit: DAPI, FITC, Cy5"``."""
    kind = f"{dtype.itemsize * 8} bit" if dtype.kind == "u" else str(dtype)
    named = [name for name in names[:count] if name]
    listed = f": {', '.join(named[:8])}{', ...' if len(named) > 8 else ''}" if named else ""
    return f"{count} channel{'s' * (count != 1)} of {kind}{listed}"


def find_channel(
    name: str,
    wanted: int | str,
    dtype: np.dtype[np.generic],
    count: int,
    names: Sequence[str],
    window: tuple[float, float] | None = None,
) -> Channel:
    """The channel that a user names by number, from 0, or by name.

    Parameters
    ----------
    window
        Range of values that the file states, for more than 8 bits; None for all that they can hold.

    Raises
    ------
    SlideError
        When there is none of that name, or it holds something else than 8 or 16 bits.
    """
    found = in_words(dtype, count, names)
    if dtype not in (np.uint8, np.uint16):
        raise SlideError(f"{name}: {found}: expected channels of 8 or 16 bit; export it as 8-bit RGB")
    numbers = [number for number, known in enumerate(names[:count]) if known == wanted]
    if isinstance(wanted, str) and not numbers and wanted.isdecimal():
        numbers = [int(wanted)]
    number = wanted if isinstance(wanted, int) else numbers[0] if len(numbers) == 1 else -1
    if not 0 <= number < count:
        raise SlideError(
            f"{name}: {found}: --channel {wanted} is none of them; give a number from 0 to {count - 1}, or a name that one has"
        )
    bits = dtype.itemsize * 8
    low, high = (0, 255) if bits == 8 else (0, 2**bits - 1)
    if bits > 8 and window is not None and low <= window[0] < window[1] <= high:
        low, high = int(window[0]), int(window[1])
    return Channel(number, names[number] if number < len(names) else "", bits, low, high)
