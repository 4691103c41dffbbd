"""What the canvas says beside the picture: captions, colour bar, scale bar, and the value under the cursor. Without Qt."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from streamview_napari.records import expect_map, map_on, slide_on

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

    from streamview.results.shown_map import ShownMap

__all__ = ["badge", "describe", "place_overlays", "value_under"]

_BAR = (14, 120)  # px
_BOX = (0.06, 0.07, 0.09, 0.85)


def place_overlays(viewer: ViewerModel) -> None:
    """Turn the scale bar on, bottom right, and place the text, top left, each in a box; once for a viewer, whose user may turn it off."""
    overlays = viewer.canvas.overlays
    overlays.scale_bar.visible = overlays.scale_bar.box = overlays.text.box = True
    overlays.scale_bar.position, overlays.text.position = "bottom_right", "top_left"
    overlays.scale_bar.box_color = overlays.text.box_color = _BOX
    overlays.scale_bar.color = overlays.text.color = "white"
    overlays.scale_bar.colored = True


def describe(viewer: ViewerModel) -> None:
    """Show the captions of the visible maps, topmost first, and the topmost's colour bar."""
    slides = {slide.source.identity for layer in viewer.layers if layer.visible and (slide := slide_on(layer)) is not None}
    maps = [(layer, record) for layer in reversed(viewer.layers) if (record := map_on(layer)) is not None]
    visible = [(layer, record) for layer, record in maps if layer.visible]
    for layer, record in maps:
        style = {"size": _BAR, "box": True, "box_color": _BOX, "color": "white", "tick_length": 4, "position": "top_right"}
        on_top = layer.visible and layer is visible[0][0] and record.recipe.heat
        bar = layer.colorbar
        if on_top and not bar.box:  # once: every change has the whole canvas laid out anew
            for name, value in style.items():
                setattr(bar, name, value)
        if bar.visible != on_top:
            bar.visible = on_top
    captions = "\n".join(
        record.caption if not slides or record.source in slides else f"NOT OF THE SLIDE ON SHOW: {record.caption}" for _, record in visible
    )
    text = viewer.canvas.overlays.text
    for name, value in {"text": captions, "font_size": 9, "visible": bool(visible)}.items():
        if getattr(text, name) != value:
            setattr(text, name, value)


def badge(shown: ShownMap) -> str:
    """Say that a map is blurred, and how wide; empty where each pixel is as it was computed."""
    blur = max(shown.shown.blur_px)
    return f"Blurred over {blur:.3g} px" if blur > 0 else ""


def value_under(layer: Image, position: tuple[float, ...]) -> str:
    """Say in words what a map layer has at a place of the world: raw value, share of the cap, the answer; empty outside the map."""
    record = expect_map(layer)
    shown, saliency = record.shown, record.saliency
    my, mx = saliency.mpp or (1.0, 1.0)
    y, x = position[-2] / my, position[-1] / mx
    raw = shown.raw(y, x)
    if raw is None:
        return ""
    share = shown.share(y, x)
    text = f"raw {raw:.3g}" if math.isfinite(raw) else "raw: not computed"
    text += "" if share is None else f" | blurred {share:.0%} of the cap"
    return f"{text} | {saliency.target.name}: {saliency.prediction.answer_for(saliency.target)}"
