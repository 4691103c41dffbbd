"""What the experiments' commands share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

__all__ = ["count", "new_folder", "tell"]


def tell(line: str) -> None:
    """Say how far it is, on standard error."""
    print(line, file=sys.stderr, flush=True)


def count(text: str) -> int:
    """Read a whole number of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of 1 or more")
    return int(text)


def new_folder(text: str) -> Path:
    """Make the folder if it is not there."""
    folder = Path(text)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
