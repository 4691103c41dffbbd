"""Find slides in folders: all of them, or the one that a table names."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Iterator
from pathlib import Path

from streamview.errors import SlideError

__all__ = ["SUFFIXES", "find_slide", "is_zarr", "list_slides"]

SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm", ".zarr")
_ZARR = ("zarr.json", ".zattrs", ".zgroup")
_SHOWN = 3  # names in a message


def list_slides(folder: str | os.PathLike[str], pattern: str | None = None) -> list[Path]:
    """List the slides in a folder and its subfolders, in order of their paths.

    Hidden files and folders, job folders and stored maps are left out. Of the DICOM files of one folder, which may be one slide in many
    parts, only the first is listed.

    Parameters
    ----------
    folder
        The folder.
    pattern
        Such as ``"*_HE.svs"``: what the name, or the path below the folder, must match. Default: files with a known suffix.

    Raises
    ------
    SlideError
        If the folder, or one in it, cannot be read.
    """
    slides: list[Path] = []
    dicom: set[Path] = set()
    for path in _walk(Path(folder)):
        below = path.relative_to(folder).as_posix()
        if pattern is not None:
            if fnmatch.fnmatchcase(path.name, pattern) or fnmatch.fnmatchcase(below, pattern):
                slides.append(path)
        elif path.is_dir() or path.suffix.lower() in SUFFIXES:
            if path.suffix.lower() == ".dcm":
                if path.parent in dicom:
                    continue
                dicom.add(path.parent)
            slides.append(path)
    return slides


def find_slide(folder: Path, name: str) -> Path:
    """Return the slide that a table names by its path below a folder, with or without the suffix.

    Raises
    ------
    SlideError
        If there is none, or more than one.
    """
    if not name:
        raise SlideError("names no slide")
    for spelling in dict.fromkeys((name, name.replace("\\", "/"))):  # as Windows writes paths
        path = folder / spelling
        try:
            near = [other for other in path.parent.iterdir() if _is_named(other, path.name)] if path.parent.is_dir() else []
            # beside an MRXS file lies a folder of the same name, which is not a slide
            if path.exists() and not (near and path.is_dir() and not is_zarr(path)):
                return path
        except OSError as error:
            raise SlideError(f"slide {name!r} cannot be looked for in {folder} ({error.strerror or error})") from None
        if len(near) > 1:
            raise SlideError(f"slide {name!r} may be {' or '.join(sorted(other.name for other in near)[:_SHOWN])} in {folder}")
        if near:
            return near[0]
    raise SlideError(f"slide {name!r} is not in {folder}")


def is_zarr(folder: Path) -> bool:
    """Whether a folder is a Zarr image or group."""
    return any((folder / name).is_file() for name in _ZARR)


def _walk(folder: Path) -> Iterator[Path]:
    """Files, and Zarr images as one each, in order."""
    try:
        with os.scandir(folder) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise SlideError(f"{folder}: cannot be read ({error.strerror or error}); check its permissions, or name the slides") from error
    for entry in inside:
        path = Path(entry.path)
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            yield path
        elif is_zarr(path):
            if not _is_map(path):
                yield path
        elif not ((path / "slides").is_dir() and (path / "runs").is_dir()):  # a job folder
            yield from _walk(path)


def _is_map(image: Path) -> bool:
    """Whether a Zarr image is a saliency map that streamview stored."""
    try:
        attributes = json.loads((image / "zarr.json").read_text(encoding="utf-8")).get("attributes", {})
        return "target" in attributes.get("streamview", {})
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _is_named(file: Path, stem: str) -> bool:
    """Whether a file is a slide of this name with a suffix."""
    return file.name.startswith(f"{stem}.") and file.name.lower().endswith(SUFFIXES)
