"""The section of one slide: overview, answer, maps with their hotspots, and where all of it comes from."""

from __future__ import annotations

from streamview.export.report.content import Certified, MapView, Picture, RegionView, ReportSlide, Spot, Verdict
from streamview.export.report.drawing import FIELD_UM
from streamview.export.report.markup import Markup, data_url, joined, name, tag
from streamview.export.report.pictures import GRID
from streamview.geometry import Region
from streamview.results import RESEARCH_USE, Prediction
from streamview.results.legend import scale_bar

__all__ = ["STATUSES", "chosen", "per_cent", "slide_section"]

_SHOWN_OUTPUTS = 10
_EVEN = "non-scaling-stroke"  # lines are as wide at every size of the picture
STATUSES = {"ok": "Answered", "failed": "Failed", "superseded": "Superseded", "not aggregated": "Not aggregated"}


def slide_section(slide: ReportSlide, place: str, previous: str | None, following: str | None) -> Markup:
    """Return a slide's section.

    Parameters
    ----------
    slide
        What it shows.
    place, previous, following
        Ids of this section and of those beside it.
    """
    links = [tag("a", "All slides", href="#slides")]
    links += [tag("a", words, href=f"#{there}") for words, there in (("Previous", previous), ("Next", following)) if there is not None]
    return tag(
        "section",
        tag("header", tag("h2", name(slide.slide_id), id=f"{place}-title"), tag("nav", *links, aria_label=f"From slide {slide.slide_id}")),
        tag("p", *_identified(slide), class_="identified"),
        _messages(slide),
        None if slide.prediction is None and not slide.regions else tag("div", _overview(slide), _answer(slide), class_="pair"),
        *(_region(view, f"{place}-{number}") for number, view in enumerate(slide.views)),
        _provenance(slide),
        id=place,
        class_="slide" if slide.regions else "slide plain",
        aria_labelledby=f"{place}-title",
    )


def _identified(slide: ReportSlide) -> list[Markup]:
    parts = [tag("span", STATUSES.get(slide.status, slide.status), class_=f"status {'ok' if slide.status == 'ok' else 'failed'}")]
    parts += [tag("span", "Patient ", name(slide.patient_id))] if slide.patient_id else []
    parts += [tag("span", "True label ", name(slide.label))] if slide.label else []
    return [*parts, tag("span", RESEARCH_USE, class_="small")]


def _messages(slide: ReportSlide) -> Markup:
    messages = [tag("p", tag("strong", "No answer: "), slide.error, class_="message failed")] if slide.error else []
    messages += [tag("p", tag("strong", "Warning: "), warning, class_="message warning") for warning in slide.warnings]
    messages += [tag("p", note, class_="message") for note in slide.notes]
    return joined(*messages)


def _overview(slide: ReportSlide) -> Markup | None:
    if slide.overview is None or slide.shape is None:
        return None
    height, width = slide.shape
    whole = tag("image", href=data_url(slide.overview), width=width, height=height)
    lines = [
        tag("rect", x=region.x, y=region.y, width=region.width, height=region.height, class_=line, vector_effect=_EVEN)
        for line in ("halo", "line")
        for region in slide.regions
    ]
    many = "the region that was" if len(slide.regions) == 1 else f"the {len(slide.regions)} regions that were"
    caption = f"The whole slide, {width} x {height} px, with {many} analysed."
    picture = _picture((height, width), slide.overview.shape, f"Overview of slide {slide.slide_id}", whole, *lines)
    return tag("figure", picture, tag("figcaption", caption), class_="overview")


def _answer(slide: ReportSlide) -> Markup:
    prediction = slide.prediction
    facts = [("Tissue covered", per_cent(slide.tissue_covered)), ("Regions", str(len(slide.regions)))]
    if prediction is None:
        return tag("div", tag("h3", "Prediction"), tag("p", "None for the slide as a whole."), _facts(facts), class_="answer")
    answer = tag("p", name(prediction.answer), class_="said")
    return tag("div", tag("h3", "Prediction"), answer, _bars(prediction), _facts(facts), class_="answer")


def _bars(prediction: Prediction) -> Markup:
    """The outputs as a table with bars: of classes the likeliest first, those of interest marked."""
    probabilities, logits = prediction.probabilities, prediction.logits
    order = sorted(range(len(logits)), key=lambda n: -float(logits[n])) if prediction.task == "class" else list(range(len(logits)))
    rows = []
    for n in order[:_SHOWN_OUTPUTS]:
        of_interest = prediction.class_names[n] in prediction.positive
        label = tag("th", name(prediction.class_names[n]), " (of interest)" if of_interest else None, scope="row")
        if probabilities is None:
            rows.append(tag("tr", label, tag("td", f"{logits[n]:.4g}")))
            continue
        share = float(probabilities[n])
        bar = tag(
            "svg",
            tag("rect", class_="track", width=100, height=10),
            tag("rect", class_="share", width=f"{100 * share:.1f}", height=10),
            viewBox="0 0 100 10",
            preserveAspectRatio="none",
            aria_hidden="true",
            class_="bar",
        )
        rows.append(tag("tr", label, tag("td", bar, class_="drawn"), tag("td", f"{share:.3f}"), tag("td", f"{logits[n]:.3f}")))
    left = len(order) - _SHOWN_OUTPUTS
    more = tag("p", f"and {left} more", class_="small") if left > 0 else None
    heads = ("Output", "Value") if probabilities is None else ("Class", "", "Probability", "Logit")
    head = tag("tr", *(tag("th", text, scope="col") if text else tag("td") for text in heads))
    return joined(tag("table", tag("thead", head), tag("tbody", *rows), class_="bars"), more)


def _facts(facts: list[tuple[str, str]] | tuple[tuple[str, str], ...]) -> Markup:
    return tag("dl", *(tag("div", tag("dt", term), tag("dd", text)) for term, text in facts))


def _region(view: RegionView, place: str) -> Markup:
    stitched = f"Map of {view.regions} regions" if view.regions > 1 else "Map"
    where = f"x {view.region.x}, y {view.region.y}, {view.region.width} x {view.region.height} px{_extent(view.region, view.mpp)}"
    figure = tag(
        "figure",
        _stack(view),
        tag(
            "figcaption",
            f"{where}. Network ",
            name(view.network),
            f", result {view.identity[:12]}. ",
            None if view.tissue else "The slide's pixels are not shown. ",
            *_legends(view),
        ),
        class_="map",
        data_map=True,
    )
    spots = [_spots(one, view, number) for number, one in enumerate(view.maps)]
    return tag("section", tag("h3", stitched), _controls(view, place), figure, *spots, class_="region", aria_label=f"{stitched} at {where}")


def _extent(region: Region, mpp: tuple[float, float] | None) -> str:
    return "" if mpp is None else f", {region.width * mpp[1] / 1000:.3g} x {region.height * mpp[0] / 1000:.3g} mm"


def _stack(view: RegionView) -> Markup:
    """The tissue under its maps, of which the first is to be seen, with the scale bar: one drawing, so that nothing can be out of place."""
    height, width = view.shape
    layers = []
    for number, one in enumerate(view.maps):
        heat = tag(
            "image",
            href=data_url(one.heat),
            width=width,
            height=height,
            preserveAspectRatio="none",
            class_=_of(number, "heat"),
            data_number=number,
        )
        lines = tag(
            "g",
            *(tag("path", d=one.outline, class_=line, vector_effect=_EVEN) for line in ("halo", "line")),
            transform=f"scale({1 / GRID:g})",
            class_=_of(number, "outline"),
            data_number=number,
        )
        layers += [heat, lines] if one.outline else [heat]
    pixels = None
    if view.tissue is not None:
        pixels = tag("image", href=data_url(view.tissue), width=width, height=height, preserveAspectRatio="none")
    maps = ", ".join(f"{one.title} for {one.target}" for one in view.maps)
    about = f"{'Tissue of the region' if view.tissue else 'The region, without its tissue'} under the map: {maps}"
    length, text = scale_bar(view.region.width, None if view.mpp is None else view.mpp[1])
    bar = tag("rect", y=height + 8, width=f"{width * length / view.region.width:.2f}", height=5, class_="scale")
    class_ = "alone" if view.tissue is None else None
    back = tag("rect", width=width, height=height, class_="back")
    drawing = _picture((height + 14, width), (height + 14, width), about, tag("g", back, pixels, *layers, class_=class_), bar)
    return tag("div", drawing, tag("p", text, class_="length"))


def _of(number: int, kind: str) -> str:
    """Classes of what belongs to one of a region's maps: the first is shown until another is chosen."""
    return f"{kind} off" if number else kind


def _controls(view: RegionView, place: str) -> Markup:
    """What changes the picture; shown where scripts run."""
    opacity = view.maps[0].recipe.opacity if view.tissue is not None else 1.0
    slider = tag("input", type="range", id=f"{place}-opacity", min=0, max=100, value=round(100 * opacity), data_opacity=True)
    parts = [
        tag("span", tag("label", "Map opacity", for_=f"{place}-opacity"), slider, tag("output", f"{opacity:.0%}", for_=f"{place}-opacity")),
    ]
    if any(one.outline for one in view.maps):
        box = tag("input", type="checkbox", id=f"{place}-outline", checked=True, data_outline=True)
        parts.append(tag("span", box, tag("label", "Outline", for_=f"{place}-outline")))
    if len(view.maps) > 1:
        choices = []
        for number, one in enumerate(view.maps):
            radio = tag(
                "input", type="radio", id=f"{place}-{number}", name=f"{place}-map", value=number, checked=number == 0, data_choice=True
            )  # fmt: skip
            choices.append(tag("span", radio, tag("label", name(one.target.name), for_=f"{place}-{number}")))
        parts.append(tag("fieldset", tag("legend", "Map for"), *choices))
    return tag("div", *parts, class_="controls", hidden=True)


def _legends(view: RegionView) -> list[Markup]:
    return [
        tag(
            "div",
            tag("strong", one.title, " for ", name(one.target.name), f", {one.answer}"),
            tag("div", Markup(one.legend), class_="legend"),
            tag("span", "; ".join(one.how), ".", class_="small"),
            *(tag("p", note, class_="small") for note in one.notes),
            _checked(one.checked),
            class_=_of(number, "legends"),
            data_number=number,
        )
        for number, one in enumerate(view.maps)
    ]


def _checked(verdict: Verdict | None) -> Markup | None:
    """Whether the map shows what the network uses, with the curves; a warning where it failed a check."""
    if verdict is None:
        return None
    line = tag("p", tag("strong", "Warning: ") if verdict.failed else None, verdict.line, class_=f"message{' warning' * verdict.failed}")
    chart = tag("div", Markup(verdict.chart), class_="legend") if verdict.chart else None
    details = tag("ul", *(tag("li", detail) for detail in verdict.details), class_="small") if verdict.details else None
    return tag("div", line, chart, details, class_="checked")


def _spots(one: MapView, view: RegionView, number: int) -> Markup | None:
    if not one.spots:
        return None
    field = f"{FIELD_UM:g} um" if view.mpp is not None else f"{one.spots[0].window.width} px of level 0"
    title = f"Hotspots: the {len(one.spots)} with most of the map's mass" if len(one.spots) > 1 else "Hotspot"
    about = f" Each picture is at most {field} wide, around the peak." if one.spots[0].plain is not None else ""
    items = [_spot(rank, spot, one, view) for rank, spot in enumerate(one.spots, 1)]
    text = f"Connected areas above the threshold, for {one.target}.{about}"
    return tag(
        "div", tag("h4", title), tag("p", text, class_="small"), tag("ol", *items), class_=_of(number, "spots"), data_number=number
    )  # fmt: skip


def _spot(rank: int, spot: Spot, one: MapView, view: RegionView) -> Markup:
    hotspot, (y, x) = spot.hotspot, spot.hotspot.peak_at
    place = f"x {x:.0f}, y {y:.0f} px"
    if view.mpp is not None:
        place += f" ({x * view.mpp[1] / 1000:.2f}, {y * view.mpp[0] / 1000:.2f} mm)"
    area = f"{hotspot.area:.0f} px2" if hotspot.area_mm2 is None else f"{hotspot.area_mm2:.3g} mm2"
    facts = [("Peak at", place), ("Area", area), ("Share of the map's mass", f"{hotspot.mass:.1%}")]
    facts.append(("Peak", f"{hotspot.peak:.2f} of the cap, {hotspot.peak_raw:.3g} {one.unit}"))
    pictures = [
        _image(picture, f"Hotspot {rank}, {words} the map")
        for picture, words in ((spot.plain, "without"), (spot.overlaid, "with"))
        if picture is not None
    ]
    return tag("li", tag("strong", f"{rank}"), tag("div", *pictures, class_="crops") if pictures else None, _facts(facts))


def _provenance(slide: ReportSlide) -> Markup | None:
    parts: list[Markup] = []
    if slide.certificates:
        lines = [tag("li", _verdict(certified)) for certified in slide.certificates]
        parts += [tag("h3", "Exactness certificates of the network"), tag("ul", *lines, class_="certificates")]
    if slide.provenance:
        parts += [tag("h3", "Provenance"), _facts(slide.provenance)]
    return tag("div", *parts, class_="provenance") if parts else None


def _verdict(certified: Certified) -> Markup:
    kind, _, rest = certified.verdict.partition(": ")
    chip = tag("span", kind.capitalize(), class_=f"status {'ok' if certified.passed else 'failed'}")
    return joined(chip, f" {rest}; pixels {certified.pixels}")


def _picture(box: tuple[int, int], shape: tuple[int, int], description: str, *parts: Markup | None) -> Markup:
    """A drawing in units of a box, shown at most as large as its pictures are; both ``(height, width)``."""
    (height, width), (down, across) = box, shape
    about = tag("title", description)
    return tag("svg", about, *parts, role="img", class_="picture", viewBox=f"0 0 {width} {height}", width=across, height=down)


def _image(picture: Picture, description: str, **attributes: str | float | bool | None) -> Markup:
    height, width = picture.shape
    return tag("img", src=data_url(picture), alt=description, width=width, height=height, **attributes)


def chosen(prediction: Prediction) -> tuple[str, float | None]:
    """The class of interest (without one the answer) and its probability; None for a regression."""
    target = prediction.usual_target
    return target.name, prediction.probability_of(target)


def per_cent(share: float | None) -> str:
    """A share in words."""
    return "not measured" if share is None else f"{share:.1%}"
