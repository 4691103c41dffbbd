"""Memory of this process, and the device it runs on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from streamview.errors import ModelError

if TYPE_CHECKING:
    import torch

__all__ = [
    "describe_device",
    "find_device",
    "free_disk",
    "peak_device_memory",
    "peak_memory",
    "resident_memory",
    "return_freed_memory",
    "total_memory",
]


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return _status("VmHWM")


def resident_memory() -> int:
    """Resident memory of this process now, in bytes."""
    return _status("VmRSS")


def _status(field: str) -> int:
    """A field of Linux's ``/proc/self/status`` in bytes; elsewhere the largest resident memory so far.

    ``ru_maxrss`` is only the fallback, since a process inherits it from its parent.
    """
    if os.path.exists("/proc/self/status"):
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def return_freed_memory() -> None:
    """Return freed memory to the system; needed with glibc, whose allocator keeps it in a pool per thread."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def free_disk(path: str | os.PathLike[str]) -> int:
    """Free bytes on the disk of a future file or folder."""
    place = Path(os.path.abspath(path))
    return shutil.disk_usage(next(folder for folder in (place, *place.parents) if os.path.exists(folder))).free


def peak_device_memory() -> int | None:
    """Largest memory reserved on the CUDA device so far, in bytes; None where CUDA was not used."""
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_reserved() if torch is not None and torch.cuda.is_initialized() else None


def total_memory(device: torch.device) -> int | None:
    """Total memory in bytes of a CUDA device, to which a share of ``--memory`` refers; None on the CPU."""
    import torch

    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def describe_device(device: torch.device) -> str:
    """Name the device used: ``"cpu (2 threads)"``, ``"cuda (NVIDIA H200)"``."""
    import torch

    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({torch.get_num_threads()} threads)"


def find_device(name: str = "auto") -> torch.device:
    """The device of this name; ``"auto"`` is CUDA if available.

    Raises
    ------
    ModelError
        If the device is unknown or missing.
    """
    import torch

    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelError(f"device {name!r} is unknown: expected auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise ModelError(f"device {name!r} is not supported: expected auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {name!r}: torch sees no CUDA device; use --device cpu, or see `streamview doctor`")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device
