"""OME-Zarr images (0.5 on zarr v3, 0.4 on zarr v2) as slides: https://ngff.openmicroscopy.org/0.5/.

Plates, labels, and anything but 8-bit RGB or a channel chosen of it are out of scope and refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import itertools
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
import zarr.errors
import zarr.storage

from streamview.errors import SlideError
from streamview.geometry import Region
from streamview.slides.channels import Channel, find_channel, in_words
from streamview.slides.checks import DAMAGED, check_size
from streamview.slides.slide import WHITE, Level, SlideBase, check_region, given_mpp, output, positive_mpp

__all__ = ["Pyramid", "is_zarr"]

_MICROMETRES = {"meter": 1e6, "centimeter": 1e4, "millimeter": 1e3, "micrometer": 1.0, "nanometer": 1e-3}


def is_zarr(path: Path) -> bool:
    """Whether a folder is the root of a zarr group."""
    return (path / "zarr.json").is_file() or (path / ".zgroup").is_file()


class Pyramid(SlideBase):
    """A multiscale OME-Zarr image in a local folder or at a URL; made by `streamview.build_pyramid` or by another program.

    The identity of a pyramid that streamview built is the identity of the slide it was built from, whose level-0 pixels it
    holds. Of any other it is a digest of the metadata and the coarsest level's pixels.

    Parameters
    ----------
    path
        Folder of the zarr group, or its URL, for which the extra ``cluster`` is needed.
    mpp
        Micrometres per level-0 pixel, in place of what the file says.
    channel
        Number (from 0) or name of one channel of an image that is not RGB, to be read as grey.

    Raises
    ------
    SlideError
        When the folder is no OME-Zarr image, is not 8-bit RGB, reaches outside itself by links or names, declares absurd sizes, or is
        incomplete.
    """

    def __init__(self, path: str | os.PathLike[str], mpp: float | None = None, channel: int | str | None = None) -> None:
        place = os.fspath(path)
        remote = "://" in place
        name = PurePosixPath(place.partition("?")[0]).name if remote else Path(os.path.abspath(place)).name
        self._files: Any = _remote(name, place) if remote else None
        self._root, self._found = place, set[str]()
        if not remote:
            _refuse_links(Path(place))
        try:
            self._describe(name, mpp, channel)
        except _errors() as error:
            if isinstance(error, OSError) and not remote and not isinstance(error, FileNotFoundError):
                raise
            raise SlideError(
                f"{name}: not a zarr group that can be read ({error}); expected an OME-Zarr image, e.g. made by streamview convert"
            ) from None

    def _describe(self, name: str, mpp: float | None, channel: int | str | None) -> None:
        store: Any = zarr.storage.FsspecStore.from_url(self._root, read_only=True) if self._files else Path(self._root)
        group = zarr.open_group(store, mode="r")
        attributes = group.attrs.asdict()
        multiscale, axes, scales = _multiscale(name, attributes)
        self._stored = _arrays(name, group, multiscale, len(axes))
        self._order = tuple(axes.index(axis) for axis in "cyx")
        self._others = tuple(index for index in range(len(axes)) if index not in self._order)
        self._channel = self._choose(name, attributes, channel)
        levels = tuple(self._level(name, array, scale, scales[0]) for array, scale in zip(self._stored, scales, strict=True))
        ours = attributes.get("streamview")
        ours = ours if isinstance(ours, Mapping) else {}
        self._ours = bool(ours)
        if ours:
            self._refuse_incomplete(name)
        stated = _mpp(multiscale, scales[0], ours)
        identity = str(ours.get("source_identity") or self._digest(attributes))
        if self._channel is not None:
            identity = hashlib.sha256(f"{identity} {self._channel}".encode()).hexdigest()
        super().__init__(name, levels, stated if mpp is None else given_mpp(mpp), identity, _background(ours))
        self.stated_mpp = None if mpp is None else stated[0]
        properties = ours.get("properties")
        self.properties = {str(key): str(value) for key, value in properties.items()} if isinstance(properties, Mapping) else {}
        self.icc_profile = _profile(ours.get("icc_profile"))
        version = f"zarr v{self._stored[0].metadata.zarr_format}{' by URL' if self._files else ''}"
        self.reader = version if self._channel is None else f"{version}: {self._channel}"

    @property
    def arrays(self) -> tuple[zarr.Array[Any], ...]:
        """The zarr arrays of the levels, finest first, in the file's axis order (c, y, x when streamview built it)."""
        return self._stored

    def _choose(self, name: str, attributes: Mapping[str, Any], wanted: int | str | None) -> Channel | None:
        """The channel to read as grey; None for RGB."""
        first = self._stored[0]
        dtype, count = first.dtype, first.shape[self._order[0]]
        names, windows = _channels(attributes)
        found = f"{name}: {in_words(dtype, count, names)} (array of shape {first.shape} and type {dtype})"
        if any(first.shape[index] != 1 for index in self._others):
            raise SlideError(f"{found}: expected one plane of 8-bit RGB; export it as 8-bit RGB")
        if dtype == np.uint8 and count == 3:
            if wanted is None:
                return None
            if set(names) <= {"Red", "Green", "Blue"}:
                raise SlideError(f"{found}: it is RGB; leave out --channel")
        if wanted is None:
            raise SlideError(
                f"{found}: expected 8-bit RGB, uint8 with 3 channels; streamview convert --channel N makes a grey slide of one"
            )
        chosen = find_channel(name, wanted, dtype, count, names)
        window = windows[chosen.number] if chosen.number < len(windows) else None
        return find_channel(name, chosen.number, dtype, count, names, window)

    def _level(self, name: str, array: zarr.Array[Any], scale: tuple[float, float], finest: tuple[float, float]) -> Level:
        channels, height, width = (array.shape[index] for index in self._order)
        first = self._stored[0]
        if array.dtype != first.dtype or channels != first.shape[self._order[0]]:
            raise SlideError(f"{name}: level {array.basename!r} differs in kind from the first; convert the slide again")
        check_size(name, (height, width), math.prod(array.chunks) * array.dtype.itemsize)
        tile = array.chunks[self._order[1]], array.chunks[self._order[2]]
        return Level((height, width), (scale[0] / finest[0], scale[1] / finest[1]), tile, _compression(array))

    def _refuse_incomplete(self, name: str) -> None:
        """Zarr reads a lost shard as zeros without a word, so their presence is checked, and that each level is half of the one before.

        At a URL that would take a request for each; there the shards of a region are looked for when it is read.
        """
        shapes = [array.shape[1:] for array in self._stored]
        if any(finer[0] + 1 >> 1 != h or finer[1] + 1 >> 1 != w for finer, (h, w) in itertools.pairwise(shapes)):
            raise SlideError(f"{name}: its levels are {shapes}, expected each half of the one before; convert the slide again")
        if self._files is None:
            for level, array in enumerate(self._stored):
                self._require(name, level, tuple(slice(None) for _ in array.shape))

    def _require(self, name: str, level: int, window: tuple[int | slice, ...]) -> None:
        """Refuse a window of which a shard is lost."""
        array = self._stored[level]
        ranges = []
        for part, size, step in zip(window, array.shape, array.shards or array.chunks, strict=True):
            start, stop, _ = part.indices(size) if isinstance(part, slice) else (part, part + 1, 1)
            ranges.append(range(start // step, -(-stop // step)))
        for key in itertools.product(*ranges):
            place = "/".join((self._root.rstrip("/"), array.path, "c", *map(str, key)))
            if place in self._found:
                continue
            if not (os.path.isfile(place) if self._files is None else self._files.exists(place)):
                raise SlideError(f"{name}: incomplete: level {array.path} has lost its shard {key}; convert the slide again")
            if self._files is not None:
                self._found.add(place)

    def _digest(self, attributes: Mapping[str, Any]) -> str:
        digest = hashlib.sha256(repr((attributes, [array.shape for array in self._stored])).encode())
        if self._stored[-1].nbytes <= 2**26:
            digest.update(np.ascontiguousarray(self._stored[-1][...]).data)
        return digest.hexdigest()

    def read(self, region: Region, out: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        """Read a region; see `streamview.slides.Slide.read`."""
        check_region(self.name, self.levels, region)
        out = output(region, out)
        window: list[int | slice] = [0] * (len(self._order) + len(self._others))
        number = None if self._channel is None else self._channel.number
        channels = slice(None) if number is None else slice(number, number + 1)
        for axis, part in zip(self._order, (channels, slice(region.y, region.y_stop), slice(region.x, region.x_stop)), strict=True):
            window[axis] = part
        try:
            if self._ours and self._files is not None:
                self._require(self.name, region.level, tuple(window))
            pixels = np.asarray(self._stored[region.level][tuple(window)])
        except _errors() as error:
            remedy = "convert the slide again" if self._files is None else "its server must answer requests for parts of files"
            raise SlideError(f"{self.name}: unreadable at level {region.level}, X,Y,WIDTH,HEIGHT {region}: {error}; {remedy}") from None
        ranks = np.argsort(np.argsort(self._order))  # positions of c, y, x among the axes that are left
        pixels = pixels.transpose(ranks[1], ranks[2], ranks[0])
        out[...] = pixels if self._channel is None else self._channel.to_grey(pixels)
        return out


def _remote(name: str, url: str) -> Any:
    """The file system that a URL lies in."""
    try:
        from fsspec.core import url_to_fs

        files, _ = url_to_fs(url)
    except ImportError as error:
        raise SlideError(
            f"{name}: reading {url.partition('://')[0]} URLs needs more ({error}): pip install 'streamview[cluster]'"
        ) from None
    except ValueError as error:
        raise SlideError(f"{name}: {error}; expected a URL of http, https or s3, or a path") from None
    return files


def _errors() -> tuple[type[Exception], ...]:
    """What reading fails with, also elsewhere; only the errors of libraries that are loaded can occur."""
    known = (("aiohttp", "ClientError"), ("botocore.exceptions", "BotoCoreError"), ("botocore.exceptions", "ClientError"))
    network: list[type[Exception]] = [getattr(sys.modules[module], name) for module, name in known if module in sys.modules]
    return (*DAMAGED, OSError, zarr.errors.BaseZarrError, *network)


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
        path = dataset["path"]
        if not isinstance(path, str) or not path or path.startswith("/") or {"..", "."} & set(path.replace("\\", "/").split("/")):
            raise SlideError(f"{name}: level {path!r} lies outside the image; expected a name inside the folder, convert the slide again")
        try:
            array = group[path]
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


def _channels(attributes: Mapping[str, Any]) -> tuple[list[str], list[tuple[float, float] | None]]:
    """Names and windows of the channels, as far as they are stated."""
    stated = attributes.get("ome", attributes).get("omero", {}).get("channels", [])
    names, windows = [], []
    for channel in stated if isinstance(stated, Sequence) else ():
        names.append(str(channel.get("label", "")))
        window = channel.get("window", {})
        known = isinstance(window, Mapping) and {"start", "end"} <= set(window)
        windows.append((float(window["start"]), float(window["end"])) if known else None)
    return names, windows


def _compression(array: zarr.Array[Any]) -> str:
    names = [type(codec).__name__.removesuffix("Codec").lower() for codec in array.compressors]
    return " ".join(names) or "none"


def _profile(text: object) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except binascii.Error:
        return None
