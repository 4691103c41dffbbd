"""What this process took, and what it runs on, in words."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["describe_device", "peak_device_memory", "peak_memory"]


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_device_memory() -> int | None:
    """Largest memory reserved on the CUDA device so far, in bytes; None where CUDA was not used."""
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_reserved() if torch is not None and torch.cuda.is_initialized() else None


def describe_device(device: torch.device) -> str:
    """Name the device really used: ``"cpu (2 threads)"``, ``"cuda (NVIDIA H200)"``."""
    import torch

    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({torch.get_num_threads()} threads)"
