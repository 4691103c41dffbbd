"""One call of a captured network's local part: its passes one after the other, the bridges between them, and all of it in reverse.

Between passes stand the maps that a later pass reads (kept in memory, spilled to disk, or regenerated from the image) and the
tensors of the bridges, which autograd follows. The chain rule over the passes is exact whatever is stored: a value that is
computed twice hands its gradient back twice, through each pass that used it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from streamview.streaming.busy import Reach, busy_steps, summed
from streamview.streaming.call import Call
from streamview.streaming.graph import Graph, Key, Program, Sink
from streamview.streaming.memory import Ceiling, return_freed_blocks, treat_freed_blocks
from streamview.streaming.ops import Statistic
from streamview.streaming.plan.plan import Plan
from streamview.streaming.run.passes import Backward, Forward
from streamview.streaming.run.sinks import Sinks
from streamview.streaming.run.stores import Held, Spilled, Store
from streamview.streaming.step import Emit, Span, build_grid, wants_of

__all__ = ["Gradients", "Run", "Watch"]

ReadImage = Callable[[Span, Span], Tensor]
WriteImage = Callable[[Tensor | None, Span, Span], None]
Watch = Callable[[int, Tensor, Span, Span], None]


@dataclass(frozen=True, slots=True, eq=False)
class Gradients:
    """What a backward pass gives beside the gradient of the image, which is written piece by piece.

    Parameters
    ----------
    operands
        Of the graph's operands (None for statistics). Here and in `parameters` None, as in plain torch, where nothing that has a gradient
        depends on them.
    parameters
        Of the parameters of bridges that were asked for.
    reach_image
        Whether the image has a gradient.
    """

    operands: Sequence[Tensor | None]
    parameters: Sequence[Tensor | None]
    reach_image: bool


class Run:
    """A forward pass through the local part by a plan, and any number of backward passes.

    Parameters
    ----------
    call
        What is computed.
    plan
        In which steps.

    Attributes
    ----------
    tensors
        What has been gathered so far and what bridges gave, in one graph of autograd; `forward` returns it.
    operands
        Values of the graph's operands; None for a statistic that is not known yet.
    """

    def __init__(self, call: Call, plan: Plan) -> None:
        self.call, self.plan, self.bound, self.needs, self.gathered = call, plan, call.bound, call.needs, call.gathered
        weights = iter(call.weights)
        self.operands: list[Any] = [None if isinstance(operand, Statistic) else next(weights) for operand in call.bound.graph.operands]
        self.tensors: dict[Key, Tensor] = {}
        self._like: Tensor | None = None
        self._stores: dict[int, Store] = {}
        self._passed: list[tuple[Forward, Sinks]] = []
        treat_freed_blocks(plan.freed)
        self._settle: Callable[[], None] = Ceiling(plan.kept_bytes) if plan.freed != "as ever" else _nothing

    @property
    def steps(self) -> int:
        """Steps of all passes."""
        return self.plan.steps

    def forward(
        self,
        read: ReadImage,
        done: Callable[[], None] = lambda: None,
        watch: Watch | None = None,
        see: Watch | None = None,
    ) -> Mapping[Key, Tensor]:
        """Run all passes.

        Parameters
        ----------
        read
            Gives the pixels (N, C, h, w) of these rows and columns of the image.
        done
            Called after every step.
        watch
            Sees every piece of every sink: the graph's value, the piece, its rows and columns.
        see
            Sees every piece of every value, as `watch`.

        Returns
        -------
        Mapping of Key to Tensor
            What was gathered and what bridges gave, in one graph of autograd.
        """
        graph = self.bound.graph
        stored = self.plan.stored(graph)
        for phase, chosen in enumerate(self.plan.passes):
            program = self.bound.program(phase, stored)
            self._stores |= {v: self._store(v) for v in stored if graph.phases[v] == phase}
            passed = self._pass(program, phase, remember=not chosen.rerun)
            sinks = Sinks(program, passed.grid, self._stores, self.call.holds_maps, self.gathered)
            values = program.values

            def emit(value: int, piece: Tensor, rows: Span, cols: Span, add: Emit = sinks.add, values: Sequence[int] = values) -> None:
                add(value, piece, rows, cols)
                if self._like is None:
                    self._like = piece.new_empty((piece.shape[0], 0), dtype=self.gathered)
                if watch is not None:
                    watch(values[value], piece, rows, cols)

            with torch.no_grad():
                passed.run(partial(self._read, values, read), emit, done, _renumbered(see, values))
            results = sinks.results()
            for sink, tensor in results.items():
                needed = self.needs is not None and self.needs.values[sink.value] and tensor.is_floating_point()
                # a new tensor: what hands it out may mark it
                self.tensors[sink] = tensor.detach().requires_grad_(needed)
            if phase < len(graph.bridges):
                self._bridge(phase)
            if self.needs is not None:
                self._passed.append((passed, sinks))
            else:
                self._stores = {value: store for value, store in self._stores.items() if graph.last_reader(value) > phase}
        if self.needs is None:
            self._leave()
        return self.tensors

    def _leave(self) -> None:
        """Keep no freed memory beyond the call."""
        if self.plan.freed == "reused":
            return_freed_blocks()

    def _pass(self, program: Program, phase: int, remember: bool) -> Forward:
        """The forward pass of a phase; with `remember` it keeps what its backward pass needs."""
        chosen = self.plan.passes[phase]
        wants = wants_of(program, self.needs.values, self.needs.operands) if remember and self.needs is not None else None
        grid = build_grid(program, chosen.tile)
        parts, alone = self.call.parts, self.bound.graph.passes == 1
        busy = busy_steps(Reach(self.bound, program), grid, summed(parts)) if parts is not None and alone and wants is not None else None
        return Forward(program, grid, self.operands, wants, chosen.saved_steps, chosen.segment, chosen.spill, self._settle, busy)

    def _read(self, values: Sequence[int], read: ReadImage, source: int, rows: Span, cols: Span) -> Tensor:
        value = values[source]
        return read(rows, cols) if value == 0 else self._stores[value].read(rows, cols)

    def _store(self, value: int) -> Store:
        return (Spilled if self.plan.barriers == "spilled" else Held)(self.bound.sizes[value])

    def _forget(self, phase: int) -> None:
        """Let go of the stored maps of a phase and those after it."""
        phases = self.bound.graph.phases
        self._stores = {value: store for value, store in self._stores.items() if phases[value] < phase}

    def _bridge(self, phase: int) -> None:
        """Run the calls between two passes."""
        graph = self.bound.graph
        bridge = graph.bridges[phase]
        with torch.set_grad_enabled(self.needs is not None):
            given = bridge.module(*self.arguments(bridge.takes, self.tensors))
        self.tensors |= dict(zip(bridge.gives, given, strict=True))
        for index, operand in enumerate(graph.operands):
            if isinstance(operand, Statistic) and operand.name in bridge.gives:
                self.operands[index] = self.tensors[operand.name].detach()

    def arguments(self, keys: Sequence[Key], tensors: Mapping[Key, Tensor]) -> list[Tensor]:
        """What a bridge or the head is called with.

        Parameters
        ----------
        keys
            What it takes.
        tensors
            As `forward` returned, or leaves in their place.
        """
        return [self._argument(key, tensors) for key in keys]

    def _argument(self, key: Key, tensors: Mapping[Key, Tensor]) -> Tensor:
        if isinstance(key, Sink) and key.kind == "shape":
            # the type of the maps: what is gathered of them may be wider
            if self._like is None:
                raise AssertionError("no piece was gathered")
            size = (self._like.shape[0], self.bound.graph.channels[key.value], *self.bound.sizes[key.value])
            return self._like.new_empty(()).expand(size)
        # a copy of what is small, since calls may change their argument in place, which autograd refuses for a leaf
        return tensors[key] if isinstance(key, Sink) and key.kind == "map" else tensors[key].clone()

    def backward(
        self,
        read: ReadImage,
        grads: Mapping[Key, Tensor | None],
        write: WriteImage | None,
        parameters: Sequence[Tensor] = (),
        done: Callable[[], None] = lambda: None,
        release: bool = False,
        see: Watch | None = None,
    ) -> Gradients:
        """Run the backward passes, the last first.

        Parameters
        ----------
        read
            As in `forward`.
        grads
            Gradients of `tensors` that the head took.
        write
            Takes the finished gradient of these rows and columns of the image, (N, C, h, w) or None for zero, once for every step
            from the last to the first.
        parameters
            Parameters of the bridges whose gradients are wanted.
        done
            Called after every step.
        release
            Let go of memory as steps are done; the pass can then not be repeated.
        see
            Sees the gradient of every block of every value: the graph's value, the gradient, its rows and columns.

        Returns
        -------
        Gradients
        """
        graph = self.bound.graph
        if self.needs is None:
            raise ValueError("the forward pass was told that no gradient is wanted")
        given = {key: grad for key, grad in grads.items() if grad is not None}
        totals: list[Tensor | None] = [None] * len(self.operands)
        sources = _SourceGradients(self, write)
        reached: set[int] = set()
        for phase in reversed(range(graph.passes)):
            passed, sinks = self._passed[phase]
            sink_grads = self._through_bridges(phase, given)
            _reach(graph, [sink.value for sink, grad in sink_grads.items() if grad is not None], reached)
            if self.plan.passes[phase].rerun:
                passed = self._pass(passed.program, phase, remember=True)
                with torch.no_grad():
                    passed.run(partial(self._read, passed.program.values, read), _nowhere)
            backward = Backward(passed, release or self.plan.passes[phase].rerun)
            with torch.no_grad():
                backward.run(
                    partial(self._read, passed.program.values, read),
                    partial(sinks.gradient, sink_grads, sources.stores),
                    partial(sources.take, phase, passed.program.values),
                    done,
                    _renumbered(see, passed.program.values),
                )
            used = {index for value in reached if value and graph.phases[value] == phase for index in graph.nodes[value].weights}
            for index, (grad, operand) in enumerate(zip(backward.weight_grads, graph.operands, strict=True)):
                if grad is None and index in used and self.needs.operands[index]:
                    # where nothing came in nothing was computed, but a gradient of zero is not an absent one
                    grad = torch.zeros_like(self.operands[index])
                if grad is None:
                    continue
                if isinstance(operand, Statistic):
                    before = given.get(operand.name)
                    grad = grad.to(self.tensors[operand.name].dtype)
                    given[operand.name] = grad if before is None else before + grad
                else:
                    total = totals[index]
                    totals[index] = grad if total is None else total + grad
            sources.forget(phase)
            if release:
                self._forget(phase - 1)
        self._leave()
        return Gradients(totals, self._gradients(given, parameters), 0 in reached)

    def _through_bridges(self, phase: int, given: Mapping[Key, Tensor]) -> dict[Sink, Tensor | None]:
        """Gradients of what a pass gathered, given those of what the bridges and the head made of it."""
        sinks = [sink for _, sink in self._passed[phase][0].program.sinks if sink is not None]
        return dict(zip(sinks, self._gradients(given, [self.tensors[sink] for sink in sinks]), strict=True))

    def _gradients(self, given: Mapping[Key, Tensor], inputs: Sequence[Tensor]) -> list[Tensor | None]:
        roots = [(self.tensors[key], grad) for key, grad in given.items() if self.tensors[key].requires_grad]
        asked = [tensor for tensor in inputs if tensor.requires_grad]
        if not roots or not asked:
            return [None] * len(inputs)
        outputs, cotangents = zip(*roots, strict=True)
        found = iter(torch.autograd.grad(outputs, asked, cotangents, retain_graph=True, allow_unused=True))
        return [next(found) if tensor.requires_grad else None for tensor in inputs]


def _reach(graph: Graph, values: Sequence[int], reached: set[int]) -> None:
    """Add these values and all that they are made of to those that a gradient reaches."""
    pending = list(values)
    while pending:
        value = pending.pop()
        if value not in reached:
            reached.add(value)
            pending += graph.nodes[value].inputs if value else ()


def _renumbered(see: Watch | None, values: Sequence[int]) -> Watch | None:
    """For a pass, which has its own numbers, what sees values by the graph's."""
    return None if see is None else lambda value, *piece: see(values[value], *piece)


def _nothing() -> None:
    """Leave freed memory to the allocator."""


def _nowhere(value: int, piece: Tensor, rows: Span, cols: Span) -> None:
    """Drop a piece that was gathered before."""


class _SourceGradients:
    """Gradients of sources during a backward pass: those of stored maps until their own backward pass, the image's until complete."""

    def __init__(self, run: Run, write: WriteImage | None) -> None:
        self._run, self._write = run, write
        self.stores: dict[int, Store] = {}

    def take(self, phase: int, values: Sequence[int], source: int, grad: Tensor | None, rows: Span, cols: Span) -> None:
        """Take the gradient of a source's rows and columns from the pass of a phase."""
        value = values[source]
        if value == 0 and phase == 0 and self._write is not None:  # the first pass has its backward pass last
            if 0 in self.stores:
                later = self.stores[0].read(rows, cols)
                grad = later if grad is None else grad + later
            self._write(grad, rows, cols)
        elif grad is not None and (value or (phase and self._write is not None)):
            if value not in self.stores:
                self.stores[value] = self._store(value)
            self.stores[value].accumulate(grad, rows, cols)

    def forget(self, phase: int) -> None:
        """Let go of the gradients of maps that the pass of a phase made."""
        phases = self._run.bound.graph.phases
        self.stores = {value: store for value, store in self.stores.items() if phases[value] < phase or not value}

    def _store(self, value: int) -> Store:
        barriers = self._run.plan.barriers
        on_disk = barriers == "spilled" or (value == 0 and barriers == "regenerated")
        return (Spilled if on_disk else Held)(self._run.bound.sizes[value])
