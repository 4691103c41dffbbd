"""The napari plugin of streamview: a thin shell over the core.

``_layers`` turns slides and results into layer tuples (pure, no window), ``_reader`` and ``_sample`` are what the manifest names,
``view`` opens a window.
"""

__all__: list[str] = []
