"""JPEG tiles, decoded strictly: what libjpeg would make up is an error here."""

from __future__ import annotations

import re
from collections.abc import Container

import imagecodecs
import numpy as np
import numpy.typing as npt

__all__ = ["decode_jpeg", "frame_shape", "stated_colour"]

_MARKER = re.compile(rb"\xff([^\x00\xff])")
_START_OF_SCAN, _END, _RESTARTS = 0xDA, 0xD9, range(0xD0, 0xD8)
_SEQUENTIAL = (0xC0, 0xC1)  # frames that hold all in one scan
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
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
        What the samples are, "RGB" or "YCBCR", where the stream does not state it, see `stated_colour`; None for what libjpeg guesses.

    Raises
    ------
    ValueError, RuntimeError
        When the stream is damaged, cut short, or of another shape.
    """
    stated = stated_colour(data, tables)
    colorspace = colorspace if stated is None else stated[0]
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


def stated_colour(data: bytes, tables: bytes | None = None) -> tuple[str, str] | None:
    """What a stream of three components says of their colour, and by what; None where it says nothing.

    The order is that of libjpeg: a JFIF marker, one of Adobe's, the components' own letters. Chroma of less resolution comes last: no RGB
    has it. The marker of Adobe may stand among the tables.

    Returns
    -------
    tuple or None
        ``("RGB" or "YCBCR", words)``.
    """
    frame = _segment(data, _FRAMES)
    if frame is None or frame[5] != 3:
        return None
    if (_segment(data, (0xE0,)) or b"")[:5] == b"JFIF\0":
        return "YCBCR", "JFIF marker"
    for stream in (data, tables or b""):
        adobe = _segment(stream, (0xEE,)) or b""
        if adobe[:5] == b"Adobe" and len(adobe) >= 12:
            return ("RGB" if adobe[11] == 0 else "YCBCR"), "Adobe marker"
    if frame[6:15:3] == b"RGB":
        return "RGB", "components named R, G, B"
    if len(set(frame[7:15:3])) > 1:
        return "YCBCR", "chroma of less resolution"
    return None


def frame_shape(data: bytes) -> tuple[int, int] | None:
    """Height and width in px that a stream states; None when it holds no frame."""
    frame = _segment(data, _FRAMES)
    return None if frame is None else (int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big"))


def _segment(data: bytes, markers: Container[int]) -> bytes | None:
    """Content of the first of some markers before the first scan."""
    position = 2
    while data[position : position + 1] == b"\xff" and position + 4 <= len(data):
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker in markers:
            return data[position + 4 : end]
        if marker in (_START_OF_SCAN, _END):
            break
        position = end
    return None


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
    for match in _MARKER.finditer(data, scan):
        marker = data[match.start() + 1]
        if marker == _END:
            if data[match.end() :].strip(b"\x00\xff"):
                break
            return restarts, match.end()
        restarts |= marker in _RESTARTS
        if sequential and marker not in _RESTARTS:
            break
    else:
        raise ValueError("corrupt JPEG data: cut short")
    raise ValueError(f"corrupt JPEG data: marker {marker:#x} amid the picture")
