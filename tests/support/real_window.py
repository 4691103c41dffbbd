"""The marks of tests that open a real window."""

from __future__ import annotations

import os

import pytest

__all__ = ["REAL_WINDOW"]

REAL_WINDOW = [
    # A mark, not a fixture: Qt ends the process where it finds no display.
    pytest.mark.skipif(
        not os.environ.get("DISPLAY") or os.environ.get("QT_QPA_PLATFORM") == "offscreen",
        reason="no display: a real window needs one, run under `xvfb-run -a` with QT_QPA_PLATFORM unset",
    ),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(napari|vispy|qtpy)"),
]
