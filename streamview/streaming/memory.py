"""Amounts of memory: read, written for people, asked of the machine, and given back to it."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re

from streamview.errors import MemoryBudgetError

__all__ = ["Ceiling", "format_bytes", "free_memory", "parse_bytes", "return_freed_blocks", "treat_freed_blocks"]

_UNITS = {"B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}
_AMOUNT = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)\s*(?:([KMGT]?)(?:I?B)?|(%))", re.IGNORECASE)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def parse_bytes(text: str | int, total: int | None = None) -> int:
    """Bytes of an amount of memory.

    Parameters
    ----------
    text
        ``"2GB"``, ``"2G"``, ``"2 GiB"`` (GB = 2^30 in every spelling), ``"512M"``, a share such as ``"50%"``, or a plain number of bytes.
    total
        Bytes that a share is of; default the memory of the machine (of the container, where that has less).

    Raises
    ------
    MemoryBudgetError
        When it is not a positive amount, or a share above 100%.
    """
    parts = _AMOUNT.fullmatch(str(text).strip())
    number, prefix, percent = parts.groups() if parts is not None else ("0", "", None)
    if percent and float(number) > 100:
        raise MemoryBudgetError(f"memory {text!r}: expected a share of at most 100%, or an amount such as 2GB")
    unit = (total or _total_memory()) / 100 if percent else _UNITS[f"{prefix or ''}B".upper()]
    amount = float(number) * unit
    if not 1 <= amount < math.inf:
        raise MemoryBudgetError(f"memory {text!r}: expected an amount such as 2GB or 500MB, or a share of all memory such as 50%")
    return int(amount)


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


def _total_memory() -> int:
    """Bytes of memory that the machine has, or that the container may use."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError), open("/sys/fs/cgroup/memory.max") as limit:
        return min(machine, int(limit.read()))  # "max" where there is no limit
    return machine


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
