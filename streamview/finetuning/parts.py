"""Choose the trained weights of a network by its streamed graph, not by their names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streamview.errors import TrainingError
from streamview.finetuning.settings import Part
from streamview.streaming.capture.capture import capture
from streamview.streaming.graph import Graph, bind, placed
from streamview.streaming.ops import Weight

__all__ = ["choose_weights", "head_dropout"]


def choose_weights(module: nn.Module, part: Part, size: tuple[int, int]) -> tuple[str, ...]:
    """Return the names of the parameters of a part of a network.

    The head is everything after the streamed part: the classifier behind the pooling. The last stage is the head and every layer at the
    coarsest resolution: ``layer4`` of a ResNet, the last dense block of a DenseNet, the layers after the last pooling of a plain
    network. All means every parameter that the output depends on.

    Parameters
    ----------
    module
        The network, in eval mode.
    part
        The part.
    size
        Height and width of a training region, px of the network's grid.

    Raises
    ------
    NotStreamableError
        If the network cannot be streamed.
    RegionError
        If the region is too small for it.
    TrainingError
        If the part has no weights.
    """
    before = [p.requires_grad for p in module.parameters()]
    module.requires_grad_(True)  # so that weights computed from parameters can be traced back to them
    try:
        graph = capture(module, channels=3)
        chosen = {id(p) for p in graph.head.module.parameters()}
        if part != "head":
            chosen |= _of_body(graph, size, coarsest=part == "last stage")
    finally:
        for parameter, required in zip(module.parameters(), before, strict=True):
            parameter.requires_grad_(required)
    names = tuple(name for name, p in module.named_parameters() if id(p) in chosen and p.is_floating_point())
    if not names:
        raise TrainingError(f"the {part} of {type(module).__name__} has no weights to train; train the last stage or all")
    return names


def head_dropout(module: nn.Module) -> list[nn.Module]:
    """Return the dropout layers of the head, the only ones active during training: in the streamed part dropout stays off."""
    head = {id(m) for m in capture(module, channels=3).head.module.modules()}
    return [m for m in module.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and id(m) in head]


def _of_body(graph: Graph, size: tuple[int, int], *, coarsest: bool) -> set[int]:
    """Ids of the parameters of the streamed part; with `coarsest`, only those at the largest stride with parameters."""
    bound = bind(graph, size)
    strides = {value: max(placed(bound, value)[0]) for value in range(len(graph.channels))}
    read: dict[int, set[int]] = {}
    with torch.enable_grad():
        for value, node in graph.nodes.items():
            weights = [operand for index in node.weights if isinstance(operand := graph.operands[index], Weight)]
            read[value] = {id(leaf) for weight in weights for leaf in _leaves(weight.read()) if isinstance(leaf, nn.Parameter)}
    largest = max((strides[value] for value, weights in read.items() if weights), default=0)
    chosen = set().union(*(weights for value, weights in read.items() if not coarsest or strides[value] == largest))
    for bridge in graph.bridges:
        input_strides = [strides[sink.value] for sink in bridge.takes if not isinstance(sink, str)]
        if not coarsest or (input_strides and min(input_strides) == largest):
            chosen |= {id(p) for p in bridge.module.parameters()}
    return chosen


def _leaves(tensor: Tensor) -> list[Tensor]:
    """The leaf tensors that a tensor was computed from."""
    if tensor.grad_fn is None:
        return [tensor]
    leaves, pending, seen = [], [tensor.grad_fn], set()
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            leaves += [node.variable] if hasattr(node, "variable") else []
            pending += [source for source, _ in node.next_functions if source is not None]
    return leaves
