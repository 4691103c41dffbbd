"""Checkpoints of fine-tuning: a model folder that is valid at any moment, and the state from which a killed run resumes.

``card.json`` and ``weights.safetensors`` are the best network so far, ``finetuning.json`` records how it was trained, and
``training.safetensors`` (until the end) holds the current weights and optimiser state. Every file is written under a temporary name and
renamed; files lost between two renames are rewritten from ``training.safetensors``.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
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
from streamview.finetuning.settings import Settings
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

_STATE, _FORMAT, _BY_FILE = "training.safetensors", "2", "1"  # format 1 identified the base by its weights file
_HASHED = ("base", "card", "labels", "slides")  # hashes, whose values messages leave out
_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.int64: "I64", torch.int32: "I32", torch.int16: "I16",
    torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """The state of fine-tuning after an optimiser step.

    Parameters
    ----------
    making
        All inputs that determine the result, as JSON; only a run with the same inputs resumes.
    budget
        Bytes by which a pass may grow; determines its step size, and so the last bits of the result.
    history
        The history so far, with one loss per optimiser step.
    logits
        Logits of the validation regions, (M, K) as lists, of the base and of the best epoch.
    weights
        Current trained parameters, by name.
    best
        Trained parameters of the best epoch.
    optimiser
        Tensors of the optimiser, as ``"index.name"``.
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
    """Lock a folder for this process, creating it if necessary.

    Raises
    ------
    TrainingError
        If another process is training into it.
    StreamviewError
        If it cannot be created.
    """
    with atomic.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise TrainingError(f"{folder}: another process is training into it; wait until it has ended, or choose another folder") from None
    try:
        for partial in folder.glob(".*.partial"):  # left by a process that was killed while writing
            atomic.discard(partial)
        yield
    finally:
        (folder / ".lock").unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):  # nothing was written
            folder.rmdir()


def packed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Iterator[bytes]:
    """Yield the bytes of a safetensors file tensor by tensor; the same tensors give the same bytes.

    The library's own writer first copies all tensors, which would add to the memory of training. The format:
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
    """Write a safetensors file atomically, synced to disk before it is renamed."""
    with atomic.replacing(path) as temporary, temporary.open("wb") as file:
        for part in packed(tensors, metadata):
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object as indented JSON."""
    atomic.write_text(path, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the state from which training resumes.

    Raises
    ------
    StreamviewError
        If the disk is full or not writable; an earlier checkpoint is kept.
    """
    history = checkpoint.history
    state = {
        "making": checkpoint.making,
        "budget": checkpoint.budget,
        "losses": history.losses,
        "epochs": [epoch.to_dict() for epoch in history.epochs],
        "per_epoch": history.per_epoch,
        "logits": checkpoint.logits,
    }
    parts = {"weights": checkpoint.weights, "best": checkpoint.best, "optimiser": checkpoint.optimiser}
    tensors = {f"{part}/{key}": tensor for part, named in parts.items() for key, tensor in named.items()}
    write_tensors(folder / _STATE, tensors, {"format": _FORMAT, "training": json.dumps(state)})


def check_folder(folder: Path, *, restart: bool = False) -> None:
    """Reject a folder that cannot become the tuned model, before any long work.

    Parameters
    ----------
    folder
        The folder; it need not exist.
    restart
        Whether a finished run in it may be replaced.

    Raises
    ------
    TrainingError
        If it is a file, or holds a finished run or other files.
    """
    if folder.exists() and not folder.is_dir():
        raise TrainingError(f"{folder}: is a file, but a tuned network is a folder; choose another output")
    atomic.check_output(folder)
    names = sorted(file.name for file in folder.iterdir() if not file.name.startswith(".")) if folder.exists() else []
    if not names or _STATE in names:
        return
    if "finetuning.json" not in names:
        raise TrainingError(f"{folder}: holds {names[0]} and is not an unfinished fine-tuning; choose a new folder")
    if not restart:
        raise TrainingError(f"{folder}: holds a finished fine-tuning; choose another folder, or start over with --restart")


def read_checkpoint(folder: Path, making: Mapping[str, Any], file_sha256: str = "") -> Checkpoint | None:
    """Read the checkpoint of an unfinished run with the same inputs; None if there is none.

    Parameters
    ----------
    folder, making
        Folder and inputs of the run to resume.
    file_sha256
        Hash of the base's weights file, by which earlier versions identified it.

    Raises
    ------
    TrainingError
        If it is of another run, damaged, or the folder is the base itself.
    """
    path = folder / _STATE
    if not path.exists():
        _refuse_base(folder, making, file_sha256)
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = json.loads(metadata["training"])
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        history = History(tuple(state["losses"]), tuple(map(Epoch.from_dict, state["epochs"])), state["per_epoch"])
        parts = {
            part: {key.removeprefix(f"{part}/"): t for key, t in tensors.items() if key.startswith(f"{part}/")}
            for part in ("weights", "best", "optimiser")
        }
        checkpoint = Checkpoint(state["making"], state["budget"], history, state["logits"], **parts)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path}: damaged ({type(error).__name__}: {error}); start over with --restart") from None
    earlier = checkpoint.making
    if metadata.get("format") == _BY_FILE:
        if earlier["base"] != file_sha256:
            raise TrainingError(
                f"{path}: was started by an earlier version with the weights file of sha256 {earlier['base'][:12]}, not "
                f"{file_sha256[:12] or 'none'}; give that file, choose another folder, or start over with --restart"
            )
        earlier = {**earlier, "base": making["base"]}
        checkpoint = replace(checkpoint, making=earlier)
    differing = _differences(earlier, json.loads(json.dumps(making)))
    if differing:
        raise TrainingError(
            f"{folder}: holds an unfinished fine-tuning with other inputs: {'; '.join(differing)}. Use the same inputs, choose another "
            "folder, or start over with --restart"
        )
    return checkpoint


def _refuse_base(folder: Path, making: Mapping[str, Any], file_sha256: str) -> None:
    """Refuse to start in the folder that the base was read from."""
    weights = folder / "weights.safetensors"
    if not weights.exists():
        return
    with weights.open("rb") as file:
        same_file = hashlib.file_digest(file, "sha256").hexdigest() == file_sha256
    if not same_file and hash_tensors(safetensors.torch.load_file(weights)) != making["base"]:
        return
    # a tuned folder holds the base's weights if no epoch was better
    base = json.loads((folder / "finetuning.json").read_text(encoding="utf-8"))["base"]
    tuned_from = (base.get("file_sha256", base["sha256"]),) if same_file else (base["sha256"], base.get("file_sha256"))
    if not ({file_sha256} if same_file else {file_sha256, making["base"]}) & set(tuned_from):
        raise TrainingError(f"{folder}: is the base itself, which is never changed; choose another folder")


def _differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differing inputs of two runs, in words: settings with both values, hashes without."""
    defaults = json.loads(json.dumps(asdict(Settings())))  # of settings that an earlier version did not have
    before, after = ({**making, **defaults, **making["settings"]} for making in (earlier, now))
    changed = [key for key in after if key != "settings" and before.get(key) != after[key]]
    return [f"other {key}" if key in _HASHED else f"{key.replace('_', ' ')} {before.get(key)}, now {after[key]}" for key in changed]


def discard_checkpoint(folder: Path) -> None:
    """Delete the state of a finished run."""
    (folder / _STATE).unlink(missing_ok=True)
