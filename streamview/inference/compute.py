"""Where and how a run computes: device, memory, steps, precision and method, as one value that is passed whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from streamview.errors import ModelError
from streamview.results import GRADIENT, ExplanationMethod, Precision

__all__ = ["GLASS", "PRECISIONS", "Compute", "GlassPixels"]

GlassPixels = Literal["as-scanned", "flat"]
GLASS: tuple[GlassPixels, ...] = ("as-scanned", "flat")

PRECISIONS: tuple[Precision, ...] = ("float32", "bf16", "fp16")


@dataclass(frozen=True, slots=True)
class Compute:
    """Where and how a run computes. None of it but `precision`, `glass` and `method` changes the result beyond rounding.

    Parameters
    ----------
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    memory
        Bound on the peak resident memory of the process (CUDA: of the device), bytes or ``"2GB"``; default half of what is free.
    tile
        Rows and columns of a step on the network's grid, instead of choosing them.
    precision
        Arithmetic of the streamed part, ``"float32"``, ``"bf16"`` or ``"fp16"``; the head runs in float32.
    glass
        ``"as-scanned"``, or ``"flat"``: pixels further than 64 um from the tissue get the slide's background colour, steps on which nothing
        else lies are not computed, and there are no maps there.
    method
        How predictions are explained; a prediction itself does not depend on it.

    Raises
    ------
    ModelError
        When the precision, or what shall become of glass, is unknown.

    Examples
    --------
    >>> from streamview import Compute
    >>> Compute(memory="2GB")
    Compute(device='auto', memory='2GB', tile=None, precision='float32')
    """

    device: str = "auto"
    memory: str | int | None = None
    tile: tuple[int, int] | None = None
    precision: Precision = "float32"
    method: ExplanationMethod = field(default=GRADIENT, repr=False)
    glass: GlassPixels = field(default="as-scanned", repr=False)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ModelError(f"precision {self.precision!r} is unknown: expected {', '.join(PRECISIONS)}")
        if self.glass not in GLASS:
            raise ModelError(f"glass {self.glass!r} is unknown: expected {' or '.join(GLASS)}")
