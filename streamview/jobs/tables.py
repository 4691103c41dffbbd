"""The table and the summary of a job, written from its records."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence

from streamview.jobs.aggregation import Aggregate, aggregate, by_policy
from streamview.jobs.records import RegionResult, SlideRecord, StoredMap, region_id
from streamview.results import RESEARCH_USE, Prediction

__all__ = ["in_words", "summary", "table"]

_AGGREGATE = "aggregate"
# columns before and after those of the classes
_BEFORE = "slide_id,patient_id,region_id,level,x,y,width,height,mpp,width_um,tissue_covered,prediction"
_AFTER = (
    "model_id,weights_sha256,run_id,status,error,maps,precision,aggregation,regions,grid_mpp,mpp_source,padded,identity,source,warnings"
)


def table(records: Iterable[SlideRecord], damaged: Mapping[str, str]) -> str:
    """Write the CSV: one row per region, an aggregate row per slide and policy, one row per failed slide or damaged record.

    Parameters
    ----------
    records
        Records of the slides.
    damaged
        Errors of the records that cannot be read, by file stem.
    """
    rows = [row for record in records for row in _rows(record)]
    rows += [_failed({"slide_id": stem}, error) for stem, error in damaged.items()]
    names = list(dict.fromkeys(key for row in rows for key in row if key.startswith(("prob_", "logit_"))))
    probabilities = [name for name in names if name.startswith("prob_")]
    columns = [
        *_BEFORE.split(","),
        *probabilities,
        *(name for name in names if name not in probabilities),
        *_AFTER.split(","),
    ]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def summary(records: Sequence[SlideRecord], damaged: Mapping[str, str]) -> str:
    """Write a Markdown summary: one line per slide and policy, then failures, maps and warnings; arguments as for `table`."""
    errors = [f"{record.slide_id}: {record.error}" for record in records if record.error is not None]
    errors += [f"{stem}: {error}" for stem, error in damaged.items()]
    lines = [
        "# Job summary",
        "",
        f"**{RESEARCH_USE}**",
        "",
        f"{len(records) + len(damaged)} slides, {len(errors)} failed. A slide's answer covers only the regions that were read, not tissue "
        "outside them.",
        "",
        "| slide | network | prediction | aggregation | regions | tissue covered |",
        "|---|---|---|---|---|---|",
    ]
    maps: list[str] = []
    warnings: dict[str, None] = {}
    superseded: list[str] = []
    for record in records:
        for result in record.regions:
            for stored in result.maps:
                of = "" if stored.target is None else f"{stored.target} ({result.prediction.answer_for(stored.target)}), "
                maps.append(f"{record.slide_id} {region_id(result.prediction.region)}: {of}{stored.path}")
            reason = record.superseded(result)
            if reason is not None:
                superseded.append(f"{record.slide_id} {region_id(result.prediction.region)}, {in_words(result.prediction)}: {reason}")
        for results in by_policy(record):
            whole = aggregate(results)
            share = "not measured" if whole.tissue_covered is None else f"{whole.tissue_covered:.1%}"
            answer = f"none: {whole.reason}" if whole.prediction is None else in_words(whole.prediction)
            cells = (record.slide_id, _network(results[-1]), answer, whole.method, str(len(whole.regions)), share)
            lines.append(f"| {' | '.join(map(_cell, cells))} |")
            for result in results:
                # with one region the slide's name is enough
                where = record.slide_id if len(results) == 1 else f"{record.slide_id} {region_id(result.prediction.region)}"
                warnings |= dict.fromkeys(f"{where}: {warning}" for warning in result.prediction.warnings)
    for title, items in (("Failed", errors), ("Superseded", superseded), ("Maps", maps), ("Warnings", list(warnings))):
        if items:
            lines += ["", f"## {title}", "", *(f"- {' '.join(item.split())}" for item in items)]
    return "\n".join(lines) + "\n"


def in_words(prediction: Prediction) -> str:
    """Format an answer in one line: label and probability, every present label, or the values of a regression."""
    probabilities = prediction.probabilities
    if probabilities is None:
        return ", ".join(f"{name} = {logit:.4g}" for name, logit in zip(prediction.class_names, prediction.logits, strict=True))
    if prediction.task == "class":
        return f"{prediction.label} (p = {probabilities.max():.3f})"
    return prediction.label or "none of the classes"


def _network(result: RegionResult) -> str:
    """The network, and the parts of its policy that differ from the default."""
    prediction, identity = result.prediction, result.prediction.identity
    name = prediction.model_name if prediction.trained else f"{prediction.model_name} (untrained, random weights)"
    name += "" if identity.precision == "float32" else f", {identity.precision}"
    name += "" if identity.padded is None else f", padded to {identity.padded[1]} x {identity.padded[0]} px"
    return name + (f", slide at {result.mpp[1]:.4g} um/px as given" if identity.slide_mpp_source == "given" and result.mpp else "")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _rows(record: SlideRecord) -> Iterable[dict[str, str]]:
    slide = {"slide_id": record.slide_id, "patient_id": record.patient_id}
    for results in by_policy(record):
        for result in results:
            yield slide | _region(result) | {"status": "ok"}
        yield slide | _aggregated(results[-1], aggregate(results))
    for result in record.regions:
        reason = record.superseded(result)
        if reason is not None:
            yield slide | _region(result) | {"status": "superseded", "error": reason}
    if record.error is not None:
        yield _failed(slide, record.error) | {"run_id": record.run_id, "source": record.source or ""}


def _failed(slide: dict[str, str], error: str) -> dict[str, str]:
    return slide | {"region_id": _AGGREGATE, "status": "failed", "error": error}


def _region(result: RegionResult) -> dict[str, str]:
    prediction, region = result.prediction, result.prediction.region
    row = _policy(result) | _answer(prediction) | {key: str(getattr(region, key)) for key in ("level", "x", "y", "width", "height")}
    if result.mpp is not None:
        row |= {"mpp": f"{result.mpp[1]:.6g}", "width_um": f"{region.width * result.mpp[1]:.6g}"}
    return row | {
        "region_id": region_id(region),
        "regions": region_id(region),
        "aggregation": "none: one region",
        "tissue_covered": _share(result.tissue_covered),
        "maps": "; ".join(_named(stored) for stored in result.maps),
        "identity": prediction.identity.key,
        "warnings": " ".join(prediction.warnings),
    }


def _aggregated(result: RegionResult, whole: Aggregate) -> dict[str, str]:
    row = {"region_id": _AGGREGATE, "regions": "; ".join(region_id(counted.prediction.region) for counted in whole.regions)}
    row |= _policy(result) | {"tissue_covered": _share(whole.tissue_covered)}
    if whole.prediction is None:
        return row | {"status": "not aggregated", "error": whole.reason or ""}
    warnings = dict.fromkeys(warning for counted in whole.regions for warning in counted.prediction.warnings)
    return row | _answer(whole.prediction) | {"status": "ok", "aggregation": whole.method, "warnings": " ".join(warnings)}


def _policy(result: RegionResult) -> dict[str, str]:
    """The columns that all answers of one policy share."""
    prediction, identity = result.prediction, result.prediction.identity
    return {
        "model_id": prediction.model_name,
        "weights_sha256": identity.weights_sha256,
        "precision": identity.precision,
        "run_id": result.run_id,
        "grid_mpp": "" if identity.mpp is None else f"{identity.mpp[1]:.6g}",
        "mpp_source": identity.slide_mpp_source or "",
        "padded": "" if identity.padded is None else f"{identity.padded[1]}x{identity.padded[0]}",
        "source": result.source or "",
    }


def _answer(prediction: Prediction) -> dict[str, str]:
    values = {"prediction": prediction.label or ""}
    if prediction.probabilities is not None:
        values |= {f"prob_{name}": str(p) for name, p in zip(prediction.class_names, prediction.probabilities, strict=True)}
    return values | {f"logit_{name}": str(logit) for name, logit in zip(prediction.class_names, prediction.logits, strict=True)}


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.4f}"


def _named(stored: StoredMap) -> str:
    return stored.path if stored.target is None else stored.target.name
