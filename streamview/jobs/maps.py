"""The maps of a slide in a job, as they are shown and exported: those of regions that were chosen together as one map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from streamview.errors import StreamviewError
from streamview.files import atomic
from streamview.jobs.aggregation import aggregate, by_policy
from streamview.jobs.folder import Job, suffix
from streamview.jobs.records import RegionResult, SlideRecord, StoredMap
from streamview.results import Saliency, open_saliency
from streamview.results.stitching import stitch

__all__ = ["SlideMap", "picture_path", "slide_maps"]


@dataclass(frozen=True, slots=True, eq=False)
class SlideMap:
    """The maps of one target for a slide, or for a region named by the user.

    Parameters
    ----------
    name
        Unique in the slide, for file names.
    saliency
        The maps; of several regions stitched, see `streamview.results.stitching.stitch`.
    result
        The answer of the region, or of the last of several.
    stored
        The stored maps it consists of.
    """

    name: str
    saliency: Saliency
    result: RegionResult
    stored: tuple[StoredMap, ...]


def slide_maps(job: Job, record: SlideRecord) -> list[list[SlideMap]]:
    """Open the maps of a slide: one list per region, or per group of regions chosen together, with a map per target.

    Parameters
    ----------
    job, record
        The job, and the slide's record in it.

    Raises
    ------
    StreamviewError
        If a map is damaged, or its record names a place outside the job.
    """
    shown: list[list[SlideMap]] = []
    grouped: set[str] = set()
    for group in by_policy(record):
        if group.work is None or len(group.results) < 2:
            continue
        by_target: dict[object, list[tuple[RegionResult, StoredMap]]] = {}
        for result in group.results:
            for stored in result.maps:
                by_target.setdefault(stored.target, []).append((result, stored))
        answer = aggregate(group).prediction
        maps = []
        for parts in by_target.values():
            results, entries = zip(*parts, strict=True)
            if all(stored.path in grouped for stored in entries):  # put together before, with another aggregation
                continue
            opened = [open_saliency(_inside(job, stored)) for stored in entries]
            name = f"slide-{group.work.key[:8]}{suffix(entries[0].target)}"
            saliency = opened[0] if len(opened) == 1 else stitch(opened, answer or opened[0].prediction)
            maps.append(SlideMap(name, saliency, results[-1], entries))
            grouped |= {stored.path for stored in entries}
        if maps:
            shown.append(maps)
    for result in record.regions:
        maps = []
        for stored in result.maps:
            if stored.path not in grouped:
                grouped.add(stored.path)
                name = Path(stored.path).name.removesuffix(".ome.zarr")
                maps.append(SlideMap(name, open_saliency(_inside(job, stored)), result, (stored,)))
        if maps:
            shown.append(maps)
    return shown


def picture_path(job: Job, maps: Sequence[StoredMap], name: str, preset: str) -> Path:
    """Path of the picture of stitched maps: beside those that they are stitched of."""
    return (job.folder / maps[0].path).parent / f"{atomic.safe_stem(name)}-{preset}.png"


def _inside(job: Job, stored: StoredMap) -> Path:
    """Path of a map, checked to be inside the job: a damaged or malicious record may name any path."""
    path = job.folder / stored.path
    if not path.resolve().is_relative_to(job.folder.resolve()):
        raise StreamviewError(f"{stored.path}: a map that this job's record names lies outside {job.folder}; run this slide again")
    return path
