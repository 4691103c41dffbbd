"""Check this machine's installation, and say how to fix it. Every check runs a small piece of real work."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Check", "check_window", "examine"]

_PYTHON = (3, 11)
_DISK, _MEMORY = 5 * 2**30, 2 * 2**30
_WINDOW_TRIAL = "from qtpy.QtWidgets import QApplication; QApplication([])"


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check.

    Parameters
    ----------
    name
        The component.
    ok
        Whether it is installed and works.
    found
        The version or state found.
    remedy
        What to do if it is not ok.
    needed
        Whether the core requires it.
    """

    name: str
    ok: bool
    found: str
    remedy: str = ""
    needed: bool = True


def examine() -> Iterator[Check]:
    """Run all checks; a missing package is a result, never an error."""
    remedy = f"use Python {'.'.join(map(str, _PYTHON))} or newer"
    yield Check("python", sys.version_info >= _PYTHON, f"{platform.python_version()} at {sys.executable}", remedy)
    yield _tried("torch", "torch", _try_torch)
    yield _check_cuda()
    yield _tried("openslide", "openslide-python openslide-bin", _try_openslide)
    yield _tried("tifffile", "tifffile imagecodecs", _try_tifffile)
    yield _tried("zarr", "zarr", _try_zarr)
    yield _tried("safetensors", "safetensors", lambda: importlib.metadata.version("safetensors"))
    yield check_window()
    free = shutil.disk_usage(Path.cwd()).free
    remedy = "free some space: a saliency map takes up to 11 bytes a pixel"
    yield Check("disk", free >= _DISK, f"{free / 2**30:.1f} GB free in {Path.cwd()}", remedy, needed=False)
    yield _check_memory()


def check_window() -> Check:
    """Check whether napari can open a window; Qt runs in a subprocess, as it kills the process if there is no display."""
    name, install = "napari and Qt", "pip install 'streamview[napari]' (needed for `streamview view` only)"
    missing = [package for package in ("napari", "qtpy") if importlib.util.find_spec(package) is None]
    if missing:
        return Check(name, False, f"not installed: {', '.join(missing)}", install, needed=False)
    if sys.platform == "linux" and not any(os.environ.get(key) for key in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")):
        return Check(name, False, "installed, but there is no display", "use a desktop, `ssh -X` or `xvfb-run -a`", needed=False)
    try:
        trial = subprocess.run([sys.executable, "-c", _WINDOW_TRIAL], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return Check(name, False, "Qt did not start within a minute", "check the display", needed=False)
    if trial.returncode:
        message = (trial.stderr.strip().splitlines() or [f"exit status {trial.returncode}"])[-1]
        remedy = "on Debian: apt-get install libegl1 libxkbcommon-x11-0 libxcb-cursor0 libxcb-icccm4 libxcb-keysyms1 libdbus-1-3"
        return Check(name, False, f"Qt does not start ({message})", remedy, needed=False)
    return Check(name, True, f"napari {importlib.metadata.version('napari')}", needed=False)


def _tried(name: str, packages: str, trial: Callable[[], str]) -> Check:
    try:
        return Check(name, True, trial())
    except (ImportError, importlib.metadata.PackageNotFoundError, OSError, RuntimeError, ValueError) as error:
        return Check(name, False, f"{type(error).__name__}: {' '.join(str(error).split())}", f"pip install --force-reinstall {packages}")


def _try_torch() -> str:
    import torch

    output = torch.nn.functional.conv2d(torch.ones(1, 3, 8, 8), torch.ones(1, 3, 3, 3))
    if float(output[0, 0, 0, 0]) != 27:
        raise RuntimeError(f"a convolution returned {float(output[0, 0, 0, 0])}, not 27")
    return f"{torch.__version__}, {torch.get_num_threads()} threads"


def _check_cuda() -> Check:
    remedy = "everything works on the CPU; for a GPU install its driver and a torch built for it (https://pytorch.org/get-started)"
    if importlib.util.find_spec("torch") is None:
        return Check("cuda", False, "no torch", remedy, needed=False)
    import torch

    if not torch.cuda.is_available():
        state = f"torch is built for CUDA {torch.version.cuda}, but sees no device" if torch.version.cuda else "torch is built without it"
        return Check("cuda", False, state, remedy, needed=False)
    free, total = torch.cuda.mem_get_info()
    state = f"{torch.cuda.get_device_name()}, {free / 2**30:.1f} of {total / 2**30:.1f} GB free"
    return Check("cuda", True, state, needed=False)


def _try_openslide() -> str:
    import openslide

    return f"{openslide.__version__}, library {openslide.__library_version__}"


def _try_tifffile() -> str:
    import imagecodecs
    import numpy as np
    import tifffile

    grey = np.full((16, 16, 3), 128, np.uint8)
    if abs(int(imagecodecs.jpeg_decode(imagecodecs.jpeg_encode(grey))[8, 8, 1]) - 128) > 2:
        raise RuntimeError("a JPEG came back changed")
    return f"{tifffile.__version__}, imagecodecs {imagecodecs.__version__}"


def _try_zarr() -> str:
    import numpy as np
    import zarr

    with tempfile.TemporaryDirectory() as folder:
        array = zarr.create_array(folder, shape=(8, 8), chunks=(4, 4), shards=(8, 8), dtype="float32")
        array[:] = np.ones((8, 8), np.float32)
        if float(np.asarray(zarr.open_array(folder, mode="r")[:]).sum()) != 64:
            raise RuntimeError("an array came back changed")
    return zarr.__version__


def _check_memory() -> Check:
    try:
        with open("/proc/meminfo") as info:
            free = next(int(line.split()[1]) * 1024 for line in info if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return Check("memory", True, "unknown on this system", needed=False)
    return Check("memory", free >= _MEMORY, f"{free / 2**30:.1f} GB available", "close other programs; give --memory", needed=False)
