"""The graph of an exported network: JSON to a ``torch.fx.Graph`` of torch's own operators, every name and value checked on the way."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.fx import Graph, Node

from streamview.errors import ModelError

__all__ = ["Reader", "check_sizes"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
_OPERATOR = re.compile(r"torch\.ops\.aten\.([A-Za-z_0-9]+)\.([A-Za-z_0-9]+)")
_ARITHMETIC: Mapping[str, Callable[..., Any]] = {
    f"_operator.{name}": getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "getitem")
}
# the arguments of text that change how numbers are computed; others name files, messages or devices
_TEXTS = ("approximate", "mode", "padding", "padding_mode", "reduction", "rounding_mode", "equation", "indexing")
_TRAINING = ("training", "train")
_TYPES = {4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16}
_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 4: torch.preserve_format}
_DYNAMIC = "dynamic_shapes=({2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)"
_SYMBOL = re.compile(r"Symbol\('(\w+)', positive=True, integer=True\)")
_COMPARE: Mapping[type[ast.cmpop], Callable[..., Any]] = {
    ast.Eq: np.equal, ast.NotEq: np.not_equal, ast.Lt: np.less, ast.LtE: np.less_equal, ast.Gt: np.greater, ast.GtE: np.greater_equal,
}  # fmt: skip
_COMPUTE: Mapping[type[ast.operator], Callable[..., Any]] = {
    ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.FloorDiv: np.floor_divide, ast.Mod: np.mod,
}  # fmt: skip
_CALLS: Mapping[str, Callable[..., Any]] = {"max": np.maximum, "min": np.minimum}
# heights and widths at which an exported condition must hold: every residue up to 64, sizes about powers of two, and large ones
_SIDES = (*range(512, 577), 1023, 1024, 1025, 2047, 2048, 4095, 4097, 8191, 8192, 16001, 65537)


class Reader:
    """What one file says of its graph, checked while it is read.

    Parameters
    ----------
    graph, signature
        As in the JSON of the file.
    file
        What error messages call it.

    Attributes
    ----------
    image
        Name of the one input.
    tensors
        Name in the graph -> name in the weights.
    """

    def __init__(self, graph: Mapping[str, Any], signature: Mapping[str, Any], file: str) -> None:
        self._graph, self._file = graph, file
        images: list[str] = []
        self.tensors: dict[str, str] = {}
        for spec in signature["input_specs"]:
            ((kind, content),) = spec.items()
            if kind == "user_input" and "as_tensor" in content["arg"]:
                images.append(content["arg"]["as_tensor"]["name"])
            elif kind in ("parameter", "buffer", "tensor_constant"):
                self.tensors[content["arg"]["name"]] = content[f"{kind}_name"]
            else:
                raise ModelError(f"{file} takes an input of the kind {kind}; expected one image: export a network of one tensor")
        if len(images) != 1:
            raise ModelError(f"{file} takes {len(images)} inputs; expected one image: export a network of one tensor")
        (self.image,) = images
        kinds = [next(iter(spec)) for spec in signature["output_specs"]]
        if any(kind.endswith("mutation") for kind in kinds):
            raise ModelError(f"{file} changes its own buffers: it was exported in training mode; call module.eval() before torch.export")
        if kinds != ["user_output"]:
            raise ModelError(f"{file} answers {len(kinds)} values; expected one tensor (N, outputs): return it alone")

    def outputs(self, values: Mapping[str, Any]) -> int:
        """How many values the network answers for an image."""
        sizes = values[self._answer()]["sizes"]
        if len(sizes) != 2 or "as_int" not in sizes[1]:
            shape = ", ".join(str(size.get("as_int", "?")) for size in sizes)
            raise ModelError(f"{self._file} answers ({shape}); expected (N, outputs): export a network that ends in one logit a class")
        return int(sizes[1]["as_int"])

    def build(self) -> Graph:
        """Make the graph: the image, the weights by name, the operators, and the answer."""
        graph = Graph()
        nodes: dict[str, Node] = {self._checked(self.image): graph.placeholder(self.image)}
        used = {name for node in self._graph["nodes"] for name in _tensors_of(node["inputs"])}
        for name, target in self.tensors.items():
            if name in used:
                nodes[self._checked(name)] = graph.create_node("get_attr", target, name=name)
        for entry in self._graph["nodes"]:
            self._add(graph, nodes, entry)
        graph.output(nodes[self._answer()])
        graph.lint()
        return graph

    def _answer(self) -> str:
        (output,) = self._graph["outputs"]
        return str(output["as_tensor"]["name"])

    def _add(self, graph: Graph, nodes: dict[str, Node], entry: Mapping[str, Any]) -> None:
        target = entry["target"]
        function = _ARITHMETIC.get(target)
        arguments = [(argument["name"], self._value(argument["name"], argument["arg"], nodes)) for argument in entry["inputs"]]
        if function is None:
            function = self._operator(target)
            known = [argument.name for argument in function._schema.arguments]
            by_name = {argument.name for argument in function._schema.arguments if argument.kwarg_only}
            # by position where the schema allows it and there are no gaps, as torch writes it itself
            positional = 0
            for (name, _), expected in zip(arguments, known, strict=False):
                if name != expected or name in by_name:
                    break
                positional += 1
            given = tuple(value for _, value in arguments[:positional])
            named = dict(arguments[positional:])
            if not named.keys() <= set(known):
                raise ModelError(f"{self._file}: {target} is given {', '.join(sorted(named))}; export it with the torch that runs here")
        else:
            given, named = tuple(value for _, value in arguments), {}
        outputs = entry["outputs"]
        if len(outputs) == 1 and "as_tensors" not in outputs[0]:
            name = self._checked(_name_of(outputs[0]))
            nodes[name] = graph.create_node("call_function", function, given, named, name)
            return
        parts = outputs[0]["as_tensors"] if len(outputs) == 1 else [output["as_tensor"] for output in outputs]
        whole = graph.create_node("call_function", function, given, named)
        for index, part in enumerate(parts):
            name = self._checked(part["name"])
            nodes[name] = graph.create_node("call_function", operator.getitem, (whole, index), {}, name)

    def _operator(self, target: str) -> Any:
        """Find one of torch's operators on tensors; those that read or write files, print or compile are none."""
        match = _OPERATOR.fullmatch(target)
        packet = getattr(torch.ops.aten, match[1], None) if match else None
        if match is None or not isinstance(packet, torch._ops.OpOverloadPacket) or match[2] not in packet.overloads():
            remedy = "export the network without it, for instance under torch.nn.functional alone"
            raise ModelError(f"{self._file} uses {target[:80]!r}, which is no operator of torch on tensors; {remedy}")
        function = getattr(packet, match[2])
        schema = function._schema
        kinds = {str(argument.type) for argument in schema.arguments}
        texts = [argument.name for argument in schema.arguments if "str" in str(argument.type) and argument.name not in _TEXTS]
        if not any("Tensor" in kind for kind in kinds) or texts or not schema.returns:
            raise ModelError(f"{self._file} uses {target}, which does more than compute; export the network without it")
        return function

    def _value(self, name: str, argument: Mapping[str, Any], nodes: Mapping[str, Node]) -> Any:
        ((kind, value),) = argument.items()
        if kind == "as_none":
            return None
        if kind == "as_tensor":
            return nodes[value["name"]]
        if kind == "as_tensors":
            return [nodes[part["name"]] for part in value]
        if kind == "as_optional_tensors":
            return [nodes[part["as_tensor"]["name"]] if "as_tensor" in part else None for part in value]
        if kind == "as_sym_int":
            return _size(value, nodes)
        if kind == "as_sym_ints":
            return [_size(part, nodes) for part in value]
        if kind == "as_bool" and isinstance(value, bool):
            if value and name in _TRAINING:
                raise ModelError(f"{self._file} was exported in training mode; call module.eval() before torch.export.export")
            return value
        if kind == "as_int":
            return operator.index(value)
        if kind == "as_float":
            return float(value)
        if kind in ("as_ints", "as_bools"):
            return [operator.index(part) if kind == "as_ints" else bool(part) for part in value]
        if kind == "as_floats":
            return [float(part) for part in value]
        if kind == "as_string" and name in _TEXTS and isinstance(value, str):
            return value
        if kind == "as_scalar_type" and value in _TYPES:
            return _TYPES[value]
        if kind == "as_memory_format" and value in _FORMATS:
            return _FORMATS[value]
        if kind == "as_layout" and value == 7:
            return torch.strided
        if kind == "as_device" and value["type"] == "cpu":
            return torch.device("cpu")
        remedy = "export the network on the CPU, from plain layers"
        raise ModelError(f"{self._file}: an operator is given {name} as {kind.removeprefix('as_')}, which is not understood here; {remedy}")

    def _checked(self, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ModelError(f"{self._file}: a value is called {name[:40]!r}; expected letters, digits and underscores: get the file again")
        return name


def check_sizes(sizes: Sequence[Mapping[str, Any]], ranges: Mapping[str, Any], guards: Sequence[str], image: str, file: str) -> None:
    """Refuse a network that was exported for some sizes of images only.

    Parameters
    ----------
    sizes
        Of the input, as in the JSON: numbers or symbols.
    ranges
        Symbol -> its least and largest value.
    guards
        Conditions on the sizes under which the graph holds, in Python; they are parsed, never run.
    image
        Name of the input in the conditions.
    file
        What error messages call the file.
    """
    shown = " x ".join(str(size.get("as_int", "any")) for size in sizes)
    if len(sizes) != 4 or sizes[1].get("as_int") != 3 or sizes[0].get("as_int", 1) != 1:
        raise ModelError(f"{file} was exported for input of {shown}; expected N x 3 x H x W: export it for one RGB image")
    if "as_int" in sizes[2] or "as_int" in sizes[3]:
        raise ModelError(f"{file} was exported for images of {shown} alone; export it again with {_DYNAMIC}")
    symbols = [_SYMBOL.fullmatch(size["as_expr"]["expr_str"]) for size in sizes[2:]]
    free = all(symbol is not None and _is_free(ranges.get(symbol[1], {})) for symbol in symbols)
    if not free or (symbols[0] and symbols[1] and symbols[0][1] == symbols[1][1]):
        raise ModelError(f"{file} was exported for certain heights and widths only; export it again with {_DYNAMIC}")
    other = [999] * len(_SIDES)
    heights, widths = np.array([*_SIDES, *other, *_SIDES]), np.array([*other, *_SIDES, *_SIDES])
    known = {f"L['{image}'].size()[{axis}]": values for axis, values in enumerate((np.array(1), np.array(3), heights, widths))}
    for guard in dict.fromkeys(guards):
        try:
            with np.errstate(all="raise"):
                holds = np.broadcast_to(_evaluate(ast.parse(guard, mode="eval").body, known), heights.shape).astype(bool)
        except (_UnknownCondition, SyntaxError, FloatingPointError, OverflowError, RecursionError, MemoryError):
            found = f"under a condition that is not understood: {guard[:120]!r}"
            raise ModelError(f"{file} holds {found}; export it again with {_DYNAMIC}") from None
        if not holds.all():
            first = int(np.argmin(holds))
            remedy = "export a network whose layers do not depend on the size of the image"
            raise ModelError(f"{file} holds only where {guard[:120]}, unlike images of {widths[first]} x {heights[first]} px; {remedy}")


class _UnknownCondition(Exception):
    pass


def _evaluate(node: ast.expr, known: Mapping[str, npt.NDArray[np.int64]]) -> Any:
    """Evaluate a condition at many sizes at once: whole numbers, their arithmetic and comparisons, and nothing else."""
    match node:
        case ast.Constant(value=int() as value) if abs(value) < 2**31:
            return np.array(value)
        case ast.UnaryOp(op=ast.USub()):
            return -_evaluate(node.operand, known)
        case ast.UnaryOp(op=ast.Not()):
            return np.logical_not(_evaluate(node.operand, known))
        case ast.BinOp(op=op) if type(op) in _COMPUTE:
            return _COMPUTE[type(op)](_evaluate(node.left, known), _evaluate(node.right, known))
        case ast.BoolOp(op=op):
            combine = np.logical_and if isinstance(op, ast.And) else np.logical_or
            return reduce(combine, [_evaluate(value, known) for value in node.values])
        case ast.Compare(ops=[op], comparators=[right]) if type(op) in _COMPARE:
            return _COMPARE[type(op)](_evaluate(node.left, known), _evaluate(right, known))
        case ast.Call(func=ast.Name(id=name), args=[_, _, *_], keywords=[]) if name in _CALLS:
            return reduce(_CALLS[name], [_evaluate(argument, known) for argument in node.args])
        case ast.Subscript() if ast.unparse(node) in known:
            return known[ast.unparse(node)]
    raise _UnknownCondition


def _is_free(limits: Mapping[str, Any]) -> bool:
    least, largest = limits.get("min_val"), limits.get("max_val")
    return (least is None or least <= _SIDES[0]) and (largest is None or largest >= _SIDES[-1])


def _name_of(output: Mapping[str, Any]) -> str:
    ((kind, value),) = output.items()
    return str(value["name"] if kind == "as_tensor" else value["as_name"])


def _size(value: Mapping[str, Any], nodes: Mapping[str, Node]) -> Any:
    return nodes[value["as_name"]] if "as_name" in value else operator.index(value["as_int"])


def _tensors_of(inputs: Sequence[Mapping[str, Any]]) -> set[str]:
    """Names of the tensors among the arguments of an operator."""
    found = set[str]()
    for argument in inputs:
        for kind, value in argument["arg"].items():
            if kind == "as_tensor":
                found.add(value["name"])
            elif kind in ("as_tensors", "as_optional_tensors"):
                found |= {part["name"] if "name" in part else part["as_tensor"]["name"] for part in value if "as_none" not in part}
    return found
