"""Pixels, files and interruptions for tests of pyramids."""

from pathlib import Path

import numpy as np

from streamview.errors import Cancelled

__all__ = ["files", "rgb", "stop_at"]


def rgb(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def files(root):
    """Every file below a folder, with its bytes."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(Path(root).rglob("*")) if path.is_file()}


def stop_at(count):
    def report(step):
        if step.done == count:
            raise Cancelled("stopped")

    return report
