"""What fine-tuning writes: a model folder at any moment, and beside it all that is needed to go on after being killed.

``card.json`` and ``weights.safetensors`` are the best network so far, ``finetuning.json`` says how it came about, and
``training.safetensors`` (until the end) holds the weights and the optimiser as they stood. Every file is written beside its place and
renamed; whatever is lost between two of them is made again from ``training.safetensors``.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor

from streamview.errors import TrainingError
from streamview.files import atomic
from streamview.finetuning.history import Epoch, History
from streamview.networks.hashing import hash_tensors

__all__ = [
    "Checkpoint",
    "check_folder",
    "discard_checkpoint",
    "locked",
    "packed",
    "read_checkpoint",
    "write_checkpoint",
    "write_json",
    "write_tensors",
]

_STATE, _FORMAT, _BY_FILE = "training.safetensors", "2", "1"  # the first named the base by its file of weights
_HASHED = ("base", "card", "labels", "slides")  # of which a message gives no values
_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.int64: "I64", torch.int32: "I32", torch.int16: "I16",
    torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """Where fine-tuning stands after a step of the optimiser.

    Parameters
    ----------
    making
        What decides the result, as JSON: a run is gone on with only by the same.
    budget
        Bytes by which a pass may grow; decides the size of its steps, and with it the last bits.
    history
        So far; its number of losses is the number of steps.
    logits
        Of the validation regions, (M, K) as lists, by the base and by the best epoch.
    weights
        Trained parameters as they stand, by name.
    best
        The same of the best epoch.
    optimiser
        Its tensors, as ``"index.name"``.
    """

    making: Mapping[str, Any]
    budget: int
    history: History
    logits: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    optimiser: Mapping[str, Tensor]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a folder to this process while the context lasts; it is made where it does not exist.

    Raises
    ------
    TrainingError
        When another process trains into it.
    StreamviewError
        When it cannot be made.
    """
    with atomic.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise TrainingError(f"{folder}: another process is training into it; wait until it has ended, or choose another folder") from None
    try:
        for left in folder.glob(".*.partial"):  # of a process that was killed while it wrote
            atomic.discard(left)
        yield
    finally:
        (folder / ".lock").unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):  # nothing was written
            folder.rmdir()


def packed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Iterator[bytes]:
    """Yield the bytes of a safetensors file, one tensor after the other; the same tensors give the same bytes.

    The library's own writer copies all of them first, which would count against the memory of training. The format:
    https://github.com/huggingface/safetensors#format.
    """
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in sorted(tensors.items()):
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for _, tensor in sorted(tensors.items()):
        yield tensor.detach().cpu().contiguous().numpy().tobytes()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file that is whole or not there, on the disk before it takes its place."""
    with atomic.replacing(path) as temporary, temporary.open("wb") as file:
        for part in packed(tensors, metadata):
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object as JSON that people can read."""
    atomic.write_text(path, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write all that is needed to go on.

    Raises
    ------
    StreamviewError
        When the disk is full or may not be written; an earlier checkpoint stays.
    """
    history = checkpoint.history
    said = {
        "making": checkpoint.making,
        "budget": checkpoint.budget,
        "losses": history.losses,
        "epochs": [epoch.to_dict() for epoch in history.epochs],
        "per_epoch": history.per_epoch,
        "logits": checkpoint.logits,
    }
    parts = {"weights": checkpoint.weights, "best": checkpoint.best, "optimiser": checkpoint.optimiser}
    tensors = {f"{part}/{key}": tensor for part, found in parts.items() for key, tensor in found.items()}
    write_tensors(folder / _STATE, tensors, {"format": _FORMAT, "training": json.dumps(said)})


def check_folder(folder: Path, *, restart: bool = False) -> None:
    """Refuse a folder that cannot become the tuned model, before anything long begins.

    Parameters
    ----------
    folder
        Which need not exist.
    restart
        Whether a run that is finished there may be replaced.

    Raises
    ------
    TrainingError
        When it is a file, or holds a finished run or something else.
    """
    if folder.exists() and not folder.is_dir():
        raise TrainingError(f"{folder}: is a file; a tuned network needs a folder, choose another output")
    atomic.check_output(folder)
    held = sorted(file.name for file in folder.iterdir() if not file.name.startswith(".")) if folder.exists() else []
    if not held or _STATE in held:
        return
    if "finetuning.json" not in held:
        raise TrainingError(f"{folder}: holds {held[0]} and is no unfinished fine-tuning; choose a new folder")
    if not restart:
        raise TrainingError(f"{folder}: holds a finished fine-tuning; choose another folder, or begin anew with --restart")


def read_checkpoint(folder: Path, making: Mapping[str, Any], file_sha256: str = "") -> Checkpoint | None:
    """Read what a run of the same making left unfinished; None where there is nothing.

    Parameters
    ----------
    folder, making
        Of the run that would go on.
    file_sha256
        Of the file that the base came from, by which earlier versions named it.

    Raises
    ------
    TrainingError
        When it is another run, damaged, or the folder is the base itself.
    """
    path = folder / _STATE
    if not path.exists():
        _refuse_base(folder, making, file_sha256)
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            said = json.loads(metadata["training"])
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        history = History(tuple(said["losses"]), tuple(map(Epoch.from_dict, said["epochs"])), said["per_epoch"])
        parts = {
            part: {key.removeprefix(f"{part}/"): t for key, t in tensors.items() if key.startswith(f"{part}/")}
            for part in ("weights", "best", "optimiser")
        }
        found = Checkpoint(said["making"], said["budget"], history, said["logits"], **parts)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path}: damaged ({type(error).__name__}: {error}); begin anew with --restart") from None
    begun = found.making
    if metadata.get("format") == _BY_FILE:
        if begun["base"] != file_sha256:
            raise TrainingError(
                f"{path}: was begun by an earlier version, of a base whose file of weights (sha256 {begun['base'][:12]}) is not the one "
                f"given now ({file_sha256[:12] or 'none'}); give that file, choose another folder, or begin anew with --restart"
            )
        begun = {**begun, "base": making["base"]}
        found = replace(found, making=begun)
    differing = _differences(begun, json.loads(json.dumps(making)))
    if differing:
        raise TrainingError(
            f"{folder}: holds an unfinished fine-tuning that was begun otherwise: {'; '.join(differing)}. Go on as it was begun, choose "
            "another folder, or begin anew with --restart"
        )
    return found


def _refuse_base(folder: Path, making: Mapping[str, Any], file_sha256: str) -> None:
    """Refuse to begin anew in the folder that the base was read from."""
    weights = folder / "weights.safetensors"
    if not weights.exists():
        return
    with weights.open("rb") as file:
        same_file = hashlib.file_digest(file, "sha256").hexdigest() == file_sha256
    if not same_file and hash_tensors(safetensors.torch.load_file(weights)) != making["base"]:
        return
    # where no epoch was better than the base, a tuned folder holds the same weights
    base = json.loads((folder / "finetuning.json").read_text(encoding="utf-8"))["base"]
    tuned_from = (base.get("file_sha256", base["sha256"]),) if same_file else (base["sha256"], base.get("file_sha256"))
    if not ({file_sha256} if same_file else {file_sha256, making["base"]}) & set(tuned_from):
        raise TrainingError(f"{folder}: is the base itself, which is never changed; choose another folder")


def _differences(begun: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two makings, in words; settings one by one, and of hashes that they differ."""
    before, after = ({**making, **making["settings"]} for making in (begun, now))
    changed = [key for key in after if key != "settings" and before.get(key) != after[key]]
    return [f"other {key}" if key in _HASHED else f"{key.replace('_', ' ')} {before.get(key)}, now {after[key]}" for key in changed]


def discard_checkpoint(folder: Path) -> None:
    """Forget how to go on: the run is over."""
    (folder / _STATE).unlink(missing_ok=True)
