"""The plugin's settings, declared in ``napari.yaml``: kept by napari in its settings folder and shown in its preferences."""

from __future__ import annotations

from importlib.resources import files
from types import SimpleNamespace
from typing import Any

__all__ = ["settings"]


def settings() -> Any:
    """Return the settings, as attributes of ``panel`` and ``keys``; what is assigned is kept on disk.

    Where the plugin is not installed or was switched off, they are the defaults, and forgotten.
    """
    from napari.settings import get_plugin_settings
    from npe2 import PluginManifest

    try:
        return get_plugin_settings("streamview")
    except KeyError:
        declared = PluginManifest.from_file(str(files("streamview_napari") / "napari.yaml")).contributions.configurations or {}
        return SimpleNamespace(
            **{key: SimpleNamespace(**{name: field.default for name, field in group.properties.items()}) for key, group in declared.items()}
        )
