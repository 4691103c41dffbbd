"""The versions of what a result was computed with."""

from __future__ import annotations

import importlib.metadata
import platform

__all__ = ["versions"]

_PACKAGES = ("streamview", "torch", "numpy", "zarr", "tifffile", "openslide-python", "openslide-bin")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result's rounding; a missing one is left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
