"""JPEG tiles, decoded strictly: what libjpeg would make up is an error here."""

from __future__ import annotations

import re

import imagecodecs
import numpy as np
import numpy.typing as npt

__all__ = ["decode_jpeg"]

_MARKER = re.compile(rb"\xff([^\x00\xff])")
_START_OF_SCAN, _END, _RESTARTS = 0xDA, 0xD9, range(0xD0, 0xD8)
_SEQUENTIAL = (0xC0, 0xC1)  # frames that hold all in one scan
_FILLER = b"\x55" * 64


def decode_jpeg(data: bytes, out: npt.NDArray[np.uint8], tables: bytes | None = None, colorspace: str | None = None) -> None:
    """Decode to RGB in the array given.

    Where the data of a scan end early, libjpeg fills the rest with a flat colour and warns of it, unheard from Python. Such a picture
    ends in a flat corner. One that does is therefore decoded again with other bits put behind the scan's end, which must not matter.
    Data that end within the last block (8 to 16 px a side), so that nothing flat follows, pass unseen; only that block is then wrong.

    Parameters
    ----------
    data
        A JPEG stream, with or without its tables.
    out
        C-contiguous uint8 (height, width, 3), of exactly the picture's shape.
    tables
        A stream that holds tables alone, as TIFF stores them.
    colorspace
        What the samples are, where the stream itself does not tell rightly, such as "RGB".

    Raises
    ------
    ValueError, RuntimeError
        When the stream is damaged, cut short, or of another shape.
    """
    frame, scan = _headers(data)
    restarts, end = _markers(data, scan, frame in _SEQUENTIAL)
    _decode(data, out, tables, colorspace)
    if frame in _SEQUENTIAL and (restarts or (out[-4:, -4:] == out[-1, -1]).all()):
        other = np.empty_like(out)
        _decode(data[:scan] + _MARKER.sub(_FILLER + rb"\g<0>", data[scan:end]), other, tables, colorspace)
        if not np.array_equal(out, other):
            raise ValueError("corrupt JPEG data: they end before the picture does")


def _decode(data: bytes, out: npt.NDArray[np.uint8], tables: bytes | None, colorspace: str | None) -> None:
    imagecodecs.jpeg8_decode(data, tables=tables, colorspace=colorspace, outcolorspace="RGB", out=out)


def _headers(data: bytes) -> tuple[int, int]:
    """The kind of frame, and where the first scan's data begin."""
    position, frame = 2, 0
    while data[position : position + 1] == b"\xff" and position + 4 <= len(data):
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = marker
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == _START_OF_SCAN:
            return frame, position
    raise ValueError("corrupt JPEG data: no picture in them")


def _markers(data: bytes, scan: int, sequential: bool) -> tuple[bool, int]:
    """Whether a scan is divided by restarts, and the first byte after the picture."""
    restarts = False
    for found in _MARKER.finditer(data, scan):
        marker = data[found.start() + 1]
        if marker == _END:
            if data[found.end() :].strip(b"\x00\xff"):
                break
            return restarts, found.end()
        restarts |= marker in _RESTARTS
        if sequential and marker not in _RESTARTS:
            break
    else:
        raise ValueError("corrupt JPEG data: cut short")
    raise ValueError(f"corrupt JPEG data: marker {marker:#x} amid the picture")
