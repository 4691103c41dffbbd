"""What an operation is to the engine, and how torch's calls become operations."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from streamview.streaming.ops.layouts import Layout, canonical, is_canonical
from streamview.streaming.ops.origin import runs_code_of
from streamview.streaming.schedule import Axis

__all__ = [
    "BATCH",
    "Extent",
    "Local",
    "NotLocal",
    "Op",
    "OtherChannels",
    "Partial",
    "Piece",
    "Reduction",
    "Size",
    "Statistic",
    "Trait",
    "Value",
    "Wants",
    "Weight",
    "computed",
    "finite",
    "fits",
    "layout",
    "local_vjp",
    "lower",
    "lowers",
    "lowers_module",
]

Size = tuple[int, int]


class NotLocal(Exception):
    """A call that cannot run piece by piece; the message is the reason."""


class OtherChannels(NotLocal):
    """A call that takes another number of channels than its map has."""


class _Batch:
    """Stands for the number of images."""


BATCH = _Batch()


@dataclass(frozen=True, slots=True)
class Trait:
    """Stands for the ``dtype`` or the ``device`` of a map.

    Parameters
    ----------
    name
        Which of the two.
    of
        The type, where a conversion set it; None: that of the image.
    example
        A tensor of the image's type and device, which are taken to be those of the network; None: the network has none.
    """

    name: str
    of: torch.dtype | None = None
    example: Weight | None = None


@dataclass(frozen=True, slots=True)
class Value:
    """A streamed value, standing for a tensor in a call that is being lowered.

    Parameters
    ----------
    index
        The value; stored as (N, C, H, W).
    channels
        C.
    layout
        Dimensions of the tensor it stands for, if not (N, C, H, W) itself.
    like
        The earliest value that has the same height and width, whatever the image.
    dtype
        The type that a conversion gave it; None: that of the image.
    """

    index: int
    channels: int
    layout: Layout
    like: int
    dtype: torch.dtype | None = None

    @classmethod
    def plain(cls, index: int, channels: int) -> Value:
        """A value that stands for (N, C, H, W)."""
        return cls(index, channels, canonical(channels), index)


@dataclass(frozen=True, slots=True, eq=False)
class Extent:
    """A number that follows from the heights (axis 0) or the widths (axis 1) of earlier values, such as ``2 * x.shape[2]``.

    Parameters
    ----------
    axis
        Which of the two.
    of
        The number, given that length of every value.
    value
        The value whose plain length it is, if it is one.
    like
        The earliest value that has the same height and width as that one, whatever the image.
    """

    axis: int
    of: Callable[[Sequence[int]], Any]
    value: int | None = None
    like: int | None = None

    def __eq__(self, other: object) -> bool:
        raise NotLocal("a comparison with the size of a map")

    def __hash__(self) -> int:
        return id(self)


def computed(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The result of a call on numbers alone: an `Extent` if one of them is.

    Parameters
    ----------
    function
        A function, or the name of a method.
    args, kwargs
        The call's arguments.

    Raises
    ------
    NotLocal
        When it mixes heights and widths.
    """
    given = [*args, *kwargs.values()]
    extents = [a for a in given if isinstance(a, Extent)]
    if any(a is BATCH for a in given) and function is not operator.getitem:
        raise NotLocal("a number made from the number of images")
    if not extents or isinstance(function, str):
        return getattr(args[0], function)(*args[1:], **kwargs) if isinstance(function, str) else function(*args, **kwargs)
    axis = extents[0].axis
    if any(extent.axis != axis for extent in extents):
        raise NotLocal("a number that mixes height and width of a map")

    def of(lengths: Sequence[int]) -> Any:
        def number(a: Any) -> Any:
            return a.of(lengths) if isinstance(a, Extent) else a

        return function(*map(number, args), **{k: number(a) for k, a in kwargs.items()})

    return Extent(axis, of)


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor that does not depend on the image; `read` gives it anew at every call of the streamed module."""

    read: Callable[[], Tensor]

    @classmethod
    def of(cls, module: nn.Module, name: str) -> Weight:
        """Attribute `name` of a module: a parameter, a buffer, or a parametrization evaluated when read."""
        return cls(lambda: getattr(module, name))

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape now."""
        return tuple(self.read().shape)


@dataclass(frozen=True, slots=True)
class Statistic:
    """A small tensor computed from reductions of whole maps, such as gates; 0 in its shape stands for the number of images."""

    name: str
    shape: tuple[int, ...]


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
    origin
        First row and column of the input that the piece gets.
    """

    rows: tuple[int, int]
    cols: tuple[int, int]
    size: Size
    pad: tuple[int, int, int, int]
    origin: tuple[int, int] = (0, 0)

    @property
    def shape(self) -> Size:
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

    `run` gets just the inputs that the piece needs, without padding, and what the backward pass will want; with ``wants`` None
    it saves nothing. `vjp` (vector-Jacobian product) owns ``grad``: it may change it in place and return parts of it, as long
    as no two returned tensors overlap.
    """

    @property
    def rows(self) -> Axis:
        """Geometry along rows."""

    @property
    def cols(self) -> Axis:
        """Geometry along columns."""

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], piece: Piece, wants: Wants | None) -> tuple[Tensor, Any]:
        """Output of the piece, never changed afterwards, so that it may be the input itself; and what `vjp` will need."""

    def vjp(
        self, grad: Tensor, saved: Any, weights: Sequence[Tensor], piece: Piece, wants: Wants
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Gradients of the inputs and of the weights, given that of the output."""


@dataclass(frozen=True, slots=True)
class Sized:
    """An operation whose geometry follows from the sizes of earlier values; `make` gives it once these are known."""

    make: Callable[[Sequence[Size]], Op]


def at_sizes(op: Op | Sized, sizes: Sequence[Size]) -> Op:
    """An operation, for these sizes of earlier values."""
    return op.make(sizes) if isinstance(op, Sized) else op


@dataclass(frozen=True, slots=True)
class Local:
    """A lowered call: an operation on streamed values with weights.

    Parameters
    ----------
    op
        The operation, or what makes it once the image's size is known.
    inputs, weights
        What it reads.
    channels
        Of its output; None: as many as its first input.
    layout
        Of the tensor that its output stands for; None: that of its first input, with these channels.
    shares
        Whether the output of the call shares memory with its input, in torch.
    to
        The type that it converts to; None: it converts nothing.
    """

    op: Op | Sized
    inputs: tuple[Value, ...]
    weights: tuple[Weight | Statistic, ...] = ()
    channels: int | None = None
    layout: Layout | None = None
    shares: bool = False
    to: Trait | None = None


@dataclass(frozen=True, slots=True)
class Reduction:
    """A lowered call that reduces a whole map to one number per channel, or to a few.

    Parameters
    ----------
    kind
        ``"mean"``, ``"sum"``, ``"max"``, ``"top"``, ``"bottom"`` or ``"attention"``; ``"spread"`` (variance) and ``"positions"`` (how many
        there are), which have no gradient.
    value
        The map.
    keepdim
        Whether rows and columns stay as dimensions of length one.
    dtype
        Of the result, if not that of the map.
    before
        An operation of the map's size whose output is gathered in the place of the map.
    count
        Numbers per channel.
    """

    kind: str
    value: Value
    keepdim: bool
    dtype: torch.dtype | None = None
    before: Local | None = None
    count: int = 1


class Partial(Protocol):
    """A lowered call whose result is no map and is streamed only if later calls complete it to a reduction."""

    def then(self, name: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reduction | Partial:
        """What a call that takes this makes of it; raises `NotLocal` where that is no reduction of a map."""


Lowered = Local | Reduction | Partial | Trait | Value | list[Local] | tuple[Any, ...] | int
_Lowering = TypeVar("_Lowering", bound=Callable[..., Lowered])
_FUNCTIONS: dict[Any, Callable[..., Lowered]] = {}
_MODULES: dict[type[nn.Module], Callable[..., Lowered]] = {}
_ANY_LAYOUT: set[Callable[..., Lowered]] = set()


def lowers(*targets: Any, any_layout: bool = False) -> Callable[[_Lowering], _Lowering]:
    """Register how calls of these functions (or tensor methods and ATen operators, by name) are lowered.

    With `any_layout` also those on permuted maps.
    """

    def register(function: _Lowering) -> _Lowering:
        _FUNCTIONS.update(dict.fromkeys(targets, function))
        if any_layout:
            _ANY_LAYOUT.add(function)
        return function

    return register


def lowers_module(*kinds: type[nn.Module], any_layout: bool = False) -> Callable[[_Lowering], _Lowering]:
    """Register how calls of modules of these types are lowered; the function gets the module, then the call's arguments."""

    def register(function: _Lowering) -> _Lowering:
        _MODULES.update(dict.fromkeys(kinds, function))
        if any_layout:
            _ANY_LAYOUT.add(function)
        return function

    return register


def lower(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Lowered:
    """Turn one call on streamed values into an operation.

    Parameters
    ----------
    target
        A function, the name of a tensor method, or a module.
    args, kwargs
        The call's arguments, with `Value`, `Weight`, `Statistic` and `Extent` in the place of tensors and sizes.

    Returns
    -------
    Lowered
        A bare value means that the call changes nothing; a list stands for a call with several results; numbers for questions
        about the map's shape.

    Raises
    ------
    NotLocal
        When the call is unknown or mixes rows or columns.
    """
    name = _name(target)
    if isinstance(target, nn.Module):
        kind = next((base for base in type(target).__mro__ if base in _MODULES), None)
        if kind is not None and not runs_code_of(target, kind):
            raise NotLocal(f"{name} runs other code than {kind.__name__}, which it derives from")
        found = None if kind is None else _MODULES[kind]
        args = (target, *args)
    else:
        found = _find(target)
    if found is None:
        raise NotLocal(f"{name} is not an operation that can run piece by piece")
    if found not in _ANY_LAYOUT:
        for value in _values((*args, *kwargs.values())):
            if not is_canonical(value.layout):
                raise NotLocal(f"{name} of a map whose dimensions were permuted, split or flattened")
    try:
        return found(*args, **kwargs)
    except TypeError as error:
        raise NotLocal(f"{name}: {error}") from None


def fits(input: Value, channels: int) -> None:
    """Raise `OtherChannels` where a layer takes another number of channels than its map has."""
    if input.channels != channels:
        raise OtherChannels(f"it takes {channels} channels, its map has {input.channels}")


def _name(target: Any) -> str:
    return type(target).__name__ if isinstance(target, nn.Module) else str(getattr(target, "__name__", target))


def _find(target: Any) -> Callable[..., Lowered] | None:
    """How a function is lowered; an operator of the ATen library is looked up by name where it is not known itself."""
    if target in _FUNCTIONS or not isinstance(target, torch._ops.OpOverload):
        return _FUNCTIONS.get(target)
    full = target._schema.name.split("::")[1]
    names = (full, full.removesuffix("_"))  # in place or not is the same operation
    known = [key for name in names for key in (name, *(getattr(place, name, None) for place in (torch.Tensor, torch, nn.functional)))]
    return next((_FUNCTIONS[key] for key in known if key in _FUNCTIONS), None)


def _values(arguments: Sequence[Any]) -> list[Value]:
    found = []
    for argument in arguments:
        if isinstance(argument, Value):
            found.append(argument)
        elif isinstance(argument, tuple | list):
            found += _values(argument)
    return found


def finite(tensor: Tensor) -> bool:
    """Whether all values are finite, as far as their sum tells; on the meta device they are."""
    return tensor.device.type == "meta" or bool(tensor.sum().isfinite())


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
    if not out.requires_grad:  # it does not depend on what is asked for, as `a.expand_as(b)` on b
        return [None] * len(inputs), [None] * len(weights)
    found = iter(torch.autograd.grad(out, [t for t, want in zip(leaves, asked, strict=True) if want], grad, allow_unused=True))
    grads = [next(found) if want else None for want in asked]
    owners: set[int] = set()
    for index, part in enumerate(grads):
        # torch hands out one tensor several times, and expanded ones
        if part is not None:
            owner = part.untyped_storage()._cdata
            if owner in owners or any(n > 1 and step == 0 for n, step in zip(part.shape, part.stride(), strict=True)):
                grads[index] = part.clone(memory_format=torch.contiguous_format)
            owners.add(owner)
    return grads[: len(inputs)], grads[len(inputs) :]
