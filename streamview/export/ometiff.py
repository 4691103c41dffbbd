"""A map as a pyramidal float32 OME-TIFF (https://docs.openmicroscopy.org/ome-model/), at the right place and size in QuPath."""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from streamview.files import atomic
from streamview.progress import Progress, Report
from streamview.results import RESEARCH_USE, Method, Plane, Saliency
from streamview.results.maps import halve

__all__ = ["write_ome_tiff"]

_TILE = 512
_BUFFER = 2**24  # bytes compressed at a time


def write_ome_tiff(saliency: Saliency, method: Method, path: str | os.PathLike[str], report: Report | None = None) -> Path:
    """Write one map: BigTIFF, tiles of 512 px, zlib with the predictor for floats, coarser levels in SubIFDs, in bounded memory.

    ``PhysicalSize`` is the size of the map's pixel in um, and the plane's ``Position`` that of its top left corner, in um from the
    slide's; both are left out if the mpp is unknown. A map annotation states the same in level-0 pixels, and the identity.

    Parameters
    ----------
    saliency
        In memory, or opened from disk and then read tile by tile.
    method
        The map.
    path
        The file; written completely or not at all.
    report
        Called after every tile; may raise `Cancelled`.

    Raises
    ------
    StreamviewError
        If the disk is full or `path` cannot be written.
    """
    path, saliency_map = Path(path), saliency.maps[method]
    levels = list(saliency_map.levels)
    while max(levels[-1].shape) > _TILE:
        levels.append(Plane(halve(np.asarray(levels[-1]))))
    mpp, metadata = saliency.mpp, _metadata(saliency, method)
    progress = Progress("OME-TIFF", sum(math.ceil(h / _TILE) * math.ceil(w / _TILE) for h, w in (level.shape for level in levels)), report)
    with atomic.replacing(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=True, ome=True) as writer:
        for number, level in enumerate(levels):
            options: dict[str, Any] = {"subfiletype": 1} if number else {"subifds": len(levels) - 1, "metadata": metadata}
            if mpp is not None:
                pitch = mpp[0] * saliency_map.step[0] * 2**number, mpp[1] * saliency_map.step[1] * 2**number
                options |= {"resolution": (1e4 / pitch[1], 1e4 / pitch[0]), "resolutionunit": "CENTIMETER"}
            writer.write(
                _tiles(level, progress),
                shape=level.shape,
                dtype=np.float32,
                tile=(_TILE, _TILE),
                photometric="minisblack",
                compression="zlib",
                predictor="floatingpoint",
                software="streamview",
                buffersize=_BUFFER,
                **options,
            )
    return path


def _tiles(level: Plane, progress: Progress) -> Iterator[NDArray[np.float32]]:
    """Yield whole tiles, row by row, padded with zeros at the edge, which readers do not show."""
    height, width = level.shape
    for y in range(0, height, _TILE):
        for x in range(0, width, _TILE):
            piece = np.asarray(level[y : y + _TILE, x : x + _TILE], np.float32)
            progress.advance()
            yield np.pad(piece, ((0, _TILE - piece.shape[0]), (0, _TILE - piece.shape[1])))


def _metadata(saliency: Saliency, method: Method) -> dict[str, Any]:
    prediction, saliency_map, mpp = saliency.prediction, saliency.maps[method], saliency.mpp
    (sy, sx), (oy, ox) = saliency_map.step, saliency_map.origin
    top, left = oy - sy / 2 + 0.5, ox - sx / 2 + 0.5
    description = f"{saliency_map.reduction}; target {saliency.target.name}; network {prediction.model_name}"
    description += "" if prediction.trained else " (untrained, random weights)"
    facts = {
        "slide": prediction.slide_name,
        "region X,Y,WIDTH,HEIGHT in level-0 px": str(prediction.region),
        "top left corner X,Y in level-0 px": f"{left:.9g},{top:.9g}",
        "pixel X,Y in level-0 px": f"{sx:.9g},{sy:.9g}",
        "map": method,
        "reduction": saliency_map.reduction,
        "target": saliency.target.name,
        "answer": prediction.answer_for(saliency.target),
        "model": prediction.model_name,
        "trained": "yes" if prediction.trained else "no",
        "warnings": " ".join(prediction.warnings),
        "weights_sha256": prediction.identity.weights_sha256,
        "identity": prediction.identity.key,
        "note": RESEARCH_USE,
    }
    metadata: dict[str, Any] = {
        "axes": "YX",
        "UUID": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{prediction.identity.key} {method} {saliency.target}")),
        "Name": f"{method} of {saliency.target.name}",
        "Description": f"{RESEARCH_USE} {description}. Identity {prediction.identity.key}.",
        "Channel": {"Name": [method]},
        "MapAnnotation": {"Namespace": "streamview", **facts},
    }
    if mpp is not None:
        place = {"PositionX": [left * mpp[1]], "PositionXUnit": ["µm"], "PositionY": [top * mpp[0]], "PositionYUnit": ["µm"]}
        size = {"PhysicalSizeX": sx * mpp[1], "PhysicalSizeXUnit": "µm", "PhysicalSizeY": sy * mpp[0], "PhysicalSizeYUnit": "µm"}
        metadata |= {"Plane": place, **size}
    return metadata
