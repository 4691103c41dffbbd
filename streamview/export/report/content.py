"""What a report shows of one slide, as plain values: gathered from a job or from results, written as HTML and JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from streamview.export.hotspots import Hotspot
from streamview.geometry import Region
from streamview.results import Prediction, Target
from streamview.results.display import Recipe

__all__ = ["Certified", "MapView", "Picture", "RegionView", "ReportSlide", "Spot", "Verdict"]


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture.

    Parameters
    ----------
    data
        The file.
    kind
        Its format.
    shape
        Height and width in px.
    """

    data: bytes
    kind: Literal["jpeg", "png"]
    shape: tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Spot:
    """A hotspot and what it looks like.

    Parameters
    ----------
    hotspot
        The area.
    window
        The pictured part of the slide, level-0 pixels.
    plain, overlaid
        The tissue there, without and with the map; None where the slide could not be read.
    """

    hotspot: Hotspot
    window: Region
    plain: Picture | None
    overlaid: Picture | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a map shows what the network uses.

    Parameters
    ----------
    line
        In one line.
    failed
        Whether a check failed.
    details
        Numbers, a line each.
    checks
        Name and outcome of each check, None for no verdict.
    chart
        Curves as SVG; empty where there are none.
    """

    line: str
    failed: bool
    details: tuple[str, ...]
    checks: tuple[tuple[str, bool | None], ...]
    chart: str


@dataclass(frozen=True, slots=True, eq=False)
class MapView:
    """One map, as it is shown over its region.

    Parameters
    ----------
    target
        What it explains.
    answer
        Probability or score of the target.
    title
        What it is called, with the method.
    recipe
        How it is shown.
    cap, threshold, unit
        The raw value at full strength with its unit, and the share of it below which nothing is shown.
    heat
        Transparent PNG of the colours at full strength.
    outline
        SVG path on a grid of half pixels of the region's picture; empty if there is none.
    legend
        The colour bar as SVG.
    how
        Blur, cap and threshold in words.
    spots
        The largest hotspots, in the order of their share of the map's mass.
    notes
        What is not shown, and why, one sentence each.
    checked
        Whether the map shows what the network uses; None where it was not measured.
    """

    target: Target
    answer: str
    title: str
    recipe: Recipe
    cap: float
    threshold: float
    unit: str
    heat: Picture
    outline: str
    legend: str
    how: tuple[str, ...]
    spots: tuple[Spot, ...]
    notes: tuple[str, ...]
    checked: Verdict | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RegionView:
    """A region with its maps.

    Parameters
    ----------
    region
        Level-0 pixels.
    mpp
        ``(y, x)`` um/px of level 0; None when unknown.
    network, identity
        Name of the network that was explained, and the key of the result.
    regions
        Number of regions that the maps are stitched of.
    shape
        Height and width of its picture in px.
    tissue
        The picture; None where the slide could not be read.
    maps
        One per target, the one to show first in front.
    """

    region: Region
    mpp: tuple[float, float] | None
    network: str
    identity: str
    regions: int
    shape: tuple[int, int]
    tissue: Picture | None
    maps: tuple[MapView, ...]


@dataclass(frozen=True, slots=True)
class Certified:
    """What an exactness certificate says of the network.

    Parameters
    ----------
    passed
        Whether it passed.
    verdict, pixels
        The verdict, and what was compared, in words.
    """

    passed: bool
    verdict: str
    pixels: str


@dataclass(frozen=True, slots=True, eq=False)
class ReportSlide:
    """One slide of a report.

    Parameters
    ----------
    slide_id, patient_id, label
        As in the job's record; the last two empty if unknown.
    status
        "ok", "failed", or why there is no answer, as in the table of slides.
    error
        Why there is no answer; None if there is one.
    prediction
        The slide's answer; None if there is none.
    tissue_covered
        Share (0..1) of the slide's tissue inside the regions that count; None when not measured.
    regions
        The regions that were answered.
    shape
        Height and width of the slide in level-0 pixels; None where it could not be read.
    overview
        Picture of the whole slide; None where it could not be read.
    views
        Regions with maps.
    warnings, notes
        What the reader must know of the answer, and of this report, one sentence each.
    provenance
        How the answer came about: names and values.
    certificates
        Of the network.
    """

    slide_id: str
    patient_id: str = ""
    label: str = ""
    status: str = "ok"
    error: str | None = None
    prediction: Prediction | None = None
    tissue_covered: float | None = None
    regions: tuple[Region, ...] = ()
    shape: tuple[int, int] | None = None
    overview: Picture | None = None
    views: tuple[RegionView, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    provenance: tuple[tuple[str, str], ...] = ()
    certificates: tuple[Certified, ...] = ()
