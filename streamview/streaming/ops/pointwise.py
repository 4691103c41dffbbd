"""Operations that act on every pixel alone: activations, eval-mode normalisation, arithmetic with scalars and constants."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamview.errors import RegionError
from streamview.streaming.ops.bits import pack, select_
from streamview.streaming.ops.registry import (
    Local,
    NotLocal,
    Op,
    Piece,
    Value,
    Wants,
    Weight,
    local_vjp,
    lowers,
    lowers_module,
)
from streamview.streaming.schedule import IDENTITY, Window

__all__ = ["BatchNorm", "Copy", "Pointwise", "Rectified", "Relu"]

Gradients = tuple[list[Tensor | None], list[Tensor | None]]


@dataclass(frozen=True, slots=True)
class _Slot:
    """Stands for tensor `index` (inputs first, then weights) in the arguments of a `Pointwise` call."""

    index: int


@dataclass(frozen=True, slots=True)
class Pointwise:
    """Any function of torch that acts on each position alone, with its arguments; tensors are `_Slot`s in them.

    Parameters
    ----------
    broadcasts
        Whether weights broadcast against the map, so that those with extent in height or width are sliced.
    least_channels
        Channels of the widest weight that broadcasts.
    """

    function: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    broadcasts: bool = False
    least_channels: int = 1
    rows: Window = field(default=IDENTITY, init=False)
    cols: Window = field(default=IDENTITY, init=False)

    def channels(self, inputs: Sequence[int]) -> int:
        """Channels of the output."""
        return max(*inputs, self.least_channels)

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], piece: Piece, wants: Wants | None) -> tuple[Tensor, Any]:
        """Call the function; save its inputs."""
        out = self._call(*inputs, *self._sliced(weights, piece))
        return out, None if wants is None else list(inputs)

    def vjp(self, grad: Tensor, saved: Any, weights: Sequence[Tensor], piece: Piece, wants: Wants) -> Gradients:
        """Torch's own derivative of the function, computed anew from its inputs."""
        parts = self._sliced(weights, piece)
        grads_x, grads_w = local_vjp(self._call, saved, parts, grad, wants)
        whole = [
            None if g is None else g if g.shape == w.shape else self._unsliced(g, w, piece) for g, w in zip(grads_w, weights, strict=True)
        ]
        return grads_x, whole

    def _call(self, *tensors: Tensor) -> Tensor:
        def pick(a: Any) -> Any:
            return tensors[a.index] if isinstance(a, _Slot) else a

        return self.function(*map(pick, self.args), **{k: pick(a) for k, a in self.kwargs.items()})

    def _slices(self, weight: Tensor, piece: Piece) -> tuple[Any, ...]:
        """Index of the part of a broadcast weight that meets the piece."""
        axes = list(zip((piece.rows, piece.cols), piece.size, strict=True))[-weight.dim() :] if weight.dim() else []
        index: list[Any] = [...]
        for (span, n), length in zip(axes, weight.shape[-2:], strict=True):
            if length not in (1, n):
                raise RegionError(f"a constant of shape {tuple(weight.shape)} does not fit a map of {piece.size[0]} x {piece.size[1]}")
            index.append(slice(*span) if length > 1 else slice(None))
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

    def channels(self, inputs: Sequence[int]) -> int:
        """Channels of the output."""
        return inputs[0]

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

    def channels(self, inputs: Sequence[int]) -> int:
        """Channels of the output."""
        return inputs[0]

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], piece: Piece, wants: Wants | None) -> tuple[Tensor, Any]:
        """Rectify into new memory."""
        out = F.relu(inputs[0])
        return out, None if wants is None else pack(out > 0)

    def vjp(self, grad: Tensor, saved: Any, weights: Sequence[Tensor], piece: Piece, wants: Wants) -> Gradients:
        """Pass the gradient where the output is positive."""
        return [select_(grad, saved)], []


@dataclass(frozen=True, slots=True)
class Rectified:
    """An operation and the ReLU behind it as one value: rectified in place, and its map never stored twice."""

    inner: Op

    @property
    def rows(self) -> Window:
        """Geometry of the inner operation."""
        return self.inner.rows

    @property
    def cols(self) -> Window:
        """Geometry of the inner operation."""
        return self.inner.cols

    def channels(self, inputs: Sequence[int]) -> int:
        """Channels of the output."""
        return self.inner.channels(inputs)

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], piece: Piece, wants: Wants | None) -> tuple[Tensor, Any]:
        """Run the inner operation and rectify its output in place."""
        out, saved = self.inner.run(inputs, weights, piece, wants)
        out.relu_()
        return out, None if wants is None else (pack(out > 0), saved)

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

    def channels(self, inputs: Sequence[int]) -> int:
        """Channels of the output."""
        return inputs[0]

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


def _pointwise(function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], broadcasts: bool = False) -> Local:
    """A call of `function`, its tensors replaced by slots."""
    flat = [*args, *kwargs.values()]
    values = tuple(dict.fromkeys(a for a in flat if isinstance(a, Value)))
    weights = tuple(dict.fromkeys(a for a in flat if isinstance(a, Weight)))
    slots = {tensor: _Slot(index) for index, tensor in enumerate([*values, *weights])}

    def replace(a: Any) -> Any:
        return slots[a] if isinstance(a, (Value, Weight)) else a

    shapes = [w.read().shape for w in weights] if broadcasts else []
    least = max((shape[-3] for shape in shapes if len(shape) > 2), default=1)
    op = Pointwise(function, tuple(map(replace, args)), {k: replace(a) for k, a in kwargs.items()}, broadcasts, least)
    return Local(op, values, weights)


def _register(function: Callable[..., Tensor], *targets: Any, broadcasts: bool = False) -> None:
    """Lower calls of `targets` to calls of `function`, which changes nothing in place."""

    def lowered(*args: Any, inplace: bool = False, **kwargs: Any) -> Local:
        return _pointwise(function, args, kwargs, broadcasts)

    lowers(*targets)(lowered)


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
    "prelu",
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
]
_ARITHMETIC = ["mul", "div", "true_divide", "maximum", "minimum", "rsub"]

for _name in _ACTIVATIONS:
    _register(getattr(F, _name), getattr(F, _name), *(getattr(F, n) for n in [_name + "_"] if hasattr(F, n)))
for _name in _UNARY:
    if hasattr(torch, _name):
        _register(getattr(torch, _name), getattr(torch, _name), _name, _name + "_", *([getattr(F, _name)] if hasattr(F, _name) else []))
for _name in _ARITHMETIC:
    _register(getattr(torch, _name), getattr(torch, _name), _name, _name + "_", broadcasts=True)
_register(torch.mul, operator.mul, operator.imul, "multiply", "multiply_", torch.multiply, broadcasts=True)
_register(torch.div, operator.truediv, operator.itruediv, "divide", "divide_", torch.divide, broadcasts=True)
_register(torch.pow, operator.pow)
_register(torch.neg, operator.neg)
_register(torch.prelu, "prelu", torch.prelu)


@lowers(F.relu, torch.relu, F.relu_, torch.relu_, "relu", "relu_")
def _relu(input: Value, inplace: bool = False) -> Local:
    return Local(Relu(), (input,))


@lowers_module(nn.ReLU)
def _relu_module(module: nn.ReLU, input: Value) -> Local:
    return Local(Relu(), (input,))


@lowers_module(nn.PReLU)
def _prelu_module(module: nn.PReLU, input: Value) -> Local:
    return _pointwise(F.prelu, (input, Weight.of(module, "weight")), {})


@lowers_module(
    nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh,
    nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Tanhshrink, nn.LogSigmoid, nn.Threshold, nn.Hardshrink, nn.Softshrink,
    nn.Softmax2d, nn.LocalResponseNorm,
)  # fmt: skip
def _activation_module(module: nn.Module, input: Value) -> Local:
    plain: Any = copy.copy(module)
    if getattr(plain, "inplace", False):
        plain.inplace = False
    return _pointwise(plain.forward, (input,), {})


def _softmax(function: Callable[..., Tensor], input: Value, dim: int | None, dtype: torch.dtype | None = None) -> Local:
    if dim not in (1, -3):
        raise NotLocal(f"softmax over dimension {dim} of the map rather than over channels")
    return _pointwise(function, (input,), {"dim": dim, "dtype": dtype})


@lowers(F.softmax, torch.softmax, "softmax")
def _softmax_function(input: Value, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Local:
    return _softmax(torch.softmax, input, dim, dtype)


@lowers(F.log_softmax, torch.log_softmax, "log_softmax")
def _log_softmax_function(input: Value, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Local:
    return _softmax(torch.log_softmax, input, dim, dtype)


@lowers_module(nn.Softmax, nn.LogSoftmax)
def _softmax_module(module: nn.Softmax | nn.LogSoftmax, input: Value) -> Local:
    return _softmax(torch.softmax if isinstance(module, nn.Softmax) else torch.log_softmax, input, module.dim)


@lowers_module(nn.RReLU)
def _rrelu_module(module: nn.RReLU, input: Value) -> Local:
    if module.training:
        raise NotLocal("RReLU in training mode draws random slopes")
    return _pointwise(F.leaky_relu, (input, (module.lower + module.upper) / 2), {})


@lowers(F.batch_norm, torch.batch_norm)
def _batch_norm(
    input: Value, running_mean: Weight | None, running_var: Weight | None, weight: Weight | None = None, bias: Weight | None = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Local:  # fmt: skip
    if training or running_mean is None or running_var is None:
        raise NotLocal("BatchNorm in training mode needs the statistics of the whole map; call .eval() to use its running statistics")
    affine = [w for w in (weight, bias) if w is not None]
    if len(affine) == 1:
        raise NotLocal("batch_norm with a scale but no shift")
    return Local(BatchNorm(eps, bool(affine)), (input,), (running_mean, running_var, *affine))


@lowers_module(nn.BatchNorm2d)
def _batch_norm_module(module: nn.BatchNorm2d, input: Value) -> Local:
    mean, variance, scale, shift = (
        None if getattr(module, name) is None else Weight.of(module, name) for name in ("running_mean", "running_var", "weight", "bias")
    )
    return _batch_norm(input, mean, variance, scale, shift, module.training, eps=module.eps)


@lowers(F.dropout, torch.dropout, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout)
def _dropout(input: Value, p: float = 0.5, training: bool = True, inplace: bool = False) -> Value:
    if training:
        raise NotLocal("dropout in training mode draws random numbers")
    return input


@lowers_module(nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout)
def _dropout_module(module: nn.Dropout, input: Value) -> Value:
    return _dropout(input, training=module.training)


@lowers_module(nn.Identity)
def _identity_module(module: nn.Identity, input: Value) -> Value:
    return input


@lowers("contiguous", "clone", torch.clone)
def _copied(input: Value, *, memory_format: Any = None) -> Local:
    return Local(Copy(), (input,))
