"""What a capture depends on: modules, tensors, numbers, functions, and the numbers of tensors that a trace made constants."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from streamview.streaming.ops.origin import class_of

__all__ = ["Fingerprint", "parts_of"]

_PLAIN = (int, float, complex, str, bytes, bool, type(None), range, slice)
_CONTAINERS = (list, tuple, dict, set, frozenset)
_LEAVES = (*_PLAIN, Tensor, np.ndarray, type)
_BOOKKEEPING = {name for name in vars(nn.Module()) if "hook" in name} | {"_non_persistent_buffers_set"}
_LONG = 1000  # elements of a container that are looked at


@dataclass(frozen=True, slots=True, eq=False)
class Fingerprint:
    """The state of a network when it was captured.

    Parameters
    ----------
    parts
        Of the network: plain values as they were, anything else by identity; tensors do not live longer for it.
    frozen
        Tensors whose numbers became constants, with what they held.
    """

    parts: tuple[Any, ...]
    frozen: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, module: nn.Module, frozen: Sequence[Tensor] = ()) -> Fingerprint:
        """Of a network now; `frozen` are the tensors whose numbers its capture holds."""
        return cls(tuple(map(_held, parts_of(module))), tuple((t, t.detach().clone()) for t in frozen))

    def fits(self, module: nn.Module) -> bool:
        """Whether nothing has changed since."""
        now = parts_of(module)
        return (
            len(now) == len(self.parts)
            and all(map(_same, self.parts, now))
            and all(t.shape == value.shape and t.device == value.device and _equal(t.detach(), value) for t, value in self.frozen)
        )


def parts_of(module: nn.Module) -> list[Any]:
    """Everything that decides what the code of a network does, in a fixed order: names, plain values, tensors, functions, modules."""
    walk = _Walk()
    walk.add(module)
    for kind in list(walk.classes):
        walk.add_class(kind)
    return walk.parts


@dataclass(slots=True)
class _Walk:
    """A walk through what a network holds."""

    parts: list[Any] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    classes: dict[type, None] = field(default_factory=dict)

    def add(self, value: Any) -> None:
        self.parts.append(value)
        if isinstance(value, _LEAVES) or id(value) in self.seen:
            return
        self.seen.add(id(value))
        if isinstance(value, nn.Module):
            self.parts.append(type(value))
            self.classes[class_of(value)] = None
            for name, part in vars(value).items():
                if name not in _BOOKKEEPING and part is not None:
                    self.parts.append(name)
                    self.add(part)
        elif isinstance(value, dict):
            self.parts.append(len(value))
            for key in list(value)[:_LONG]:
                self.parts.append(key)
                self.add(value[key])
        elif isinstance(value, _CONTAINERS):
            self.parts.append(len(value))
            for part in list(value)[:_LONG]:
                self.add(part)
        elif isinstance(value, FunctionType):
            self.add_function(value)
        elif isinstance(value, MethodType):
            self.add(value.__func__)
            self.parts.append(value.__self__)
        elif isinstance(value, partial):
            for part in (value.func, value.args, value.keywords):
                self.add(part)
        elif _is_record(value):
            self.add(vars(value))

    def add_function(self, function: FunctionType) -> None:
        """What a function holds, and plain values, dicts and functions among the globals that it names."""
        self.parts.append(function.__code__)
        self.add(function.__defaults__)
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):  # not yet filled
                # a list outside the network is rather a record that grows with every call
                (self.parts.append if isinstance(cell.cell_contents, list | set) else self.add)(cell.cell_contents)
        for name in function.__code__.co_names:
            value = function.__globals__.get(name)
            if isinstance(value, FunctionType):
                self.parts.append(value)
            elif isinstance(value, (*_PLAIN, tuple, dict)):
                self.add(value)

    def add_class(self, kind: type) -> None:
        """The methods of a class and of its bases, and of those outside torch what they hold."""
        for base in kind.__mro__:
            if base in nn.Module.__mro__ or id(base) in self.seen:
                continue
            self.seen.add(id(base))
            for name, value in vars(base).items():
                if isinstance(value, FunctionType):
                    self.parts.append(value)
                    if not base.__module__.startswith("torch."):
                        self.add_function(value)
                elif not name.startswith("__"):
                    self.add(value)


def _is_record(value: Any) -> bool:
    """Whether an object holds nothing but plain values, as settings do: others may be as large as a training program."""
    inside = getattr(value, "__dict__", None)
    return isinstance(inside, dict) and len(inside) < _LONG and all(isinstance(v, (*_PLAIN, list, tuple, dict)) for v in inside.values())


def _held(part: Any) -> Any:
    if isinstance(part, np.ndarray):
        return part.copy()
    return weakref.ref(part) if isinstance(part, Tensor) else part


def _same(before: Any, now: Any) -> bool:
    if before is now:
        return True
    if isinstance(before, weakref.ref):
        return before() is now
    if type(before) is not type(now):
        return False
    if isinstance(now, np.ndarray):
        return np.array_equal(before, now, equal_nan=now.dtype.kind in "fc")
    # of containers the parts are compared, and NaN is not equal to itself
    return isinstance(now, _CONTAINERS) or (isinstance(now, (*_PLAIN, MethodType)) and (before == now or repr(before) == repr(now)))


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape hold the same, NaN being equal to NaN."""
    if a.is_floating_point() or a.is_complex():
        return bool(((a == b) | (a.isnan() & b.isnan())).all())
    return torch.equal(a, b)
