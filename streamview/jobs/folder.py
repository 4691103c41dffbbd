"""Read and change a job folder, safely from several processes at once."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from streamview.errors import JobWarning, StreamviewError
from streamview.files import atomic
from streamview.files.leases import Lease, claim, hold
from streamview.geometry import Region
from streamview.jobs.records import RegionResult, Run, SlideRecord, SlideWork, region_id
from streamview.jobs.summary import summary
from streamview.jobs.tables import write_tables
from streamview.results import RESEARCH_USE, Target
from streamview.system.versions import versions

__all__ = ["Job", "suffix"]

_NAME = 40  # characters of a target in a file name


class Job:
    """A job folder, created at the first write. Several processes may add to it at once.

    Parameters
    ----------
    folder
        Its path; results are added to an existing job.

    Raises
    ------
    StreamviewError
        If the path is a file, or lies in an OME-Zarr image.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        with atomic.disk_errors(self.folder):
            if self.folder.exists() and not self.folder.is_dir():
                raise StreamviewError(f"{self.folder}: is a file, but a job is a folder; choose another output")
            atomic.check_output(self.folder)

    def saliency_path(self, slide_id: str, region: Region, target: Target | None = None, method: str = "") -> Path:
        """Path of a region's maps; with `target`, of one target of several; with the tag of a `method`, of maps by that."""
        return self._maps_folder(slide_id) / f"{region_id(region)}{suffix(target)}{method and f'-{method}'}.ome.zarr"

    def picture_path(self, slide_id: str, region: Region, preset: str, target: Target | None = None, method: str = "") -> Path:
        """Path of a region's display PNG; `target` and `method` as for `saliency_path`."""
        return self._maps_folder(slide_id) / f"{region_id(region)}{suffix(target)}{method and f'-{method}'}-{preset}.png"

    def _maps_folder(self, slide_id: str) -> Path:
        return self.folder / "saliency" / atomic.safe_stem(slide_id)

    def certificate_path(self, what: str, weights_sha256: str) -> Path:
        """Path of an exactness certificate; `what` names its pixels: a slide and region, or ``"random"``."""
        return self.folder / "certificates" / f"{atomic.safe_stem(what)}-{weights_sha256[:12]}.json"

    def slides(self) -> list[SlideRecord]:
        """Return all slides of the job whose records can be read, by name; a `JobWarning` names each of the others.

        Raises
        ------
        StreamviewError
            When the folder cannot be read.
        """
        records, damaged = self.records()
        for stem, error in damaged.items():
            warnings.warn(f"{self.folder / 'slides' / stem}.json: {error}", JobWarning, stacklevel=1)
        return records

    def records(self) -> tuple[list[SlideRecord], dict[str, str]]:
        """Return the records of all slides, and the errors of those that cannot be read, by file stem.

        Raises
        ------
        StreamviewError
            When the folder cannot be read.
        """
        records, damaged = [], {}
        with atomic.disk_errors(self.folder):
            # hidden files belong to file managers or to writes in progress
            paths = sorted(path for path in (self.folder / "slides").glob("*.json") if not path.name.startswith("."))
        for path in paths:
            try:
                records.append(_read(path))
            except _DAMAGED as error:
                damaged[path.stem] = _damage(error)
        return records, damaged

    def slide_id(self, name: str, source: str | None = None, identity: str | None = None, *, shared: bool = False) -> str:
        """Return the id that a slide has, or will have, in this job: its name, or ``name~digest`` if another slide has that name.

        Slides are the same if their paths or their pixels are. A slide replaced under its path keeps the id; earlier answers are then
        superseded.

        Parameters
        ----------
        name
            File name.
        source
            Absolute path or URL; None if it is not a file.
        identity
            `Slide.identity`; None if it cannot be read.
        shared
            Whether another slide of this name is to be expected, so that the id does not depend on which comes first.
        """
        if source is None:
            return name
        place = source if "://" in source else os.path.realpath(source)
        own = f"{name}~{hashlib.sha256(place.encode(errors='surrogatepass')).hexdigest()[:8]}"
        if self._slide_path(own).exists():
            return own
        record = self._known(name)
        if record is None or record.source is None:
            return own if shared and record is None else name
        same_place = place == (record.source if "://" in record.source else os.path.realpath(record.source))
        return name if same_place or (identity is not None and identity == record.identity and not shared) else own

    def maps_id(self, slide_id: str, identity: str) -> str:
        """Return the id under which a slide's maps are stored: a different one if the job has maps of other pixels under this id."""
        record = self._known(slide_id)
        others = record is not None and any(result.maps and result.prediction.identity.source != identity for result in record.regions)
        return f"{slide_id}~{identity[:12]}" if others else slide_id

    def record(self, slide_id: str) -> SlideRecord:
        """The record of a slide; without answers if there is no readable one."""
        return self._known(slide_id) or SlideRecord(slide_id, (), "")

    def claim(self, slide_id: str, run_id: str) -> Lease | None:
        """Take a slide to work on; None if another process works on it.

        Raises
        ------
        StreamviewError
            When the folder cannot be written.
        """
        return claim(self.folder / "leases" / f"slide {slide_id}", run_id)

    def add(self, result: RegionResult, *, slide_id: str | None = None, patient_id: str = "", label: str = "") -> str:
        """Record one region's answer, replacing one of the same identity but keeping its maps of other targets.

        The tables are not written; see `write_tables`.

        Parameters
        ----------
        result
            The answer.
        slide_id
            The slide; default from `slide_id`.
        patient_id, label
            As in `SlideRecord`; empty keeps what is known.

        Returns
        -------
        str
            The slide's id in this job.

        Raises
        ------
        StreamviewError
            When it cannot be written.
        """
        prediction, source = result.prediction, result.prediction.identity.source
        chosen = slide_id or self.slide_id(prediction.slide_name, result.source, source)
        with self._changing(chosen) as record:
            if slide_id is None and chosen != self.slide_id(prediction.slide_name, result.source, source):
                return self.add(result, patient_id=patient_id, label=label)  # another process was faster with another slide
            others = [other for other in record.regions if other.prediction.identity.key != prediction.identity.key]
            paths, targets = {stored.path for stored in result.maps}, {stored.target for stored in result.maps}
            earlier = [stored for other in record.regions if other not in others for stored in other.maps]
            earlier = [stored for stored in earlier if stored.path not in paths and (stored.target is None or stored.target not in targets)]
            result = replace(result, maps=(*result.maps, *(stored for stored in earlier if (self.folder / stored.path).is_dir())))
            record = replace(record, regions=(*others, result), run_id=result.run_id, error=None, failed_work=None, identity=source)
            self._save(_told(record, patient_id, label, result.source))
        return chosen

    def complete(self, slide_id: str, work: SlideWork) -> None:
        """Record that all regions of a slide's work are answered.

        Raises
        ------
        StreamviewError
            When it cannot be written.
        """
        with self._changing(slide_id) as record:
            others = tuple(other for other in record.completed if other.key != work.key)
            self._save(replace(record, completed=(*others, work), run_id=work.run_id, error=None, failed_work=None))

    def fail(
        self,
        slide_id: str,
        error: str,
        run_id: str,
        *,
        work: str | None = None,
        patient_id: str = "",
        label: str = "",
        source: str | None = None,
    ) -> None:
        """Record that a slide failed; answers of earlier runs are kept. The tables are not written.

        Parameters
        ----------
        slide_id
            From `slide_id`.
        error
            Why.
        run_id
            The run.
        work
            Key of the work that failed.
        patient_id, label, source
            As in `SlideRecord`.

        Raises
        ------
        StreamviewError
            When it cannot be written.
        """
        with self._changing(slide_id) as record:
            record = replace(record, run_id=run_id, error=" ".join(error.split()), failed_work=work)
            self._save(_told(record, patient_id, label, source))

    def remove(self, slide_id: str, region: Region | None = None) -> list[str]:
        """Remove a slide, or its answers for one region, from the job, with maps and pictures.

        Returns
        -------
        list of str
            The removed results, in words.

        Raises
        ------
        StreamviewError
            If the job has no such slide or region, or it cannot be changed.
        """
        path = self._slide_path(slide_id)
        if not path.exists():
            records, damaged = self.records()
            names = [*(record.slide_id for record in records), *damaged]
            raise StreamviewError(f"{self.folder}: has no slide {slide_id}, only {', '.join(names) or 'none at all'}")
        with self._changing(slide_id, setting_aside=False) as record:
            chosen = [result for result in record.regions if region is None or result.prediction.region == region]
            if region is not None and not chosen:
                regions = dict.fromkeys(str(result.prediction.region) for result in record.regions)
                raise StreamviewError(f"{slide_id}: has no region {region}, only {', '.join(regions) or 'none at all'}")
            rest = tuple(result for result in record.regions if result not in chosen)
            removed = [f"{slide_id} {result.prediction.region}" for result in chosen] or [slide_id]
            with atomic.disk_errors(path):
                if rest:
                    keys = {result.prediction.identity.key for result in rest}
                    completed = tuple(work for work in record.completed if keys.issuperset(work.regions))
                    self._save(replace(record, regions=rest, completed=completed))
                else:
                    path.unlink()
                shared = {name for result in rest for stored in result.maps for name in (stored.path, stored.picture)}
                for name in {name for result in chosen for stored in result.maps for name in (stored.path, stored.picture)} - shared:
                    self._discard(name)
                if not rest and region is None:
                    for kind in ("saliency", "faithfulness"):
                        shutil.rmtree(self.folder / kind / atomic.safe_stem(slide_id), ignore_errors=True)
        self.write_tables()
        return removed

    def record_run(self, run: Run) -> Path:
        """Write ``runs/<run-id>.json``, replacing the run's earlier state, and return its path."""
        path = self.folder / "runs" / f"{run.run_id}.json"
        _write_json(path, asdict(run) | {"versions": versions(), "platform": platform.platform(), "note": RESEARCH_USE})
        return path

    def write_tables(self) -> list[Path]:
        """Write the tables and ``summary.md`` from the records; Parquet where pyarrow is installed.

        Returns
        -------
        list of Path
            The written files.

        Raises
        ------
        StreamviewError
            When they cannot be written.
        """
        with self._locked("tables"):  # so that the last of two processes sees all records
            records, damaged = self.records()
            written = write_tables(self.folder, records, damaged)
            atomic.write_text(self.folder / "summary.md", summary(records, damaged))
        return [*written, self.folder / "summary.md"]

    def _known(self, slide_id: str) -> SlideRecord | None:
        """The record of a slide; None if there is no readable one."""
        try:
            return _read(self._slide_path(slide_id))
        except _DAMAGED:
            return None

    def _slide_path(self, slide_id: str) -> Path:
        return self.folder / "slides" / f"{atomic.safe_stem(slide_id)}.json"

    @contextmanager
    def _changing(self, slide_id: str, *, setting_aside: bool = True) -> Iterator[SlideRecord]:
        """Lock and yield a slide's record; a damaged one is renamed to ``.damaged``."""
        path = self._slide_path(slide_id)
        with self._locked(f"record {path.stem}"):
            record = self._known(slide_id)
            if record is None and setting_aside and path.exists():
                with atomic.disk_errors(path):
                    os.replace(path, path.with_name(f"{path.name}.damaged"))
            yield record or SlideRecord(slide_id, (), "")

    def _locked(self, name: str) -> AbstractContextManager[None]:
        """Keep other processes from changing the same."""
        return hold(self.folder / "leases" / name)

    def _save(self, record: SlideRecord) -> None:
        _write_json(self._slide_path(record.slide_id), record.to_dict())

    def _discard(self, name: str | None) -> None:
        """Remove a map or picture named by a record if it lies in the job: a damaged record may name any path."""
        path, root = self.folder / (name or ""), self.folder.resolve()
        place = path.parent.resolve() / path.name
        if name and place.is_relative_to(root / "saliency"):
            atomic.discard(path)
            if name.endswith(".ome.zarr"):  # and what was measured of the map
                measured = place.relative_to(root / "saliency")
                atomic.discard(root / "faithfulness" / measured.with_name(measured.name.removesuffix(".ome.zarr")))


_DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, StreamviewError)


def _told(record: SlideRecord, patient_id: str, label: str, source: str | None) -> SlideRecord:
    """A record with what is now known of its slide."""
    return replace(record, patient_id=patient_id or record.patient_id, label=label or record.label, source=source or record.source)


def _read(path: Path) -> SlideRecord:
    return SlideRecord.from_dict(json.loads(path.read_text(encoding="utf-8")))


def _damage(error: BaseException) -> str:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return f"damaged record ({reason}), skipped: remove it with streamview jobs rm, or run this slide again"


def suffix(target: Target | None) -> str:
    """The part of a file name that identifies a target: its indices, which are unique on any file system, and its name."""
    if target is None:
        return ""
    index = f"{target.index}" if target.against is None else f"{target.index}v{target.against}"
    name = re.sub(r"[^\w.+-]+", "_", target.name, flags=re.ASCII)[:_NAME].strip("._-")
    return f"-{index}-{name}" if name else f"-{index}"


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    atomic.write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
