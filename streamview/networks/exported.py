"""Networks of ``torch.export`` (.pt2), read without ``torch.export.load``.

That function unpickles the example inputs (with a retry that runs code), parses sizes with ``sympify`` (which evaluates Python), and
runs the guards that the file holds as Python. Only the JSON graph and the raw weights of the archive are needed here: they are data,
checked field by field, and every operator is one of torch's own that takes and returns tensors. The schema is torch's, version 8:
https://github.com/pytorch/pytorch/blob/main/torch/_export/serde/schema.py
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from streamview.errors import ModelError
from streamview.networks.checkpoints import first_line, open_archive, read_file
from streamview.networks.fitting import check_finite
from streamview.networks.graphs import Reader, check_sizes
from streamview.networks.hashing import hash_tensors

__all__ = ["Exported", "read_exported"]

_SCHEMA = 8
_DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32, 8: torch.float64,
    12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
_AGAIN = "export it again: torch.export.save(torch.export.export(module.eval(), (image,), dynamic_shapes=...), FILE)"
# what a file that is not what it seems leads to
_DAMAGED = (LookupError, TypeError, AttributeError, ValueError, RuntimeError, EOFError, OverflowError, zipfile.BadZipFile)
_PATH = re.compile(r"[A-Za-z_0-9]+(\.[A-Za-z_0-9]+)*")


@dataclass(frozen=True, slots=True, eq=False)
class Exported:
    """A network that was exported.

    Parameters
    ----------
    module
        Maps (N, 3, H, W) float32 to (N, outputs): a graph of ``torch.ops.aten`` and the weights.
    outputs
        How many values it answers.
    sha256
        Hex digest of weights and graph.
    file_sha256
        Hex digest of the file.
    """

    module: nn.Module
    outputs: int
    sha256: str
    file_sha256: str


def read_exported(path: Path) -> Exported:
    """Read the network of a ``.pt2`` file; nothing of the file is run or unpickled.

    Raises
    ------
    ModelError
        The file is damaged, of another version, holds compiled code or pickled weights, was exported for one size or in training mode,
        or computes something else than one row of values from one RGB image.
    """
    data = read_file(path)
    try:
        return _read(data, path)
    except _DAMAGED as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ModelError(f"{path} is not a whole archive of torch.export ({reason}); {_AGAIN}") from None


def _read(data: bytes, path: Path) -> Exported:
    archive, names = open_archive(data, path)
    if "serialized_exported_program.json" in {member.filename for member in archive.infolist()}:
        raise ModelError(f"{path} is in the older format with pickled weights, which run code when read; {_AGAIN} with torch 2.10 or newer")
    if any(name.startswith("data/aotinductor/") for name in names):
        raise ModelError(f"{path} holds compiled machine code, which cannot be cut into streamed pieces; {_AGAIN}")
    models = [name for name in names if name.startswith("models/")]
    if models != ["models/model.json"]:
        raise ModelError(
            f"{path} holds {len(models)} networks ({', '.join(models[:3]) or 'none'}); expected models/model.json alone: {_AGAIN}"
        )
    if names.keys() & {"data/weights/model.pt", "data/constants/model.pt"}:
        raise ModelError(f"{path} holds pickled weights, which run code when read; {_AGAIN} with torch 2.10 or newer")
    if "byteorder" in names and archive.read(names["byteorder"]) != b"little":
        raise ModelError(f"{path} was written by a big-endian machine; {_AGAIN} on another")
    document = json.loads(archive.read(names["models/model.json"]))
    version = document["schema_version"]["major"]
    if version != _SCHEMA:
        raise ModelError(
            f"{path} is of schema {version}, expected {_SCHEMA} (torch 2.10 and newer); {_AGAIN} with the torch that runs here"
        )
    tensors: dict[str, Tensor] = {}
    for kind in ("weights", "constants"):
        config = json.loads(archive.read(names[f"data/{kind}/model_{kind}_config.json"]))["config"]
        tensors |= _read_tensors(config, kind, archive, names, path)
    graph = document["graph_module"]["graph"]
    reader = Reader(graph, document["graph_module"]["signature"], str(path))
    sizes = graph["tensor_values"][reader.image]["sizes"]
    check_sizes(sizes, document["range_constraints"], document["guards_code"], reader.image, str(path))
    outputs = reader.outputs(graph["tensor_values"])
    targets = {target for target in reader.tensors.values() if target in tensors}
    module = torch.fx.GraphModule(_tree({target: tensors[target] for target in sorted(targets)}, path), reader.build())
    sha256 = hashlib.sha256(f"{hash_tensors(module.state_dict())}\n{module.code}".encode()).hexdigest()
    return Exported(module.eval(), outputs, sha256, hashlib.sha256(data).hexdigest())


def _read_tensors(
    config: Mapping[str, Any], kind: str, archive: zipfile.ZipFile, names: Mapping[str, str], path: Path
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    flat: dict[tuple[str, torch.dtype], Tensor] = {}
    for name, entry in config.items():
        record, meta = entry["path_name"], entry["tensor_meta"]
        if entry["use_pickle"] or meta is None:
            raise ModelError(f"{path}: {name} is pickled, which runs code when read; export the network without tensor classes or objects")
        dtype = _DTYPES.get(meta["dtype"])
        if dtype is None or meta["layout"] != 7:
            raise ModelError(f"{path}: {name} is of a type that is not understood here; export the network in float32")
        if (record, dtype) not in flat:
            content = archive.read(names[f"data/{kind}/{record}"])
            flat[record, dtype] = torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)
        tensor = _shape(flat[record, dtype], meta)
        if tensor is None:
            raise ModelError(f"{path}: {name} reaches outside its {len(flat[record, dtype])} values; copy or export the file again")
        tensors[name] = tensor
    check_finite(tensors, str(path))
    return tensors


def _shape(flat: Tensor, meta: Mapping[str, Any]) -> Tensor | None:
    """Lay a flat tensor out as stated; None: it holds too few values for that, or would be repeated."""
    size = [int(value["as_int"]) for value in meta["sizes"]]
    stride = [int(value["as_int"]) for value in meta["strides"]]
    offset = int(meta["storage_offset"]["as_int"])
    if len(size) != len(stride) or min([*size, *stride, offset], default=0) < 0 or math.prod(size) > len(flat):
        return None
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    return flat.as_strided(size, stride, offset) if last < len(flat) or 0 in size else None


def _tree(tensors: Mapping[str, Tensor], path: Path) -> nn.Module:
    """Hang tensors, named by dotted paths, on nested modules as frozen parameters (whole numbers as buffers)."""
    root = nn.Module()
    for name, tensor in tensors.items():
        if not _PATH.fullmatch(name):
            raise ModelError(f"{path}: the weights hold {name!r}, which is no path of a module; {_AGAIN}")
        *parents, last = name.split(".")
        module = root
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, nn.Module())
            module = module.get_submodule(parent)
        if tensor.is_floating_point():
            module.register_parameter(last, nn.Parameter(tensor, requires_grad=False))
        else:
            module.register_buffer(last, tensor)
    return root
