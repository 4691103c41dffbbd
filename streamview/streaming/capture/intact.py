"""What a capture leaves behind on the user's network: nothing."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from streamview.errors import NotStreamableError

__all__ = ["attributes_restored", "state_restored"]

_CONTAINERS = (list, dict, set, deque)
_OWN = "_tensor_constant"  # what torch.fx names tensors that a forward makes, which the graph reads


@contextlib.contextmanager
def state_restored(module: nn.Module) -> Iterator[None]:
    """Undo changes of buffers by modules in training mode, such as the power iteration of a spectral norm."""
    buffers = [t for m in module.modules() if m.training for t in m.buffers(recurse=False)]
    copies = [(t, t._version, t.detach().clone()) for t in buffers if not is_lazy(t)]
    try:
        yield
    finally:
        for tensor, version, before in copies:
            if tensor._version != version:
                tensor.data.copy_(before)  # `data`, so that no graph that saved the tensor takes it as changed


@contextlib.contextmanager
def attributes_restored(module: nn.Module) -> Iterator[None]:
    """Undo what a trace leaves on the modules of a network, whose forward runs with proxies in the place of tensors.

    Raises
    ------
    NotStreamableError
        When forward counts something in an attribute, which a streamed call would not do.
    ValueError
        When forward changes a buffer in place, which torch.fx does not record.
    """
    modules = dict(module.named_modules())
    before = {path: dict(m.__dict__) for path, m in modules.items()}
    contents = [(value, value.copy()) for m in modules.values() for value in m.__dict__.values() if isinstance(value, _CONTAINERS)]
    versions = [(path, name, t, t._version) for path, m in modules.items() if _counts(m) for name, t in m.named_buffers(recurse=False)]
    for m in modules.values():
        m.__dict__.pop("_compiled_call_impl", None)  # a compiled module computes the same
    try:
        yield
        for path, m in modules.items():
            for name, value in m.__dict__.items():
                earlier = before[path].get(name)
                if isinstance(earlier, int | float) and isinstance(value, int | float) and earlier != value and name != "training":
                    raise NotStreamableError(
                        f"{path or type(module).__name__}: forward changes the attribute {name} (from {earlier} to {value}), which a "
                        "streamed call would not: count outside of the network"
                    )
        for path, name, tensor, version in versions:
            if tensor._version != version:
                raise ValueError(f"forward changes the buffer {path}.{name}".replace(" .", " "))
    finally:
        for path, m in modules.items():
            current = m.__dict__
            for name in [name for name in current if name not in before[path] and not name.startswith(_OWN)]:
                del current[name]
            current.update({name: value for name, value in before[path].items() if current.get(name, before) is not value})
        for container, items in contents:
            _refill(container, items)


def _counts(module: nn.Module) -> bool:
    """Whether a module's own code may change its buffers while it is traced; parametrizations are evaluated anew at every call."""
    return not isinstance(module, ParametrizationList) and not type(module).__module__.startswith("torch.nn.utils.")


def _refill(container: Any, items: Any) -> None:
    """Give a container its former contents where it has others."""
    if len(container) == len(items) and all(a is b for a, b in zip(_entries(container), _entries(items), strict=True)):
        return
    own = {k: v for k, v in container.items() if str(k).startswith(_OWN)} if isinstance(container, dict) else {}
    container.clear()
    container.update(items) if isinstance(container, dict | set) else container.extend(items)
    if own:
        container.update(own)


def _entries(container: Any) -> list[Any]:
    return [entry for pair in container.items() for entry in pair] if isinstance(container, dict) else list(container)
