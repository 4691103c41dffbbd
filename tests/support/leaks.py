"""What a test leaves open: files and threads."""

from __future__ import annotations

import gc
import os
import threading
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Opened"]

_DESCRIPTORS = Path("/proc/self/fd")  # Linux alone tells what is open without another package
_SECONDS = 2.0  # in which a thread that was told to end ends

# Threads that libraries keep for the life of the process, by the beginning of their names.
_KEPT_THREADS = {
    "zarr_io": "zarr's event loop, one a process",
    "asyncio_": "the workers of that loop",
    "zarr_pool": "zarr's workers, one pool a process",
    "tqdm_monitor": "the thread by which tqdm redraws bars that stand still, one a process",
    "fsspecIO": "the event loop of fsspec, one a process",
    "IO loop": "the event loop of Dask's client, one a process",
    "Dask-": "the workers of that loop",
    "MainThread - runner": "the event loop of Jupyter's client, one a process",
    "Profile": "by which Dask samples its own event loop",
}
# Files that libraries keep for the life of the process, by a part of their paths.
_KEPT_FILES = {
    "/dev/": "devices, the terminal among them",
    "/memfd:": "memory that graphics drivers share with the display",
    "/usr/share/": "caches of icons and fonts, which Qt maps",
    "/site-packages/": "data that libraries keep open, such as fonts",
}


@dataclass(frozen=True, slots=True)
class Opened:
    """The files and threads that are open in this process."""

    descriptors: frozenset[str]
    threads: frozenset[int]

    @classmethod
    def now(cls) -> Opened:
        """Those of this moment."""
        descriptors = os.listdir(_DESCRIPTORS) if _DESCRIPTORS.is_dir() else []
        return cls(frozenset(descriptors), frozenset(id(thread) for thread in threading.enumerate()))

    def leaks(self) -> list[str]:
        """In words, what has been opened since and is still open."""
        if not self._files() and not self._running():
            return []
        gc.collect()  # what only a cycle of references holds is closed by it
        threads = self._running()
        for thread in threads:
            thread.join(_SECONDS)
        return [f"the file {path}" for path in self._files()] + [f"the thread {t.name}" for t in threads if t.is_alive()]

    def _files(self) -> list[str]:
        """Pipes and sockets are left out: those of an event loop are kept with its thread, of others Python itself warns."""
        paths = []
        for descriptor in Opened.now().descriptors - self.descriptors:
            try:
                path = os.readlink(_DESCRIPTORS / descriptor)
            except OSError:  # the descriptor of the listing itself
                continue
            if path.startswith("/") and not path.startswith("/proc/") and not any(part in path for part in _KEPT_FILES):
                paths.append(path)
        return paths

    def _running(self) -> list[threading.Thread]:
        return [
            thread
            for thread in threading.enumerate()
            # a dummy stands for a thread that Qt started, and outlives it
            if id(thread) not in self.threads
            and not isinstance(thread, threading._DummyThread)
            and not thread.name.startswith(tuple(_KEPT_THREADS))
        ]
