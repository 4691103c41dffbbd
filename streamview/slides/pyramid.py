"""A slide converted to an OME-Zarr 0.5 pyramid: https://ngff.openmicroscopy.org/0.5/.

Sizes are ceil(n / 2) a level, every pixel the mean of the 2 x 2 block below it (fewer at an odd edge), rounded half up, so that
level k is exactly 2^k coarser and its pixel (i, j) is centred at level-0 position ``2^k * (i, j) + (2^k - 1) / 2``.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from streamview.errors import SlideError
from streamview.files import atomic
from streamview.files.resumable import Journal, Tell, discard_unfinished, resumable
from streamview.geometry import Region
from streamview.progress import Progress, Report
from streamview.slides.checks import check_size
from streamview.slides.omezarr import Pyramid
from streamview.slides.properties import all_properties, safe_properties
from streamview.slides.readahead import ReadAhead
from streamview.slides.sampling import Sampler
from streamview.slides.slide import Slide
from streamview.system.machine import return_freed_memory

__all__ = ["Codec", "Pyramid", "build_pyramid", "discard_unfinished", "open_pyramid", "pyramid_shapes"]

Codec = Literal["zstd", "lz4"]

SHARD, CHUNK = 2048, 512
COARSEST = 1024  # the longest side of the last level is at most this
_CODECS = {  # with a checksum, since neither notices a flipped bit by itself
    "zstd": (ZstdCodec(level=3), Crc32cCodec()),
    "lz4": (BloscCodec(cname="lz4", clevel=5, shuffle="noshuffle", typesize=1), Crc32cCodec()),
}
_FORMAT = 1  # format of an unfinished pyramid; another format is not resumed
_Span = tuple[int, int]


def open_pyramid(path: str | os.PathLike[str]) -> Pyramid:
    """Open an OME-Zarr image; `streamview.open_slide` does the same, and takes the place of this name after the next release.

    Parameters
    ----------
    path
        Folder of the zarr group.

    Returns
    -------
    Pyramid
        A `streamview.slides.Slide`, with the zarr arrays of its levels in ``arrays``.

    Raises
    ------
    SlideError
        When it is missing, damaged, incomplete, or not an 8-bit RGB OME-Zarr image.

    Examples
    --------
    >>> import streamview
    >>> with streamview.open_slide("slide.svs") as slide:
    ...     streamview.build_pyramid(slide, "old-name.ome.zarr").close()
    >>> with streamview.open_pyramid("old-name.ome.zarr") as pyramid:
    ...     print(pyramid.shape)
    (512, 768)
    """
    return Pyramid(path)


def pyramid_shapes(
    slide: Slide, *, region: Region | None = None, mpp: float | None = None, levels: int | None = None
) -> tuple[tuple[int, int], ...]:
    """Return height and width in pixels of every level that `build_pyramid` would make, finest first.

    Raises
    ------
    RegionError, SlideError
        As `build_pyramid`, when the region, the mpp or the number of levels does not fit the slide.
    """
    return _shapes(Sampler(slide, region, mpp), levels)


def build_pyramid(
    slide: Slide,
    out: str | os.PathLike[str],
    *,
    region: Region | None = None,
    mpp: float | None = None,
    levels: int | None = None,
    codec: Codec = "zstd",
    keep_metadata: bool = False,
    tell: Tell = lambda line: None,
    report: Report | None = None,
) -> Pyramid:
    """Convert a slide; memory does not depend on its size, and finished parts survive an interruption.

    One task is one whole shard (3, 2048, 2048) in chunks of (3, 512, 512). The work is done in ``.NAME.partial`` beside `out`, with a
    journal of the finished shards; the metadata that make it an image are written last, and the folder is then renamed, so that a
    pyramid is complete or absent. The same call resumes an earlier one, even after a kill, and the result is the same, byte for byte.
    The content does not depend on the name or the time.

    Parameters
    ----------
    slide
        The source; each of its pixels is read once.
    out
        Folder to create, conventionally ending in ``.ome.zarr``; missing parents are created.
    region
        The part to convert, in level-0 pixels; None for the whole slide. The pyramid stores its position, so that programs show it in the
        right place over the slide.
    mpp
        Micrometres per pixel of the finest level, by exact area means (`streamview.slides.sampling.Sampler`); None: level 0 unchanged.
    levels
        Number of levels; None: until the longest side is 1024 px or less.
    codec
        ``"zstd"`` (level 3) or ``"lz4"`` (in Blosc): larger files, written and read faster. Both are lossless.
    keep_metadata
        Whether to store all properties of the slide's file, which may name a patient, and not only those known to be safe. Label and macro
        images are never copied.
    tell
        Called with messages: that work resumes, or what was kept.
    report
        Called after every shard; may raise `streamview.errors.Cancelled`.

    Returns
    -------
    Pyramid
        The opened result. It has the slide's identity if it is the whole slide at full resolution, else its own.

    Raises
    ------
    RegionError
        If the region is not inside the slide.
    SlideError
        If `out` exists or is being written by another process, the slide cannot be read or is too coarse for `mpp`, or the disk is full or
        not writable; nothing is left at `out`, and finished shards are kept beside it.

    Examples
    --------
    >>> import streamview
    >>> with streamview.open_slide("slide.svs") as slide:
    ...     streamview.build_pyramid(slide, "slide.ome.zarr", levels=2).close()
    >>> with streamview.open_slide("slide.ome.zarr") as pyramid:
    ...     print([level.shape for level in pyramid.levels])
    [(512, 768), (256, 384)]
    """
    out = Path(out)
    try:
        atomic.check_output(os.path.dirname(os.path.abspath(out)))
    except OSError as error:
        raise _unwritable(out, error) from error
    check_size(slide.name, slide.shape)
    sampler = Sampler(slide, region, mpp)
    shapes = _shapes(sampler, levels)
    attributes = {
        "streamview": _provenance(slide, sampler) | {"properties": dict((all_properties if keep_metadata else safe_properties)(slide))},
        "ome": _metadata(slide.mpp, sampler, len(shapes)),
    }
    making = {
        "format": _FORMAT,
        "source": slide.identity,
        "region": str(sampler.region),
        "resolution": sampler.scale,
        "levels": shapes,
        "codec": [*(step.to_dict() for step in _CODECS[codec]), SHARD, CHUNK],
        "metadata": attributes,
    }
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with resumable(out, making, tell) as journal:
            group = zarr.create_group(journal.folder, zarr_format=3)  # a text may be taken for a URL
            _write(sampler, [_create(group, str(number), shape, codec) for number, shape in enumerate(shapes)], journal, report)
            group.attrs.update(attributes)
    except OSError as error:
        raise _unwritable(out, error) from error
    return Pyramid(out)


def _shapes(sampler: Sampler, levels: int | None) -> tuple[tuple[int, int], ...]:
    most = (max(sampler.shape) - 1).bit_length() + 1
    if levels is not None and not 1 <= levels <= most:
        height, width = sampler.shape
        raise SlideError(f"{levels} levels: expected 1 to {most} for {width} x {height} px, the last of which is one pixel")
    shapes = [sampler.shape]
    while max(shapes[-1]) > COARSEST if levels is None else len(shapes) < levels:
        shapes.append((-(-shapes[-1][0] // 2), -(-shapes[-1][1] // 2)))
    return tuple(shapes)


def _write(sampler: Sampler, arrays: list[zarr.Array[Any]], journal: Journal, report: Report | None) -> None:
    """Write the shards that the journal does not have, level by level; the next one is read while one is compressed and written."""
    left = [[part for part in _shards(array.shape) if _file(level, *part) not in journal.finished] for level, array in enumerate(arrays)]
    progress = Progress("pyramid", sum(map(len, left)), report)
    for level, (array, parts) in enumerate(zip(arrays, left, strict=True)):

        def read(rows: _Span, columns: _Span, level: int = level) -> npt.NDArray[np.uint8]:
            return _halved(arrays[level - 1], rows, columns) if level else np.moveaxis(sampler.read(*rows, *columns), 2, 0)

        with ReadAhead(read, parts) as ahead:
            for rows, columns in parts:
                array[:, slice(*rows), slice(*columns)] = ahead.read(rows, columns)
                journal.add(_file(level, rows, columns))
                return_freed_memory()
                progress.advance()


def _file(level: int, rows: _Span, columns: _Span) -> str:
    """Name of the file of a shard."""
    return f"{level}/c/0/{rows[0] // SHARD}/{columns[0] // SHARD}"


def _create(group: zarr.Group, name: str, shape: tuple[int, int], codec: Codec) -> zarr.Array[Any]:
    return group.create_array(
        name,
        shape=(3, *shape),
        dtype="uint8",
        chunks=(3, CHUNK, CHUNK),
        shards=(3, SHARD, SHARD),
        compressors=_CODECS[codec],
        fill_value=0,
        dimension_names=("c", "y", "x"),
        config={"write_empty_chunks": True},  # so that a missing shard is a loss and never an empty one
    )


def _shards(shape: tuple[int, ...]) -> Iterator[tuple[_Span, _Span]]:
    """Rows and columns of the shards of a level (c, y, x), row by row."""
    _, height, width = shape
    for y in range(0, height, SHARD):
        for x in range(0, width, SHARD):
            yield (y, min(y + SHARD, height)), (x, min(x + SHARD, width))


def _halved(finer: zarr.Array[Any], rows: _Span, columns: _Span) -> npt.NDArray[np.uint8]:
    """One shard (3, h, w) of a level from the finer one, of which a few chunks are read at once to bound the memory."""
    out = np.empty((3, rows[1] - rows[0], columns[1] - columns[0]), np.uint8)
    for y in range(0, out.shape[1], CHUNK):
        for x in range(0, out.shape[2], CHUNK):
            top, left = 2 * (rows[0] + y), 2 * (columns[0] + x)
            block = np.asarray(finer[:, top : top + 2 * CHUNK, left : left + 2 * CHUNK])
            out[:, y : y + CHUNK, x : x + CHUNK] = _block_mean(block)
    return out


def _block_mean(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """2 x 2 means of (c, h, w), rounded half up; an odd last row or column counts twice, which is the mean of what is there."""
    _, height, width = pixels.shape
    if height % 2 or width % 2:
        pixels = np.pad(pixels, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge")
    total = pixels[:, ::2, ::2].astype(np.uint16)
    for quarter in (pixels[:, 1::2, ::2], pixels[:, ::2, 1::2], pixels[:, 1::2, 1::2]):
        total += quarter
    return ((total + 2) >> 2).astype(np.uint8)


def _provenance(slide: Slide, sampler: Sampler) -> dict[str, Any]:
    facts: dict[str, Any] = {"mpp_source": slide.mpp_source, "background": list(slide.background)}
    if slide.icc_profile is not None:
        facts["icc_profile"] = base64.b64encode(slide.icc_profile).decode()
    if sampler.scale == (1.0, 1.0) and sampler.region == Region(0, 0, *slide.shape):
        return {"source_identity": slide.identity} | facts
    part = {"slide": slide.identity, "region": str(sampler.region), "scale": list(sampler.scale)}
    if sampler.scale != (1.0, 1.0):
        facts["mpp_source"] = f"sampled ({slide.mpp_source})"
    identity = hashlib.sha256(f"streamview part {sorted(part.items())}".encode()).hexdigest()
    return {"source_identity": identity, "part": part} | facts


def _metadata(mpp: tuple[float, float] | None, sampler: Sampler, levels: int) -> dict[str, Any]:
    """The ``ome`` attribute, in the slide's frame: the centre of its level-0 pixel (0, 0) is the origin.

    In pixels, without units, when the slide's `mpp` (y, x) is unknown.
    """
    space: dict[str, str] = {"type": "space"} if mpp is None else {"type": "space", "unit": "micrometer"}
    slides = mpp or (1.0, 1.0)
    pitch = sampler.mpp or (1.0, 1.0)
    corner = (sampler.region.y * slides[0], sampler.region.x * slides[1])
    datasets = []
    for number in range(levels):
        factor = 2**number
        scale = [1.0, *(p * factor for p in pitch)]
        translation = [0.0, *(c + (p * factor - s) / 2 for c, p, s in zip(corner, pitch, slides, strict=True))]
        transformations = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": translation}]
        datasets.append({"path": str(number), "coordinateTransformations": transformations})
    channels = [
        {"label": label, "color": colour, "active": True, "window": {"min": 0, "max": 255, "start": 0, "end": 255}}
        for label, colour in (("Red", "FF0000"), ("Green", "00FF00"), ("Blue", "0000FF"))
    ]
    axes = [{"name": "c", "type": "channel"}, {"name": "y", **space}, {"name": "x", **space}]
    return {
        "version": "0.5",
        "multiscales": [{"axes": axes, "datasets": datasets, "type": "2x2 mean, rounded half up"}],
        "omero": {"channels": channels, "rdefs": {"model": "color"}},
    }


def _unwritable(out: Path, error: OSError) -> SlideError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SlideError(
            f"{out}: the disk is full; free some space (about the size of the slide file times four) and convert again, which"
            " goes on from here; or write to another disk"
        )
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
        return SlideError(f"{out}: was made by another program meanwhile; remove it or choose another name")
    return SlideError(f"{out}: cannot be written ({error.strerror or error}); check the folder and its permissions")
