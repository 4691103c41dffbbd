"""Amounts of memory: read, written for people, asked of the machine, and given back to it."""

from __future__ import annotations

import contextlib
import ctypes
import os

from streamview.errors import MemoryBudgetError

__all__ = ["Ceiling", "format_bytes", "free_memory", "parse_bytes", "return_freed_blocks", "treat_freed_blocks"]

_UNITS = {"": 1, "B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def parse_bytes(text: str | int) -> int:
    """Bytes of ``"2GB"``, ``"512 MB"`` or a plain number; GB = 2^30.

    Raises
    ------
    MemoryBudgetError
        When it is not a positive amount.
    """
    compact = str(text).upper().replace(" ", "").replace("IB", "B")
    number = compact.rstrip("KMGTB")
    try:
        amount = int(float(number) * _UNITS[compact[len(number) :]])
    except (ValueError, KeyError, OverflowError):
        amount = 0
    if amount <= 0:
        raise MemoryBudgetError(f"memory {text!r}: expected an amount such as 2GB or 500MB")
    return amount


def format_bytes(amount: float) -> str:
    """Bytes for people: ``"1.9 GB"``."""
    for unit in ("TB", "GB", "MB", "KB"):
        if amount >= _UNITS[unit]:
            return f"{amount / _UNITS[unit]:.{0 if unit in ('KB', 'MB') else 1}f} {unit}"
    return f"{amount:.0f} B"


def free_memory() -> int:
    """Bytes of memory that the machine has available."""
    try:
        with open("/proc/meminfo") as info:
            return next(int(line.split()[1]) * 1024 for line in info if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def treat_freed_blocks(how: str) -> None:
    """Tell glibc what to do with freed blocks from now on. Does nothing with other allocators.

    Parameters
    ----------
    how
        ``"returned"``: those of a megabyte and more go back to the system at once, and no memory is taken but what is used.
        ``"reused"``: those of up to 32 MB are kept for the next that are asked for, in pieces that may add up to several times what is
        used; but a step's large blocks no longer come from the system every time, which would be a page fault for every 4 KB: a
        quarter of all time. ``"as ever"``: nothing is changed.
    """
    chosen = {"returned": (2**18, 2**18), "reused": (2**25, 2**30)}.get(how)
    if chosen is not None:
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(_M_MMAP_THRESHOLD, chosen[0])
            libc.mallopt(_M_TRIM_THRESHOLD, chosen[1])


def return_freed_blocks() -> None:
    """Have glibc give back to the system what was freed so far. Does nothing with other allocators."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class Ceiling:
    """Called after every step: gives freed blocks back where the process has grown too far, and lets them be reused until then.

    Parameters
    ----------
    growth
        Bytes by which the process may grow from now on before they are given back.
    """

    def __init__(self, growth: int) -> None:
        return_freed_blocks()
        self._limit = _resident_memory() + growth

    def __call__(self) -> None:
        """Look, and give back."""
        if _resident_memory() > self._limit:
            return_freed_blocks()


def _resident_memory() -> int:
    """Bytes of this process that are in memory now; 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as sizes:
            return int(sizes.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
