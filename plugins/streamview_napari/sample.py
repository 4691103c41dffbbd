"""Sample data: a slide that needs no download."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamview_napari.canvas.layers import LayerTuple

__all__ = ["synthetic_slide"]


def synthetic_slide() -> list[LayerTuple]:
    """Write a synthetic H&E-like slide to a temporary folder and return it with the outline of its planted lesion."""
    from streamview.slides import open_slide
    from streamview.slides.synthetic import write_synthetic_slide
    from streamview_napari.canvas.layers import mask_layer, slide_layer
    from streamview_napari.reader import show_panel

    show_panel()
    path = Path(tempfile.mkdtemp(prefix="streamview-")) / "synthetic.svs"
    mask = write_synthetic_slide(path, size=(2048, 2048))
    slide = open_slide(path)
    return [slide_layer(slide, path=path), mask_layer(mask, "planted lesion", slide.mpp)]
