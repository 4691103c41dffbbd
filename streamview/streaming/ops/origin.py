"""Whose code a call of a module runs: that of the class it is known by, or other code put in its place."""

from __future__ import annotations

from types import FunctionType
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

__all__ = ["class_of", "methods_of", "runs_code_of", "runs_torch_code"]

_BESIDE = {"extra_repr", "reset_parameters", "reset_running_stats"}  # no part of a forward pass


def class_of(module: nn.Module) -> type[nn.Module]:
    """The class that a module was made of, without the one that torch's parametrizations put around it."""
    kind: type[nn.Module] = parametrize.type_before_parametrizations(module)
    return kind


def methods_of(kind: type[nn.Module]) -> dict[str, Any]:
    """What a class and its bases, but for ``nn.Module``, define that a forward pass may run, by name."""
    own = [base for base in reversed(kind.__mro__) if base not in nn.Module.__mro__]
    return {
        name: value
        for base in own
        for name, value in vars(base).items()
        if callable(value) and name not in _BESIDE and (name == "__call__" or not name.startswith("__"))
    }


def runs_torch_code(module: nn.Module) -> bool:
    """Whether a call of a module runs what a class of ``torch.nn`` defines: no subclass, and nothing put in its place."""
    kind = class_of(module)
    return kind.__module__.startswith("torch.nn.") and runs_code_of(module, kind)


def runs_code_of(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of a module runs what a class that it derives from defines, and defined when torch was imported."""
    if kind.__module__.startswith("torch.") and not all(map(_is_of_torch, methods_of(kind).values())):
        return False
    replaced = methods_of(class_of(module)) | {name: value for name, value in vars(module).items() if callable(value)}
    return "forward" not in vars(module) and all(replaced.get(name) is method for name, method in methods_of(kind).items())


def _is_of_torch(method: Any) -> bool:
    """Where a method was written; a wrapper bears the names of what it wraps, but not its globals."""
    if isinstance(method, staticmethod | type):
        return True
    return isinstance(method, FunctionType) and str(method.__globals__.get("__name__")).startswith("torch.")
