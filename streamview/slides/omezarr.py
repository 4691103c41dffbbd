"""OME-Zarr images (0.5 on zarr v3, 0.4 on zarr v2) as slides: https://ngff.openmicroscopy.org/0.5/.

Plates, labels, and anything but 8-bit RGB are out of scope and refused.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
import zarr.errors

from streamview.errors import SlideError
from streamview.geometry import Region
from streamview.slides.checks import check_size
from streamview.slides.slide import WHITE, Level, SlideBase, check_region, given_mpp, positive_mpp

__all__ = ["Pyramid", "is_zarr"]

_MICROMETRES = {"meter": 1e6, "centimeter": 1e4, "millimeter": 1e3, "micrometer": 1.0, "nanometer": 1e-3}


def is_zarr(path: Path) -> bool:
    """Whether a folder is the root of a zarr group."""
    return (path / "zarr.json").is_file() or (path / ".zgroup").is_file()


class Pyramid(SlideBase):
    """A multiscale OME-Zarr image in a local folder; made by `streamview.build_pyramid` or by another program.

    The identity of a pyramid that streamview built is the identity of the slide it was built from, whose level-0 pixels it
    holds. Of any other it is a digest of the metadata and the coarsest level's pixels.

    Parameters
    ----------
    path
        Folder of the zarr group.
    mpp
        Micrometres per level-0 pixel, in place of what the file says.

    Raises
    ------
    SlideError
        When the folder is no OME-Zarr image, is not 8-bit RGB, reaches outside itself by links, declares absurd sizes, or is incomplete.
    """

    def __init__(self, path: str | os.PathLike[str], mpp: float | None = None) -> None:
        root = Path(path)
        name = root.name
        _refuse_links(root)
        try:
            group = zarr.open_group(str(root), mode="r")
        except (zarr.errors.BaseZarrError, FileNotFoundError, ValueError, KeyError, TypeError) as error:
            raise SlideError(f"{name}: not a zarr group ({error}); expected a folder made by streamview convert") from None
        attributes = group.attrs.asdict()
        multiscale, axes, scales = _multiscale(name, attributes)
        self._stored = _arrays(name, group, multiscale, len(axes))
        self._order = tuple(axes.index(axis) for axis in "cyx")
        self._others = tuple(index for index in range(len(axes)) if index not in self._order)
        levels = tuple(self._level(name, array, scale, scales[0]) for array, scale in zip(self._stored, scales, strict=True))
        ours = attributes.get("streamview")
        ours = ours if isinstance(ours, Mapping) else {}
        if ours:
            self._refuse_incomplete(name, root)
        stated = _mpp(multiscale, scales[0], ours)
        identity = ours.get("source_identity") or self._digest(attributes)
        super().__init__(name, levels, stated if mpp is None else given_mpp(mpp), str(identity), _background(ours))

    @property
    def arrays(self) -> tuple[zarr.Array[Any], ...]:
        """The zarr arrays of the levels, finest first, in the file's axis order (c, y, x when streamview built it)."""
        return self._stored

    def _level(self, name: str, array: zarr.Array[Any], scale: tuple[float, float], finest: tuple[float, float]) -> Level:
        channels, height, width = (array.shape[index] for index in self._order)
        if array.dtype != np.uint8 or channels != 3 or any(array.shape[index] != 1 for index in self._others):
            raise SlideError(
                f"{name}: array of shape {array.shape} and type {array.dtype}:"
                " expected 8-bit RGB, uint8 with 3 channels; export it as 8-bit RGB"
            )
        check_size(name, (height, width), math.prod(array.chunks))
        return Level((height, width), (scale[0] / finest[0], scale[1] / finest[1]))

    def _refuse_incomplete(self, name: str, root: Path) -> None:
        """Zarr reads a lost shard as zeros without a word, so their presence is checked."""
        for array in self._stored:
            level = array.basename
            for key in np.ndindex(*(-(-size // step) for size, step in zip(array.shape, array.shards or array.chunks, strict=True))):
                if not root.joinpath(level, "c", *map(str, key)).is_file():
                    raise SlideError(f"{name}: incomplete: level {level} has lost its shard {key}; convert the slide again")

    def _digest(self, attributes: Mapping[str, Any]) -> str:
        digest = hashlib.sha256(repr((attributes, [array.shape for array in self._stored])).encode())
        if self._stored[-1].nbytes <= 2**26:
            digest.update(np.ascontiguousarray(self._stored[-1][...]).data)
        return digest.hexdigest()

    def read(self, region: Region) -> npt.NDArray[np.uint8]:
        """Read a region; see `streamview.slides.Slide.read`."""
        check_region(self.name, self.levels, region)
        window: list[int | slice] = [0] * (len(self._order) + len(self._others))
        for axis, part in zip(self._order, (slice(None), slice(region.y, region.y_stop), slice(region.x, region.x_stop)), strict=True):
            window[axis] = part
        try:
            pixels = np.asarray(self._stored[region.level][tuple(window)])
        except (OSError, ValueError, RuntimeError) as error:
            raise SlideError(
                f"{self.name}: unreadable at level {region.level}, X,Y,WIDTH,HEIGHT {region}: {error}; convert the slide again"
            ) from None
        ranks = np.argsort(np.argsort(self._order))  # positions of c, y, x among the axes that are left
        return np.ascontiguousarray(pixels.transpose(ranks[1], ranks[2], ranks[0]))


def _refuse_links(root: Path) -> None:
    inside = root.resolve()
    for folder, names, files in os.walk(root):
        for entry in (*names, *files):
            path = Path(folder, entry)
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise SlideError(f"{root.name}: {path.relative_to(root)} is a link that leaves the folder; replace it by the file itself")


def _arrays(name: str, group: zarr.Group, multiscale: Mapping[str, Any], ndim: int) -> tuple[zarr.Array[Any], ...]:
    """The arrays of the levels, which must be there and have the stated number of axes."""
    arrays = []
    for dataset in multiscale["datasets"]:
        try:
            array = group[dataset["path"]]
        except (zarr.errors.BaseZarrError, KeyError, ValueError, TypeError) as error:
            raise SlideError(f"{name}: a level is missing or damaged ({error}); convert the slide again") from None
        if not isinstance(array, zarr.Array) or array.ndim != ndim:
            raise SlideError(f"{name}: level {dataset['path']!r} is not an array of the stated {ndim} axes; convert the slide again")
        arrays.append(array)
    return tuple(arrays)


def _multiscale(name: str, attributes: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str], list[tuple[float, float]]]:
    """First multiscale image of a group: its metadata, its axes' names, and each level's scale (y, x) in its unit."""
    unusable = f"{name}: no OME-Zarr image of axes c, y, x; expected one of version 0.4 or 0.5, e.g. made by streamview convert"
    ome = attributes.get("ome", attributes)
    try:
        multiscale = ome["multiscales"][0]
        axes = [axis["name"] for axis in multiscale["axes"]]
        y, x = axes.index("y"), axes.index("x")
        axes.index("c")
        common = _scale(multiscale.get("coordinateTransformations", []), len(axes))
        scales = []
        for dataset in multiscale["datasets"]:
            own = _scale(dataset["coordinateTransformations"], len(axes))
            scales.append((own[y] * common[y], own[x] * common[x]))
    except (KeyError, IndexError, TypeError, ValueError):
        raise SlideError(unusable) from None
    if not scales or not all(math.isfinite(value) and value > 0 for scale in scales for value in scale):
        raise SlideError(unusable)
    return multiscale, axes, scales


def _scale(transformations: list[Mapping[str, Any]], ndim: int) -> list[float]:
    for transformation in transformations:
        if transformation["type"] == "scale":
            return [float(value) for value in transformation["scale"]]
    return [1.0] * ndim


def _mpp(multiscale: Mapping[str, Any], scale: tuple[float, float], ours: Mapping[str, Any]) -> tuple[tuple[float, float] | None, str]:
    units = {axis["name"]: axis.get("unit") for axis in multiscale["axes"]}
    if units["y"] not in _MICROMETRES or units["x"] not in _MICROMETRES:
        return None, str(ours.get("mpp_source", "unknown"))
    mpp = scale[0] * _MICROMETRES[units["y"]], scale[1] * _MICROMETRES[units["x"]]
    return positive_mpp(*mpp, str(ours.get("mpp_source", "OME-Zarr scale")))


def _background(ours: Mapping[str, Any]) -> tuple[int, int, int]:
    colour = ours.get("background", WHITE)
    red, green, blue = (int(value) for value in colour) if len(colour) == 3 else WHITE
    return red, green, blue
