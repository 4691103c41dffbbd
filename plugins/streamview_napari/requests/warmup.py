"""What the first use of the panel would wait for, done beforehand in a thread."""

from __future__ import annotations

__all__ = ["warm_up"]


def warm_up() -> None:
    """Import what drawing, running, listing and exporting need, which takes seconds when it is done first on the window's thread."""
    import contourpy  # noqa: F401
    import pandas  # noqa: F401
    import scipy.ndimage  # noqa: F401

    import streamview.export.hotspots
    import streamview.inference.prepared
    import streamview.results.display  # noqa: F401
