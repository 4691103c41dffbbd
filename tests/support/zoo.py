"""Import timm and torchvision where they are installed; skip the test where they are not."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from streamview.networks.architectures import import_library


def import_torchvision() -> ModuleType:
    """Return torchvision, or skip the test."""
    return _import("torchvision")


def import_timm() -> ModuleType:
    """Return timm, or skip the test."""
    return _import("timm")


def _import(name: str) -> ModuleType:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: make .venv/.test")
    return import_library(name)
