"""Describe a file of an unexpected type by its first bytes."""

from __future__ import annotations

__all__ = ["describe_file"]

_LFS = b"version https://git-lfs"
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<body", b"<!--")
_KINDS = (
    (b"PK\x03\x04", "a zip archive"),
    (b"\xd0\xcf\x11\xe0", "a document of older Excel"),
    (b"\x1f\x8b", "gzip data: unpack it"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it"),
    (b"Rar!", "a RAR archive: unpack it"),
    (b"\xfd7zXZ", "an xz archive: unpack it"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "an array of numpy"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"BM", "a BMP picture"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"%PDF", "a PDF document"),
    (b"ZISRAWFILE", "a Zeiss CZI"),
    (b"II*\x00", "a TIFF"),
    (b"MM\x00*", "a TIFF"),
)


def describe_file(start: bytes) -> str:
    """Describe a file, with what to do if that is certain; empty if unknown.

    Parameters
    ----------
    start
        The first bytes, at least 512 if the file has them.
    """
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "an empty file: copy or download it again"
    if text.startswith(_LFS):
        return "a git-lfs pointer, not the file itself: run `git lfs pull` where it was cloned"
    if text.startswith(_PAGES) or b"<html" in text:
        return "a web page, not the file itself: download it again with the link of the file, signed in where that is needed"
    if text.startswith((b"<?xml", b"<error")) and b"<code>" in text:
        return "an error message of a file server, not the file itself: download it again"
    if not start.strip(b"\x00"):
        return "a file of zeros: its download or copy was not finished, get it again"
    if start[257:262] == b"ustar":
        return "a tar archive: unpack it"
    return next((kind for magic, kind in _KINDS if start.startswith(magic)), "")
