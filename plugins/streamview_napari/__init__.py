"""The napari plugin of streamview: a thin shell over the core.

``canvas/layers`` turns slides and results into layer tuples (pure, no window), ``reader`` and ``sample`` are what the manifest names,
``view`` opens a window.
"""

__all__: list[str] = []
