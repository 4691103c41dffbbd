"""What a path is that is no slide, in its user's words."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

from streamview.errors import SlideError

__all__ = ["check_kind", "describe_file", "describe_folder"]

_SPECIAL = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a disk device"),
)
_STARTS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself: fetch it with git lfs pull"),
    (b"\x89PNG", "a PNG picture, not a slide: save it as a tiled TIFF"),
    (b"\xff\xd8\xff", "a JPEG picture, not a slide: save it as a tiled TIFF"),
    (b"GIF8", "a GIF picture, not a slide: save it as a tiled TIFF"),
    (b"BM", "a BMP picture, not a slide: save it as a tiled TIFF"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture, not a slide: save it as a tiled TIFF"),
    (b"ZISRAWFILE", "a Zeiss CZI, which is not read: convert it to an OME-TIFF, with bfconvert or QuPath"),
    (b"\x89HDF", "an HDF5 file, not a slide"),
    (b"%PDF", "a PDF document, not a slide"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it"),
    (b"Rar!", "a RAR archive: unpack it"),
    (b"\xfd7zXZ", "an xz archive: unpack it"),
    (b"\x93NUMPY", "an array of numpy, not a slide"),
)


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
    """Say what a file is by how it begins: ``"a web page, not a slide: ..."``."""
    with path.open("rb") as file:
        start = file.read(512)
        file.seek(257)
        tar = file.read(5) == b"ustar"
    if not start:
        return "an empty file: copy or download it again"
    for beginning, words in _STARTS:
        if start.startswith(beginning):
            return words
    if tar:
        return "a tar archive: unpack it"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")) or b"<html" in text:
        return "a web page, not a slide: the download gave a page in its place, log in and download it again"
    if text.startswith(b"<?xml"):
        return "an XML document, not a slide: a download may have given an error in its place"
    if text.startswith((b"{", b"[")):
        return "JSON, not a slide: a download may have given an error in its place"
    if not start.strip(b"\0"):
        return "a file of zeros, not a slide: the copy or download failed, get it again"
    return f"not a slide (it begins with {start[:16]!r})"


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
