"""A slide converted to an OME-Zarr 0.5 pyramid: https://ngff.openmicroscopy.org/0.5/.

Sizes are ceil(n / 2) a level, every pixel the mean of the 2 x 2 block below it (fewer at an odd edge), rounded half up, so that
level k is exactly 2^k coarser and its pixel (i, j) is centred at level-0 position ``2^k * (i, j) + (2^k - 1) / 2``.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import ZstdCodec

from streamview.errors import SlideError
from streamview.geometry import Region
from streamview.progress import Progress, Report
from streamview.slides.checks import check_size
from streamview.slides.omezarr import Pyramid
from streamview.slides.slide import Slide

__all__ = ["Pyramid", "build_pyramid", "open_pyramid"]

SHARD, CHUNK = 2048, 512
COARSEST = 1024  # the longest side of the last level is at most this
_WORKERS = 2  # one reads while the other compresses; each holds a few shards of 12 MiB


def open_pyramid(path: str | os.PathLike[str]) -> Pyramid:
    """Open an OME-Zarr image, made by `build_pyramid` or another program.

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
    """
    return Pyramid(path)


def build_pyramid(slide: Slide, out: str | os.PathLike[str], *, report: Report | None = None) -> Pyramid:
    """Convert a slide; memory does not depend on its size.

    One task is one whole shard (3, 2048, 2048) in chunks of (3, 512, 512), zstd. The work is done under a temporary name beside
    `out`, the metadata that make it an image are written last, and a rename puts it in place, so that a pyramid is either complete
    or absent. Nothing inside depends on the name or the time.

    Parameters
    ----------
    slide
        Source; its level 0 is read once, its other levels not at all.
    out
        Folder to make, by custom ending in ``.ome.zarr``; its parents are made where missing.
    report
        Called after every shard; may raise `streamview.errors.Cancelled`.

    Returns
    -------
    Pyramid
        The result, opened.

    Raises
    ------
    SlideError
        When `out` exists, the slide cannot be read, or the disk is full or not writable; nothing is left at `out`.
    """
    out = Path(out)
    if os.path.lexists(out):
        raise SlideError(f"{out}: exists already; remove it or choose another name")
    check_size(slide.name, slide.shape)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
        try:
            _write(slide, partial, report)
            os.rename(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise _unwritable(out, error) from error
    return Pyramid(out)


def _write(slide: Slide, folder: Path, report: Report | None) -> None:
    shapes = [slide.shape]
    while max(shapes[-1]) > COARSEST:
        shapes.append((-(-shapes[-1][0] // 2), -(-shapes[-1][1] // 2)))
    group = zarr.create_group(str(folder), zarr_format=3)
    arrays = [_create(group, str(number), shape) for number, shape in enumerate(shapes)]
    progress = Progress("pyramid", sum(len(list(_shards(shape))) for shape in shapes), report)
    for number, (array, shape) in enumerate(zip(arrays, shapes, strict=True)):
        finer = arrays[number - 1]

        def task(part: Region, number: int = number, array: zarr.Array[Any] = array, finer: zarr.Array[Any] = finer) -> None:
            pixels = np.moveaxis(slide.read(part), 2, 0) if number == 0 else _halved(finer, part)
            array[:, part.y : part.y_stop, part.x : part.x_stop] = pixels

        with ThreadPoolExecutor(_WORKERS) as workers:
            try:
                for _ in workers.map(task, _shards(shape)):
                    progress.advance()
            except BaseException:
                workers.shutdown(wait=True, cancel_futures=True)
                raise
    group.attrs.update({"streamview": _provenance(slide), "ome": _metadata(slide.mpp, len(shapes))})


def _create(group: zarr.Group, name: str, shape: tuple[int, int]) -> zarr.Array[Any]:
    return group.create_array(
        name,
        shape=(3, *shape),
        dtype="uint8",
        chunks=(3, CHUNK, CHUNK),
        shards=(3, SHARD, SHARD),
        compressors=ZstdCodec(level=3),
        fill_value=0,
        dimension_names=("c", "y", "x"),
        config={"write_empty_chunks": True},  # so that a missing shard is a loss and never an empty one
    )


def _shards(shape: tuple[int, int]) -> Iterator[Region]:
    """The shards of a level as regions, row by row."""
    for y in range(0, shape[0], SHARD):
        for x in range(0, shape[1], SHARD):
            yield Region(y, x, min(SHARD, shape[0] - y), min(SHARD, shape[1] - x))


def _halved(finer: zarr.Array[Any], part: Region) -> npt.NDArray[np.uint8]:
    """One shard (3, h, w) of a level from the shards of the finer one, each read by itself to bound the memory."""
    out = np.empty((3, *part.shape), np.uint8)
    half = SHARD // 2
    for y in range(part.y, part.y_stop, half):
        for x in range(part.x, part.x_stop, half):
            block = np.asarray(finer[:, 2 * y : 2 * y + SHARD, 2 * x : 2 * x + SHARD])
            mean = _block_mean(block)
            out[:, y - part.y : y - part.y + mean.shape[1], x - part.x : x - part.x + mean.shape[2]] = mean
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


def _provenance(slide: Slide) -> dict[str, Any]:
    return {"source_identity": slide.identity, "mpp_source": slide.mpp_source, "background": list(slide.background)}


def _metadata(mpp: tuple[float, float] | None, levels: int) -> dict[str, Any]:
    """The ``ome`` attribute; in pixels, without units, when the mpp is unknown."""
    space: dict[str, str] = {"type": "space"} if mpp is None else {"type": "space", "unit": "micrometer"}
    pitch_y, pitch_x = mpp or (1.0, 1.0)
    datasets = []
    for number in range(levels):
        factor = 2**number
        scale = [1.0, pitch_y * factor, pitch_x * factor]
        translation = [0.0, pitch_y * (factor - 1) / 2, pitch_x * (factor - 1) / 2]
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
        return SlideError(f"{out}: the disk is full; free some space (about the size of the slide file times four) and convert again")
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
        return SlideError(f"{out}: was made by another program meanwhile; remove it or choose another name")
    return SlideError(f"{out}: cannot be written ({error.strerror or error}); check the folder and its permissions")
