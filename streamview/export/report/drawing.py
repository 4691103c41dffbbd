"""Draw what a report shows of a slide: the overview, regions with their maps, and hotspots."""

from __future__ import annotations

from collections.abc import Sequence

from streamview.export.hotspots import Hotspot, find_hotspots, no_hotspots
from streamview.export.report.content import MapView, Picture, RegionView, Spot, Verdict
from streamview.export.report.curves import curve_chart
from streamview.export.report.pictures import heat_png, jpeg, outline_path
from streamview.faithfulness.store import read_faithfulness
from streamview.geometry import Region
from streamview.results import Saliency
from streamview.results.display import DisplayChoice, empty_reason, show, title_of
from streamview.results.glass import Glass
from streamview.results.legend import colour_bar, how_shown, unit
from streamview.results.overlay import MapLayer, glass_on, mean_colour
from streamview.slides import Slide
from streamview.slides.thumbnail import pixels_read, thumbnail

__all__ = ["draw_overview", "draw_region"]

# A slide takes at most 840 kB of pictures and outlines, 1.1 MB in HTML: twenty of them less than 25 MB.
_OVERVIEW_BYTES, _TISSUE_BYTES, _HEAT_BYTES, _OUTLINE_BYTES, _CROP_BYTES = 60_000, 300_000, 180_000, 100_000, 25_000
_OVERVIEW, _SIDE, _CROP = 480, 1024, 288  # px a side
_MOST_READ = 2**28  # px of a level that are read for the overview at most
_LEAST = 512  # px a side to which small regions are enlarged
_SPOTS = 4  # hotspots of a map
FIELD_UM, _FIELD_PX = 400.0, 800  # side of a crop, and that in level-0 px where the mpp is unknown
_WHITE = (255, 255, 255)


def draw_overview(slide: Slide) -> Picture | None:
    """Draw the whole slide, at most 480 px a side; None where it has no small level, so that all of a large one would be read.

    Raises
    ------
    SlideError
        When a part of it cannot be read.
    """
    whole = Region(0, 0, *slide.shape)
    shape = _fitting(whole, _OVERVIEW)
    return None if pixels_read(slide, whole, shape) > _MOST_READ else jpeg(thumbnail(slide, whole, shape), _OVERVIEW_BYTES)


def draw_region(
    maps: Sequence[Saliency], slide: Slide | None, display: DisplayChoice, name: str, *, regions: int = 1, share: float = 1.0
) -> RegionView:
    """Draw the maps of one region.

    Parameters
    ----------
    maps
        One per target.
    slide
        Their source; None: the maps alone.
    display
        How they are shown.
    name
        Unique on the page.
    regions
        Number of regions that they are stitched of.
    share
        Share (0..1) of the slide's bytes that the region may take.

    Raises
    ------
    StreamviewError
        If the maps cannot be shown in that way.
    SlideError
        When a part of the slide cannot be read.
    """
    first = maps[0]
    region = first.prediction.region
    shape, tissue, glass, behind = _fitting(region, _SIDE), None, None, _WHITE
    if slide is not None:
        pixels = thumbnail(slide, region, shape)
        clear = glass_on(pixels, slide.background)
        glass, behind = Glass.over_region(clear, region), mean_colour(pixels, clear, slide.background)
        tissue = jpeg(pixels, round(_TISSUE_BYTES * share))
    ordered = sorted(maps, key=lambda saliency: not _first(saliency))
    views = [
        _draw_map(saliency, slide, display, shape, glass, behind, f"{name}-{number}", share / len(maps))
        for number, saliency in enumerate(ordered)
    ]  # fmt: skip
    prediction = first.prediction
    return RegionView(region, first.mpp, prediction.model_name, prediction.identity.key, regions, shape, tissue, tuple(views))


def _first(saliency: Saliency) -> bool:
    """Whether a map is the one to see first: of a class of interest, else of the answer."""
    prediction, target = saliency.prediction, saliency.target
    return prediction.is_of_interest(target) if prediction.positive else target == prediction.usual_target


def _draw_map(
    saliency: Saliency,
    slide: Slide | None,
    display: DisplayChoice,
    shape: tuple[int, int],
    glass: Glass | None,
    behind: tuple[int, int, int],
    name: str,
    share: float,
) -> MapView:
    _, recipe = display.recipe(saliency)
    shown, region = show(saliency, recipe), saliency.prediction.region
    layer = MapLayer.prepare(saliency, shown, glass)
    outline, whole = outline_path(layer.outlines(region, shape), round(_OUTLINE_BYTES * share))
    notes = [] if whole else ["The outlines of small areas are left out here."]
    reason = empty_reason(saliency, shown)
    notes += [] if reason is None else [reason]
    without = no_hotspots(saliency)
    if without is not None:
        notes.append(without)
    hotspots = find_hotspots(saliency, recipe, max(round(_SPOTS * share), 1), glass) if without is None and shown.cap > 0 else ()
    return MapView(
        target=saliency.target,
        answer=saliency.prediction.answer_for(saliency.target),
        title=title_of(saliency, recipe.method),
        recipe=recipe,
        cap=shown.cap,
        threshold=shown.threshold,
        unit=unit(saliency, recipe.method),
        heat=heat_png(recipe, layer.values(region, shape), round(_HEAT_BYTES * share)),
        outline=outline,
        legend=colour_bar(saliency, shown, behind, name),
        how=how_shown(saliency, shown),
        spots=tuple(_draw_spot(spot, layer, slide, saliency) for spot in hotspots),
        notes=tuple(notes),
        checked=_verdict(saliency, recipe.method),
    )


def _verdict(saliency: Saliency, method: str) -> Verdict | None:
    """What was measured of a stored map; None where nothing was."""
    measured = read_faithfulness(saliency)
    if measured is None or measured.of(method) is None:
        return None
    checks = tuple((check.name, check.passed) for check in measured.checks(method))
    failed = any(passed is False for _, passed in checks)
    return Verdict(measured.line(method), failed, measured.details(method), checks, curve_chart(measured, method))


def _draw_spot(hotspot: Hotspot, layer: MapLayer, slide: Slide | None, saliency: Saliency) -> Spot:
    """Crop a field around a hotspot's peak, inside the region."""
    region, mpp = saliency.prediction.region, saliency.mpp
    sides = [min(_FIELD_PX if mpp is None else round(FIELD_UM / mpp[axis]), region.shape[axis]) for axis in (0, 1)]
    corner = [
        min(max(round(at - side / 2), start), start + length - side)
        for at, side, start, length in zip(hotspot.peak_at, sides, (region.y, region.x), region.shape, strict=True)
    ]
    window = Region(corner[0], corner[1], max(sides[0], 1), max(sides[1], 1))
    if slide is None:
        return Spot(hotspot, window, None, None)
    pixels = thumbnail(slide, window, _fitting(window, _CROP))
    return Spot(hotspot, window, jpeg(pixels, _CROP_BYTES), jpeg(layer.draw(pixels, window), _CROP_BYTES))


def _fitting(region: Region, side: int) -> tuple[int, int]:
    """Height and width of a region's picture of at most so many px a side: as many as the region has, but 512 of a small one."""
    longest = max(region.shape)
    factor = min(side / longest, max(1.0, _LEAST / longest))
    return max(round(region.height * factor), 1), max(round(region.width * factor), 1)
