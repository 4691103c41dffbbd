"""Files of weights, read once, hashed, and never executed.

safetensors cannot hold code. Files of ``torch.save`` are pickles, which can: their opcodes are listed first without running them, every
name outside the few that tensors need is refused, and only then are they read, with ``weights_only=True`` and nothing else. Links are
followed (the cache of Hugging Face consists of them): the hash is of the bytes that were read, and reading runs nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from streamview.errors import ModelError
from streamview.files.kinds import describe_file

__all__ = [
    "CONVERT",
    "Weights",
    "archive_kind",
    "first_line",
    "open_archive",
    "read_file",
    "read_weights",
    "refuse_torchscript",
    "split_key",
]

CONVERT = "convert it: safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'weights.safetensors')"
"""What a message advises for a pickle whose origin the reader trusts."""

_LARGEST = 16 << 30
_DEEPEST = 4  # levels of a checkpoint that are searched
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
# of torch.export, now and before torch 2.9
_EXPORTED = ("archive_format", "models/model.json", "serialized_exported_program.json")
# what `torch.save` writes first in its format of before 2020
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# what pickled tensors name: every one of these only makes data
_HARMLESS = re.compile(
    r"torch\._utils\._rebuild_(tensor|tensor_v2|parameter|parameter_with_state)|torch\.nn\.parameter\.Parameter"
    r"|torch\.(\w+Storage|Size|device|bfloat16|u?int\d+|float\d+\w*|bool)|torch\.storage\.(Untyped|Typed)Storage"
    r"|torch\._tensor\._rebuild_from_type_v2|torch\.(Float|Half|Double|BFloat16|Long|Int)?Tensor"
    r"|torch\.serialization\._get_layout|collections\.(OrderedDict|Counter|defaultdict)|(builtins|__builtin__)\.(set|complex|bytearray|int|float|list|dict)"
    r"|_codecs\.encode|argparse\.Namespace|numpy\.(_core|core)\.multiarray\.scalar|numpy\.dtype|numpy\.dtypes\.(Float|U?Int|Bool)\d*DType"
)
# data beside the weights that programs of training leave: the options they ran with, and figures as scalars of numpy
_DATA: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *[(np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")],
    *[type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")],
]
# what torch raises for files that are not what they seem
_DAMAGED = (
    pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError, OverflowError,
    MemoryError, struct.error,
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """The tensors of a file.

    Parameters
    ----------
    path
        The file.
    entries
        Where tensors by name stand in the file, as keys joined by dots (empty: at its top), and there name -> tensor on the CPU, of which
        nothing is known yet.
    file_sha256
        Hex digest of the very bytes that the tensors came from.
    key
        Which of several networks the caller chose; empty: there must be one.
    """

    path: Path
    entries: Mapping[str, Mapping[str, Tensor]]
    file_sha256: str
    key: str = ""


def split_key(text: str) -> tuple[Path, str]:
    """Take ``FILE:KEY`` apart; a file whose own name holds the colon comes first."""
    path, key = text, ""
    while not Path(path).exists() and ":" in path:
        path, _, last = path.rpartition(":")
        key = f"{last}:{key}" if key else last
    return (Path(path), key) if Path(path).is_file() else (Path(text), "")


def read_weights(path: Path, key: str = "") -> Weights:
    """Read a file of weights: safetensors, or whatever `torch.save` made of tensors, alone or in a training checkpoint.

    Parameters
    ----------
    path
        The file.
    key
        As in `Weights`.

    Raises
    ------
    ModelError
        The file is missing, damaged, names code, or holds no tensors by name.
    """
    data = read_file(path)
    pickled = data.startswith((_ZIP, _PICKLE))
    if pickled and path.suffix == ".safetensors":
        expected = "expected safetensors under this name: where you trust its origin, "
        raise ModelError(f"{path} is a pickle that can run code when read, so it was not opened; {expected}{CONVERT}")
    if pickled:
        content = _load_pickled(data, path)
        entries = dict(_find_states(content))
        if not entries:
            expected = "expected a state_dict, alone or as an entry of a checkpoint"
            raise ModelError(f"{path} holds {_describe(content)}; {expected}: torch.save(module.state_dict(), FILE)")
    else:
        entries = {"": _load_safetensors(data, path)}
    return Weights(path, entries, hashlib.sha256(data).hexdigest(), key)


def read_file(path: Path) -> bytes:
    """Read a regular file whole.

    Raises
    ------
    ModelError
        It is missing, no regular file, larger than 16 GiB, or cannot be read.
    """
    if not path.is_file():
        found = "is not a file" if path.exists() else "does not exist"
        raise ModelError(f"{path} {found}; expected a file of weights: check the path")
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); check its permissions and the disk") from None
    if len(data) > _LARGEST:
        raise ModelError(f"{path} is larger than 16 GiB; expected the weights of one network: save its state_dict alone")
    return data


def open_archive(data: bytes, path: Path) -> tuple[zipfile.ZipFile, dict[str, str]]:
    """Open a zip archive of torch and map the name of every member, without the folder that holds all, to its full name.

    Raises
    ------
    ModelError
        It is damaged, or its members are compressed, overlap or share a name: torch writes none such, but bombs are made so.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError, OverflowError) as error:
        raise ModelError(f"{path} is not a whole archive ({error}); copy or save it again") from None
    members = archive.infolist()
    if members and all(member.header_offset > 0 for member in members):
        raise ModelError(f"{path} is not a whole archive (what is left of it ends in an archive inside it); copy or save it again")
    names = {_inner(member.filename): member.filename for member in members}
    stored = all(member.compress_type == zipfile.ZIP_STORED and member.file_size == member.compress_size for member in members)
    if not stored or len(names) < len(members) or sum(member.file_size for member in members) > len(data):
        raise ModelError(f"{path} holds compressed or overlapping members, which torch never writes; get the file again or save it anew")
    return archive, names


def archive_kind(file: Path | io.BytesIO) -> str:
    """Tell what a file is: "exported" (torch.export), "torchscript", or "other"."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = {_inner(name) for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile, ValueError, struct.error, NotImplementedError):
        return "other"
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        return "torchscript"
    return "exported" if names & set(_EXPORTED) else "other"


def refuse_torchscript(path: Path) -> ModelError:
    """Make the error for a file of TorchScript."""
    reason = "a frozen graph that cannot be cut into streamed pieces, with code of its own, so it was not opened"
    remedy = "give the definition and the weights (-m timm:NAME --weights FILE), or export the network with torch.export to a .pt2"
    return ModelError(f"{path} is TorchScript, {reason}; {remedy}")


def _inner(name: str) -> str:
    """Name of a member without the folder that holds all."""
    return name.partition("/")[2] or name


def _load_safetensors(data: bytes, path: Path) -> dict[str, Tensor]:
    kind = describe_file(data[:512])
    if kind:
        whole = "is not a whole safetensors file, but" if path.suffix == ".safetensors" else "is no file of weights, but"
        raise ModelError(f"{path} {whole} {kind}")
    try:
        return dict(safetensors.torch.load(data))
    except (SafetensorError, RuntimeError, ValueError, KeyError, OverflowError) as error:
        what = "is not" if path.suffix == ".safetensors" else "is neither torch.save's nor"
        raise ModelError(
            f"{path} {what} a whole safetensors file ({_cut_short(data) or first_line(error)}); copy or convert it again"
        ) from None


def _cut_short(data: bytes) -> str:
    """Say that safetensors end before their header says; empty: they do not, or the header cannot be read."""
    try:
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + length])
        end = 8 + length + max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return ""
    return f"it is cut short: {len(data)} of {end} bytes" if len(data) < end else ""


def _load_pickled(data: bytes, path: Path) -> object:
    if data.startswith(_ZIP):
        kind = archive_kind(io.BytesIO(data))
        if kind == "torchscript":
            raise refuse_torchscript(path)
        if kind == "exported":
            raise ModelError(f"{path} is a network of torch.export with its weights; give it as the model itself: -m {path.name}")
        archive, names = open_archive(data, path)
        if "data.pkl" not in names:
            raise ModelError(f"{path} is a zip archive without data.pkl; expected a file of torch.save or safetensors")
        try:
            program = archive.read(names["data.pkl"])
        except (zipfile.BadZipFile, RuntimeError, EOFError) as error:
            raise ModelError(f"{path} is damaged ({first_line(error)}); copy or save it again") from None
    else:
        program = data
    _refuse_code(program, path)
    if program is data and not data.startswith(_LEGACY):
        raise ModelError(f"{path} is a pickle, but not one of torch.save; save the weights again: torch.save(module.state_dict(), FILE)")
    try:
        with torch.serialization.safe_globals(_DATA):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        raise ModelError(f"{path} cannot be read as weights alone ({first_line(error)}); copy it again, or save its state_dict") from None


def _refuse_code(program: bytes, path: Path) -> None:
    """Refuse a pickle that names anything but tensors; nothing of it is run."""
    try:
        foreign = sorted(name for name in _names(program) if not _HARMLESS.fullmatch(name))
    except (ValueError, EOFError, IndexError, KeyError, OverflowError, struct.error, MemoryError) as error:
        raise ModelError(f"{path} is damaged ({first_line(error)}); copy or save it again") from None
    if not foreign:
        return
    listed = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
    if any(name.startswith("torch.nn.modules.") for name in foreign):
        remedy = "where it was made, save the weights alone: torch.save(module.state_dict(), FILE)"
        raise ModelError(f"{path} holds a whole pickled module ({listed}), which runs code when read, so it was not opened; {remedy}")
    remedy = "expected tensors alone: where it was made, save them with torch.save(module.state_dict(), FILE)"
    raise ModelError(f"{path} is a pickle that can run code when read (it names {listed}), so it was not opened; {remedy}")


def _names(program: bytes) -> set[str]:
    """List what a pickle, or the row of pickles of the legacy format, would import."""
    stream, found = io.BytesIO(program), set[str]()
    for _ in range(5):  # legacy: magic number, protocol, system, content, keys of the storages
        strings: list[str] = []
        memo: dict[Any, str] = {}
        for opcode, argument, _position in pickletools.genops(stream):
            name = opcode.name
            if name in ("GLOBAL", "INST"):
                found.add(str(argument).replace(" ", "."))
            elif name == "STACK_GLOBAL":
                found.add(".".join(strings[-2:]))
            elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
                memo[len(memo) if argument is None else argument] = strings[-1] if strings else ""
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                strings.append(memo.get(argument, ""))
            elif name.startswith("EXT"):
                found.add(f"copyreg extension {argument}")
            elif isinstance(argument, str):
                strings.append(argument)
        if not program.startswith(_LEGACY) or stream.tell() >= len(program):
            break
    return found


def _find_states(content: object, name: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Find tensors by name in what a checkpoint holds, at any place."""
    if isinstance(content, Mapping):
        tensors = {key: value.detach() for key, value in content.items() if isinstance(key, str) and _is_plain(value)}
        if tensors:
            yield name, tensors
    inner = content.items() if isinstance(content, Mapping) else enumerate(content) if isinstance(content, list | tuple) else ()
    for key, value in inner if depth < _DEEPEST else ():
        yield from _find_states(value, f"{name}.{key}" if name else str(key), depth + 1)


def _is_plain(value: object) -> bool:
    """Whether it is a tensor with its values in memory: not sparse, quantised, meta or of a class of its own."""
    plain = type(value) in (Tensor, nn.Parameter)
    return plain and isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized and value.device.type == "cpu"


def _describe(content: object) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    if not content:
        return "nothing"
    key, value = next(iter(content.items()))
    return f"{key!r}, a {type(value).__name__} that is no plain tensor" if not isinstance(value, Mapping) else f"no tensors under {key!r}"


def first_line(error: BaseException) -> str:
    """Return the first sentence of an error: what follows in torch's own is advice to read the file unsafely."""
    return re.split(r"\.\s|\n", str(error).strip())[0][:160] or type(error).__name__
