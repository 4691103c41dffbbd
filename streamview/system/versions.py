"""The versions of the software that computed a result."""

from __future__ import annotations

import importlib.metadata
import platform

__all__ = ["versions"]

_PACKAGES = ("streamview", "torch", "numpy", "zarr", "tifffile", "openslide-python", "openslide-bin")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect a result; missing ones are left out."""
    installed = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
