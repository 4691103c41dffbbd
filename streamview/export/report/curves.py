"""Deletion and insertion curves of a map as SVG, beside those of random rankings."""

from __future__ import annotations

from streamview.faithfulness.curves import normalise
from streamview.faithfulness.result import Curve, Faithfulness

__all__ = ["curve_chart"]

_WIDTH, _HEIGHT = 300, 176  # px of the drawing
_LEFT, _TOP, _ACROSS, _DOWN = 30, 8, 258, 108  # px of the plot in it
_DELETION, _INSERTION, _RANDOM = "#c2410c", "#0a7f8c", "#8b949e"


def curve_chart(measured: Faithfulness, method: str) -> str:
    """Draw the curves of a map, as shares of the score that all tissue makes; empty where they are not defined.

    Parameters
    ----------
    measured
        With this map.
    method
        Its name.
    """
    one = measured.of(method)
    if one is None or one.deletion is None or one.insertion is None or one.deletion.area is None:
        return ""
    drawn = [*((curve, _RANDOM, "") for curve in measured.random), (one.deletion, _DELETION, ""), (one.insertion, _INSERTION, "5 3")]
    curves = [(curve.shares, normalise(curve.scores, measured.full, measured.empty) or (), line, dash) for curve, line, dash in drawn]
    every = [value for _, values, _, _ in curves for value in values]
    low, high = min(0.0, *every), max(1.0, *every)

    def at(share: float, value: float) -> str:
        return f"{_LEFT + share * _ACROSS:.1f} {_TOP + (high - value) / (high - low) * _DOWN:.1f}"

    lines = "".join(
        f'<path d="M{"L".join(at(*point) for point in zip(shares, values, strict=True))}" fill="none" stroke="{line}" '
        f'stroke-width="{1 if line == _RANDOM else 2}" stroke-dasharray="{dash or "none"}"/>'
        for shares, values, line, dash in curves
    )
    marks = "".join(
        f'<path d="M{at(0, value)}H{_LEFT + _ACROSS}" stroke="currentColor" stroke-opacity="0.25"/>'
        f'<text x="{_LEFT - 5}" y="{float(at(0, value).split()[1]) + 4:.1f}" text-anchor="end">{value}</text>'
        for value in (0, 1)
    )
    bottom = _TOP + _DOWN + 16
    below = "".join(
        f'<text x="{_LEFT + share * _ACROSS:.0f}" y="{bottom}" text-anchor="{anchor}">{share:.0%}</text>'
        for share, anchor in ((0, "start"), (0.5, "middle"), (1, "end"))
    )
    names = ((0, _DELETION, "deletion", ""), (92, _INSERTION, "insertion", "5 3"), (184, _RANDOM, "random", ""))
    key = "".join(
        f'<path d="M{_LEFT + x} {bottom + 34}h18" stroke="{line}" stroke-width="2" stroke-dasharray="{dash or "none"}"/>'
        f'<text x="{_LEFT + x + 23}" y="{bottom + 38}">{name}</text>'
        for x, line, name, dash in names
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="{_spoken(measured, one.deletion, one.insertion)}" font-family="sans-serif" font-size="12" fill="currentColor">'
        f'{marks}{lines}{below}<text x="{_LEFT}" y="{bottom + 17}">tissue erased, or brought back</text>{key}</svg>'
    )


def _spoken(measured: Faithfulness, deletion: Curve, insertion: Curve) -> str:
    areas = [curve.area for curve in measured.random if curve.area is not None]
    random = sum(areas) / max(len(areas), 1)
    return f"Areas under the curves: deletion {deletion.area:.3f}, insertion {insertion.area:.3f}, random {random:.3f}"
