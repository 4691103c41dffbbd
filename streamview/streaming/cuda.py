"""What is particular to CUDA: how much of the device's memory is free, a bound on what is taken, and arithmetic in full float32."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

from streamview.streaming.memory import free_memory

__all__ = ["bounded", "free_memory_of", "full_float32", "release_cache", "reserved_memory", "rounds_to_tf32"]


def free_memory_of(device: torch.device) -> int:
    """Bytes that this process can still take where it computes.

    On CUDA: what the device has free and what the allocator holds unused; else what the machine has available.
    """
    if device.type != "cuda":
        return free_memory()
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def reserved_memory(device: torch.device) -> int:
    """Bytes reserved on a CUDA device, once those of the allocator's cache have been released."""
    release_cache(device)
    return int(torch.cuda.memory_reserved(device))


def release_cache(device: torch.device) -> None:
    """Give back what the allocator of a CUDA device holds unused; does nothing on other devices."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


_LOCK = threading.Lock()
_SHARES: dict[torch.device, list[float]] = {}  # of a device's memory: what the process had before, and the limits of callers


@contextlib.contextmanager
def bounded(device: torch.device, limit: int | None) -> Iterator[None]:
    """Let the allocator of a CUDA device reserve no more than `limit` bytes in all, instead of what it may take otherwise.

    What goes beyond raises `torch.OutOfMemoryError`, or makes cuDNN choose an algorithm that needs less. Of callers that overlap in
    several threads the least limit holds. Does nothing without a limit or on other devices.
    """
    if limit is None or device.type != "cuda":
        yield
        return
    release_cache(device)
    share = limit / torch.cuda.get_device_properties(device).total_memory
    with _LOCK:
        shares = _SHARES.setdefault(device, [torch.cuda.get_per_process_memory_fraction(device)])
        shares.append(share)
        torch.cuda.set_per_process_memory_fraction(min(shares), device)
    try:
        yield
    finally:
        with _LOCK:
            shares.remove(share)
            torch.cuda.set_per_process_memory_fraction(min(shares), device)
            if len(shares) == 1:
                del _SHARES[device]


def rounds_to_tf32() -> bool:
    """Whether cuDNN now rounds the operands of float32 convolutions to TF32."""
    cudnn: Any = torch.backends.cudnn
    return bool(cudnn.conv.fp32_precision == "tf32")


class _Float32Precision:
    """Torch's flags for float32 on CUDA, set to full precision while anyone needs it.

    The flags are one for the process and callers may overlap in several threads: the first one sets them, the last one sets them back.
    """

    def __init__(self) -> None:
        self._lock, self._callers = threading.Lock(), 0
        self._tf32: bool | None = None
        self._precisions: list[str] = []

    def enter(self) -> None:
        with self._lock:
            if not self._callers:
                self._precisions = [part.fp32_precision for part in self._parts()]
                try:
                    self._tf32 = torch.backends.cudnn.allow_tf32
                except RuntimeError:  # torch cannot say where the flags of its parts differ
                    self._tf32 = None
                else:
                    torch.backends.cudnn.allow_tf32 = False
                for part in self._parts():
                    part.fp32_precision = "ieee"
            self._callers += 1

    def leave(self) -> None:
        with self._lock:
            self._callers -= 1
            if not self._callers:
                if self._tf32 is not None:
                    torch.backends.cudnn.allow_tf32 = self._tf32
                for part, precision in zip(self._parts(), self._precisions, strict=True):
                    part.fp32_precision = precision

    @staticmethod
    def _parts() -> list[Any]:
        cudnn: Any = torch.backends.cudnn
        # of recurrent layers too: torch refuses to read the older flag where the two differ
        return [cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul]


_PRECISION = _Float32Precision()


@contextlib.contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Compute float32 on CUDA in float32: by default, cuDNN rounds the operands of convolutions to TF32's ten bits.

    Safe to nest and to overlap in several threads; other settings of the user are left alone.
    """
    if device.type != "cuda":
        yield
        return
    _PRECISION.enter()
    try:
        yield
    finally:
        _PRECISION.leave()
