"""`stream`: a module with the same outputs and gradients as another, in memory that depends on the step and not on the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from streamview.errors import RegionError
from streamview.streaming.execute import Backward, Forward, Grid, build_grid, wanted
from streamview.streaming.graph import Program, capture, refuse_hooks
from streamview.streaming.ops import Wants
from streamview.streaming.plan import make_plan, parse_bytes, return_freed_blocks
from streamview.streaming.sinks import Sinks

__all__ = ["Streamed", "stream"]


def stream(module: nn.Module, *, memory: str | int | None = None, tile: tuple[int, int] | None = None) -> Streamed:
    """Wrap a network so that its local part runs in pieces, exactly.

    Parameters
    ----------
    module
        A CNN that takes an image (N, C, H, W) of floating point values. It stays the owner of its parameters; its mode, weights
        and ``requires_grad`` are read at every call.
    memory
        Bound on the growth of memory over a forward and backward pass, in bytes or as ``"2GB"`` (GB = 2^30); the step is chosen
        to keep it, and the C library is told to return freed memory at once. Default: half of what the machine has free.
    tile
        Rows and columns of a step in pixels of the image, instead of `memory`; may be larger than the image.

    Returns
    -------
    Streamed
        A module with the same outputs and, by ordinary autograd, the same gradients.

    Raises
    ------
    NotStreamableError
        When the network has no local part; the message names the layer and the reason.

    Notes
    -----
    The method is that of Pinckaers, van Ginneken and Litjens (TPAMI 2020) without their overlap: what later steps still need is
    carried, so no convolution is computed twice in a pass.
    """
    return Streamed(module, None if memory is None else parse_bytes(memory), tile)


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

    def __init__(self, module: nn.Module, memory: int | None, tile: tuple[int, int] | None) -> None:
        super().__init__()
        if tile is not None and (len(tile) != 2 or min(tile) < 1):
            raise ValueError(f"tile {tile}: expected (rows, columns), both positive, in pixels of the image")
        self.module = module
        self.cut = nn.Identity()
        self._memory, self._tile = memory, tile
        if memory is not None:
            return_freed_blocks()
        self._captured: tuple[Any, Program] | None = None
        self.program()

    def __getstate__(self) -> dict[str, Any]:
        """Without the captured graph, which refers to this very network: a copy captures its own."""
        return {**self.__dict__, "_captured": None}

    def program(self) -> Program:
        """The captured network in its present mode; captured anew when a mode, a submodule or a parameter object changed."""
        reduce = not (self.cut._forward_hooks or self.cut._forward_pre_hooks or self.cut._backward_hooks)
        tensors = (*self.module.parameters(), *self.module.buffers())
        key = (reduce, *map(_attributes, self.module.modules()), *map(id, tensors))
        if self._captured is None or self._captured[0] != key:
            self._captured = key, capture(self.module, reduce=reduce)
        return self._captured[1]

    def forward(self, image: Tensor) -> Any:
        """Run the network.

        Parameters
        ----------
        image
            Floating point tensor (N, C, H, W).

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
        program = self.program()
        refuse_hooks(self.module, program)
        if image.dim() != 4 or not image.is_floating_point():
            raise RegionError(f"image of shape {tuple(image.shape)} and dtype {image.dtype}: expected a float tensor (N, C, H, W)")
        fitting = program if image.shape[1] == program.channels[0] else program.with_channels(image.shape[1])
        if fitting is None:
            raise RegionError(f"image of {image.shape[1]} channels: the network takes {program.channels[0]}")
        program = fitting
        weights = [weight.read() for weight in program.weights]
        size = (image.shape[2], image.shape[3])
        differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in (image, *weights))
        wants = wanted(program, image.requires_grad, [w.requires_grad for w in weights]) if differentiable else None
        check_size(program, size)
        plan = make_plan(program, image.shape, image.dtype, wants, weights, memory=self._memory, tile=self._tile)
        kind = image.device.type
        autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        guards = [t for m in program.modules.values() for t in (*m.parameters(), *m.buffers())]
        call = _Call(program, build_grid(program, size, plan.tile), plan.tapes, wants, autocast, guards)
        if differentiable:
            results = iter(_StreamedBody.apply(call, image, *weights))  # type: ignore[no-untyped-call]
        else:
            results = iter(call.forward(image, weights))
        arguments = []
        for sink in program.sinks:
            if sink.kind == "shape":
                shape = (image.shape[0], program.channels[sink.value], *call.grid.size(sink.value))
                arguments.append(image.new_empty(()).expand(shape))
                continue
            found = self.cut(next(results))
            arguments.append(found if sink.keepdim else found.flatten(1))
        return program.head(*arguments)


def _attributes(module: nn.Module) -> tuple[Any, ...]:
    """What a capture of a module depends on: itself, its mode, its numbers, and tensors that are no parameters."""
    plain = ((name, value) for name, value in vars(module).items() if isinstance(value, int | float | str | tuple))
    return (id(module), *plain, *(id(value) for value in vars(module).values() if isinstance(value, Tensor)))


def check_size(program: Program, size: tuple[int, int]) -> None:
    """Refuse an image of this height and width if it is too small, naming the layer that says so.

    Raises
    ------
    RegionError
        When a layer would have no output.
    """
    try:
        build_grid(program, size, size)
    except ValueError as error:
        name = program.nodes[error.args[1]].name
        raise RegionError(
            f"image of {size[0]} x {size[1]} px (height x width): {error.args[0]} at layer {name}; use a larger region"
        ) from None


class _StreamedBody(torch.autograd.Function):
    """The local part as one function of the image and the body's weights; its outputs are the sinks' tensors."""

    @staticmethod
    def forward(ctx: Any, call: _Call, image: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        # the guards are saved only so that torch notices when a weight is changed in place before the reverse pass
        ctx.save_for_backward(image, *weights, *call.guards)
        # new tensors: autograd marks those it returns, and the call must not hold what holds the call
        return tuple(t.detach() for t in call.forward(image.detach(), [w.detach() for w in weights]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        image = ctx.saved_tensors[0]
        return (None, *ctx.call.backward(image.detach(), grads, ctx.needs_input_grad[1]))


@dataclass(slots=True, eq=False)
class _Call:
    """One call of a streamed module: its schedule, what the reverse pass is asked for, and what it needs to remember."""

    program: Program
    grid: Grid
    tapes: int
    wants: Sequence[Wants] | None
    autocast: tuple[str, torch.dtype, bool]
    guards: Sequence[Tensor]
    sinks: Sinks = field(init=False)
    passed: Forward = field(init=False)

    def forward(self, image: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
        self.sinks = Sinks(self.program, self.grid)
        self.passed = Forward(self.program, self.grid, weights, self.wants, self.tapes)
        with torch.no_grad():
            self.passed.run(_reader(image), self.sinks.add)
        return self.sinks.results()

    def backward(self, image: Tensor, grads: Sequence[Tensor | None], image_wanted: bool) -> list[Tensor | None]:
        found = torch.zeros_like(image) if image_wanted else None

        def write(part: Tensor, rows: tuple[int, int], cols: tuple[int, int]) -> None:
            if found is not None:
                found[:, :, rows[0] : rows[1], cols[0] : cols[1]] = part

        device, dtype, enabled = self.autocast
        backward = Backward(self.passed)
        with torch.no_grad(), torch.autocast(device, dtype, enabled):
            backward.run(_reader(image), partial(self.sinks.gradient, grads), write if image_wanted else None)
        summed = zip(backward.weight_grads, self.passed.weights, strict=True)
        return [found, *(None if grad is None else grad.to(weight.dtype) for grad, weight in summed)]


def _reader(image: Tensor) -> Callable[[tuple[int, int], tuple[int, int]], Tensor]:
    return lambda rows, cols: image[:, :, rows[0] : rows[1], cols[0] : cols[1]]
