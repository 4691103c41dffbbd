"""What a path is that is no slide, in its user's words."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

from streamview.errors import SlideError
from streamview.files import kinds

__all__ = ["check_kind", "describe_file", "describe_folder"]

_SPECIAL = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a disk device"),
)
_TEXTS = ((b"<?xml", "an XML document"), (b"{", "a JSON document"), (b"[", "a JSON document"))
_REMEDIES = {" picture": "save it as a tiled TIFF", " CZI": "convert it to an OME-TIFF, with bfconvert or QuPath"}


def check_kind(path: Path) -> None:
    """Refuse what is missing, and what reading could wait for without end.

    Raises
    ------
    SlideError
        When nothing is there, or it is neither a file nor a folder; the message says what it is.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise SlideError(f"{path}: a link to {os.readlink(path)}, which does not exist; check where it points") from None
        raise SlideError(f"{path}: no such file or folder; check the path") from None
    except ValueError as error:  # no path at all
        raise SlideError(f"{str(path)!r}: {error}; check the path") from None
    for is_special, words in _SPECIAL:
        if is_special(mode):
            raise SlideError(f"{path}: {words}, not a file or folder; give the path of a slide")


def describe_file(path: Path) -> str:
    """Say what a file is by how it begins: ``"a PNG picture, not a slide: save it as a tiled TIFF"``."""
    with path.open("rb") as file:
        start = file.read(512)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    kind = kinds.describe_file(start) or next((words for beginning, words in _TEXTS if text.startswith(beginning)), "")
    if not kind:
        return f"not a slide (it begins with {start[:16]!r})"
    remedy = next((remedy for ending, remedy in _REMEDIES.items() if kind.endswith(ending)), "")
    return kind if ":" in kind else f"{kind}, not a slide{remedy and f': {remedy}'}"


def describe_folder(path: Path) -> str:
    """Say what a folder is that holds no OME-Zarr image, and which of its content may be meant."""
    names = sorted(os.listdir(path))
    if "Slidedat.ini" in names:
        return f"the folder of an MRXS; open {path.name}.mrxs beside it"
    if ".zarray" in names:
        return "an array of zarr without an OME-Zarr image; open the folder that it lies in"
    likely = [name for name in names if (path / name / "zarr.json").is_file() or (path / name / ".zgroup").is_file()]
    likely = likely or [name for name in names if Path(name).suffix.lower() in (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif")]
    dicom = [name for name in names if Path(name).suffix.lower() == ".dcm"]
    if dicom and not likely:
        command = shlex.join(["streamview", "info", str(path / dicom[0])])
        return f"a folder without an OME-Zarr image, with {len(dicom)} DICOM files; open one file of the series, such as {command}"
    found = f" but with {len(likely)} that may be slides; open one, such as {path / likely[0]}" if likely else ""
    return f"a folder without an OME-Zarr image{found}"
