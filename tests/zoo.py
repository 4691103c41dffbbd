"""Import timm and torchvision where they are installed; skip the test where they are not.

torchvision has no wheel for processors alone, so the Makefile installs it without its dependencies and without the operators it
compiles. Its Python part, and with it timm, imports once the schemas of the two operators that it registers kernels for exist.
"""

from __future__ import annotations

import functools
import importlib.util
from types import ModuleType

import pytest
import torch

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def import_torchvision() -> ModuleType:
    """Return torchvision, or skip the test."""
    _need("torchvision")
    _define_operators()
    import torchvision

    return torchvision


def import_timm() -> ModuleType:
    """Return timm, or skip the test."""
    _need("timm")
    import_torchvision()
    import timm

    return timm


def _need(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: make .venv/.test")


@functools.cache  # the schemas live as long as the library object does
def _define_operators() -> torch.library.Library | None:
    if hasattr(torch.ops.torchvision, "nms"):  # a whole torchvision was imported
        return None
    library = torch.library.Library("torchvision", "DEF")
    for schema in _OPERATORS:
        library.define(schema)
    return library
