"""Saliency maps on disk: written as rows arrive, finished in one step, opened lazily."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

import numpy as np
import zarr
import zarr.codecs
from numpy.typing import NDArray

from streamview.errors import StreamviewError
from streamview.files import atomic
from streamview.results.maps import Method, Plane, Saliency, SaliencyMap, halve, level0_mpp, reduction_of
from streamview.results.prediction import RESEARCH_USE, Prediction, Target

__all__ = ["MapWriter", "open_saliency", "save_saliency"]

_FORMAT = 1
_CHUNK = 512
_SHARD_CHUNKS = 4  # a shard is one chunk high, so that a finished row of chunks is whole shards
_COMPRESSOR = zarr.codecs.BloscCodec(cname="zstd", clevel=1, shuffle="shuffle")


class MapWriter:
    """Write the maps of one region as they are computed, in memory independent of the region's height.

    Rows come in pieces that adjoin what was written before, above or below it; whole rows of
    512-px chunks go to disk as they fill. Use it as a context manager: unless `place` was reached, leaving the block removes
    everything and a result stored before stays.

    Parameters
    ----------
    path
        Where the finished ``.ome.zarr`` will stand.
    shape
        ``(h, w)`` of the maps in px.
    step, origin
        ``(y, x)`` in level-0 pixels; see `SaliencyMap`.
    channels
        Methods in the order in which `write` gets them.

    Raises
    ------
    StreamviewError
        When the disk is full or the place may not be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        shape: tuple[int, int],
        *,
        step: tuple[float, float],
        origin: tuple[float, float],
        channels: tuple[Method, ...] = ("absolute", "signed"),
    ) -> None:
        self._path = Path(os.path.abspath(path))
        self._shape, self._channels, self._step, self._origin = shape, channels, step, origin
        self._temporary = atomic.temporary_sibling(self._path)
        with atomic.disk_errors(self._path):
            self._group = zarr.open_group(self._temporary, mode="w", zarr_format=3)
            self._array = _create_level(self._group, 0, (len(channels), *shape))
        self._bands: dict[int, NDArray[np.float32]] = {}  # rows of chunks that are only partly filled: one or two
        self._start, self._stop = -1, -1  # rows written so far
        self._low, self._high = np.zeros(len(channels)), np.zeros(len(channels))
        self._complete = False

    def write(self, y: int, rows: NDArray[np.float32]) -> None:
        """Take the rows ``y .. y + n``, float32 (c, n, w).

        Raises
        ------
        ValueError
            When the piece has the wrong shape or does not adjoin the rows written before.
        StreamviewError
            When the disk is full.
        """
        height, width = self._shape
        channels, n = rows.shape[:2]
        if rows.shape != (len(self._channels), n, width) or n < 1 or y < 0 or y + n > height:
            raise ValueError(f"rows {y}..{y + n} of shape {rows.shape} do not fit maps of shape {(len(self._channels), height, width)}")
        if self._start < 0:
            self._start = self._stop = y
        if y not in (self._stop, self._start - n):
            raise ValueError(f"rows {y}..{y + n} do not adjoin the rows {self._start}..{self._stop} written before")
        self._start, self._stop = min(self._start, y), max(self._stop, y + n)
        # NaN is what was not computed
        self._low = np.fmin(self._low, np.fmin.reduce(rows, (1, 2)))
        self._high = np.fmax(self._high, np.fmax.reduce(rows, (1, 2)))
        for band in range(y // _CHUNK, (y + n - 1) // _CHUNK + 1):
            top, bottom = band * _CHUNK, min((band + 1) * _CHUNK, height)
            first, last = max(y, top), min(y + n, bottom)
            if band not in self._bands:
                self._bands[band] = np.empty((channels, bottom - top, width), np.float32)
            self._bands[band][:, first - top : last - top] = rows[:, first - y : last - y]
            if self._start <= top and bottom <= self._stop:
                with atomic.disk_errors(self._path):
                    _put(self._array, top, self._bands.pop(band))

    def complete(
        self,
        prediction: Prediction,
        *,
        target: Target,
        std: tuple[float, ...],
        glass: tuple[int, int, int],
        evidence: SaliencyMap | None = None,
        completeness: float | None = None,
    ) -> None:
        """Build the coarser levels and write the metadata, when all rows are written.

        Parameters
        ----------
        prediction
            The answer explained.
        target
            What the maps explain.
        std
            The card's standard deviations, of pixels scaled to 0..1.
        glass
            RGB of empty glass.
        evidence
            The class evidence map, where the network offers it.
        completeness
            As of `Saliency`.

        Raises
        ------
        ValueError
            When rows are missing.
        StreamviewError
            When the disk is full.
        """
        if (self._start, self._stop) != (0, self._shape[0]):
            raise ValueError(f"rows {self._start}..{self._stop} of 0..{self._shape[0]} were written; all are needed to finish")
        with atomic.disk_errors(self._path):
            by = prediction.identity.method
            root: dict[str, Any] = {
                "format": _FORMAT,
                "target": target.name,
                "target_index": target.index,
                "against_index": target.against,
                "std": list(std),
                "glass": list(glass),
                "prediction": prediction.to_dict(),
                "maps": [_map_to_dict(kind, by, "", c, self._step, self._origin) for c, kind in enumerate(self._channels)],
                "note": RESEARCH_USE,
                # left out if None, so that other results keep their bytes
                **({} if completeness is None else {"completeness": completeness}),
            }
            windows: list[tuple[Method, float, float]] = list(zip(self._channels, self._low.tolist(), self._high.tolist(), strict=True))
            shape = prediction.shape
            coarse = self._channels == ("evidence",)  # by Grad-CAM, whose step is that of the features
            grid = (prediction.region.height / shape[0], prediction.region.width / shape[1]) if coarse else self._step
            mpp = level0_mpp(prediction, grid)
            image = _finish_image(self._group, windows, self._step, self._origin, mpp)
            if evidence is not None:
                group = self._group.create_group("evidence")
                values = np.asarray(evidence.values, np.float32)
                array = _create_level(group, 0, (1, *values.shape))
                for y in range(0, values.shape[0], _CHUNK):
                    _put(array, y, values[None, y : y + _CHUNK])
                windows = [("evidence", min(0.0, float(values.min())), max(0.0, float(values.max())))]
                group.attrs["ome"] = _finish_image(group, windows, evidence.step, evidence.origin, mpp)
                root["maps"].append(_map_to_dict("evidence", by, "evidence", 0, evidence.step, evidence.origin))
            self._group.attrs.update({"streamview": root, "ome": image})
        self._complete = True

    def place(self) -> Saliency:
        """Move the completed result into its place; one stored there before is replaced.

        Returns
        -------
        Saliency
            Opened from disk, with lazy maps.

        Raises
        ------
        ValueError
            When it is not complete.
        StreamviewError
            When the place may not be written.
        """
        if not self._complete:
            raise ValueError(f"{self._path}: only a completed result may take its place")
        atomic.replace(self._temporary, self._path)
        return open_saliency(self._path)

    def finish(
        self,
        prediction: Prediction,
        *,
        target: Target,
        std: tuple[float, ...],
        glass: tuple[int, int, int],
        evidence: SaliencyMap | None = None,
        completeness: float | None = None,
    ) -> Saliency:
        """Do both: `complete`, then `place`."""
        self.complete(prediction, target=target, std=std, glass=glass, evidence=evidence, completeness=completeness)
        return self.place()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        atomic.discard(self._temporary)


def save_saliency(saliency: Saliency, path: str | os.PathLike[str]) -> Saliency:
    """Store a saliency held in memory; see `MapWriter`.

    Raises
    ------
    StreamviewError
        When the disk is full or the place may not be written.
    """
    evidence = saliency.maps.get("evidence")
    fine = [saliency_map for method, saliency_map in saliency.maps.items() if method != "evidence"]
    if not fine and evidence is not None:  # by Grad-CAM
        fine, evidence = [evidence], None
    shape = fine[0].values.shape
    methods = tuple(saliency_map.method for saliency_map in fine)
    with MapWriter(path, (shape[0], shape[1]), step=fine[0].step, origin=fine[0].origin, channels=methods) as writer:
        for y in range(0, shape[0], _CHUNK):
            writer.write(y, np.stack([np.asarray(saliency_map.values[y : y + _CHUNK], np.float32) for saliency_map in fine]))
        return writer.finish(
            saliency.prediction,
            target=saliency.target,
            std=saliency.std,
            glass=saliency.glass,
            evidence=evidence,
            completeness=saliency.completeness,
        )


def open_saliency(path: str | os.PathLike[str]) -> Saliency:
    """Open a stored saliency; its maps are read lazily.

    Raises
    ------
    StreamviewError
        When nothing is there, or it is not a saliency written by this program.
    """
    path = Path(path)
    remedy = "expected a saliency map written by `streamview saliency`"
    if not path.exists():
        raise StreamviewError(f"{path}: no such folder; {remedy}")
    try:
        group = zarr.open_group(path, mode="r")
        root: Any = group.attrs["streamview"]
        if root["format"] != _FORMAT:
            raise StreamviewError(f"{path}: saliency format {root['format']}, this version reads {_FORMAT}; use a newer streamview")
        red, green, blue = root["glass"]
        prediction = Prediction.from_dict(root["prediction"])
        return Saliency(
            prediction=prediction,
            target=Target(root["target"], root["target_index"], root.get("against_index")),
            std=tuple(root["std"]),
            glass=(red, green, blue),
            maps={entry["method"]: _open_map(group, entry, prediction.identity.method) for entry in root["maps"]},
            path=path,
            completeness=root.get("completeness"),
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise StreamviewError(f"{path}: not a readable saliency map ({type(error).__name__}: {error}); {remedy}") from error


def _open_map(group: zarr.Group, entry: Mapping[str, Any], by: str | None) -> SaliencyMap:
    if entry["method"] not in get_args(Method):
        raise ValueError(f"unknown map {entry['method']!r}")
    image: Any = group if entry["group"] == "" else group[entry["group"]]
    ome: Any = image.attrs["ome"]
    planes = [Plane(_Channel(image[dataset["path"]], entry["channel"])) for dataset in ome["multiscales"][0]["datasets"]]
    (sy, sx), (oy, ox) = entry["step"], entry["origin"]
    return SaliencyMap(entry["method"], planes[0], (sy, sx), (oy, ox), tuple(planes[1:]), by)


class _Channel:
    """One channel of a stored ``(c, y, x)`` array, read lazily."""

    __slots__ = ("_array", "_channel", "shape")

    def __init__(self, array: zarr.Array[Any], channel: int) -> None:
        self._array, self._channel = array, channel
        self.shape: tuple[int, ...] = array.shape[1:]

    def __getitem__(self, key: tuple[slice, slice]) -> Any:
        return self._array[(self._channel, *key)]


def _map_to_dict(
    method: Method, by: str | None, group: str, channel: int, step: tuple[float, float], origin: tuple[float, float]
) -> dict[str, Any]:
    return {
        "method": method,
        "reduction": reduction_of(method, by),
        "group": group,
        "channel": channel,
        "step": list(step),
        "origin": list(origin),
    }


def _create_level(group: zarr.Group, level: int, shape: tuple[int, int, int]) -> zarr.Array[Any]:
    shard = _CHUNK * min(_SHARD_CHUNKS, -(-shape[2] // _CHUNK))
    return group.create_array(
        str(level),
        shape=shape,
        dtype=np.float32,
        chunks=(1, _CHUNK, _CHUNK),
        shards=(1, _CHUNK, shard),
        compressors=_COMPRESSOR,
        fill_value=np.nan,  # what was not computed takes no space
        dimension_names=("c", "y", "x"),
    )


def _finish_image(
    group: zarr.Group,
    windows: list[tuple[Method, float, float]],
    step: tuple[float, float],
    origin: tuple[float, float],
    mpp: tuple[float, float] | None,
) -> dict[str, Any]:
    """Build the levels above level 0 and return the ``ome`` attribute; `windows` are the lowest and highest value of each channel."""
    count = 1
    shape: tuple[int, ...] = group["0"].shape  # type: ignore[union-attr]
    while max(shape[1:]) > _CHUNK:
        shape = _build_level(group, count)
        count += 1
    unit: dict[str, str] = {} if mpp is None else {"unit": "micrometer"}
    my, mx = (1.0, 1.0) if mpp is None else mpp
    datasets = []
    for level in range(count):
        (sy, sx), (oy, ox) = SaliencyMap(windows[0][0], Plane(np.empty((0, 0), np.float32)), step, origin).placed(level)
        transforms = [
            {"type": "scale", "scale": [1.0, sy * my, sx * mx]},
            {"type": "translation", "translation": [0.0, oy * my, ox * mx]},
        ]
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space", **unit}, {"name": "x", "type": "space", **unit}]
    channels = [
        {
            "label": method,
            "color": "D7FF3E",
            "active": c == 0,
            "window": {"min": low, "max": high, "start": max(low, 0.0), "end": high if high > 0 else 1.0},
        }
        for c, (method, low, high) in enumerate(windows)
    ]
    return {"version": "0.5", "multiscales": [{"name": "saliency", "axes": axes, "datasets": datasets}], "omero": {"channels": channels}}


def _build_level(group: zarr.Group, level: int) -> tuple[int, ...]:
    """Write one level as 2x block means of the one below, a shard at a time; blocks at the edge average the pixels they have."""
    below: Any = group[str(level - 1)]
    channels, height, width = below.shape
    array = _create_level(group, level, (channels, -(-height // 2), -(-width // 2)))
    for y in range(0, array.shape[1], _CHUNK):
        for channel, columns in _shards(array):
            source = below[channel, 2 * y : 2 * (y + _CHUNK), 2 * columns.start : 2 * columns.stop]
            if not _empty(source):
                array[channel, y : y + _CHUNK, columns] = halve(source)
    return array.shape


def _put(array: zarr.Array[Any], y: int, rows: NDArray[np.float32]) -> None:
    """Write whole rows of chunks, one shard after the other: a write that fails then leaves none under way behind it."""
    for channel, columns in _shards(array):
        if not _empty(rows[channel, :, columns]):
            array[channel, y : y + rows.shape[1], columns] = rows[channel, :, columns]


def _empty(values: NDArray[np.float32]) -> bool:
    """Whether nothing was computed of a shard (h, w), which is then left out."""
    return bool(np.isnan(values[0, 0]) and np.isnan(values).all())


def _shards(array: zarr.Array[Any]) -> Iterator[tuple[int, slice]]:
    """Yield channel and columns of each shard of one row of chunks."""
    wide = _CHUNK * _SHARD_CHUNKS
    for channel in range(array.shape[0]):
        for x in range(0, array.shape[2], wide):
            yield channel, slice(x, min(x + wide, array.shape[2]))
