"""What an operation is to the engine, and how torch's calls become operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from streamview.streaming.schedule import Window

__all__ = [
    "Local",
    "NotLocal",
    "Op",
    "Piece",
    "Reduction",
    "Value",
    "Wants",
    "Weight",
    "layout",
    "local_vjp",
    "lower",
    "lowers",
    "lowers_module",
]


class NotLocal(Exception):
    """A call that cannot run piece by piece; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Value:
    """A streamed value, standing for a tensor (N, C, H, W) in a call that is being lowered."""

    index: int


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor that does not depend on the image; `read` gives it anew at every call of the streamed module."""

    read: Callable[[], Tensor]

    @classmethod
    def of(cls, module: nn.Module, name: str) -> Weight:
        """Attribute `name` of a module: a parameter, a buffer, or a parametrization evaluated when read."""
        return cls(lambda: getattr(module, name))


@dataclass(frozen=True, slots=True)
class Piece:
    """Where a piece of an operation's output lies.

    Parameters
    ----------
    rows, cols
        Range of outputs along each axis.
    size
        Height and width of the whole input value.
    pad
        Padding of the piece at true borders of the image: top, bottom, left, right.
    """

    rows: tuple[int, int]
    cols: tuple[int, int]
    size: tuple[int, int]
    pad: tuple[int, int, int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the piece."""
        return self.rows[1] - self.rows[0], self.cols[1] - self.cols[0]


@dataclass(frozen=True, slots=True)
class Wants:
    """Which gradients the backward pass will ask an operation for, in the order of its inputs and weights."""

    inputs: tuple[bool, ...]
    weights: tuple[bool, ...]

    def __bool__(self) -> bool:
        return any(self.inputs) or any(self.weights)


class Op(Protocol):
    """A local operation.

    `run` gets just the inputs that the piece needs, without padding, and what the reverse pass will want; with ``wants`` None
    it saves nothing. `vjp` (vector-Jacobian product) owns ``grad``: it may change it in place and return parts of it, as long
    as no two returned tensors overlap.
    """

    @property
    def rows(self) -> Window:
        """Geometry along rows."""

    @property
    def cols(self) -> Window:
        """Geometry along columns."""

    def channels(self, inputs: Sequence[int]) -> int:
        """Channels of the output for inputs of these channels."""

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], piece: Piece, wants: Wants | None) -> tuple[Tensor, Any]:
        """Output of the piece, never changed afterwards, so that it may be the input itself; and what `vjp` will need."""

    def vjp(
        self, grad: Tensor, saved: Any, weights: Sequence[Tensor], piece: Piece, wants: Wants
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Gradients of the inputs and of the weights, given that of the output."""


@dataclass(frozen=True, slots=True)
class Local:
    """A lowered call: an operation on streamed values with weights."""

    op: Op
    inputs: tuple[Value, ...]
    weights: tuple[Weight, ...] = ()


@dataclass(frozen=True, slots=True)
class Reduction:
    """A lowered call that reduces a whole map to one number per channel and ends the local part."""

    kind: str
    value: Value
    keepdim: bool


Lowered = Local | Reduction | Value
_Lowering = TypeVar("_Lowering", bound=Callable[..., Lowered])
_FUNCTIONS: dict[Any, Callable[..., Lowered]] = {}
_MODULES: dict[type[nn.Module], Callable[..., Lowered]] = {}


def lowers(*targets: Any) -> Callable[[_Lowering], _Lowering]:
    """Register how calls of these functions (or tensor methods, by name) are lowered."""

    def register(function: _Lowering) -> _Lowering:
        _FUNCTIONS.update(dict.fromkeys(targets, function))
        return function

    return register


def lowers_module(*kinds: type[nn.Module]) -> Callable[[_Lowering], _Lowering]:
    """Register how calls of modules of these types are lowered; the function gets the module, then the call's arguments."""

    def register(function: _Lowering) -> _Lowering:
        _MODULES.update(dict.fromkeys(kinds, function))
        return function

    return register


def lower(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Lowered:
    """Turn one call on streamed values into an operation.

    Parameters
    ----------
    target
        A function, the name of a tensor method, or a module.
    args, kwargs
        The call's arguments, with `Value` and `Weight` in the place of tensors.

    Returns
    -------
    Local or Reduction or Value
        A bare value means that the call changes nothing.

    Raises
    ------
    NotLocal
        When the call is unknown or mixes rows or columns.
    """
    if isinstance(target, nn.Module):
        kind = next((base for base in type(target).__mro__ if base in _MODULES), None)
        if kind is None:
            raise NotLocal(f"{type(target).__name__} is not an operation that can run piece by piece")
        return _MODULES[kind](target, *args, **kwargs)
    if target not in _FUNCTIONS:
        raise NotLocal(f"{getattr(target, '__name__', target)} is not an operation that can run piece by piece")
    try:
        return _FUNCTIONS[target](*args, **kwargs)
    except TypeError as error:
        raise NotLocal(f"{getattr(target, '__name__', target)}: {error}") from None


def layout(tensor: Tensor) -> torch.memory_format:
    """The memory format in which a tensor of four dimensions lies, channels_last or contiguous."""
    _, channels, _, columns = tensor.stride()
    return torch.channels_last if channels < columns or tensor.shape[1] == 1 else torch.contiguous_format


def local_vjp(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], weights: Sequence[Tensor], grad: Tensor, wants: Wants
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Gradients of one small function by torch's own autograd, for operations without a lean backward of their own."""
    asked = [*wants.inputs, *wants.weights]
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_(want) for t, want in zip([*inputs, *weights], asked, strict=True)]
        out = function(*leaves)
    found = iter(torch.autograd.grad(out, [t for t, want in zip(leaves, asked, strict=True) if want], grad, allow_unused=True))
    grads = [next(found) if want else None for want in asked]
    return grads[: len(inputs)], grads[len(inputs) :]
