"""What a file is that is not what it was taken for, by its first bytes."""

from __future__ import annotations

__all__ = ["describe_file"]

_LFS = b"version https://git-lfs.github.com/"
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<body", b"<!--")
_KINDS = (
    (b"PK\x03\x04", "a zip archive"),
    (b"\xd0\xcf\x11\xe0", "a document of older Excel"),
    (b"\x1f\x8b", "gzip data"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras writes such)"),
    (b"\x89PNG", "a PNG picture"),
    (b"%PDF", "a PDF document"),
    (b"II*\x00", "a TIFF"),
    (b"MM\x00*", "a TIFF"),
)


def describe_file(start: bytes) -> str:
    """Say in words what a file is, and what to do where that is certain; empty: not known.

    Parameters
    ----------
    start
        The first bytes, 512 or more where the file has them.
    """
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "an empty file: copy or download it again"
    if text.startswith(_LFS):
        return "a pointer of git-lfs, not the file itself: run `git lfs pull` where it was cloned"
    if text.startswith(_PAGES) or (text.startswith(b"<?xml") and b"<html" in text):
        return "a web page, not the file itself: download it again with the link of the file, signed in where that is needed"
    if text.startswith((b"<?xml", b"<error")) and b"<code>" in text:
        return "an error message of a file server, not the file itself: download it again"
    if not start.strip(b"\x00"):
        return "nothing but zeros: its download was not finished, get it again"
    return next((kind for magic, kind in _KINDS if start.startswith(magic)), "")
