"""The records of a job: answers for regions, slides, and runs."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from streamview.geometry import Region
from streamview.networks.suitability import holds_tissue
from streamview.results import RESEARCH_USE, Prediction, Target

__all__ = ["RegionResult", "Run", "SlideRecord", "SlideWork", "StoredMap", "new_run_id", "region_id"]


@dataclass(frozen=True, slots=True)
class StoredMap:
    """The stored maps of one target.

    Parameters
    ----------
    path
        Path of the maps, relative to the job folder.
    target
        The explained target; None in records of the first version, which did not store it.
    picture
        Path of the display PNG relative to the job folder; None if there is none.
    """

    path: str
    target: Target | None = None
    picture: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RegionResult:
    """One region's answer in the job.

    Parameters
    ----------
    prediction
        The answer.
    run_id
        Run that computed it.
    mpp
        ``(y, x)`` um/px of the slide's level 0; None when unknown.
    tissue_covered
        Share (0..1) of the slide's tissue inside the region; None when not measured.
    maps
        Its saliency maps, one entry per target.
    source
        Absolute path or URL of the slide, for viewers; None if it was not a file.
    tissue_share
        Share (0..1) of the region that is tissue; None when not measured.
    aggregation
        The card's aggregation of regions to a slide's answer; None if it states none.
    plan
        How it was computed, as plain JSON values: steps, memory, forecast; None in records of earlier versions, which kept it with the run.
    """

    prediction: Prediction
    run_id: str
    mpp: tuple[float, float] | None = None
    tissue_covered: float | None = None
    maps: tuple[StoredMap, ...] = ()
    source: str | None = None
    tissue_share: float | None = None
    aggregation: str | None = None
    plan: Mapping[str, Any] | None = None

    @property
    def holds_tissue(self) -> bool:
        """Whether the region contains enough tissue to count; True if not measured."""
        if self.tissue_share is None:
            return self.tissue_covered != 0
        height, width = self.prediction.region.shape
        area = None if self.mpp is None else self.tissue_share * height * self.mpp[0] * width * self.mpp[1] / 1e6
        return holds_tissue(self.tissue_share, area)


@dataclass(frozen=True, slots=True)
class SlideWork:
    """What a run was asked to do with one slide, and did: the same is not done twice.

    Parameters
    ----------
    key
        Hash of the slide's identity, the network, the way of choosing regions, the aggregation and what else decides the results.
    regions
        `Identity.key` of the answers.
    policy
        How the regions were chosen, in words; None if the user named the region.
    aggregation
        The stated aggregation of the regions; None for the default.
    tissue_covered
        Share (0..1) of the slide's tissue inside the regions, counted once where they overlap; None when not measured.
    overlapping
        Whether the regions were meant to overlap.
    run_id
        The run that completed it.
    finished
        When, UTC, ISO 8601.
    seconds
        What it took, from opening the slide to its record; the time of an interrupted run before is not included.
    """

    key: str
    regions: tuple[str, ...]
    policy: str | None
    aggregation: str | None
    tissue_covered: float | None
    overlapping: bool
    run_id: str
    finished: str
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class SlideRecord:
    """A job's record of one slide.

    Parameters
    ----------
    slide_id
        File name of the slide, without folder; ``name~digest`` where the job has another slide of this name.
    regions
        Answers, one per identity, oldest first.
    error
        Why the last run failed on it; None if it did not.
    run_id
        Last run that touched it.
    patient_id
        The patient; empty if unknown.
    source
        Absolute path or URL of the slide when last processed; None if unknown.
    identity
        `Slide.identity` at the last answer; None if there was none.
    label
        The true label, as the user's table states it; empty if unknown.
    completed
        Work that was completed, oldest first.
    failed_work
        Key of the work that failed: not tried again unless something changes or the user asks for it; None if nothing failed.
    """

    slide_id: str
    regions: tuple[RegionResult, ...]
    run_id: str
    error: str | None = None
    patient_id: str = ""
    source: str | None = None
    identity: str | None = None
    label: str = ""
    completed: tuple[SlideWork, ...] = ()
    failed_work: str | None = None

    def superseded(self, result: RegionResult) -> str | None:
        """Return why an answer of this record no longer counts; None if it does.

        It was computed from other pixels at this slide's path, or by an earlier version that recorded less and recomputed since.
        """
        identity = result.prediction.identity
        if self.identity is not None and identity.source != self.identity:
            return f"the slide was replaced by another (this answer is for identity {identity.source[:12]})"
        if identity.sampling is None and any(
            _recorded_of_old(other) == _recorded_of_old(result)
            for other in self.regions
            if other.prediction.identity.sampling is not None and other.mpp == result.mpp
        ):
            return "recomputed by a later version"
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        regions = [
            {
                "run_id": result.run_id,
                "mpp": None if result.mpp is None else list(result.mpp),
                "tissue_covered": result.tissue_covered,
                "maps": [asdict(stored) for stored in result.maps],
                "source": result.source,
                "tissue_share": result.tissue_share,
                "aggregation": result.aggregation,
                "plan": None if result.plan is None else dict(result.plan),
                "prediction": result.prediction.to_dict(),
            }
            for result in self.regions
        ]
        return {
            "slide_id": self.slide_id,
            "patient_id": self.patient_id,
            "label": self.label,
            "status": "ok" if self.error is None else "failed",
            "error": self.error,
            "run_id": self.run_id,
            "source": self.source,
            "identity": self.identity,
            "completed": [asdict(work) for work in self.completed],
            "failed_work": self.failed_work,
            "regions": regions,
            "note": RESEARCH_USE,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SlideRecord:
        """Inverse of `to_dict`."""
        regions = []
        for entry in values["regions"]:
            regions.append(
                RegionResult(
                    Prediction.from_dict(entry["prediction"]),
                    entry["run_id"],
                    None if entry["mpp"] is None else tuple(entry["mpp"]),
                    entry["tissue_covered"],
                    _stored_maps(entry),
                    entry["source"],
                    entry.get("tissue_share"),
                    entry.get("aggregation"),
                    entry.get("plan"),
                )
            )
        source, identity = values.get("source"), values.get("identity")
        if regions and "identity" not in values:  # as in records of earlier versions
            source, identity = regions[-1].source, regions[-1].prediction.identity.source
        slide_id, run_id, error, patient_id = (values[key] for key in ("slide_id", "run_id", "error", "patient_id"))
        completed = tuple(SlideWork(**{**work, "regions": tuple(work["regions"])}) for work in values.get("completed", ()))
        label, failed_work = values.get("label", ""), values.get("failed_work")
        return cls(slide_id, tuple(regions), run_id, error, patient_id, source, identity, label, completed, failed_work)


def _recorded_of_old(result: RegionResult) -> tuple[object, ...]:
    """The parts of an answer's identity that every version recorded."""
    identity = result.prediction.identity
    return (
        *(identity.weights_sha256, identity.card_sha256, identity.source, identity.region),
        *(identity.mpp, identity.precision, identity.padded),
    )


def _stored_maps(entry: Mapping[str, Any]) -> tuple[StoredMap, ...]:
    """The maps of a region's record; the first version named one map and its picture."""
    if "maps" not in entry:
        return () if entry["saliency"] is None else (StoredMap(entry["saliency"], None, entry["picture"]),)
    return tuple(
        StoredMap(stored["path"], None if stored["target"] is None else Target(**stored["target"]), stored["picture"])
        for stored in entry["maps"]
    )


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """How one command ran; none of it changes a result except by rounding.

    Parameters
    ----------
    run_id
        From `new_run_id`.
    command
        The command line's arguments.
    device
        The device really used, in words.
    started, finished
        UTC times, ISO 8601; `finished` is None while it runs.
    seconds, peak_bytes
        What it took; None while it runs.
    answered, skipped
        How many slides it answered, and how many were answered before.
    failed
        Names of the slides that failed, now or before.
    """

    run_id: str
    command: tuple[str, ...]
    device: str
    started: str
    finished: str | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    answered: int = 0
    skipped: int = 0
    failed: tuple[str, ...] = ()


def new_run_id() -> str:
    """Return a name for a run that sorts by time and is unique: ``20261121-093000-1a2b3c``."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def region_id(region: Region) -> str:
    """Name of a region in tables and file names, in level-0 pixels: ``x0-y256-w8192-h4096``."""
    return f"x{region.x}-y{region.y}-w{region.width}-h{region.height}"
