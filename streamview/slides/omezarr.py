"""OME-Zarr images (0.5 on zarr v3, 0.4 and older on zarr v2) as slides: https://ngff.openmicroscopy.org/0.5/.

Plates and collections of one image open as that image; of several one is to be named. Labels, and anything but 8-bit RGB or a channel
chosen of it, are out of scope and refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import itertools
import math
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
import zarr.errors

from streamview.errors import SlideError, SlideWarning
from streamview.geometry import Region
from streamview.slides.channels import Channel, find_channel, in_words
from streamview.slides.checks import DAMAGED, check_size
from streamview.slides.slide import WHITE, Level, SlideBase, check_region, composite, given_mpp, output, positive_mpp
from streamview.slides.units import micrometres
from streamview.slides.zarrstores import Place, find_images, find_place, is_zarr

__all__ = ["Pyramid", "is_zarr"]

_PLAIN_NAMES = {"", "red", "green", "blue", "alpha", "r", "g", "b", "a", "rgb", "rgba", "opacity", "transparency", "brightfield"}
_PRIMARIES = ["FF0000", "00FF00", "0000FF"]
_SAMPLES, _SAMPLE = 64, 256  # windows, and their side, that identify a level too large to be read whole
_SMALL = 2**26  # bytes


class Pyramid(SlideBase):
    """A multiscale OME-Zarr image in a local folder or zip file or at a URL; made by `streamview.build_pyramid` or by another program.

    The identity of a pyramid that streamview built is the identity of the slide it was built from, whose level-0 pixels it
    holds. Of any other it is a digest of the metadata and the coarsest level's pixels.

    A chunk that is absent was left out by its writer, being all fill value, where another level shows just that at its place. Else it is
    lost, and reading it is an error.

    Parameters
    ----------
    path
        Folder of the zarr group, a zip file that holds one, a path into either, or a URL, for which the extra ``cluster`` is needed.
    mpp
        Micrometres per level-0 pixel, in place of what the file says.
    channel
        Number (from 0) or name of one channel of an image that is not RGB, to be read as grey.

    Raises
    ------
    SlideError
        When there is no OME-Zarr image or more than one, it is not 8-bit RGB, reaches outside itself by links or names, declares absurd
        sizes, or is incomplete.
    """

    def __init__(self, path: str | os.PathLike[str], mpp: float | None = None, channel: int | str | None = None) -> None:
        text = os.fspath(path)
        self._place = place = find_place(text)
        self._given, self._left_out = mpp, dict[str, bool]()
        self.opened = text if place.remote else os.path.abspath(text), channel
        try:
            self._describe(text, place.name, mpp, channel)
        except BaseException as error:
            self.close()
            if not isinstance(error, _errors()) or (
                isinstance(error, OSError) and not place.remote and not isinstance(error, FileNotFoundError)
            ):
                raise
            raise SlideError(
                f"{place.name}: not a zarr group that can be read ({error}); expected an OME-Zarr image, e.g. made by streamview convert"
            ) from None

    def __reduce__(self) -> tuple[Any, ...]:
        from streamview.slides import open_slide

        place, channel = self.opened or ("", None)
        return open_slide, (place, self._given, channel)

    def close(self) -> None:
        """Close a zip file."""
        self._place.store.close()

    def _describe(self, path: str, name: str, mpp: float | None, channel: int | str | None) -> None:
        group = _image(path, self._place)
        attributes = group.attrs.asdict()
        ome: Any = attributes.get("ome", attributes)
        stored = _arrays(name, group, ome)
        multiscale, axes, scales = _multiscale(name, ome, stored[0].ndim)
        if any(array.ndim != len(axes) for array in stored):
            raise SlideError(f"{name}: a level is not an array of the stated {len(axes)} axes; convert the slide again")
        self._y, self._x = axes.index("y"), axes.index("x")
        self._c = axes.index("c") if "c" in axes else None
        self._others = tuple(index for index, axis in enumerate(axes) if axis not in ("c", "y", "x"))
        for array in stored:
            check_size(name, self._shape(array))
        order = sorted(range(len(stored)), key=lambda number: -math.prod(self._shape(stored[number])))
        if order != list(range(len(stored))):
            _warn(f"{name}: its levels are stored out of order; they are read finest first")
        self._stored, scales = tuple(stored[number] for number in order), [scales[number] for number in order]
        self._alpha = False
        self._channel = self._choose(name, ome, channel)
        downsamples = self._downsamples(name, scales)
        levels = tuple(self._level(name, array, downsample) for array, downsample in zip(self._stored, downsamples, strict=True))
        ours = attributes.get("streamview")
        ours = ours if isinstance(ours, Mapping) else {}
        self._ours = bool(ours)
        if ours:
            self._refuse_incomplete(name)
        stated = _mpp(multiscale, axes, scales[0], ours)
        identity = str(ours.get("source_identity") or self._digest(attributes))
        if self._channel is not None:
            identity = hashlib.sha256(f"{identity} {self._channel}".encode()).hexdigest()
        super().__init__(name, levels, stated if mpp is None else given_mpp(mpp), identity, _background(ours))
        self.stated_mpp = None if mpp is None else stated[0]
        properties = ours.get("properties")
        self.properties = {str(key): str(value) for key, value in properties.items()} if isinstance(properties, Mapping) else {}
        self.icc_profile = _profile(ours.get("icc_profile"))
        version = f"zarr v{self._stored[0].metadata.zarr_format}{' by URL' if self._place.remote else ''}"
        self.reader = version if self._channel is None else f"{version}: {self._channel}"
        absent = [share for share in map(self._absent_share, range(len(levels))) if share]
        self.reader += f"; {', '.join(absent)}" if absent else ""
        self.pixel_source = "zarr;alpha=straight" if self._alpha else "zarr"
        if self._channel is not None:
            self.pixel_source = f"zarr;{self._channel.token}"

    @property
    def arrays(self) -> tuple[zarr.Array[Any], ...]:
        """The zarr arrays of the levels, finest first, in the file's axis order (c, y, x when streamview built it)."""
        return self._stored

    def _shape(self, array: zarr.Array[Any]) -> tuple[int, int]:
        return array.shape[self._y], array.shape[self._x]

    def _count(self, array: zarr.Array[Any]) -> int:
        """Channels of an array."""
        return 1 if self._c is None else array.shape[self._c]

    def _choose(self, name: str, ome: Mapping[str, Any], wanted: int | str | None) -> Channel | None:
        """The channel to read as grey; None for RGB."""
        first = self._stored[0]
        dtype, count = first.dtype, self._count(first)
        names, colours, windows = _channels(ome)
        found = f"{name}: {in_words(dtype, count, names)} (array of shape {first.shape} and type {dtype})"
        if any(first.shape[index] != 1 for index in self._others):
            raise SlideError(f"{found}: expected one plane of 8-bit RGB; export it as 8-bit RGB")
        # transparency is told from four stains by the names, as far as any are given
        plain = [label.strip().casefold() for label in names[:count]]
        picture = all(label in _PLAIN_NAMES or label.removeprefix("channel").strip(" :_-").isdecimal() for label in plain)
        if dtype == np.uint8 and (count == 3 or (count == 4 and picture)) and (picture or colours[:3] == _PRIMARIES or not all(plain)):
            if wanted is None:
                self._alpha = count == 4
                return None
            if picture:
                raise SlideError(f"{found}: it is RGB; leave out --channel")
        if wanted is None:
            remedy = "streamview convert --channel N makes a grey slide of one"
            known = dtype in (np.uint8, np.uint16)
            raise SlideError(f"{found}: expected 8-bit RGB, uint8 with 3 channels; {remedy if known else 'export it as 8-bit RGB'}")
        chosen = find_channel(name, wanted, dtype, count, names)
        window = windows[chosen.number] if chosen.number < len(windows) else None
        return find_channel(name, chosen.number, dtype, count, names, window)

    def _downsamples(self, name: str, scales: Sequence[tuple[float, float] | None]) -> list[tuple[float, float]]:
        """Of each level: as its scale states where that fits the shapes to a pixel, else the ratio of the shapes, and a warning."""
        finest = self._shape(self._stored[0])
        downsamples, differing = [], []
        for array, scale in zip(self._stored, scales, strict=True):
            shape = self._shape(array)
            ratio = finest[0] / shape[0], finest[1] / shape[1]
            if scale is None or scales[0] is None:
                downsamples.append(ratio)
                continue
            stated = scale[0] / scales[0][0], scale[1] / scales[0][1]
            if all(abs(full / s - part) <= 1 for full, s, part in zip(finest, stated, shape, strict=True)):
                downsamples.append(stated)
            else:
                differing.append(f"level {array.basename} {stated[1]:.4g} by its scale, {ratio[1]:.4g} by its shape")
                downsamples.append(ratio)
        if differing:
            _warn(f"{name}: scales contradict shapes ({'; '.join(differing)} times level 0): the shapes are believed")
        return downsamples

    def _level(self, name: str, array: zarr.Array[Any], downsample: tuple[float, float]) -> Level:
        first = self._stored[0]
        if array.dtype != first.dtype or self._count(array) != self._count(first):
            raise SlideError(f"{name}: level {array.basename!r} differs in kind from the first; convert the slide again")
        check_size(name, self._shape(array), math.prod(array.chunks) * array.dtype.itemsize)
        return Level(self._shape(array), downsample, (array.chunks[self._y], array.chunks[self._x]), _compression(array))

    def _refuse_incomplete(self, name: str) -> None:
        """Zarr reads a lost shard as zeros without a word, so their presence is checked, and that each level is half of the one before.

        At a URL that would take a request for each; there they are missed when a region is read.
        """
        shapes = [array.shape[1:] for array in self._stored]
        if any(finer[0] + 1 >> 1 != h or finer[1] + 1 >> 1 != w for finer, (h, w) in itertools.pairwise(shapes)):
            raise SlideError(f"{name}: its levels are {shapes}, expected each half of the one before; convert the slide again")
        keys = self._place.keys
        if keys is None:
            return
        for array in self._stored:
            for chunk in _chunks(array, tuple(slice(None) for _ in array.shape)):
                if not keys.exists(_key(array, chunk)):
                    raise SlideError(f"{name}: incomplete: level {array.basename} has lost its shard {chunk}; convert the slide again")

    def _absent_share(self, level: int) -> str:
        """How many of a level's chunks are absent; empty where none are, or where that is not known."""
        array, keys = self._stored[level], self._place.keys
        total = math.prod(-(-size // step) for size, step in zip(array.shape, array.shards or array.chunks, strict=True))
        absent = 0 if keys is None else max(total - keys.below(array.path), 0)
        return f"level {level}: {absent} of {total} chunks absent" if absent else ""

    def _refuse_lost(self, level: int, window: tuple[int | slice, ...]) -> None:
        """Refuse a window of which a chunk is lost."""
        array = self._stored[level]
        for chunk in _chunks(array, window):
            key = _key(array, chunk)
            if key not in self._place.store.absent:
                continue
            if key not in self._left_out:
                self._left_out[key] = self._was_left_out(level, chunk)
            if not self._left_out[key]:
                share = self._absent_share(level)
                kind = "shard" if array.shards else "chunk"
                raise SlideError(
                    f"{self.name}: incomplete: level {array.basename} has lost its {kind} {chunk}"
                    f"{f' ({share})' if share else ''}; {'convert the slide again' if self._ours else 'copy or convert the image again'}"
                )

    def _was_left_out(self, level: int, chunk: tuple[int, ...]) -> bool:
        """Whether an absent chunk held nothing but the fill value, by what other levels show at its place.

        A level that holds something else there tells that the chunk is lost, one that holds just that, that it was left out. Levels that
        lack the place as well agree that it was, since losses do not strike all levels in one place; but a level without any chunk is
        no witness.
        """
        array, keys = self._stored[level], self._place.keys
        fill = array.metadata.fill_value
        if self._ours or fill is None:
            return False
        steps = array.shards or array.chunks
        window: list[int | slice] = [
            slice(number * step, min((number + 1) * step, size)) for number, step, size in zip(chunk, steps, array.shape, strict=True)
        ]
        agreed = False
        nearest = [*range(level + 1, len(self._stored)), *([level - 1] if level else [])]
        for other in (self._stored[number] for number in nearest):
            inside = list(window)
            for axis in (self._y, self._x):
                inside[axis] = _within(window[axis], array.shape[axis], other.shape[axis])
            if any(isinstance(part, slice) and part.start >= part.stop for part in inside):
                continue
            values = np.asarray(other[tuple(inside)])
            if (values != fill).any():
                return False
            if any(_key(other, each) not in self._place.store.absent for each in _chunks(other, tuple(inside))):
                return True
            agreed |= keys is not None and min(keys.below(array.path), keys.below(other.path)) > 0
        if agreed:
            return True
        if array.dtype == np.uint8 and fill == 255:  # chosen by the writer, who left out glass; zero is what every writer has by default
            _warn(f"{self.name}: {self._absent_share(level) or f'level {level}: chunks absent'}; they are read as white, the fill value")
            return True
        return False

    def _digest(self, attributes: Mapping[str, Any]) -> str:
        digest = hashlib.sha256(repr((attributes, [array.shape for array in self._stored])).encode())
        coarsest = self._stored[-1]
        if coarsest.nbytes <= _SMALL:
            digest.update(np.ascontiguousarray(coarsest[...]).data)
            return digest.hexdigest()
        for number in range(_SAMPLES):
            window: list[int | slice] = [slice(None)] * coarsest.ndim
            for axis, share in ((self._y, number // 8 / 7), (self._x, number % 8 / 7)):
                start = int(max(coarsest.shape[axis] - _SAMPLE, 0) * share)
                window[axis] = slice(start, start + _SAMPLE)
            digest.update(np.ascontiguousarray(coarsest[tuple(window)]).data)
        return digest.hexdigest()

    def read(self, region: Region, out: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        """Read a region; see `streamview.slides.Slide.read`."""
        check_region(self.name, self.levels, region)
        out = output(region, out)
        array = self._stored[region.level]
        window: list[int | slice] = [0] * array.ndim
        window[self._y], window[self._x] = slice(region.y, region.y_stop), slice(region.x, region.x_stop)
        if self._c is not None:
            window[self._c] = slice(None) if self._channel is None else slice(self._channel.number, self._channel.number + 1)
        try:
            pixels = np.asarray(array[tuple(window)])
            if self._place.store.absent:
                self._refuse_lost(region.level, tuple(window))
        except _errors() as error:
            remedy = "its server must answer requests for parts of files" if self._place.remote else "convert the slide again"
            raise SlideError(f"{self.name}: unreadable at level {region.level}, X,Y,WIDTH,HEIGHT {region}: {error}; {remedy}") from None
        left = [axis for axis in (self._c, self._y, self._x) if axis is not None]  # as they are told apart
        pixels = pixels.transpose([sorted(left).index(axis) for axis in (self._y, self._x, *left[:-2])])
        if self._channel is not None:
            grey = self._channel.to_grey(pixels)
            out[...] = grey if grey.ndim == 3 else grey[..., None]
        else:
            out[...] = composite(pixels, self.background) if self._alpha else pixels
        return out


def _errors() -> tuple[type[Exception], ...]:
    """What reading fails with, also elsewhere; only the errors of libraries that are loaded can occur."""
    known = (("aiohttp", "ClientError"), ("botocore.exceptions", "BotoCoreError"), ("botocore.exceptions", "ClientError"))
    network: list[type[Exception]] = [getattr(sys.modules[module], name) for module, name in known if module in sys.modules]
    return (*DAMAGED, OSError, zarr.errors.BaseZarrError, *network)


def _warn(text: str) -> None:
    warnings.warn(text, SlideWarning, stacklevel=7)


def _image(path: str, place: Place) -> zarr.Group:
    """The group of the one image of a store.

    Raises
    ------
    SlideError
        When there is none, or more than one; the message names them.
    """
    try:
        root = zarr.open_group(place.store, path=place.path, mode="r")
    except (zarr.errors.ContainsArrayError, zarr.errors.NodeTypeValidationError):
        raise SlideError(f"{place.name}: an array of zarr, not an image; open the folder that it lies in") from None
    images = find_images(root, listing=not place.remote)
    if len(images) > 1:
        command = shlex.join(["streamview", "info", f"{path.rstrip('/')}/{images[0]}"])
        shown = f"{', '.join(images[:8])}{', ...' if len(images) > 8 else ''}"
        raise SlideError(f"{place.name}: holds {len(images)} images: {shown}; name one of them, such as {command}")
    if not images:
        raise SlideError(_unusable(place.name))
    if not images[0]:
        return root
    _refuse_outside(place.name, images[0], "image")
    group = root[images[0]]
    if not isinstance(group, zarr.Group):
        raise SlideError(f"{place.name}: {images[0]} is an array, expected an image; convert the slide again")
    return group


def _refuse_outside(name: str, path: object, what: str) -> None:
    if not isinstance(path, str) or not path or path.startswith("/") or {"..", "."} & set(path.replace("\\", "/").split("/")):
        raise SlideError(f"{name}: {what} {path!r} lies outside the image; expected a name inside the folder, convert the slide again")


def _arrays(name: str, group: zarr.Group, ome: Mapping[str, Any]) -> list[zarr.Array[Any]]:
    """The arrays of the levels, which must be there."""
    try:
        paths = [dataset["path"] for dataset in ome["multiscales"][0]["datasets"]]
    except (KeyError, IndexError, TypeError):
        raise SlideError(_unusable(name)) from None
    arrays = []
    for path in paths:
        _refuse_outside(name, path, "level")
        try:
            array = group[path]
        except (zarr.errors.BaseZarrError, KeyError, ValueError, TypeError) as error:
            raise SlideError(f"{name}: a level is missing or damaged ({error}); convert the slide again") from None
        if not isinstance(array, zarr.Array):
            raise SlideError(f"{name}: level {path!r} is not an array; convert the slide again")
        arrays.append(array)
    if not arrays:
        raise SlideError(_unusable(name))
    return arrays


def _unusable(name: str) -> str:
    return f"{name}: no OME-Zarr image of axes c, y, x; expected one of version 0.4 or 0.5, e.g. made by streamview convert"


def _multiscale(name: str, ome: Mapping[str, Any], ndim: int) -> tuple[Mapping[str, Any], list[str], list[tuple[float, float] | None]]:
    """First multiscale image of a group: metadata, names of the axes, and scale (y, x) of each level in its unit, None where not stated."""
    try:
        multiscale = ome["multiscales"][0]
        stated = multiscale.get("axes") or list("tczyx"[-ndim:])  # of versions before 0.3
        named = [{"name": axis} if isinstance(axis, str) else axis for axis in stated]
        axes = ["c" if axis.get("type") == "channel" else axis["name"].lower() for axis in named]
        y, x = axes.index("y"), axes.index("x")
        common = _scale(multiscale.get("coordinateTransformations", []), len(axes)) or [1.0] * len(axes)
        scales: list[tuple[float, float] | None] = []
        for dataset in multiscale["datasets"]:
            own = _scale(dataset.get("coordinateTransformations", []), len(axes))
            scales.append(None if own is None else (own[y] * common[y], own[x] * common[x]))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise SlideError(_unusable(name)) from None
    if not all(math.isfinite(value) and value > 0 for scale in scales if scale is not None for value in scale):
        raise SlideError(_unusable(name))
    return multiscale, axes, scales


def _scale(transformations: list[Mapping[str, Any]], ndim: int) -> list[float] | None:
    for transformation in transformations:
        if transformation["type"] == "scale":
            scale = [float(value) for value in transformation["scale"]]
            if len(scale) != ndim:
                raise ValueError
            return scale
    return None


def _chunks(array: zarr.Array[Any], window: tuple[int | slice, ...]) -> Iterator[tuple[int, ...]]:
    """Places, in the grid of stored files, of those that a window needs."""
    ranges = []
    for part, size, step in zip(window, array.shape, array.shards or array.chunks, strict=True):
        start, stop, _ = part.indices(size) if isinstance(part, slice) else (part, part + 1, 1)
        ranges.append(range(start // step, -(-stop // step)))
    return itertools.product(*ranges)


def _key(array: zarr.Array[Any], chunk: tuple[int, ...]) -> str:
    return f"{array.path}/{array.metadata.encode_chunk_key(chunk)}"


def _within(part: int | slice, size: int, other: int) -> slice:
    """Pixels of another level, along one axis, that lie inside a part of this one, away from its edges: averages look across them."""
    start, stop = (part.start, part.stop) if isinstance(part, slice) else (part, part + 1)
    ratio = other / size
    return slice(math.ceil(start * ratio) + 1 if start else 0, other if stop >= size else math.floor(stop * ratio) - 1)


def _mpp(
    multiscale: Mapping[str, Any], axes: Sequence[str], scale: tuple[float, float] | None, ours: Mapping[str, Any]
) -> tuple[tuple[float, float] | None, str]:
    stated = multiscale.get("axes") or ()
    named = {axis: entry.get("unit") for axis, entry in zip(axes, stated, strict=False) if isinstance(entry, Mapping)}
    units = [named.get("y"), named.get("x")]
    if ours and units == [None, None]:
        return None, str(ours.get("mpp_source", "unknown"))
    if scale is None or units == [None, None]:
        return None, f"unknown (OME-Zarr axes have no {'unit' if scale else 'scale'})"
    factors = [micrometres(unit) if isinstance(unit, str) else None for unit in units]
    if factors[0] is None or factors[1] is None:
        unknown = [repr(unit) for unit, factor in zip(units, factors, strict=True) if factor is None]
        return None, f"unknown (OME-Zarr scale is in {' and '.join(dict.fromkeys(unknown))})"
    source = str(ours.get("mpp_source", "OME-Zarr scale"))
    return positive_mpp(scale[0] * factors[0], scale[1] * factors[1], source, measured=bool(ours))


def _background(ours: Mapping[str, Any]) -> tuple[int, int, int]:
    colour = ours.get("background", WHITE)
    red, green, blue = (int(value) for value in colour) if len(colour) == 3 else WHITE
    return red, green, blue


def _channels(ome: Mapping[str, Any]) -> tuple[list[str], list[str], list[tuple[float, float] | None]]:
    """Names, colours (hex) and windows of the channels, as far as they are stated."""
    omero = ome.get("omero", {})
    stated = omero.get("channels", []) if isinstance(omero, Mapping) else []
    names, colours, windows = [], [], []
    for channel in stated if isinstance(stated, Sequence) else ():
        names.append(str(channel.get("label") or ""))
        colours.append(str(channel.get("color") or "").lstrip("#").upper())
        window = channel.get("window", {})
        known = isinstance(window, Mapping) and {"start", "end"} <= set(window)
        windows.append((float(window["start"]), float(window["end"])) if known else None)
    return names, colours, windows


def _compression(array: zarr.Array[Any]) -> str:
    names = [type(codec).__name__.removesuffix("Codec").lower() for codec in array.compressors]
    return " ".join(names) or "none"


def _profile(text: object) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except binascii.Error:
        return None
