"""What says how large and how strong a shown map is: a colour bar as SVG, the unit of raw values, and the length of a scale bar."""

from __future__ import annotations

import math
from collections.abc import Mapping

from streamview.results.display import Shown
from streamview.results.maps import Method, Saliency

__all__ = ["colour_bar", "how_shown", "scale_bar", "unit"]

_UNITS: Mapping[Method, str] = {
    "absolute": "{} per unit of normalised input",
    "signed": "{}",
    "evidence": "{}",
    "patches": "probability",
}
_WIDTH, _HEIGHT = 300, 76  # px of the colour bar's drawing
_LEFT, _BAR, _TOP, _THICK = 8, 284, 2, 14  # px of the bar in it
_APART = 0.09  # share of the bar between two numbers that do not touch
_STEPS = (1, 2, 5)


def unit(saliency: Saliency, method: Method) -> str:
    """Unit of a map's raw values, such as "logits"."""
    regression = saliency.prediction.task == "regression"
    if method == "patches":
        return "output" if regression else _UNITS[method]
    return _UNITS[method].format("output" if regression else "logits")


def how_shown(saliency: Saliency, shown: Shown) -> tuple[str, str, str]:
    """Return blur, cap and threshold in words."""
    recipe = shown.recipe
    blur = f"{shown.blur_px[0]:.3g} px of the network's grid"
    if saliency.mpp is not None:
        blur = f"{recipe.blur_um:g} um ({blur})"
    floor = f"percentile {recipe.floor_percentile:g}" if recipe.floor_percentile else f"{recipe.threshold:.0%} of the cap"
    cap = f"percentile {recipe.cap_percentile:g}" if recipe.cap is None else f"{recipe.cap:.3g}, as given"
    if recipe.cap is None and recipe.lacking:
        cap += f" + {recipe.lacking:.3g}, which {saliency.target.name} lacks to be the answer"
    return f"blur {blur}", f"cap: {cap}", f"shown above {floor}"


def scale_bar(width: float, mpp: float | None) -> tuple[float, str]:
    """Choose the length of a scale bar: round, and at most a quarter of the picture.

    Parameters
    ----------
    width
        Width of the pictured part, level-0 pixels.
    mpp
        Micrometres per level-0 pixel, horizontally; None when unknown.

    Returns
    -------
    length
        In level-0 pixels.
    text
        The length with its unit.
    """
    quarter = width * (mpp or 1) / 4
    power = 10.0 ** math.floor(math.log10(quarter))
    length = max(step * power for step in _STEPS if step * power <= quarter)
    if mpp is None:
        return length, f"{length:g} px of level 0 (mpp unknown)"
    return length / mpp, f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} um"


def colour_bar(saliency: Saliency, shown: Shown, behind: tuple[int, int, int], name: str, ink: str = "currentColor") -> str:
    """Draw the colours of a shown map over the mean colour of its tissue, with the unit, as SVG.

    Parameters
    ----------
    saliency, shown
        The map.
    behind
        RGB of what lies under the colours.
    name
        Unique on the page.
    ink
        Colour of numbers and text.
    """
    recipe = shown.recipe
    stops = "".join(
        f'<stop offset="{n / (len(recipe.colours) - 1):g}" stop-color="{colour}" '
        f'stop-opacity="{0.55 + 0.45 * n / (len(recipe.colours) - 1):.4g}"/>'
        for n, colour in enumerate(recipe.colours)
    )
    # a rectangle of the whole bar has the gradient, and the clipped part of it is what is shown
    start = _LEFT + shown.threshold * _BAR
    ticks = {0.0: "0", 0.5: "0.5", 1.0: "1"}
    if all(abs(shown.threshold - tick) > _APART for tick in ticks):
        ticks[shown.threshold] = f"{shown.threshold:.2g}"
    marks = "".join(
        f'<path d="M{_LEFT + share * _BAR:.1f} {_TOP + _THICK}v4" stroke="{ink}"/>'
        f'<text x="{_LEFT + share * _BAR:.1f}" y="{_TOP + _THICK + 16}" text-anchor="middle">{text}</text>'
        for share, text in ticks.items()
    )
    share = f"share of the cap; outline at {shown.threshold:.2g}" if recipe.outline else "share of the cap"
    cap = f"1 = {shown.cap:.3g} {unit(saliency, recipe.method)}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="Colour bar: {share}; {cap}" font-family="sans-serif" font-size="12" fill="{ink}">'
        f'<defs><linearGradient id="{name}" gradientUnits="userSpaceOnUse" x1="{_LEFT}" x2="{_LEFT + _BAR}">{stops}</linearGradient></defs>'
        f'<rect x="{_LEFT}" y="{_TOP}" width="{_BAR}" height="{_THICK}" fill="#{bytes(behind).hex()}"/>'
        f'<rect class="heat" x="{start:.1f}" y="{_TOP}" width="{_LEFT + _BAR - start:.1f}" height="{_THICK}" fill="url(#{name})" '
        f'opacity="{recipe.opacity:g}"/>'
        f'<rect x="{_LEFT}" y="{_TOP}" width="{_BAR}" height="{_THICK}" fill="none" stroke="{ink}" stroke-opacity="0.5"/>'
        f'{marks}<text x="{_LEFT - 4}" y="{_HEIGHT - 22}">{share}</text><text x="{_LEFT - 4}" y="{_HEIGHT - 6}">{cap}</text></svg>'
    )
