"""The napari plugin of streamview: a thin shell over the core.

Each room imports only from those before it: ``requests`` (what is asked of the core, and what is said of its answers; neither napari nor
Qt), ``tasks`` (threads), ``state`` (what the sections of the dock share), ``canvas`` (layers, captions, camera), ``panels`` (the dock).
``reader``, ``sample`` and ``settings`` are what the manifest names, ``view`` opens a window.
"""

__all__: list[str] = []
