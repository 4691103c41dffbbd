"""Results that the head computes from reductions, for an image of a nominal size and without memory: a local call may need their shape."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from streamview.streaming.capture.calls import Constants, path_of
from streamview.streaming.capture.trace import quiet
from streamview.streaming.ops import Extent, Reduction, Statistic, Trait, Value, Weight
from streamview.streaming.ops.layouts import to_layout
from streamview.streaming.ops.registry import BATCH
from streamview.streaming.ops.reshape import reduced

__all__ = ["Nominal", "Result", "shaped", "statistic", "type_and_device"]

_NOMINAL = (10007, 4099, 6151)  # images, height and width where only a shape must be known: primes that no layer has


@dataclass(slots=True)
class Result:
    """A call that is not local: the pass behind which it can run, and whether it needs a whole map."""

    phase: int
    whole: bool


@dataclass(slots=True)
class Nominal:
    """Results of calls without memory, as a walk goes on that fills `known`, `reductions` and `results`."""

    root: nn.Module
    constants: Constants
    known: dict[fx.Node, Any]
    reductions: dict[fx.Node, Reduction]
    results: dict[fx.Node, Result]
    tensors: dict[fx.Node, Any] = field(default_factory=dict)
    failures: dict[fx.Node, str] = field(default_factory=dict)  # why a result is not known
    mode: FakeTensorMode | None = None  # of tensors without memory, once one is asked for
    dtype: torch.dtype = field(init=False)
    device: torch.device = field(init=False)

    def __post_init__(self) -> None:
        self.dtype, self.device = type_and_device((*self.root.parameters(), *self.root.buffers()))

    def of(self, node: fx.Node) -> Any:
        """The result of a call on gathered tensors, without memory; None where it cannot be known beforehand.

        Computed when asked for: modules of the head run without memory, and only where a local call needs their result.
        """
        if node not in self.tensors:
            self.tensors[node] = self._run(node)
        return self.tensors[node]

    @property
    def fakes(self) -> FakeTensorMode:
        """The mode in which tensors have no memory; the first of a process imports some 800 modules, so most networks do without."""
        if self.mode is None:
            self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        return self.mode

    def _run(self, node: fx.Node) -> Any:
        if node in self.reductions:
            reduction = self.reductions[node]
            layout, dropped = reduced(reduction.value.layout, reduction.keepdim, reduction.value.channels)
            with self.fakes:
                empty = torch.empty(
                    _NOMINAL[0], reduction.value.channels, reduction.count, 1, dtype=reduction.dtype or self.dtype, device=self.device
                )
                return shaped(empty, layout, dropped)
        target: Any = node.target
        if node.op == "call_module":
            target = self._without_effect(self.root.get_submodule(target))
        arguments: Any = {s: self._argument(s) for s in node.all_input_nodes}
        unknown = next((s for s in arguments if s in self.failures), None)
        if unknown is not None:
            self.failures[node] = self.failures[unknown]
            return None
        args: Any = fx.node.map_arg(node.args, arguments.__getitem__)
        kwargs: Any = fx.node.map_arg(node.kwargs, arguments.__getitem__)
        try:
            with quiet(), self.fakes, torch.no_grad():
                return getattr(args[0], target)(*args[1:], **kwargs) if isinstance(target, str) else target(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - whatever fails on a nominal shape is left to the head, which runs on true ones
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            for length, letter in zip(_NOMINAL, "NHW", strict=True):
                reason = reason.replace(str(length), letter)
            self.failures[node] = f"{path_of(node)}: {reason}"
            return None

    def _without_effect(self, module: nn.Module) -> Callable[..., Any]:
        """A module's forward without its hooks, on tensors without memory, so that running statistics stay as they are."""
        plain = _Plain(module)
        named = (*plain.named_parameters(), *plain.named_buffers())
        tensors: dict[str, Tensor] = {name: self.fakes.from_tensor(tensor.detach()) for name, tensor in named}
        return lambda *args, **kwargs: functional_call(plain, tensors, args, kwargs)

    def _argument(self, node: fx.Node) -> Any:
        if node in self.constants:
            value = self.constants[node]()
            return self.fakes.from_tensor(value.detach()) if isinstance(value, Tensor) else value
        return self.of(node) if node in self.results else self._stand_in(self.known[node])

    def _stand_in(self, known: Any) -> Any:
        """Something of the kind that is known, of a nominal size."""
        if isinstance(known, Value):
            images, height, width = _NOMINAL
            with self.fakes:
                blank = torch.empty(images, known.channels, height, width, dtype=self.dtype, device=self.device)
                return to_layout(blank, known.layout)
        if isinstance(known, Extent):
            return _NOMINAL[1 + known.axis]
        if known is BATCH:
            return _NOMINAL[0]
        if isinstance(known, Weight):
            return self.fakes.from_tensor(known.read().detach())
        if isinstance(known, Trait):
            return (known.of or self.dtype) if known.name == "dtype" else self.device
        return tuple(map(self._stand_in, known)) if isinstance(known, tuple) else known


class _Plain(nn.Module):
    """A module whose own hooks are not run."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.forward(*args, **kwargs)


def type_and_device(tensors: Collection[Tensor]) -> tuple[torch.dtype, torch.device]:
    """The type of a network's numbers and where they are; float32 on the processor where it has none."""
    dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
    return dtype, next((t.device for t in tensors), torch.device("cpu"))


def statistic(name: str, result: Tensor) -> Statistic:
    """A gathered tensor as an operation reads it, its number of images left open (0)."""
    return Statistic(name, tuple(0 if length == _NOMINAL[0] else length for length in result.shape))


def shaped(gathered: Tensor, layout: Any, dropped: Sequence[int]) -> Tensor:
    """A reduction (N, C, 1, 1) as the network sees it."""
    result = to_layout(gathered, layout)
    return result.squeeze(tuple(dropped)) if dropped else result
