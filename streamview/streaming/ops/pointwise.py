"""Operations that act on every pixel alone: activations, eval-mode normalisation, arithmetic with scalars and constants."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamview.errors import RegionError
from streamview.streaming.ops.bits import nonzero, select_
from streamview.streaming.ops.layouts import Layout, canonical, from_layout, is_canonical, to_layout
from streamview.streaming.ops.registry import (
    BATCH,
    Extent,
    Local,
    NotLocal,
    Op,
    Piece,
    Statistic,
    Value,
    Wants,
    Weight,
    fits,
    local_vjp,
    lowers,
    lowers_module,
)
from streamview.streaming.schedule import IDENTITY, Axis, Window

__all__ = ["Around", "BatchNorm", "Copy", "Pointwise", "Rectified", "Relu", "Slot", "elementwise", "of_channels", "of_its_type", "squares"]

Gradients = tuple[list[Tensor | None], list[Tensor | None]]


@dataclass(frozen=True, slots=True)
class Slot:
    """Stands for tensor `index` (inputs first, then weights) in the arguments of a `Pointwise` call."""

    index: int


@dataclass(frozen=True, slots=True)
class Pointwise:
    """Any function of torch that acts on each position alone, with its arguments; tensors are `Slot`s in them.

    Parameters
    ----------
    inputs
        Layout in which the function gets its maps; None: it acts on every element alone, whatever the layout.
    output
        Layout of what it returns.
    broadcasts
        Whether weights broadcast against the map, so that those with extent in height or width are sliced.
    """

    function: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: Layout | None = None
    output: Layout | None = None
    broadcasts: bool = False
    rows: Window = field(default=IDENTITY, init=False)
    cols: Window = field(default=IDENTITY, init=False)

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], piece: Piece, wants: Wants | None) -> tuple[Tensor, Any]:
        """Call the function; save its inputs."""
        out = self._caller(len(inputs))(*inputs, *self._sliced(weights, piece))
        return out, None if wants is None else list(inputs)

    def vjp(self, grad: Tensor, saved: Any, weights: Sequence[Tensor], piece: Piece, wants: Wants) -> Gradients:
        """Torch's own derivative of the function, computed anew from its inputs."""
        parts = self._sliced(weights, piece)
        grads_x, grads_w = local_vjp(self._caller(len(saved)), saved, parts, grad, wants)
        whole = [
            None if g is None else g if g.shape == w.shape else self._unsliced(g, w, piece) for g, w in zip(grads_w, weights, strict=True)
        ]
        return grads_x, whole

    def _caller(self, maps: int) -> Callable[..., Tensor]:
        def call(*tensors: Tensor) -> Tensor:
            def pick(a: Any) -> Any:
                return tensors[a.index] if isinstance(a, Slot) else a

            size = tensors[0].shape[2:]
            if self.inputs is not None:
                tensors = (*(to_layout(t, self.inputs) for t in tensors[:maps]), *tensors[maps:])
            out = self.function(*map(pick, self.args), **{k: pick(a) for k, a in self.kwargs.items()})
            return out if self.output is None else from_layout(out, self.output, size)

        return call

    def _slices(self, weight: Tensor, piece: Piece) -> tuple[Any, ...]:
        """Index of the part of a broadcast weight that meets the piece."""
        dims = self.inputs or ("N", (1, 0), "H", "W")
        spans = {"H": (piece.rows, piece.size[0]), "W": (piece.cols, piece.size[1])}
        index: list[Any] = []
        for dim, length in zip(dims[len(dims) - weight.dim() :], weight.shape, strict=True):
            span, n = spans.get(dim, (None, 0)) if isinstance(dim, str) else (None, 0)
            if span is not None and length not in (1, n):
                raise RegionError(f"a constant of shape {tuple(weight.shape)} does not fit a map of {piece.size[0]} x {piece.size[1]}")
            index.append(slice(*span) if span is not None and length > 1 else slice(None))
        return tuple(index)

    def _sliced(self, weights: Sequence[Tensor], piece: Piece) -> list[Tensor]:
        return [w[self._slices(w, piece)] for w in weights] if self.broadcasts else list(weights)

    def _unsliced(self, grad: Tensor, weight: Tensor, piece: Piece) -> Tensor:
        whole = torch.zeros_like(weight)
        whole[self._slices(weight, piece)] = grad
        return whole


@dataclass(frozen=True, slots=True)
class Copy:
    """A value of its own with the same elements, as ``clone`` makes."""

    rows: Window = field(default=IDENTITY, init=False)
    cols: Window = field(default=IDENTITY, init=False)

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], piece: Piece, wants: Wants | None) -> tuple[Tensor, Any]:
        """The input itself: no piece is ever changed."""
        return inputs[0], None

    def vjp(self, grad: Tensor, saved: Any, weights: Sequence[Tensor], piece: Piece, wants: Wants) -> Gradients:
        """The gradient itself."""
        return [grad], []


@dataclass(frozen=True, slots=True)
class Relu:
    """``F.relu``; one bit an element tells where the gradient passes."""

    rows: Window = field(default=IDENTITY, init=False)
    cols: Window = field(default=IDENTITY, init=False)

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], piece: Piece, wants: Wants | None) -> tuple[Tensor, Any]:
        """Rectify into new memory."""
        out = F.relu(inputs[0])
        return out, None if wants is None else nonzero(out)

    def vjp(self, grad: Tensor, saved: Any, weights: Sequence[Tensor], piece: Piece, wants: Wants) -> Gradients:
        """Pass the gradient where the output is positive."""
        return [select_(grad, saved)], []


@dataclass(frozen=True, slots=True)
class Around:
    """An operation around another, of the same geometry."""

    inner: Op

    @property
    def rows(self) -> Axis:
        """Geometry of the inner operation."""
        return self.inner.rows

    @property
    def cols(self) -> Axis:
        """Geometry of the inner operation."""
        return self.inner.cols


class Rectified(Around):
    """An operation and the ReLU behind it as one value: rectified in place, and its map never stored twice."""

    __slots__ = ()

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], piece: Piece, wants: Wants | None) -> tuple[Tensor, Any]:
        """Run the inner operation and rectify its output in place."""
        out, saved = self.inner.run(inputs, weights, piece, wants)
        out.relu_()
        return out, None if wants is None else (nonzero(out), saved)

    def vjp(self, grad: Tensor, saved: Any, weights: Sequence[Tensor], piece: Piece, wants: Wants) -> Gradients:
        """Pass the gradient where the output is positive, then through the inner operation."""
        mask, inner = saved
        return self.inner.vjp(select_(grad, mask), inner, weights, piece, wants)


@dataclass(frozen=True, slots=True)
class BatchNorm:
    """``F.batch_norm`` with running statistics; weights: mean, variance, then scale and shift where the layer has them."""

    eps: float
    affine: bool
    rows: Window = field(default=IDENTITY, init=False)
    cols: Window = field(default=IDENTITY, init=False)

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], piece: Piece, wants: Wants | None) -> tuple[Tensor, Any]:
        """Normalise the piece; the input is needed again only for the gradient of the scale."""
        out = self._call(inputs[0], *weights)
        return out, None if wants is None else inputs[0] if any(wants.weights) else ()

    def vjp(self, grad: Tensor, saved: Any, weights: Sequence[Tensor], piece: Piece, wants: Wants) -> Gradients:
        """The input's gradient is the scaled gradient; the rest by torch."""
        if any(wants.weights):
            return local_vjp(self._call, [saved], weights, grad, wants)
        scale = torch.rsqrt(weights[1] + self.eps)
        scale = scale * weights[2] if self.affine else scale
        return [grad.mul_(scale[:, None, None].to(grad.dtype))], [None] * len(weights)

    def _call(self, x: Tensor, mean: Tensor, variance: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        return F.batch_norm(x, mean, variance, scale, shift, False, 0.0, self.eps)


def elementwise(function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], broadcasts: bool = False) -> Local:
    """A call of `function`, which acts on every element alone, its tensors replaced by slots."""
    flat = [*args, *kwargs.values()]
    if any(isinstance(a, Extent) or a is BATCH for a in flat):
        raise NotLocal(f"{function.__name__} with a number that depends on the size of the map")
    values = tuple(dict.fromkeys(a for a in flat if isinstance(a, Value)))
    weights = tuple(dict.fromkeys(a for a in flat if isinstance(a, Weight | Statistic)))
    slots = {tensor: Slot(index) for index, tensor in enumerate([*values, *weights])}

    def replace(a: Any) -> Any:
        return slots[a] if isinstance(a, Value | Weight | Statistic) else a

    widest = max(values, key=lambda v: v.channels)
    for shape in (w.shape for w in weights if broadcasts and all(is_canonical(v.layout) for v in values)):
        if len(shape) in (3, 4) and min(shape[-3], widest.channels) > 1:
            fits(widest, shape[-3])
    if any(isinstance(w, Statistic) for w in weights) and not broadcasts:
        raise NotLocal(f"{function.__name__} with an argument that depends on the whole map")
    plain = all(is_canonical(v.layout) for v in values)
    seen = values[0].layout
    if not plain and any(v.layout != seen for v in values):
        raise NotLocal(f"{function.__name__} of maps whose dimensions were permuted or split in different ways")
    channels = max(v.channels for v in values)
    shapes = [w.shape for w in weights] if broadcasts else []
    if plain:
        channels = max([channels, *(shape[-3] for shape in shapes if len(shape) > 2)])
        if any(len(shape) > 4 for shape in shapes):
            raise NotLocal(f"{function.__name__} with a constant of more dimensions than the map")
        seen = canonical(channels)
    else:
        # a constant of a length along flattened rows and columns has no part that belongs to a piece
        lengths = [d[1] if isinstance(d, tuple) else 1 if d == "HW" else None for d in seen]
        for shape in shapes:
            for n, length in zip(reversed(shape), reversed(lengths), strict=False):
                if length is not None and n not in (1, length):
                    raise NotLocal(f"{function.__name__} of a map and a constant that broadcast over channels or positions")
    seen_by_function = None if plain or not weights else seen
    op = Pointwise(
        function,
        tuple(map(replace, args)),
        {k: replace(a) for k, a in kwargs.items()},
        seen_by_function,
        seen_by_function,
        broadcasts,
    )
    return Local(op, values, weights, channels, seen)


def _register(function: Callable[..., Tensor], *targets: Any, broadcasts: bool = False) -> None:
    """Lower calls of `targets` to calls of `function`, which changes nothing in place."""

    def lowered(*args: Any, inplace: bool = False, **kwargs: Any) -> Local:
        return elementwise(function, args, kwargs, broadcasts)

    lowers(*targets, any_layout=True)(lowered)


def of_its_type(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function as the call that changes its first argument, whose type stays."""

    @functools.wraps(function)
    def call(first: Any, *others: Any, **named: Any) -> Tensor:
        result = function(first, *others, **named)
        return result.to(first.dtype) if isinstance(first, Tensor) else result

    return call


_ACTIVATIONS = [
    "elu",
    "selu",
    "celu",
    "leaky_relu",
    "gelu",
    "silu",
    "mish",
    "hardswish",
    "hardsigmoid",
    "hardtanh",
    "softplus",
    "softsign",
    "tanhshrink",
    "logsigmoid",
    "threshold",
    "hardshrink",
    "softshrink",
    "relu6",
]
_UNARY = [
    "sigmoid",
    "tanh",
    "abs",
    "exp",
    "log",
    "log1p",
    "expm1",
    "neg",
    "sqrt",
    "rsqrt",
    "square",
    "pow",
    "clamp",
    "clamp_min",
    "clamp_max",
    "sin",
    "cos",
    "erf",
    "reciprocal",
    "softplus",
    "hardswish",
    "sign",
    "sinh",
    "cosh",
    "atan",
    "log2",
    "log10",
    "exp2",
    "sinc",
    "asinh",
]
_ARITHMETIC = ["mul", "div", "true_divide", "maximum", "minimum", "rsub", "addcmul"]

for _name in _ACTIVATIONS:
    _register(getattr(F, _name), getattr(F, _name), *(getattr(F, n) for n in [_name + "_"] if hasattr(F, n)))
for _name in _UNARY:
    if hasattr(torch, _name):
        _register(getattr(torch, _name), getattr(torch, _name), _name, _name + "_", *([getattr(F, _name)] if hasattr(F, _name) else []))
    if hasattr(torch.special, _name):  # the same function under a second name, by which torch.export calls it too
        _register(getattr(torch, _name), getattr(torch.special, _name), f"special_{_name}")
for _name in _ARITHMETIC:
    _register(getattr(torch, _name), getattr(torch, _name), _name, broadcasts=True)
    _register(of_its_type(getattr(torch, _name)), _name + "_", broadcasts=True)
_register(torch.mul, operator.mul, "multiply", torch.multiply, broadcasts=True)
_register(torch.div, operator.truediv, "divide", torch.divide, broadcasts=True)
_register(of_its_type(torch.mul), operator.imul, "multiply_", broadcasts=True)
_register(of_its_type(torch.div), operator.itruediv, "divide_", broadcasts=True)
_register(torch.pow, operator.pow)
_register(torch.neg, operator.neg)
_register(torch.sigmoid, torch.special.expit, "special_expit")


def _expanded(tensor: Tensor, map: Tensor) -> Tensor:
    return tensor.expand_as(map)


@lowers("expand_as", any_layout=True)
def _expand_as(input: Any, other: Value) -> Local:
    return elementwise(_expanded, (input, other), {}, True)


@lowers(F.relu, torch.relu, F.relu_, torch.relu_, "relu", "relu_", any_layout=True)
def _relu(input: Value, inplace: bool = False) -> Local:
    return Local(Relu(), (input,))


@lowers_module(nn.ReLU, any_layout=True)
def _relu_module(module: nn.ReLU, input: Value) -> Local:
    return Local(Relu(), (input,))


@lowers(F.prelu, torch.prelu, "prelu")
def _prelu(input: Value, weight: Any) -> Local:
    if isinstance(weight, Weight) and max(weight.shape, default=1) > 1:
        fits(input, weight.shape[0])
    return elementwise(F.prelu, (input, weight), {})


@lowers_module(nn.PReLU)
def _prelu_module(module: nn.PReLU, input: Value) -> Local:
    return _prelu(input, Weight.of(module, "weight"))


@lowers_module(
    nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh,
    nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Tanhshrink, nn.LogSigmoid, nn.Threshold, nn.Hardshrink, nn.Softshrink,
    any_layout=True,
)  # fmt: skip
def _activation_module(module: nn.Module, input: Value) -> Local:
    plain: Any = copy.copy(module)
    if getattr(plain, "inplace", False):
        plain.inplace = False
    return elementwise(plain.forward, (input,), {})


@lowers_module(nn.RReLU)
def _rrelu_module(module: nn.RReLU, input: Value) -> Local:
    if module.training:
        raise NotLocal("RReLU in training mode draws random slopes")
    return elementwise(F.leaky_relu, (input, (module.lower + module.upper) / 2), {})


@lowers(F.batch_norm, torch.batch_norm)
def _batch_norm(
    input: Value, running_mean: Weight | None, running_var: Weight | None, weight: Weight | None = None, bias: Weight | None = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Local:  # fmt: skip
    if running_mean is None or running_var is None:
        raise NotLocal(
            "BatchNorm without running statistics (track_running_stats=False) needs those of the whole map at every call, also after "
            ".eval(): only one that has them can be streamed"
        )
    if training:
        raise NotLocal("BatchNorm in training mode needs the statistics of the whole map; call .eval() to use its running statistics")
    fits(input, running_mean.shape[0])
    affine = [w for w in (weight, bias) if w is not None]
    if len(affine) == 1:
        raise NotLocal("batch_norm with a scale but no shift")
    return Local(BatchNorm(eps, bool(affine)), (input,), (running_mean, running_var, *affine))


@lowers(torch.ops.aten.batch_norm.default)
def _aten_batch_norm(
    input: Value, weight: Weight | None, bias: Weight | None, running_mean: Weight | None, running_var: Weight | None,
    training: bool, momentum: float, eps: float, cudnn_enabled: bool,
) -> Local:  # fmt: skip
    return _batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


@lowers_module(nn.BatchNorm2d, nn.SyncBatchNorm)
def _batch_norm_module(module: nn.BatchNorm2d | nn.SyncBatchNorm, input: Value) -> Local:
    mean, variance, scale, shift = (
        None if getattr(module, name) is None else Weight.of(module, name) for name in ("running_mean", "running_var", "weight", "bias")
    )
    return _batch_norm(input, mean, variance, scale, shift, module.training, eps=module.eps)


@lowers(
    F.dropout, torch.dropout, F.dropout2d, torch.feature_dropout, F.alpha_dropout, torch.alpha_dropout, F.feature_alpha_dropout,
    torch.feature_alpha_dropout, any_layout=True,
)  # fmt: skip
def _dropout(input: Value, p: float = 0.5, training: bool = True, inplace: bool = False) -> Value:
    if training and p:
        raise NotLocal("dropout in training mode draws random numbers")
    return input


@lowers_module(nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout, any_layout=True)
def _dropout_module(module: nn.Dropout, input: Value) -> Value:
    return _dropout(input, module.p, module.training)


@lowers_module(nn.Identity, any_layout=True)
def _identity_module(module: nn.Identity, input: Value) -> Value:
    return input


def of_channels(map: Tensor, channels: int) -> Tensor:
    """The map itself; a trace calls this where a layer takes maps of just so many channels."""
    return map


@lowers(of_channels)
def _of_channels(map: Value, channels: int) -> Value:
    fits(map, channels)
    return map


def squares(map: Tensor) -> Tensor:
    """The square of every element, of half precision in float32, where it does not overflow."""
    wide = map.float() if map.dtype in (torch.float16, torch.bfloat16) else map
    return wide * wide


_register(squares, squares)


@lowers("clone", torch.clone, any_layout=True)
def _cloned(input: Value, *, memory_format: Any = None) -> Local:
    return Local(Copy(), (input,))


@lowers("contiguous", any_layout=True)
def _contiguous(input: Value, *, memory_format: Any = None) -> Local:
    return Local(Copy(), (input,), shares=True)
