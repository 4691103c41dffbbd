"""Calls on whole maps written as the operations that they consist of: normalisations by running means, norms, padded convolutions."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from streamview.streaming.capture.proxies import AppendingTracer
from streamview.streaming.ops.origin import runs_torch_code
from streamview.streaming.ops.pointwise import of_channels, squares
from streamview.streaming.ops.reduce import positions, spread

__all__ = ["decompose", "dissolve"]


def _moments(x: Any, dim: Any, keepdim: bool) -> tuple[Any, Any]:
    """Mean and variance over a map, float64."""
    mean = x.mean(dim, keepdim, dtype=torch.float64)
    # the difference of the means has the variance's gradient, but loses its digits far from zero
    difference = _squared(x).mean(dim, keepdim, dtype=torch.float64) - mean * mean
    exact = x.tracer.create_proxy("call_function", spread, (x, dim, keepdim), {})
    return mean, difference + (exact - difference).detach()


def _variance(x: Any, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: Any = None) -> Tensor | None:
    """``torch.var`` over rows and columns."""
    if not isinstance(dim, tuple | list) or len(dim) != 2 or not all(isinstance(d, int) for d in dim):
        return None
    less = (1 if unbiased else 0) if correction is None else correction
    variance: Tensor = _moments(x, dim, keepdim)[1]
    if less:
        count = x.tracer.create_proxy("call_function", positions, (x, dim, keepdim), {}).detach()
        variance = variance * (count / (count - less).clamp(min=0))
    result: Tensor = variance.type_as(x.mean(dim, keepdim))
    return result


def _deviation(x: Any, *args: Any, **kwargs: Any) -> Tensor | None:
    """``torch.std`` over rows and columns, with torch's gradient of zero at zero."""
    variance = _variance(x, *args, **kwargs)
    if variance is None:
        return None
    return _root(variance)


def _group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, cudnn_enabled: bool = True
) -> Tensor:
    """``F.group_norm`` by running means: ``(x - mean) / sqrt(variance + eps)`` (Wu and He, ECCV 2018)."""
    mean, variance = (moment.unflatten(1, (groups, -1)) for moment in _moments(x, (2, 3), True))
    centre = mean.mean(2, True)
    apart = mean - centre
    scale = torch.rsqrt((variance + apart * apart).mean(2, True) + eps)
    scale, centre = scale.expand_as(mean).flatten(1, 2), centre.expand_as(mean).flatten(1, 2)
    if weight is not None:
        scale = scale * weight.view(1, -1, 1, 1)
    shift = -centre * scale
    if bias is not None:
        shift = shift + bias.view(1, -1, 1, 1)
    out: Tensor = x * scale.to(x.dtype) + shift.to(x.dtype)
    return out


def _instance_norm(
    input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None, weight: Tensor | None = None,
    bias: Tensor | None = None, use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5, cudnn_enabled: bool = True,
) -> Tensor:  # fmt: skip
    if not use_input_stats:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, 0.0, eps)
    mean, variance = _moments(input, (2, 3), True)
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight.view(1, -1, 1, 1)
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias.view(1, -1, 1, 1)
    out: Tensor = input * scale.to(input.dtype) + shift.to(input.dtype)
    return out


def _norm(x: Tensor, dim: Any, keepdim: bool) -> Tensor:
    """The Euclidean norm, with torch's gradient of zero at zero."""
    root: Tensor = _root(_squared(x).sum(dim, keepdim)).to(x.dtype)
    return root


def _root(square: Any) -> Tensor:
    """The square root, with a gradient of zero at zero."""
    zero = square <= 0
    root: Tensor = torch.where(zero, 1, square).sqrt() * torch.where(zero, 0, 1)
    return root


def _squared(x: Any) -> Any:
    return x.tracer.create_proxy("call_function", squares, (x,), {})


def _spatial_norm(input: Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False, out: None = None, dtype: Any = None) -> Tensor | None:
    if p not in (2, 2.0, "fro", None) or out is not None or dtype is not None or not isinstance(dim, tuple | list):
        return None
    return _norm(input, dim, keepdim)


def _vector_norm(x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, out: None = None, dtype: Any = None) -> Tensor | None:
    return _spatial_norm(x, ord, dim, keepdim, out, dtype)


def _padded_convolution(module: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution whose padding is not zero: the padding, then the convolution."""
    padded = F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode)
    return F.conv2d(padded, weight, bias, module.stride, 0, module.dilation, module.groups)


def _lp_pool2d(input: Tensor, norm_type: Any, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> Tensor:
    """``F.lp_pool2d`` by the mean of powers, as torch computes it."""
    high, wide = kernel_size if isinstance(kernel_size, tuple | list) else (kernel_size, kernel_size)
    mean = F.avg_pool2d(input.pow(norm_type), kernel_size, stride, 0, ceil_mode)
    total: Tensor = (torch.sign(mean) * F.relu(torch.abs(mean))).mul(wide * high).pow(1.0 / norm_type)
    return total


_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.group_norm: _group_norm,
    torch.group_norm: _group_norm,
    torch.ops.aten.group_norm.default: _group_norm,
    F.lp_pool2d: _lp_pool2d,
    F.instance_norm: _instance_norm,
    torch.instance_norm: _instance_norm,
    torch.var: _variance,
    "var": _variance,
    torch.ops.aten.var.correction: _variance,
    torch.std: _deviation,
    "std": _deviation,
    torch.ops.aten.std.correction: _deviation,
    torch.norm: _spatial_norm,
    torch.functional.norm: _spatial_norm,
    "norm": _spatial_norm,
    torch.ops.aten.norm.ScalarOpt_dim: _spatial_norm,
    torch.linalg.vector_norm: _vector_norm,
    torch.ops.aten.linalg_vector_norm.default: _vector_norm,
}


def dissolve(graph: fx.Graph) -> None:
    """Replace calls of functions outside torch by what they call."""
    pending = list(reversed(graph.nodes))
    while pending:
        node = pending.pop()
        write = _dissolved(node) if node.op == "call_function" else None
        if write is not None:
            pending += reversed(_rewrite(graph, node, write))


def decompose(graph: fx.Graph, node: fx.Node, root: nn.Module) -> list[fx.Node]:
    """Replace a call on a map by the calls that it consists of; none where it is left as it is."""
    if node.op == "call_module":
        write = _of_module(graph, root.get_submodule(str(node.target)), str(node.target))
    else:
        write = _FUNCTIONS.get(node.target) if node.op in ("call_function", "call_method") else None
    return [] if write is None else _rewrite(graph, node, write)


def _rewrite(graph: fx.Graph, node: fx.Node, write: Callable[..., Any]) -> list[fx.Node]:
    """The calls that `write` makes in place of one; none where it declines."""
    tracer = AppendingTracer(graph)

    def proxy(node: fx.Node) -> Any:
        return fx.Proxy(node, tracer)

    args: Any = fx.node.map_arg(node.args, proxy)
    kwargs: Any = fx.node.map_arg(node.kwargs, proxy)
    before = node.prev
    with graph.inserting_before(node):
        result = write(*args, **kwargs)
    if not isinstance(result, fx.Proxy):
        return []
    parts: list[fx.Node] = []
    part = node.prev
    while part is not before:
        part.meta = dict(node.meta) | ({"rewritten": str(node.target)} if node.op == "call_module" else {})
        part.meta.pop("val", None)  # the shape is that of the whole
        parts.insert(0, part)
        part = part.prev
    node.replace_all_uses_with(result.node)
    graph.erase_node(node)
    return parts


def _dissolved(node: fx.Node) -> Callable[..., Any] | None:
    """The code of a function outside torch that a trace kept whole (``fx.wrap``); None from it where that cannot be traced."""
    target: Any = node.target
    if not isinstance(target, types.FunctionType) or target.__module__.split(".")[0] in ("torch", "_operator"):
        return None

    def write(*args: Any, **kwargs: Any) -> Any:
        last = node.prev
        try:
            return target(*args, **kwargs)
        except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError, AttributeError, AssertionError, KeyError):
            while node.prev is not last:
                node.graph.erase_node(node.prev)
            return None

    return write


def _of_module(graph: fx.Graph, module: nn.Module, path: str) -> Callable[..., Any] | None:
    """How a call of a module is rewritten, its weights read where they are."""
    tracer = AppendingTracer(graph)

    def tensor(name: str) -> Any:
        if parametrize.is_parametrized(module, name):
            return tracer.create_proxy("call_module", f"{path}.parametrizations.{name}", (), {})
        return None if getattr(module, name) is None else fx.Proxy(graph.get_attr(f"{path}.{name}"), tracer)

    def of(x: Any, channels: int) -> Any:
        return tracer.create_proxy("call_function", of_channels, (x, channels), {})

    if not runs_torch_code(module):
        return None
    if isinstance(module, nn.GroupNorm):
        norm = module
        return lambda x: _group_norm(of(x, norm.num_channels), norm.num_groups, tensor("weight"), tensor("bias"), norm.eps)
    if isinstance(module, nn.InstanceNorm2d):
        instance = module
        stats = instance.training or not instance.track_running_stats
        if stats and instance.track_running_stats:
            return None
        return lambda x: _instance_norm(
            of(x, instance.num_features) if instance.affine else x,
            tensor("running_mean"),
            tensor("running_var"),
            tensor("weight"),
            tensor("bias"),
            stats,
            0.0,
            instance.eps,
        )
    if isinstance(module, nn.LPPool2d):
        pool = module
        return lambda x: _lp_pool2d(x, float(pool.norm_type), pool.kernel_size, pool.stride, pool.ceil_mode)
    if isinstance(module, nn.Conv2d) and not isinstance(module, nn.LazyConv2d) and module.padding_mode not in ("zeros", "circular"):
        convolution = module
        return lambda x: _padded_convolution(convolution, x, tensor("weight"), tensor("bias"))
    return None
