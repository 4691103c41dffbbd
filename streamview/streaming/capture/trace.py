"""From a module to a graph of calls: torch.fx first, torch.export where Python's control flow stands in the way.

Normalisations over whole maps are rewritten as the means they consist of, so that the rest of the engine knows nothing of them.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.experimental import _config
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from streamview.errors import NotStreamableError
from streamview.streaming.capture.answers import retyped
from streamview.streaming.capture.decompositions import dissolve
from streamview.streaming.capture.intact import attributes_restored, state_restored
from streamview.streaming.capture.proxies import RecordingProxy
from streamview.streaming.ops.origin import runs_torch_code

__all__ = ["Split", "admit", "is_container", "quiet", "trace"]

_EXAMPLE = (512, 768)  # height and width of the image that torch.export sees
_EXPORTS = 5  # numbers of channels that torch.export tries
_UNFIT = re.compile(r"channels|normalized_shape|size of tensor|sizes of tensors|is invalid for input|cannot be multiplied|reduction dim")

# torch.fx and torch.export change torch itself while they work, so there is one at a time in a process
_TRACING = threading.RLock()

# what these say of a tensor does not depend on its numbers
_OF_SHAPE = {
    "size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "element_size", "get_device", "is_floating_point",
    "is_complex", "is_contiguous", "__len__", "__hash__", "__repr__", "has_names", "is_same_size", "data_ptr",
}  # fmt: skip
_OF_NUMBERS = {"data", "real", "imag", "T", "mT", "H", "mH"}  # properties


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """The only trace of the process, and not one inside another, which would see the other's stand-ins for tensors."""
    if _TRACING._is_owned():  # type: ignore[attr-defined]
        raise NotStreamableError("a network is streamed by the code of another that is being captured: stream the outer one alone")
    with _TRACING:
        yield


class _Numbers(TorchFunctionMode):
    """Tensors that a trace computes with, so that their numbers become constants of it."""

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[int, Tensor] = {}
        self._made: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name == "__get__":
            counts = getattr(getattr(func, "__self__", None), "__name__", "") in _OF_NUMBERS
        else:
            counts = name not in _OF_SHAPE and name != "__set__"
        inputs = _pytree.tree_leaves((args, kwargs))
        if counts and not any(isinstance(a, fx.Proxy) for a in inputs):
            tensors = [a for a in inputs if isinstance(a, Tensor)]
            self.read.update((id(a), a) for a in tensors if id(a) not in self._made)
            self._made.update((id(a), a) for a in _pytree.tree_leaves(result) if isinstance(a, Tensor) and id(a) not in self.read)
        return result


class Split(nn.Module):
    """A network divided by hand: `body` is captured, `head` runs once on what it returns."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, image: Tensor) -> Any:
        """Run both."""
        return self.head(self.body(image))


def _recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        tracer = next((a.tracer for a in args if isinstance(a, fx.Proxy)), None)
        return function(*args, **kwargs) if tracer is None else tracer.create_proxy("call_function", function, args, kwargs)

    return call


class _Tracer(fx.Tracer):
    """Records in-place arithmetic, ``max`` and ``min``, and refuses contexts inside the network, which a trace would forget.

    While torch.fx traces, the calls and attributes of every module of the process pass through it; those of other threads are let through.
    """

    def __init__(self, head: nn.Module | None = None) -> None:
        super().__init__()
        self._contexts = _contexts()
        self._head = head
        self._thread = threading.get_ident()
        self.retype: Callable[[Any], Any] | None = None  # plain dicts of the answer to those that the network returned
        self._paths: dict[int, str] = {}  # of the network's tensors, by identity: torch.fx would search for them at every use

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        # by default torch.fx takes a buffer for a number; one that requires a gradient is part of the graph, as a parameter is
        self.proxy_buffer_attributes = isinstance(attr_val, Tensor) and attr_val.requires_grad
        path = self._path(attr_val) if isinstance(attr_val, nn.Parameter) or self.proxy_buffer_attributes else None
        if path is not None:
            if path not in parameter_proxy_cache:
                parameter_proxy_cache[path] = self.create_proxy("get_attr", path, (), {})
            return parameter_proxy_cache[path]
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        # sizes of paddings are often the larger of two numbers (TensorFlow's `same`)
        with mock.patch.multiple(builtins, max=_recorded(max), min=_recorded(min)):
            graph = super().trace(root, concrete_args)
        _remember_types(graph, self.retype)
        return graph

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)

        def run(*args: Any) -> Any:
            answer = function(*args)
            self.retype = retyped(answer)
            return answer

        return run, args

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return RecordingProxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m is self._head or getattr(m, "streams_whole", False):
            return True
        return super().is_leaf_module(m, module_qualified_name) and runs_torch_code(m)

    def create_arg(self, a: Any) -> Any:
        path = self._path(a)
        if path is not None:
            return self.create_node("get_attr", path, (), {})
        # torch.fx would leave a tensor made in `forward` as an attribute on the user's network
        if isinstance(a, Tensor) and a not in self.tensor_attrs:
            own = (*self.root.parameters(), *self.root.buffers())
            if all(a is not tensor for tensor in own):
                return self.create_node("call_function", _constant(a), (), {})
        return super().create_arg(a)

    def _path(self, value: Any) -> str | None:
        """Path of a parameter or buffer of the network; None for anything else, also for a tensor that its code has just put there."""
        if not isinstance(value, Tensor):
            return None
        if not self._paths:
            self._paths = {id(tensor): path for path, tensor in (*self.root.named_buffers(), *self.root.named_parameters())}
        path = self._paths.get(id(value))
        if path is None:
            return None
        owner, _, name = path.rpartition(".")
        holder: Any = self.root.get_submodule(owner)
        registered = holder._parameters if isinstance(value, nn.Parameter) else holder._buffers
        return path if registered.get(name) is value else None

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _contexts() != self._contexts:
            raise NotStreamableError(
                "the network switches gradients or autocast within itself: freeze by requires_grad, and put autocast around the call"
            )
        return super().create_node(*args, **kwargs)


def _constant(tensor: Tensor) -> Callable[[], Tensor]:
    def constant() -> Tensor:
        return tensor.clone()  # a network may change it in place after it made it

    return constant


def _contexts() -> tuple[bool, ...]:
    return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


def is_container(module: nn.Module, path: str) -> bool:
    """Whether a trace dissolves this module into the calls that it makes."""
    return not path or not _any_tracer().is_leaf_module(module, path)


@functools.cache
def _any_tracer() -> _Tracer:
    """A tracer to be asked what it dissolves, which does not depend on the network."""
    return _Tracer()


class _Called(nn.Module):
    """Calls a network, for a trace that would otherwise run the forward of its class."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> Any:
        return self.module(image)


def _record(module: nn.Module) -> fx.Graph:
    """Trace by torch.fx."""
    tracer = _Tracer(module.head if isinstance(module, Split) else None)
    if "forward" not in vars(module) and type(module).__call__ is nn.Module.__call__:
        return tracer.trace(module)
    graph = tracer.trace(_Called(module))
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            node.target = node.target.removeprefix("module.")
        stack = node.meta.get("nn_module_stack", {})
        node.meta["nn_module_stack"] = {key: (path.removeprefix("module").removeprefix("."), kind) for key, (path, kind) in stack.items()}
    return graph


def trace(module: nn.Module, counts: Sequence[int], exported: bool = False) -> tuple[fx.Graph, nn.Module, int | None, tuple[Tensor, ...]]:
    """Record the calls that a network makes.

    Parameters
    ----------
    module
        The network, in its present mode.
    counts
        Of channels that the image may have, likeliest first, for torch.export, which needs an example.
    exported
        Whether to use torch.export without trying torch.fx.

    Returns
    -------
    tuple
        The graph, the module that its targets are paths in, the number of channels that torch.export was given (None: torch.fx was
        used), and tensors whose numbers became constants of the graph.

    Raises
    ------
    NotStreamableError
        When neither way succeeds; the message gives both reasons.
    """
    root, channels, numbers = module, None, _Numbers()
    _refuse_fake_quantisation(module)
    if isinstance(module, fx.GraphModule):
        graph = fx.Graph()
        output = graph.graph_copy(module.graph, {})
        graph.output(output)
        spec = module.graph._codegen
    else:
        try:
            if exported:
                raise ValueError("it was not tried")
            with _alone(), numbers, attributes_restored(module):
                graph = _record(module)
            spec = None
        except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError, AttributeError, AssertionError, LookupError, NameError) as error:
            numbers = _Numbers()
            with _alone(), state_restored(module), attributes_restored(module):
                root, channels = _export(module, counts, error)
            graph, spec = root.graph, root.graph._codegen
    if isinstance(spec, fx.graph._PyTreeCodeGen):
        _restore_outputs(graph, spec.pytree_info.out_spec)
    dissolve(graph)
    return graph, root, channels, tuple(numbers.read.values())


def _refuse_fake_quantisation(module: nn.Module) -> None:
    """Refuse networks prepared for quantisation, whose layers round weights and maps and watch their range."""
    for path, part in module.named_modules():
        if any(base.__name__ in ("FakeQuantizeBase", "ObserverBase") for base in type(part).__mro__):
            raise NotStreamableError(
                f"{path or type(module).__name__} ({type(part).__name__}) quantises, or watches the range of what it sees: stream the "
                "network as it was before it was prepared for quantisation"
            )


@contextlib.contextmanager
def _silent_export() -> Iterator[None]:
    """Keep torch.export from logging and printing the graph at every attempt that a branch on the pixels makes fail."""
    from torch.export import _trace  # imports half of torch's compiler

    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    with mock.patch.object(log, "disabled", True), mock.patch.object(_trace, "print", create=True):
        yield


def quiet() -> AbstractContextManager[Any]:
    """Keep torch from showing the tracebacks of calls that fail on tensors without memory: these are asked for what fits."""
    return mock.patch.object(logging.getLogger("torch._subclasses.fake_tensor"), "disabled", True)


class _OwnSize(TorchFunctionMode):
    """Pooling by a window of the map's own size as the reduction that it is: torch.export would take the size for a fixed one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        reduce = _OWN_SIZE.get(func)
        if reduce is not None:
            names = ("input", "kernel_size", "stride", "padding")
            given = dict(zip(names, args, strict=False)) | named
            x, kernel = given.get("input"), given.get("kernel_size")
            others = [given[name] for name in given if name not in names[:3]]
            plain = len(args) <= 4 and all(a in (0, (0, 0), [0, 0], False, None) or (func in _MAXIMA and a == 1) for a in others)
            sizes = x.shape[-2:] if isinstance(x, Tensor) else ()
            if (
                plain
                and isinstance(x, Tensor)
                and isinstance(kernel, tuple | list)
                and len(kernel) == len(sizes)
                and all(map(_is_same, kernel, sizes))
            ):
                return reduce(x)
        return func(*args, **named)


def _is_same(a: Any, b: Any) -> bool:
    """Whether two lengths are one symbol of torch.export; asking whether they are equal would bind it."""
    return isinstance(a, torch.SymInt) and isinstance(b, torch.SymInt) and bool(a.node.expr == b.node.expr)


_MAXIMA = (F.max_pool2d, torch.max_pool2d)
_OWN_SIZE: dict[Any, Callable[[Tensor], Tensor]] = {
    F.avg_pool2d: lambda x: x.mean((2, 3), keepdim=True),
    **dict.fromkeys(_MAXIMA, lambda x: F.adaptive_max_pool2d(x, 1)),
}


def _export(module: nn.Module, counts: Sequence[int], reason: Exception) -> tuple[fx.GraphModule, int]:
    """Capture by torch.export for the first number of channels that fits."""
    refusals: list[Exception] = []
    for channels in list(dict.fromkeys(counts))[:_EXPORTS]:
        try:
            return _exported(module, channels), channels
        except Exception as error:  # noqa: BLE001 - torch.export raises whatever the network's code and its own do
            refusals.append(error)
    # a network that takes other images refuses these by the shapes of its weights, which says nothing of why it cannot be captured
    refusal = next((error for error in refusals if not _UNFIT.search(str(error))), refusals[0])
    raise NotStreamableError(
        f"{type(module).__name__} cannot be traced: {_first_line(reason)} (torch.fx); {_first_line(refusal)} (torch.export). Control "
        "flow that depends on the image keeps a network from being streamed; stream a submodule without it, or give body= and head="
    ) from refusal


def _exported(module: nn.Module, channels: int) -> fx.GraphModule:
    """Capture by torch.export with height and width left open."""
    first = next((t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), torch.empty(0))
    example = torch.zeros(2, channels, *_EXAMPLE, dtype=first.dtype, device=first.device)
    dims = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    # by default torch.export takes it that nothing depends on whether a length is one
    with warnings.catch_warnings(), quiet(), _silent_export(), _config.patch(backed_size_oblivious=True), _OwnSize():  # type: ignore[attr-defined]
        warnings.simplefilter("ignore")
        exported = torch.export.export(module, (example,), dynamic_shapes=(dims,), strict=False)
    result = exported.module()
    image = next(node for node in exported.graph.nodes if node.name in exported.graph_signature.user_inputs)
    fixed = [n for n in image.meta["val"].shape[2:] if isinstance(n, int)]
    if fixed:
        raise ValueError(f"torch.export finds that it takes only images of {_EXAMPLE[0]} x {_EXAMPLE[1]} px")
    for images in (1, 3):
        admit(result._guards_fn, images, channels, _EXAMPLE)  # type: ignore[arg-type]
    if not isinstance(result, fx.GraphModule):
        raise AssertionError("torch.export returned no graph")
    return result


def admit(guards: nn.Module, images: int, channels: int, size: tuple[int, int]) -> None:
    """Raise `ValueError` where a network that torch.export recorded does otherwise with such images than with those it saw."""
    try:
        guards(torch.empty(images, channels, *size, device="meta"))
    except AssertionError as error:
        raise ValueError(f"it does otherwise with {images} images of {size[0]} x {size[1]} px: {error}") from None


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def _restore_outputs(graph: fx.Graph, spec: _pytree.TreeSpec | None) -> None:
    """Let the graph return what the network returned, not the flat tuple that torch.export makes of it."""
    if spec is None:
        return
    (output,) = (node for node in graph.nodes if node.op == "output")
    leaves = output.args[0] if isinstance(output.args[0], tuple | list) else (output.args[0],)
    answer = _pytree.tree_unflatten(list(leaves), spec)
    output.args = (answer,)
    _remember_types(graph, retyped(answer))


def _remember_types(graph: fx.Graph, retype: Callable[[Any], Any] | None) -> None:
    """Leave with the output of a graph how its plain dicts become those that the network returned."""
    if retype is not None:
        (output,) = (node for node in graph.nodes if node.op == "output")
        output.meta["retype"] = retype
