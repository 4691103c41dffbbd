"""The summary of a job for people, written from its records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from streamview.jobs.aggregation import aggregate, by_policy
from streamview.jobs.records import RegionResult, SlideRecord, region_id
from streamview.results import RESEARCH_USE

__all__ = ["summary"]


def summary(records: Sequence[SlideRecord], damaged: Mapping[str, str]) -> str:
    """Write a Markdown summary: one line per slide and policy, then failures, maps and warnings; arguments as of `write_tables`."""
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
        "| slide | network | prediction | aggregation | regions | tissue covered | chosen |",
        "|---|---|---|---|---|---|---|",
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
                superseded.append(f"{record.slide_id} {region_id(result.prediction.region)}, {result.prediction.answer}: {reason}")
        for group in by_policy(record):
            results, whole = group.results, aggregate(group)
            share = "not measured" if whole.tissue_covered is None else f"{whole.tissue_covered:.1%}"
            answer = f"none: {whole.reason}" if whole.prediction is None else whole.prediction.answer
            cells = (record.slide_id, _network(results[-1]), answer, whole.method, str(len(whole.regions)), share, group.policy)
            lines.append(f"| {' | '.join(map(_cell, cells))} |")
            for result in results:
                # with one region the slide's name is enough
                where = record.slide_id if len(results) == 1 else f"{record.slide_id} {region_id(result.prediction.region)}"
                warnings |= dict.fromkeys(f"{where}: {warning}" for warning in result.prediction.warnings)
    for title, items in (("Failed", errors), ("Superseded", superseded), ("Maps", maps), ("Warnings", list(warnings))):
        if items:
            lines += ["", f"## {title}", "", *(f"- {' '.join(item.split())}" for item in items)]
    return "\n".join(lines) + "\n"


def _network(result: RegionResult) -> str:
    """The network, and the parts of its policy that differ from the default."""
    prediction, identity = result.prediction, result.prediction.identity
    name = prediction.model_name if prediction.trained else f"{prediction.model_name} (untrained, random weights)"
    name += "" if identity.precision == "float32" else f", {identity.precision}"
    name += "" if identity.glass is None else f", {identity.glass} glass"
    name += "" if identity.padded is None else f", padded to {identity.padded[1]} x {identity.padded[0]} px"
    return name + (f", slide at {result.mpp[1]:.4g} um/px as given" if identity.slide_mpp_source == "given" and result.mpp else "")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
