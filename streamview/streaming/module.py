"""`stream`: a module with the same outputs and gradients as another, in memory that depends on the step and not on the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._compile import _disable_dynamo
from torch._subclasses.fake_tensor import is_fake

from streamview.errors import MemoryBudgetError, NotStreamableError, RegionError
from streamview.streaming.autograd import Body, StreamedBody
from streamview.streaming.call import Call
from streamview.streaming.capture.capture import Captures, refuse_hooks
from streamview.streaming.capture.intact import state_restored
from streamview.streaming.capture.trace import Split
from streamview.streaming.cuda import free_memory_of, reserved_memory
from streamview.streaming.graph import Demands, Graph, Sink, bind, demands
from streamview.streaming.lazy import LazyImage
from streamview.streaming.memory import format_bytes, parse_bytes
from streamview.streaming.ops import OtherChannels
from streamview.streaming.plan.plan import Plan, make_plan
from streamview.streaming.run.half import narrow_weights, narrowed
from streamview.streaming.run.run import Run
from streamview.streaming.run.timing import measure
from streamview.streaming.step import Span

__all__ = ["Streamed", "stream"]

_HALF = (torch.float16, torch.bfloat16)
_PLANS = 16  # as many as are remembered: regions of some sizes, each with and without gradients


def stream(
    module: nn.Module,
    *,
    memory: str | int | None = None,
    tile: tuple[int, int] | None = None,
    barriers: str = "auto",
    body: nn.Module | None = None,
    head: nn.Module | None = None,
    check: bool = True,
    channels: int | None = None,
) -> Streamed:
    """Wrap a network so that its local part runs in pieces, exactly.

    Parameters
    ----------
    module
        A CNN that takes an image (N, C, H, W) of floating point values. It stays the owner of its parameters; its mode, weights
        and ``requires_grad`` are read at every call.
    memory
        Bound on the growth of memory over a forward and backward pass, the image's gradient included where it is asked for, in bytes or
        as ``"2GB"`` (GB = 2^30); the step is chosen to keep it, and the C library is told what to do with freed memory. Default: half of
        what the machine has free.
    tile
        Rows and columns of a step in pixels of the image, instead of `memory`; may be larger than the image.
    barriers
        What becomes of the maps in front of layers that need a number from the whole map (squeeze-excitation, GroupNorm):
        ``"kept"`` in memory, ``"spilled"`` to disk, ``"regenerated"`` from the image, which costs one more forward and backward
        pass through what lies before for each of them; ``"auto"``: the first of these that fits the memory.
    body, head
        Parts of `module`, where it cannot be traced as a whole: the network is then ``head(body(image))``, and only `body` is
        traced.
    check
        Whether what is captured is compared with the network itself, values and gradients, on one small image; each time it is
        captured, which is once while nothing but weights changes.
    channels
        Of the image, where the network does not tell; default: the number that its layers take, 3 if any fits.

    Returns
    -------
    Streamed
        A module with the same outputs and, by ordinary autograd, the same gradients.

    Raises
    ------
    NotStreamableError
        When the network has no local part, or was captured as another than it is; the message names the layer and the reason.

    Notes
    -----
    The method is that of Pinckaers, van Ginneken and Litjens (TPAMI 2020) without their overlap: what later steps still need is
    carried, so no convolution is computed twice in a forward pass.

    Examples
    --------
    >>> import streamview, torch
    >>> network = torch.nn.Sequential(
    ...     torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2)
    ... )
    >>> image = torch.rand(1, 3, 300, 200, requires_grad=True)
    >>> streamed = streamview.stream(network, memory="1GB")
    >>> gradients = [torch.autograd.grad(module(image)[0, 1], image)[0] for module in (network, streamed)]
    >>> torch.allclose(*gradients, rtol=1e-4, atol=1e-9)
    True
    """
    if (body is None) != (head is None):
        raise ValueError("body and head divide a network together: give both or neither")
    if body is not None and head is not None:
        module = Split(body, head).train(module.training)
    return Streamed(module, None if memory is None else parse_bytes(memory), tile, barriers, check, channels)


class Streamed(nn.Module):
    """A network whose local part runs in pieces; made by `stream`.

    Attributes
    ----------
    module
        The network itself.
    cut
        An identity that the tensors between the local part and the head pass through; hooks on it see them. While it has hooks,
        a pooling behind it is not streamed, so that the whole map passes.
    """

    def __init__(
        self,
        module: nn.Module,
        memory: int | None,
        tile: tuple[int, int] | None,
        barriers: str = "auto",
        check: bool = True,
        channels: int | None = None,
    ) -> None:
        super().__init__()
        if barriers not in ("auto", "kept", "spilled", "regenerated"):
            raise ValueError(f"barriers {barriers!r}: expected auto, kept, spilled or regenerated")
        if tile is not None and (len(tile) != 2 or min(tile) < 1):
            raise ValueError(f"tile {tile}: expected (rows, columns), both positive, in pixels of the image")
        if channels is not None and channels < 1:
            raise ValueError(f"channels {channels}: expected a positive number")
        self.module = module
        self.cut = nn.Identity()
        self._memory, self._tile, self._barriers, self._channels = memory, tile, barriers, channels
        self._captures, self._check = Captures(), check
        self._plans: dict[Any, Plan] = {}
        try:
            self.graph()
        except OtherChannels as refusal:
            raise NotStreamableError(f"{type(module).__name__} takes no images of {channels} channels: {refusal}") from None

    def __getstate__(self) -> dict[str, Any]:
        """Without plans, which refer to this very network: a copy makes its own."""
        return {**self.__dict__, "_plans": {}}

    def graph(self, channels: int | None = None) -> Graph:
        """The captured network in its present mode, for an image of so many channels.

        It is captured anew when something that it depends on changed: a mode, a submodule, a parameter object, an attribute, code, or a
        buffer whose number the code asks for.
        """
        reduce = not (self.cut._forward_hooks or self.cut._forward_pre_hooks or self.cut._backward_hooks)
        return self._captures.graph(self.module, channels=channels or self._channels, reduce=reduce, check=self._check)

    @_disable_dynamo  # torch.compile would trace every step; torch.compiler.disable would import the compiler here
    def forward(self, image: Tensor | LazyImage, done: Callable[[], None] = lambda: None) -> Any:
        """Run the network.

        Parameters
        ----------
        image
            Floating point tensor (N, C, H, W), or a `LazyImage`, whose pixels are read when they are needed. In half precision, with
            weights that are not, the local part runs in half precision; sums, statistics and gradients of weights stay in float32.
        done
            Called after every step, also of the backward pass; what it raises ends the pass.

        Returns
        -------
        Any
            What the network itself would return.

        Raises
        ------
        RegionError
            When the image is too small for the network, or has the wrong number of channels.
        NotStreamableError
            When the local part or a container has hooks, which would be skipped.
        """
        if _is_traced(image):
            if self.cut._forward_hooks or self.cut._forward_pre_hooks or self.cut._backward_hooks:
                raise NotStreamableError("`cut` of a streamed module inside another network has a hook, which would be skipped: remove it")
            return self.module(image)
        return self.head(self.features(image, done))

    def head(self, features: Sequence[Tensor]) -> Any:
        """Run what follows the local part on what `features` gave."""
        return self.graph().head.module(*features)

    @_disable_dynamo
    def features(self, image: Tensor | LazyImage, done: Callable[[], None] = lambda: None) -> list[Tensor]:
        """Run the local part alone.

        Parameters
        ----------
        image, done
            As for `forward`.

        Returns
        -------
        list of Tensor
            What the head takes: pooled maps or whole ones, as the network would compute them.

        Raises
        ------
        RegionError, NotStreamableError
            As `forward`.
        """
        if _is_traced(image):
            raise NotStreamableError("a network calls `features` of a streamed module inside it: stream the outer one alone")
        if isinstance(image, Tensor) and (image.dim() != 4 or not image.is_floating_point()):
            raise RegionError(f"image of shape {tuple(image.shape)} and dtype {image.dtype}: expected a float tensor (N, C, H, W)")
        pixels = image if isinstance(image, Tensor) else None
        source = LazyImage.of(image) if isinstance(image, Tensor) else image
        images, channels, height, width = source.shape
        _refuse_transforms([*self.module.parameters(), *self.module.buffers(), *([] if pixels is None else [pixels])])
        graph = self._graph_of(channels)
        weights = [weight.read() for weight in graph.weights]
        between = graph.between
        needs = _demands(graph, pixels is not None and pixels.requires_grad, weights, between)
        call = self._call(graph, (images, channels, height, width), source.dtype, needs, weights)
        kind = source.device.type
        autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        layers = [part for m in graph.modules.values() for part in m.modules()]
        guards: list[Tensor] = [t for part in layers for t in part.parameters(recurse=False)]
        # in training mode a local layer's buffers are the state of its weight's parametrization, which every call advances
        guards += [t for part in layers if not part.training for t in part.buffers(recurse=False)]
        limit = reserved_memory(source.device) + self._memory if source.device.type == "cuda" and self._memory is not None else None
        body = Body(Run(call, self._plan(call)), between, autocast, guards, done, None if isinstance(image, Tensor) else source, limit)
        if needs is not None:
            outputs = StreamedBody.apply(body, pixels, *weights, *between)  # type: ignore[no-untyped-call]
        else:
            outputs = body.forward(source)
        tensors = {key: self.cut(out) if isinstance(key, Sink) else out for key, out in zip(body.keys, outputs, strict=True)}
        return body.run.arguments(graph.head.takes, tensors)

    def plan(self, shape: tuple[int, int, int, int], *, image_gradient: bool = True, seconds: bool = True) -> Plan:
        """Say how a call will run, before it does.

        Parameters
        ----------
        shape
            Of the image, (N, C, H, W).
        image_gradient
            Whether the image's gradient will be asked for; those of weights are if they require it. Within ``torch.no_grad()`` the
            plan is that of a forward pass alone.
        seconds
            Whether to time a sample, which takes as long as 1/2 megapixel does twice.

        Returns
        -------
        Plan

        Raises
        ------
        MemoryBudgetError
            When no step fits the budget; the message names the least that would do.
        RegionError
            When the image is too small for the network, or has the wrong number of channels.
        """
        with state_restored(self.module):
            graph = self._graph_of(shape[1])
            weights = [weight.read() for weight in graph.weights]
        between = graph.between
        needs = _demands(graph, image_gradient, weights, between)
        call = self._call(graph, shape, _floating(weights), needs, weights)
        plan = self._plan(call, forecast=True)
        return replace(plan, seconds=sum(measure(call, plan).seconds(plan, call.size))) if seconds else plan

    def _call(
        self, graph: Graph, shape: tuple[int, int, int, int], dtype: torch.dtype, needs: Demands | None, weights: Sequence[Tensor]
    ) -> Call:
        own = {t.data_ptr() for t in (*self.module.parameters(), *self.module.buffers())}
        folded_bytes = sum(w.nbytes for w in weights if w.data_ptr() not in own)
        values, bound = [w.detach() for w in weights], bind(graph, (shape[2], shape[3]))
        if dtype not in _HALF or _floating(weights) in _HALF:
            return Call(bound, shape[0], dtype, needs, values, folded_bytes=folded_bytes)
        values = narrow_weights(graph, values, dtype)
        folded_bytes = sum(w.nbytes for w in values)
        return Call(narrowed(bound), shape[0], dtype, needs, values, gathered=torch.float32, folded_bytes=folded_bytes)

    def _plan(self, call: Call, forecast: bool = False) -> Plan:
        """The plan of a call; the last few are used again for the same calls while they fit."""
        forecast = forecast and self._tile is not None and self._memory is None  # other plans are the same without
        graph, needs = call.bound.graph, call.needs
        key = (graph, call.size, call.images, call.dtype, call.device, needs, forecast)
        plan = self._plans.pop(key, None)
        if plan is None or (self._memory is None and plan.peak_bytes > free_memory_of(call.device) // 2):
            height, width = call.size
            gradient = (
                call.images * graph.channels[0] * height * width * call.dtype.itemsize if needs is not None and needs.values[0] else 0
            )
            memory = None if self._memory is None else self._memory - gradient
            if memory is not None and memory <= 0:
                raise MemoryBudgetError(
                    f"memory {format_bytes(self._memory or 0)}: the gradient of an image of {height} x {width} px alone takes "
                    f"{format_bytes(gradient)}: give more memory or a smaller region"
                )
            plan = make_plan(call, memory=memory, tile=self._tile, barriers=self._barriers, forecast=forecast)
            peak = plan.peak_bytes + gradient if plan.peak_bytes else 0
            plan = replace(plan, peak_bytes=peak, kept_bytes=plan.kept_bytes + gradient)
        self._plans = dict([*self._plans.items(), (key, plan)][-_PLANS:])
        return plan

    def write(
        self,
        read: Callable[[Span, Span], Tensor],
        shape: tuple[int, int, int, int],
        write: Callable[[Tensor, Span, Span], None],
        done: Callable[[], None] = lambda: None,
    ) -> None:
        """Run a network whose output is a map, such as a U-Net, with neither image nor output ever in memory as a whole.

        Parameters
        ----------
        read
            Gives the pixels (N, C, h, w) of these rows and columns of the image; every pixel is read once in each pass.
        shape
            Of the image, (N, C, H, W).
        write
            Takes each piece (N, K, h, w) of the output as it is finished, with its rows and columns; the pieces partition the output.
        done
            Called after every step.

        Raises
        ------
        NotStreamableError
            When the output is not one streamed map.
        RegionError
            When the image is too small for the network, or has the wrong number of channels.
        """
        graph = self._graph_of(shape[1])
        (output,) = (node for node in graph.head.module.graph.nodes if node.op == "output")
        (sink, *more) = graph.head.takes
        if (
            more
            or not isinstance(sink, Sink)
            or sink.kind != "map"
            or not isinstance(output.args[0], fx.Node)
            or output.args[0].op != "placeholder"
        ):
            raise NotStreamableError(
                f"{type(self.module).__name__} does not end in a streamed map: {graph.refusals[0] if graph.refusals else 'it is reduced'}; "
                "call the module itself"
            )
        weights = [weight.read() for weight in graph.weights]
        call = replace(self._call(graph, shape, _floating(weights), None, weights), holds_maps=False)
        plan = make_plan(call, memory=self._memory, tile=self._tile, barriers=self._barriers)

        def watch(value: int, piece: Tensor, rows: Span, cols: Span) -> None:
            if value == sink.value:
                write(piece.clone(), rows, cols)  # the engine hands out a piece again where steps repeat

        with torch.no_grad():
            Run(call, plan).forward(read, done, watch)

    def _graph_of(self, channels: int) -> Graph:
        """The captured network for an image of so many channels, after a look at its hooks."""
        try:
            graph = self.graph(channels)
        except (OtherChannels, NotStreamableError):
            taken = self.graph().channels[0]
            if taken == channels:
                raise
            raise RegionError(f"image of {channels} channels: the network takes {taken}") from None
        refuse_hooks(self.module, graph)
        return graph


def _demands(graph: Graph, image: bool, weights: Sequence[Tensor], between: Sequence[Tensor]) -> Demands | None:
    """What a backward pass will be asked for; None if there will be none."""
    if not torch.is_grad_enabled() or not (image or any(t.requires_grad for t in (*weights, *between))):
        return None
    return demands(graph, image, [w.requires_grad for w in weights])


def _floating(weights: Sequence[Tensor]) -> torch.dtype:
    """The type of a network's values."""
    return next((w.dtype for w in weights if w.is_floating_point()), torch.float32)


def _is_traced(image: Any) -> bool:
    """Whether an image is what another network's capture has in its place."""
    return isinstance(image, fx.Proxy) or (isinstance(image, Tensor) and is_fake(image))


def _refuse_transforms(tensors: Sequence[Tensor]) -> None:
    """Refuse what would differentiate the pass itself, or run it for several images at once."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise NotStreamableError(
            "torch.func (grad, vmap, jvp) cannot look into a streamed pass: use torch.autograd.grad, one output at a time"
        )
    if any(torch.autograd.forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise NotStreamableError("forward-mode differentiation of a streamed network is not possible: use torch.autograd.grad")
