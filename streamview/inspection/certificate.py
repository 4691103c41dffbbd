"""What an exactness certificate states, as plain data: kept as JSON, shown as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from streamview.errors import StreamviewError

__all__ = ["Certificate", "Comparison", "Line"]


@dataclass(frozen=True, slots=True)
class Line:
    """The row or the column of a window with the worst error of the input gradient.

    Parameters
    ----------
    position
        Row or column, px from the window's first.
    error
        Its largest error, relative to the largest value of the window's input gradient.
    on_border
        Whether it is the last before or the first behind a border between two steps.
    """

    position: int
    error: float
    on_border: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """One window: worst errors of the streamed network, each relative to the largest value of what it is an error of.

    Parameters
    ----------
    y, x, height, width
        The window, in px of the image.
    tile
        Rows and columns of a step, px; may be larger than the window.
    kept
        Whether the backward pass for weights used what the forward pass kept, and the one for pixels alone recomputed it; else the
        other way round.
    barriers
        What became of maps in front of layers that need a number of the whole map (see `stream`); means nothing for other networks.
    output
        Error of the outputs.
    gradient
        Error of the input's gradient, for random gradients of the outputs; the worse of a backward pass that also makes the weights'
        gradients (training) and of one that does not (saliency).
    weights, parameter
        Largest error of a parameter's gradient, and that parameter's name; None where the network has no parameters. A gradient
        that is tiny beside those of other parameters is measured against a thousandth of the largest.
    row, column
        Where the input gradient errs most.
    borders, elsewhere
        Error of the input gradient beside borders of steps, and away from them; None where there is no such pixel.
    blank
        Whether the plain network's own input gradient is zero everywhere, so that the agreement says little.
    differences
        Where gradients disagree, which of them finite differences of the plain network's outputs agree with: ``"streamed"``, ``"plain"``
        or ``"neither"``; None where nothing had to be decided.
    """

    y: int
    x: int
    height: int
    width: int
    tile: tuple[int, int]
    kept: bool
    barriers: str
    output: float
    gradient: float
    weights: float | None
    parameter: str | None
    row: Line
    column: Line
    borders: float | None
    elsewhere: float | None
    blank: bool
    differences: str | None = None

    @property
    def worst(self) -> float:
        """The largest of its errors."""
        return max(self.output, self.gradient, self.weights or 0.0)


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was compared, on what, and how exactly the streamed network agreed with the plain one.

    Parameters
    ----------
    network, weights_sha256
        Name of the network, and hash of its weights: of the names, types, shapes and values of its state.
    pixels
        What the windows showed, in words.
    seed
        Of the windows, their steps, random pixels and gradients of the outputs.
    tolerance
        Largest error that passes.
    torch, device
        Version and device that computed.
    comparisons
        One a window.
    facts
        What else identifies the run, as text.
    """

    network: str
    weights_sha256: str
    pixels: str
    seed: int
    tolerance: float
    torch: str
    device: str
    comparisons: tuple[Comparison, ...]
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def worst(self) -> float:
        """The largest error of all windows."""
        return max((c.worst for c in self.comparisons), default=math.inf)

    @property
    def passed(self) -> bool:
        """Whether every error is within the tolerance, a window had a border between steps, and one a gradient that is not zero."""
        return self.verdict.startswith("passed")

    @property
    def verdict(self) -> str:
        """In one line: passed, or failed and why."""
        overruled = [c for c in self.comparisons if c.differences == "streamed" and c.output <= self.tolerance]
        worst = max((c.worst for c in self.comparisons if c not in overruled), default=0.0 if overruled else math.inf)
        if not worst <= self.tolerance:
            neither = any(c.differences == "neither" for c in self.comparisons)
            tied = "; finite differences agree with neither gradient: where values tie, both may be right" if neither else ""
            return f"FAILED: worst relative error {worst:.1e}, tolerance {self.tolerance:.0e}{tied}"
        if all(c.borders is None for c in self.comparisons):
            return "FAILED: no window held a border between steps, so nothing was shown; give a smaller tile or a larger image"
        if all(c.blank for c in self.comparisons):
            return "FAILED: the network's own input gradient was zero in every window, so nothing was shown; try other pixels or weights"
        passed = f"passed: worst relative error {worst:.1e}, tolerance {self.tolerance:.0e}"
        if overruled:
            windows = "1 window" if len(overruled) == 1 else f"{len(overruled)} windows"
            passed += f", but for {windows} where torch's own gradient is wrong: finite differences agree with the streamed one"
        return passed

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, and the verdict for readers, as plain JSON values; an infinite error is the text ``"inf"``."""
        values: dict[str, Any] = _plain(asdict(self))
        return {"passed": self.passed, "verdict": self.verdict, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Certificate:
        """Inverse of `to_dict`; the verdict is judged anew.

        Raises
        ------
        StreamviewError
            When fields are missing or damaged.
        """
        try:
            comparisons = []
            for entry in values["comparisons"]:
                row, column = (Line(line["position"], float(line["error"]), line["on_border"]) for line in (entry["row"], entry["column"]))
                errors = {key: None if entry[key] is None else float(entry[key]) for key in _ERRORS}
                comparisons.append(Comparison(**(entry | errors | {"row": row, "column": column, "tile": tuple(entry["tile"])})))
            plain = {key: values[key] for key in ("network", "weights_sha256", "pixels", "seed", "tolerance", "torch", "device")}
            return cls(**plain, comparisons=tuple(comparisons), facts=dict(values["facts"]))
        except (KeyError, TypeError, ValueError) as error:
            raise StreamviewError(
                f"damaged certificate ({type(error).__name__}: {error}): expected what Certificate.to_dict wrote; verify again"
            ) from error

    def __str__(self) -> str:
        """A table for people, a row a window, and the verdict."""
        head = f"{self.network}, weights {self.weights_sha256[:12]}, in float64 on {self.device}, torch {self.torch}"
        rows: list[tuple[str, ...]] = [
            ("WINDOW", "AT X,Y", "STEP", "OUTPUT", "INPUT GRAD", "WEIGHT GRAD", "WORST ROW", "WORST COLUMN", "BORDERS", "ELSEWHERE")
        ]
        rows += [_cells(c) for c in self.comparisons]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        named = {c.parameter: c.weights for c in sorted(self.comparisons, key=lambda c: c.weights or 0.0) if c.parameter is not None}
        worst = [f"worst weight gradient: {list(named)[-1]}"] if named else []
        facts = [f"{key}: {value}" for key, value in self.facts.items()]
        return "\n".join([head, f"pixels: {self.pixels}, seed {self.seed}", *facts, *table, *worst, self.verdict])


_ERRORS = ("output", "gradient", "weights", "borders", "elsewhere")


def _plain(value: Any) -> Any:
    """JSON has no infinity and no tuples."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _cells(c: Comparison) -> tuple[str, ...]:
    def number(error: float | None) -> str:
        return "-" if error is None else f"{error:.1e}"

    def line(found: Line) -> str:
        return f"{found.position}{' (border)' if found.on_border else ''}" if found.error else "-"

    window, step = f"{c.width} x {c.height}", f"{c.tile[1]} x {c.tile[0]}"
    errors = number(c.output), f"{number(c.gradient)}{' (blank)' if c.blank else ''}", number(c.weights)
    return window, f"{c.x},{c.y}", step, *errors, line(c.row), line(c.column), number(c.borders), number(c.elsewhere)
