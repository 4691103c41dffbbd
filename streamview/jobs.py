"""The job folder: what a command leaves behind, readable by people, spreadsheets and later runs.

::

    job/ predictions.csv  summary.md  runs/<run-id>.json  slides/<slide>.json
         saliency/<slide>/<region>.ome.zarr, or <region>-<target>.ome.zarr where several targets were asked for
         certificates/<pixels>-<weights>.json

``slides/*.json`` are the record; ``predictions.csv`` and ``summary.md`` are written from them after every slide, so that a crash loses at
most the slide it fell on. Every file appears whole or not at all.
"""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import os
import platform
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from streamview import atomic
from streamview.errors import StreamviewError
from streamview.geometry import Region
from streamview.results import RESEARCH_USE, Prediction, Target

__all__ = ["AGGREGATION", "Job", "RegionResult", "Run", "SlideRecord", "StoredMap", "in_words", "new_run_id", "region_id", "versions"]

AGGREGATION = "mean of the regions' logits, unweighted"
_AGGREGATE = "aggregate"
_NAME = 40  # letters of a target in a file name
_PACKAGES = ("streamview", "torch", "numpy", "zarr", "tifffile", "openslide-python", "openslide-bin")


@dataclass(frozen=True, slots=True)
class StoredMap:
    """Where the maps of one target are.

    Parameters
    ----------
    path
        Of the maps, relative to the job folder.
    target
        What they explain; None in records of the first version, which did not say.
    picture
        Path of the display PNG relative to the job folder; None when there is none.
    """

    path: str
    target: Target | None = None
    picture: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RegionResult:
    """One region's answer as the job keeps it.

    Parameters
    ----------
    prediction
        The answer.
    run_id
        Run that made it.
    mpp
        ``(y, x)`` um/px of the slide's level 0; None when unknown.
    tissue_covered
        Share (0..1) of the slide's tissue inside the region; None when not measured.
    maps
        Its saliency maps, one entry a target.
    source
        Absolute path of the slide, so that a viewer finds it; None when it was no file.
    """

    prediction: Prediction
    run_id: str
    mpp: tuple[float, float] | None = None
    tissue_covered: float | None = None
    maps: tuple[StoredMap, ...] = ()
    source: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class SlideRecord:
    """All that a job knows of one slide.

    Parameters
    ----------
    slide_id
        File name of the slide, without folder.
    regions
        Answers, one a region and network, oldest first.
    error
        Why the last run failed on it; None when it did not.
    run_id
        Last run that touched it.
    patient_id
        As given with the slides; empty when unknown.
    """

    slide_id: str
    regions: tuple[RegionResult, ...]
    run_id: str
    error: str | None = None
    patient_id: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        regions = [
            {
                "run_id": result.run_id,
                "mpp": None if result.mpp is None else list(result.mpp),
                "tissue_covered": result.tissue_covered,
                "maps": [asdict(stored) for stored in result.maps],
                "source": result.source,
                "prediction": result.prediction.to_json(),
            }
            for result in self.regions
        ]
        return {
            "slide_id": self.slide_id,
            "patient_id": self.patient_id,
            "status": _status(self),
            "error": self.error,
            "run_id": self.run_id,
            "aggregation": AGGREGATION,
            "regions": regions,
            "note": RESEARCH_USE,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SlideRecord:
        """Inverse of `to_json`."""
        regions = []
        for entry in values["regions"]:
            regions.append(
                RegionResult(
                    Prediction.from_json(entry["prediction"]),
                    entry["run_id"],
                    None if entry["mpp"] is None else tuple(entry["mpp"]),
                    entry["tissue_covered"],
                    _stored_maps(entry),
                    entry["source"],
                )
            )
        return cls(values["slide_id"], tuple(regions), values["run_id"], values["error"], values["patient_id"])


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
    plan
        Step shape, forecast and budget, as plain JSON values.
    started, finished
        UTC times, ISO 8601; `finished` is None while it runs.
    seconds, peak_bytes
        What it took; None while it runs.
    failed
        Names of the slides that failed.
    """

    run_id: str
    command: tuple[str, ...]
    device: str
    plan: Mapping[str, Any]
    started: str
    finished: str | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    failed: tuple[str, ...] = ()


def new_run_id() -> str:
    """Return a name for a run that sorts by time and is unique: ``20261121-093000-1a2b3c``."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def region_id(region: Region) -> str:
    """Name of a region in tables and file names, in level-0 pixels: ``x0-y256-w8192-h4096``."""
    return f"x{region.x}-y{region.y}-w{region.width}-h{region.height}"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result's rounding; a missing one is left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class Job:
    """A job folder, made when it is first written to.

    Parameters
    ----------
    folder
        Its path; an existing job is added to.

    Raises
    ------
    StreamviewError
        When the path is a file.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise StreamviewError(f"{self.folder}: is a file; a job needs a folder, choose another output")

    def saliency_path(self, slide_id: str, region: Region, target: Target | None = None) -> Path:
        """Where the maps of a region belong; with `target`, those of one target of several."""
        return self.folder / "saliency" / slide_id / f"{region_id(region)}{_suffix(target)}.ome.zarr"

    def picture_path(self, slide_id: str, region: Region, preset: str, target: Target | None = None) -> Path:
        """Where the display PNG of a region belongs; with `target`, that of one target of several."""
        return self.folder / "saliency" / slide_id / f"{region_id(region)}{_suffix(target)}-{preset}.png"

    def certificate_path(self, what: str, weights_sha256: str) -> Path:
        """Where an exactness certificate belongs; `what` names its pixels: a slide and region, or ``"random"``."""
        return self.folder / "certificates" / f"{what}-{weights_sha256[:12]}.json"

    def slides(self) -> list[SlideRecord]:
        """Return all slides of the job, by name.

        Raises
        ------
        StreamviewError
            When a record is damaged.
        """
        return [self._read(path) for path in sorted((self.folder / "slides").glob("*.json"))]

    def add(self, result: RegionResult, *, patient_id: str = "") -> None:
        """Record one region's answer; it replaces an earlier one of the same identity, whose maps of other targets stay.

        Raises
        ------
        StreamviewError
            When the disk is full or the slide's record is damaged.
        """
        prediction = result.prediction
        record = self._known(prediction.slide_name)
        kept = [other for other in record.regions if other.prediction.identity.key != prediction.identity.key]
        earlier = [stored for other in record.regions if other not in kept for stored in other.maps]
        paths, targets = {stored.path for stored in result.maps}, {stored.target for stored in result.maps}
        earlier = [stored for stored in earlier if stored.path not in paths and (stored.target is None or stored.target not in targets)]
        result = replace(result, maps=(*result.maps, *(stored for stored in earlier if (self.folder / stored.path).is_dir())))
        self._write(replace(record, regions=(*kept, result), run_id=result.run_id, error=None, patient_id=patient_id or record.patient_id))

    def fail(self, slide_id: str, error: str, run_id: str, *, patient_id: str = "") -> None:
        """Record that a slide failed; answers of earlier runs stay.

        Raises
        ------
        StreamviewError
            When the disk is full or the slide's record is damaged.
        """
        record = self._known(slide_id)
        one_line = " ".join(error.split())
        self._write(replace(record, run_id=run_id, error=one_line, patient_id=patient_id or record.patient_id))

    def record_run(self, run: Run) -> Path:
        """Write ``runs/<run-id>.json``, replacing the run's earlier state, and return its path."""
        path = self.folder / "runs" / f"{run.run_id}.json"
        _write_json(path, asdict(run) | {"versions": versions(), "platform": platform.platform(), "note": RESEARCH_USE})
        return path

    def _known(self, slide_id: str) -> SlideRecord:
        path = self._slide_path(slide_id)
        return self._read(path) if path.exists() else SlideRecord(slide_id, (), "")

    def _slide_path(self, slide_id: str) -> Path:
        return self.folder / "slides" / f"{slide_id}.json"

    def _read(self, path: Path) -> SlideRecord:
        try:
            return SlideRecord.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StreamviewError(
                f"{path}: damaged record ({type(error).__name__}: {error}); delete it and run this slide again"
            ) from error

    def _write(self, record: SlideRecord) -> None:
        _write_json(self._slide_path(record.slide_id), record.to_json())
        records = self.slides()
        atomic.write_text(self.folder / "predictions.csv", _table(records))
        atomic.write_text(self.folder / "summary.md", _summary(records))


def _suffix(target: Target | None) -> str:
    """What tells the files of one target from those of others: its indices, which are unique on any file system, and its name."""
    if target is None:
        return ""
    index = f"{target.index}" if target.against is None else f"{target.index}v{target.against}"
    name = re.sub(r"[^\w.+-]+", "_", target.name, flags=re.ASCII)[:_NAME].strip("._-")
    return f"-{index}-{name}" if name else f"-{index}"


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    atomic.write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _status(record: SlideRecord) -> str:
    return "ok" if record.error is None else "failed"


def _by_network(record: SlideRecord) -> list[list[RegionResult]]:
    """Group a slide's answers by the network that gave them, its precision and its padding."""
    groups: dict[tuple[object, ...], list[RegionResult]] = {}
    for result in record.regions:
        identity = result.prediction.identity
        groups.setdefault((identity.weights_sha256, identity.card_sha256, identity.precision, identity.padded), []).append(result)
    return list(groups.values())


def _aggregate(results: list[RegionResult]) -> Prediction:
    logits = np.asarray(np.mean([result.prediction.logits for result in results], axis=0, dtype=np.float64), np.float32)
    return replace(results[-1].prediction, logits=logits)


def _covered(results: list[RegionResult]) -> float | None:
    """Tissue inside the regions; known for one region only, as several may overlap."""
    return results[0].tissue_covered if len(results) == 1 else None


def _table(records: Iterable[SlideRecord]) -> str:
    """Write the table: one row per region, one aggregate row per slide and network, one row per failure."""
    rows = [row for record in records for row in _rows(record)]
    names = list(dict.fromkeys(key for row in rows for key in row if key.startswith(("prob_", "logit_"))))
    probabilities = [name for name in names if name.startswith("prob_")]
    columns = [
        *["slide_id", "patient_id", "region_id", "level", "x", "y", "width", "height", "mpp", "width_um", "tissue_covered", "prediction"],
        *probabilities,
        *(name for name in names if name not in probabilities),
        *["model_id", "weights_sha256", "run_id", "status", "error", "maps", "precision"],
    ]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _rows(record: SlideRecord) -> Iterable[dict[str, str]]:
    slide = {"slide_id": record.slide_id, "patient_id": record.patient_id}
    for results in _by_network(record):
        for result in results:
            prediction, region = result.prediction, result.prediction.region
            place = {key: str(getattr(region, key)) for key in ("level", "x", "y", "width", "height")}
            if result.mpp is not None:
                place |= {"mpp": f"{result.mpp[1]:.6g}", "width_um": f"{region.width * result.mpp[1]:.6g}"}
            named = {"maps": "; ".join(_named(stored) for stored in result.maps)}
            yield slide | {"region_id": region_id(region)} | place | _answer(prediction, result.run_id, result.tissue_covered) | named
        yield slide | {"region_id": _AGGREGATE} | _answer(_aggregate(results), results[-1].run_id, _covered(results))
    if record.error is not None:
        yield slide | {"region_id": _AGGREGATE, "run_id": record.run_id, "status": "failed", "error": record.error}


def _named(stored: StoredMap) -> str:
    return stored.path if stored.target is None else stored.target.name


def _answer(prediction: Prediction, run_id: str, tissue_covered: float | None) -> dict[str, str]:
    values = {
        "tissue_covered": "" if tissue_covered is None else f"{tissue_covered:.4f}",
        "prediction": prediction.label or "",
        "model_id": prediction.model_name,
        "weights_sha256": prediction.identity.weights_sha256,
        "precision": prediction.identity.precision,
        "run_id": run_id,
        "status": "ok",
    }
    if prediction.probabilities is not None:
        values |= {f"prob_{name}": str(p) for name, p in zip(prediction.class_names, prediction.probabilities, strict=True)}
    return values | {f"logit_{name}": str(logit) for name, logit in zip(prediction.class_names, prediction.logits, strict=True)}


def _summary(records: list[SlideRecord]) -> str:
    """Write the job for a person: one line per slide and network, then failures and warnings."""
    failed = [record for record in records if record.error is not None]
    lines = [
        "# Job summary",
        "",
        f"**{RESEARCH_USE}**",
        "",
        f"{len(records)} slides, {len(failed)} failed. A slide's answer is the {AGGREGATION}; it speaks for the regions read, not for "
        "tissue outside them.",
        "",
        "| slide | network | prediction | regions | tissue covered |",
        "|---|---|---|---|---|",
    ]
    maps: list[str] = []
    warnings: dict[str, None] = {}
    for record in records:
        for result in record.regions:
            for stored in result.maps:
                of = "" if stored.target is None else f"{stored.target} ({result.prediction.answer_for(stored.target)}), "
                maps.append(f"{record.slide_id} {region_id(result.prediction.region)}: {of}{stored.path}")
        for results in _by_network(record):
            answer, covered = _aggregate(results), _covered(results)
            network = answer.model_name if answer.trained else f"{answer.model_name} (untrained, random weights)"
            network += "" if answer.identity.precision == "float32" else f", {answer.identity.precision}"
            share = "not measured" if covered is None else f"{covered:.1%}"
            lines.append(f"| {record.slide_id} | {network} | {in_words(answer)} | {len(results)} | {share} |")
            warnings |= dict.fromkeys(f"{record.slide_id}: {warning}" for result in results for warning in result.prediction.warnings)
    errors = [f"{record.slide_id}: {record.error}" for record in failed]
    for title, items in (("Failed", errors), ("Maps", maps), ("Warnings", list(warnings))):
        if items:
            lines += ["", f"## {title}", "", *(f"- {item}" for item in items)]
    return "\n".join(lines) + "\n"


def in_words(prediction: Prediction) -> str:
    """Say an answer in one line: label and probability, every present label, or the values of a regression."""
    probabilities = prediction.probabilities
    if probabilities is None:
        return ", ".join(f"{name} = {logit:.4g}" for name, logit in zip(prediction.class_names, prediction.logits, strict=True))
    if prediction.task == "class":
        return f"{prediction.label} (p = {probabilities.max():.3f})"
    return prediction.label or "none of the classes"
