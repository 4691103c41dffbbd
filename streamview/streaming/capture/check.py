"""A capture compared once with the network itself, on a small image: what a trace did not see shows in values or gradients."""

from __future__ import annotations

import contextlib
import copy
import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from streamview.errors import NotStreamableError, RegionError, StreamviewError
from streamview.streaming.call import Call
from streamview.streaming.capture.fingerprint import parts_of
from streamview.streaming.capture.nominal import type_and_device
from streamview.streaming.graph import Bound, Graph, Key, bind, demands
from streamview.streaming.memory import format_bytes, free_memory
from streamview.streaming.ops import Size
from streamview.streaming.ops.patches import Patches
from streamview.streaming.ops.pointwise import Rectified, Relu
from streamview.streaming.plan.plan import make_plan
from streamview.streaming.run.run import Run

__all__ = ["check"]

# height and width of images, px: the first that leaves maps of 2 x 2 or more to the head; 224 and 256 for networks of that size alone
_SIZES = ((16, 24), (32, 48), (64, 96), (128, 192), (224, 224), (256, 256), (256, 384), (512, 768))
_OPERATIONS = 2e9  # multiplications of a forward pass: about a second
_LARGE = 2**28  # bytes of weights whose gradients are not compared besides the image's
_TOLERANCE = 1e-6  # in float64, relative: rounding is below 1e-10, a mistake some 1e-2
_ROUNDING = 100, 10**4  # the same in multiples of another type's precision: of values, and of gradients by their length
_PLAIN = 30  # what is no rounding even where float64 cannot settle it, in square roots of the precision
_SMALL = 1e-3  # a gradient below this share of the largest one is measured against that share
_FAILURES = (RuntimeError, ValueError, TypeError, AssertionError, IndexError, AttributeError, LookupError, NotImplementedError, NameError)

Lower = Callable[[nn.Module, nn.Module], Graph]
"""Captures a copy of the network, and of the module that its calls are of, by the same calls."""


def check(module: nn.Module, root: nn.Module, graph: Graph, lower: Lower) -> str:
    """Compare a capture with the network itself: values and gradients of a copy, for random pixels, in one step.

    The copy has the network's own precision; where it differs there, one of float64 decides. The network is left as it is, and so are the
    states of random number generators.

    Parameters
    ----------
    module, root
        The network, and the module that the calls of its capture are of.
    graph
        The capture.
    lower
        Captures copies of both by the same calls.

    Returns
    -------
    str
        Why nothing could be compared; empty where both agree.

    Raises
    ------
    NotStreamableError
        When they differ; the message names the first layer that does, if one is to blame.
    """
    tensors = [part for part in parts_of(module) if isinstance(part, Tensor)]
    own, device = type_and_device(tensors)
    if device.type == "meta" or any(nn.parameter.is_lazy(t) for t in tensors):
        return "its weights have no values"
    if not all(bool(t.detach().isfinite().all()) for t in tensors if t.is_floating_point()):
        return "its weights are not all finite"
    size = sum(t.nbytes for t in tensors)
    if device.type == "cpu" and size > free_memory() // 4:
        return f"a copy of it takes {format_bytes(size)}"
    reason, difference = "", None
    # rounding may look like a difference, which float64 then settles
    for dtype in dict.fromkeys([own] if device.type == "mps" else [own, torch.float64]):
        with _undisturbed(device):
            try:
                outcome = _Twin.of(module, root, dtype, device, lower, weights=size <= _LARGE).compare(graph)
            except (*_FAILURES, copy.Error) as error:
                outcome = f"it cannot be copied ({_first_line(error)})"
        if outcome is None:
            return ""
        if isinstance(outcome, str):
            reason = reason or outcome
        else:
            difference = outcome
    if difference is None or (difference.dtype != torch.float64 and difference.error < _PLAIN * math.sqrt(torch.finfo(own).eps)):
        return reason
    title = type(module).__name__
    raise NotStreamableError(
        f"{title} cannot be streamed: what was captured differs from the network itself on an image of {difference.size[0]} x "
        f"{difference.size[1]} px, {difference.where}; its code may depend on the type of what it is given, or on what a trace does not "
        "see: stream a submodule without it, or give body= and head="
    )


@dataclass(frozen=True, slots=True)
class _Difference:
    """Where a capture differs from its network, and by how much relative to the largest value."""

    dtype: torch.dtype
    size: Size
    error: float
    where: str


@contextlib.contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Ordinary autograd, whatever surrounds it; random states and warnings stay the caller's."""
    devices = [device.index or 0] if device.type == "cuda" else []
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - the state that old code of networks draws from
    try:
        with (
            torch.random.fork_rng(devices=devices),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


@dataclass(frozen=True, slots=True, eq=False)
class _Twin:
    """A copy of a network and its own capture."""

    module: nn.Module
    graph: Graph
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, module: nn.Module, root: nn.Module, dtype: torch.dtype, device: torch.device, lower: Lower, *, weights: bool) -> _Twin:
        """Copy a network, without hooks, and capture the copy; its weights require gradients as the network's do, or not at all."""
        memo: dict[int, Any] = {id(part): _converted(part, dtype) for part in parts_of(module) if isinstance(part, Tensor)}
        twin, twin_root = copy.deepcopy((module, root), memo)
        for part in twin.modules():
            for name, value in list(vars(part).items()):
                if isinstance(value, FunctionType):
                    vars(part)[name] = _rebound(value, memo)
            _drop_hooks(part)
            if isinstance(part, nn.modules.dropout._DropoutNd):
                part.p = 0.0
        twin_root.to(dtype)
        if not weights:
            twin.requires_grad_(False)
        return cls(twin.to(dtype), lower(twin, twin_root), dtype, device)

    def compare(self, graph: Graph) -> _Difference | str | None:
        """Compare on the first size that both run on; a text says why there is none."""
        training = any(m.training and isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.module.modules())
        reason = f"it takes no image of up to {_SIZES[-1][0]} x {_SIZES[-1][1]} px"
        for size, operations in _sizes(graph):
            if operations > _OPERATIONS:
                return f"an image that it takes, of {size[0]} x {size[1]} px, is too costly"
            generator = torch.Generator().manual_seed(0)
            shape = (1 + training, graph.channels[0], *size)
            image = torch.randn(shape, generator=generator, dtype=torch.float64).to(self.device, self.dtype)
            try:
                return self._compare(image, generator)
            except (*_FAILURES, StreamviewError) as error:
                reason = f"it does not run on a small image in {str(self.dtype).removeprefix('torch.')} ({_first_line(error)})"
        return reason

    def _compare(self, image: Tensor, generator: torch.Generator) -> _Difference | str | None:
        names, parameters = [], []
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                names.append(name)
                parameters.append(parameter)
        buffers = [(buffer, buffer.clone()) for buffer in self.module.buffers()]
        size = (image.shape[2], image.shape[3])

        def plain(seed: int) -> tuple[Tensor, list[Tensor]]:
            for buffer, value in buffers:
                buffer.copy_(value)
            _seed(seed, self.device)
            leaf = image.clone().requires_grad_()
            return leaf, _tensors(self.module(leaf.clone()))

        leaf, outputs = plain(0)
        floating = [out for out in outputs if out.is_floating_point()]
        if not floating:
            return "it answers no floating point tensor"
        cotangents = [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out) for out in floating]
        expected = _gradients(floating, cotangents, [leaf, *parameters])
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        _seed(0, self.device)
        answers, gradients, values = _streamed(self.graph, image, cotangents, parameters)
        worst = _worst(answers, outputs)
        exact = self.dtype == torch.float64
        tolerances = [_TOLERANCE, _TOLERANCE] if exact else [min(n * torch.finfo(self.dtype).eps, 0.1) for n in _ROUNDING]
        tolerance = tolerances[0]
        if worst > tolerance:
            with torch.no_grad():
                again = plain(1)[1]
            if _worst(again, outputs) > tolerance:
                return "it draws random numbers, in another order than its capture does"
            layer = self._first_difference(image, values, tolerance, buffers)
            where = f"first at layer {layer}" if layer else "in what follows the streamed layers"
            shapes = [[tuple(t.shape) for t in tensors] for tensors in (answers, outputs)]
            found = f"its answer by {worst:.1g}" if shapes[0] == shapes[1] else f"its answer of shape {shapes[0]} rather than {shapes[1]}"
            return _Difference(self.dtype, size, worst, f"{found}, {where}")
        if not all(bool(out.isfinite().all()) for out in floating):
            return "its answer to the pixels that were tried is not finite"  # where NaN stands, a maximum may be taken to be anywhere
        least = _SMALL * max((float(g.abs().max()) for g in expected if g is not None and g.numel()), default=0.0)
        for name, gradient, true in zip(["the image", *names], gradients, expected, strict=True):
            worst = _gradient_error(gradient, true, least, exact=exact)
            if worst > tolerances[1]:
                return _Difference(self.dtype, size, worst, f"the gradient of {name} by {worst:.1g}")
        return None

    def _first_difference(
        self, image: Tensor, values: Mapping[int, Tensor], tolerance: float, buffers: Sequence[tuple[Tensor, Tensor]]
    ) -> str:
        """Path of the first layer whose output differs; empty if none does."""
        outputs: dict[str, list[Any]] = {}

        def remember(module: nn.Module, args: Any, output: Any, path: str) -> None:
            outputs.setdefault(path, []).append(output.detach().clone() if isinstance(output, Tensor) else output)

        handles = [part.register_forward_hook(partial(remember, path=path)) for path, part in self.module.named_modules()]
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
            _seed(0, self.device)
            self.module(image.clone())
        for handle in handles:
            handle.remove()
        for index, node in enumerate(self.graph.lowered, 1):
            calls = outputs.get(node.name, [])
            expected = calls.pop(0) if calls else None
            found, fused = values.get(index), self.graph.nodes.get(index)
            if isinstance(node.op, Relu) and fused is not None and not isinstance(fused.op, Relu | Rectified):
                continue  # it acts behind the pooling that follows
            if found is None or not isinstance(expected, Tensor) or expected.shape != found.shape:
                continue
            if _worst([found], [expected]) > tolerance:
                return node.name
        return ""


def _converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of a tensor of the network; floating point ones in another precision."""
    value = tensor.detach().to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(value, tensor.requires_grad)
    return value.requires_grad_(tensor.requires_grad and tensor.is_leaf)


def _rebound(value: Any, memo: dict[int, Any]) -> Any:
    """A function whose closure and defaults refer to the copies."""
    if isinstance(value, FunctionType):
        cells = []
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):  # not yet filled
                cell = CellType(_rebound(cell.cell_contents, memo))
            cells.append(cell)
        defaults = tuple(_rebound(default, memo) for default in value.__defaults__ or ())
        rebound = FunctionType(value.__code__, value.__globals__, value.__name__, defaults, tuple(cells))
        rebound.__kwdefaults__ = {name: _rebound(default, memo) for name, default in (value.__kwdefaults__ or {}).items()}
        return rebound
    return copy.deepcopy(value, memo) if isinstance(value, nn.Module | Tensor | MethodType | partial) else value


def _drop_hooks(part: nn.Module) -> None:
    """Take hooks from a copy, but for those that compute its weights."""
    for name, hooks in vars(part).items():
        if "hooks" in name and isinstance(hooks, dict):
            for key, hook in list(hooks.items()):
                if type(hook).__module__ not in ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm"):
                    del hooks[key]


def _sizes(graph: Graph) -> list[tuple[Size, float]]:
    """Sizes that the layers take, the best first, and about the multiplications of a forward pass."""
    shapes = [operand.shape for operand in graph.operands]
    good: list[tuple[Size, float]] = []
    others: list[tuple[Size, float]] = []
    for size in _SIZES:
        with contextlib.suppress(RegionError):
            bound = bind(graph, size)
            least = min(math.prod(bound.sizes[sink.value]) for sink in graph.sinks if sink.kind != "shape")
            operations = _operations(bound, shapes)
            (good if least >= 4 and operations <= _OPERATIONS else others).append((size, operations))
    return good + others


def _operations(bound: Bound, shapes: Sequence[tuple[int, ...]]) -> float:
    """About the multiplications of a forward pass through the streamed layers."""
    total = 0.0
    for value, node in bound.graph.nodes.items():
        op = bound.ops[value]
        # a patch is taken for a transformer's, of tokens of 16 x 16 px
        tokens = (op.encoder.size / 16) ** 2 if isinstance(op, Patches) else 1.0
        total += tokens * math.prod(bound.sizes[value]) * sum(math.prod(shapes[w]) for w in node.weights)
    return total


def _seed(seed: int, device: torch.device) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def _tensors(answer: Any) -> list[Tensor]:
    """The tensors of what a network returned."""
    if isinstance(answer, Tensor):
        return [answer]
    if isinstance(answer, Mapping):
        return [tensor for part in answer.values() for tensor in _tensors(part)]
    if isinstance(answer, tuple | list):
        return [tensor for part in answer for tensor in _tensors(part)]
    return []


def _gradients(outputs: Sequence[Tensor], cotangents: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients of tensors; None where there is none."""
    live = [(out, grad) for out, grad in zip(outputs, cotangents, strict=True) if out.requires_grad]
    if not live or not inputs:
        return [None] * len(inputs)
    return list(torch.autograd.grad([out for out, _ in live], inputs, [grad for _, grad in live], allow_unused=True))


def _sum(*parts: Tensor | None) -> Tensor | None:
    """The sum of gradients, of which some may be absent."""
    present = [part for part in parts if part is not None]
    return sum(present[1:], present[0]) if present else None


def _streamed(
    graph: Graph, image: Tensor, cotangents: Sequence[Tensor], parameters: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor | None], dict[int, Tensor]]:
    """Outputs of a capture run in one step, gradients of the image and of parameters, and the values of its layers."""
    size = (image.shape[2], image.shape[3])
    weights = [weight.read() for weight in graph.weights]
    between = graph.between
    needs = demands(graph, True, [w.requires_grad for w in weights])
    call = Call(bind(graph, size), len(image), image.dtype, needs, [w.detach() for w in weights])
    run = Run(call, make_plan(call, tile=size, barriers="kept", forecast=False))
    seen: dict[int, Tensor] = {}

    def read(rows: Size, cols: Size) -> Tensor:
        return image[:, :, rows[0] : rows[1], cols[0] : cols[1]]

    def see(value: int, piece: Tensor, rows: Size, cols: Size) -> None:
        seen.setdefault(value, piece.clone())

    tensors = run.forward(read, see=see)
    leaves = {key: tensors[key].detach().requires_grad_(tensors[key].requires_grad) for key in graph.head.tensors}
    answer = graph.head.module(*run.arguments(graph.head.takes, {key: leaf.clone() for key, leaf in leaves.items()}))
    outputs = _tensors(answer)
    floating = [out for out in outputs if out.is_floating_point()]
    if [out.shape for out in floating] != [grad.shape for grad in cotangents]:
        return outputs, [], seen
    asked = [*(leaf for leaf in leaves.values() if leaf.requires_grad), *parameters]
    at_head = iter(_gradients(floating, cotangents, asked))
    given: dict[Key, Tensor | None] = {key: next(at_head) if leaf.requires_grad else None for key, leaf in leaves.items()}
    of_head = list(at_head)
    gradient = torch.zeros_like(image)

    def write(part: Tensor | None, rows: Size, cols: Size) -> None:
        if part is not None:
            gradient[:, :, rows[0] : rows[1], cols[0] : cols[1]] = part

    gradients = run.backward(read, given, write, between)
    of_weights = [grad for grad, operand in zip(gradients.operands, graph.operands, strict=True) if operand in graph.weights]
    live = [(w, g.to(w.dtype)) for w, g in zip(weights, of_weights, strict=True) if w.requires_grad and g is not None]
    through = _gradients([w for w, _ in live], [g for _, g in live], parameters)
    crossed = {id(weight): grad for weight, grad in zip(between, gradients.parameters, strict=True) if grad is not None}
    totals = [_sum(a, b, crossed.get(id(p))) for a, b, p in zip(of_head, through, parameters, strict=True)]
    return outputs, [gradient, *totals], seen


def _worst(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Worst error relative to the largest value of each tensor; NaN and infinity equal themselves."""
    if [t.shape for t in found] != [t.shape for t in expected]:
        return math.inf
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        if not b.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(a, b) else math.inf)
        elif b.numel():
            finite = b.isfinite()
            scale = max(float(b[finite].abs().max()) if finite.any() else 0.0, 1e-30)
            error = torch.where(finite, (a - b).abs(), 0).nan_to_num(nan=math.inf) / scale
            worst = max(worst, float(error.max()))
    return worst


def _gradient_error(found: Tensor | None, expected: Tensor | None, least: float, exact: bool) -> float:
    """Error of a gradient relative to its largest value; by its length where rounding may move it from one maximum to another."""
    if expected is None:
        expected = None if found is None else torch.zeros_like(found)
    if expected is None or not expected.numel() or not expected.isfinite().all():
        return 0.0
    if found is None:
        found = torch.zeros_like(expected)
    if exact:
        error, scale = (found - expected).abs().max(), max(float(expected.abs().max()), least)
    else:
        error, scale = (found - expected).norm(), max(float(expected.norm()), least * math.sqrt(expected.numel()))
    return float((error / max(scale, 1e-30)).nan_to_num(nan=math.inf))


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
