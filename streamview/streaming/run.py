"""One call of a captured network's local part: its passes one after the other, the bridges between them, and all of it in reverse.

Between passes stand the maps that a later pass reads (kept in memory, spilled to disk, or computed again from the image) and the
tensors of the bridges, which autograd follows. The chain rule over the passes is exact whatever is stored: a value that is
computed twice hands its gradient back twice, through each pass that used it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from streamview.streaming.execute import Backward, Forward, Span, build_grid, wanted
from streamview.streaming.graph import Bound, Demands, Key, Sink
from streamview.streaming.ops import Statistic
from streamview.streaming.plan import Plan
from streamview.streaming.sinks import Sinks
from streamview.streaming.stores import Held, Spilled, Store

__all__ = ["Run"]

ReadImage = Callable[[Span, Span], Tensor]
WriteImage = Callable[[Tensor | None, Span, Span], None]
Watch = Callable[[int, Tensor, Span, Span], None]


class Run:
    """A forward pass through the local part, and any number of reverse passes.

    Parameters
    ----------
    bound
        The graph for the image's size.
    plan
        How to run.
    weights
        Values of the graph's weights, detached.
    needs
        What reverse passes will need; None when there is none.
    """

    def __init__(self, bound: Bound, plan: Plan, weights: Sequence[Tensor], needs: Demands | None) -> None:
        self.bound, self.plan, self.needs = bound, plan, needs
        graph = bound.graph
        given = iter(weights)
        self.operands: list[Any] = [None if isinstance(operand, Statistic) else next(given) for operand in graph.operands]
        self.tensors: dict[Key, Tensor] = {}  # what was gathered and what bridges gave, in one graph of autograd
        self._stores: dict[int, Store] = {}
        self._passed: list[tuple[Forward, Sinks]] = []

    @property
    def steps(self) -> int:
        """Steps of all passes."""
        return self.plan.steps

    def forward(self, read: ReadImage, done: Callable[[], None] = lambda: None, watch: Watch | None = None) -> None:
        """Run all passes; what the head takes is then in `tensors`.

        Parameters
        ----------
        read
            Gives the pixels (N, C, h, w) of these rows and columns of the image.
        done
            Called after every step.
        watch
            Sees every piece of every sink: the graph's value, the piece, its rows and columns.
        """
        graph = self.bound.graph
        stored = self.plan.stored(graph)
        for phase, chosen in enumerate(self.plan.passes):
            program = self.bound.program(phase, stored)
            grid = build_grid(program, chosen.tile)
            self._stores |= {v: self._store(v) for v in stored if graph.phases[v] == phase}
            sinks = Sinks(program, grid, self._stores)
            wants = None if self.needs is None else wanted(program, self.needs.values, self.needs.operands)
            passed = Forward(program, grid, self.operands, wants, chosen.tapes)

            def emit(
                value: int, piece: Tensor, rows: Span, cols: Span, sinks: Sinks = sinks, values: Sequence[int] = program.values
            ) -> None:
                sinks.add(value, piece, rows, cols)
                if watch is not None:
                    watch(values[value], piece, rows, cols)

            with torch.no_grad():
                passed.run(partial(self._read, program.values, read), emit, done)
            results = sinks.results()
            for sink, tensor in results.items():
                needed = self.needs is not None and self.needs.values[sink.value] and tensor.is_floating_point()
                # a new tensor: what hands it out may mark it
                self.tensors[sink] = tensor.detach().requires_grad_(needed)
            if phase < len(graph.bridges):
                self._bridge(phase)
            self._passed.append((passed, sinks))
            if self.needs is None:
                self._passed.clear()
                self._forget(lambda value, now=phase: self._last_reader(value) <= now)

    def _read(self, values: Sequence[int], read: ReadImage, source: int, rows: Span, cols: Span) -> Tensor:
        value = values[source]
        return read(rows, cols) if value == 0 else self._stores[value].read(rows, cols)

    def _store(self, value: int) -> Store:
        return (Spilled if self.plan.barriers == "spilled" else Held)(self.bound.sizes[value])

    def _last_reader(self, value: int) -> int:
        graph = self.bound.graph
        return max((graph.phases[v] for v, node in graph.nodes.items() if value in node.inputs), default=0)

    def _forget(self, finished: Callable[[int], bool]) -> None:
        self._stores = {value: store for value, store in self._stores.items() if not finished(value)}

    def _bridge(self, phase: int) -> None:
        """Run the calls between two passes."""
        graph = self.bound.graph
        bridge = graph.bridges[phase]
        with torch.set_grad_enabled(self.needs is not None):
            given = bridge.module(*map(self.argument, bridge.takes))
        self.tensors |= dict(zip(bridge.gives, given, strict=True))
        for index, operand in enumerate(graph.operands):
            if isinstance(operand, Statistic) and operand.name in bridge.gives:
                self.operands[index] = self.tensors[operand.name].detach()

    def argument(self, key: Key) -> Tensor:
        """What a bridge or the head gets for a key."""
        if not isinstance(key, Sink) or key.kind == "map":
            return self.tensors[key]
        if key.kind == "shape":
            like = next(iter(self.tensors.values()))
            size = (like.shape[0], self.bound.graph.channels[key.value], *self.bound.sizes[key.value])
            return like.detach().new_empty(()).expand(size)
        # a copy, since calls may change their argument in place, which autograd refuses for a leaf
        return self.tensors[key].clone()

    def backward(
        self,
        read: ReadImage,
        grads: Mapping[Key, Tensor | None],
        write: WriteImage | None,
        parameters: Sequence[Tensor] = (),
        done: Callable[[], None] = lambda: None,
        release: bool = False,
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Run all passes in reverse.

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

        Returns
        -------
        tuple
            Gradients of the graph's operands (None for statistics), and of `parameters`.
        """
        graph = self.bound.graph
        if self.needs is None:
            raise ValueError("the forward pass was told that no gradient is wanted")
        given = {key: grad for key, grad in grads.items() if grad is not None}
        totals: list[Tensor | None] = [None] * len(self.operands)
        stores: dict[int, Store] = {}
        image_readers = [phase for phase, (passed, _) in enumerate(self._passed) if 0 in self._sources(passed)]
        for phase in reversed(range(graph.passes)):
            passed, sinks = self._passed[phase]
            sink_grads = self._through_bridges(phase, given)
            values = passed.program.values

            def take(source: int, grad: Tensor | None, rows: Span, cols: Span, values: Sequence[int] = values, phase: int = phase) -> None:
                value = values[source]
                if value or phase != image_readers[0]:
                    if grad is not None and (value or write is not None):
                        if value not in stores:
                            stores[value] = self._gradient_store(value)
                        stores[value].accumulate(grad, rows, cols)
                elif write is not None:
                    if 0 in stores:
                        earlier = stores[0].read(rows, cols)
                        grad = earlier if grad is None else grad + earlier
                    write(grad, rows, cols)

            backward = Backward(passed, release)
            with torch.no_grad():
                backward.run(partial(self._read, values, read), partial(sinks.gradient, sink_grads, stores), take, done)
            for index, (grad, operand) in enumerate(zip(backward.weight_grads, graph.operands, strict=True)):
                if grad is None:
                    continue
                if isinstance(operand, Statistic):
                    before = given.get(operand.name)
                    grad = grad.to(self.tensors[operand.name].dtype)
                    given[operand.name] = grad if before is None else before + grad
                else:
                    total = totals[index]
                    totals[index] = grad if total is None else total + grad
            stores = {value: store for value, store in stores.items() if graph.phases[value] < phase or not value}
            if release:
                self._forget(lambda value, now=phase: graph.phases[value] >= now - 1)
        return totals, self._gradients(given, parameters)

    def _sources(self, passed: Forward) -> Sequence[int]:
        return passed.program.values[: len(passed.program.sources)]

    def _gradient_store(self, value: int) -> Store:
        on_disk = self.plan.barriers == "spilled" or (value == 0 and self.plan.barriers == "regenerated")
        return (Spilled if on_disk else Held)(self.bound.sizes[value])

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
