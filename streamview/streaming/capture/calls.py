"""What the calls of a graph are: where they were made, what they change, what they ask."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import fx, nn

__all__ = ["Constants", "VIEWS", "asks_shape", "asserts", "in_place", "memory_of", "name_of", "path_of", "picks"]

_SHAPE_QUERIES = {"size", "dim", "ndim", "shape", "dtype", "device", "sym_size"}
VIEWS = {
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "getitem", "select", "slice", "narrow", "transpose", "permute",
    "expand", "expand_as", "chunk", "split", "split_with_sizes", "unbind", "detach", "t", "swapaxes", "contiguous", "alias", "view_as",
    "to", "type_as", "type", "float", "double", "half", "bfloat16",  # themselves, of the type and device that they have
}  # fmt: skip


def memory_of(node: fx.Node) -> fx.Node:
    """The call that made the memory of a result."""
    while isinstance(node.args[0] if node.args else None, fx.Node) and name_of(node).removesuffix("_copy") in VIEWS:
        (node,) = [s for s in node.args[:1] if isinstance(s, fx.Node)]
    return node


def name_of(node: fx.Node) -> str:
    """Name of the function or method that is called."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.split("::")[1]
    return str(getattr(node.target, "__name__", node.target))


def path_of(node: fx.Node) -> str:
    """Where a call was made: the path of the module, or of the module around a function with the function's name."""
    if node.op == "call_module" or "rewritten" in node.meta:
        return str(node.meta.get("rewritten", node.target))
    stack = node.meta.get("nn_module_stack")
    inside = next(reversed(stack.values()))[0] if stack else ""
    return f"{inside}.{node.name}" if inside else node.name


def in_place(node: fx.Node, target: Any) -> bool:
    """Whether a call changes its first argument."""
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if name in ("setitem", "__setitem__"):
        return True
    if isinstance(target, nn.Module):
        return bool(getattr(target, "inplace", False))
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.is_mutable
    augmented = target in (operator.iadd, operator.isub, operator.imul, operator.itruediv)
    return augmented or bool(node.kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__"))


def asserts(node: fx.Node) -> bool:
    """Whether a call only raises where the image is not as the network wants it."""
    return node.target in (torch._assert, torch.ops.aten._assert_scalar.default, torch.ops.aten._assert_async.msg)


def picks(node: fx.Node) -> bool:
    """Whether a call takes one of several results of another."""
    return node.target in (operator.getitem, getattr)


def asks_shape(node: fx.Node) -> bool:
    """Whether a call asks for nothing but the shape, type or device of a tensor."""
    if node.op == "call_method":
        return node.target in _SHAPE_QUERIES
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.split("::")[1] in _SHAPE_QUERIES
    return node.op == "call_function" and node.target is getattr and node.args[1] in _SHAPE_QUERIES


class Constants(dict[fx.Node, Callable[[], Any]]):
    """Every call of a graph that does not depend on an input, with the function that evaluates it anew."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__()
        self._module = module
        for node in graph.nodes:
            self.note(node)

    def note(self, node: fx.Node) -> None:
        """Add a call if it does not depend on an input."""
        is_constant_itself = node.op == "get_attr" or (node.op == "placeholder" and node.args)
        if is_constant_itself or (node.op.startswith("call_") and all(s in self for s in node.all_input_nodes)):
            self[node] = partial(self._evaluate, node)

    def _evaluate(self, node: fx.Node) -> Any:
        target: Any = node.target
        if node.op == "get_attr":
            return operator.attrgetter(target)(self._module)
        if node.op == "placeholder":
            return node.args[0]
        args: Any = fx.node.map_arg(node.args, self._evaluate)
        kwargs: Any = fx.node.map_arg(node.kwargs, self._evaluate)
        if node.op == "call_module":
            return self._module.get_submodule(target)(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)
