"""Figures for papers: tissue and colours are pixels, all else stays vectors, and the size is what was asked for."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from streamview.errors import StreamviewError
from streamview.geometry import Region
from streamview.results import RESEARCH_USE, Saliency
from streamview.results.legend import scale_bar, unit
from streamview.slides import as_slide, open_slide
from tests.support.slides import SyntheticSlide
from tests.test_exports import planted

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def maps(synthetic_slide: SyntheticSlide) -> Saliency:
    """A disc on the absolute map, and on that of evidence."""
    region = Region(500, 700, 512, 768)
    rows, columns = np.mgrid[:64, :96]
    mask = np.hypot(rows - 32, columns - 40) < 20
    with open_slide(synthetic_slide.path) as slide:
        result = planted(mask, slide, region, 8)
    result.maps["evidence"] = replace(result.maps["absolute"], method="evidence")
    return result


def test_a_saved_figure_has_two_pictures_and_vectors(maps: Saliency, synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    with open_slide(synthetic_slide.path) as slide:
        axes = maps.plot(slide=slide)
    axes.figure.savefig(tmp_path / "a.svg", metadata={"Date": None})
    drawing = ElementTree.parse(tmp_path / "a.svg").getroot()
    assert len(list(drawing.iter(f"{SVG}image"))) == 2  # tissue and colours
    assert float(drawing.get("width", "").removesuffix("pt")) == pytest.approx(85 / 25.4 * 72)
    outlines = [group for group in drawing.iter(f"{SVG}g") if group.get("id", "").startswith("LineCollection")]
    assert len(outlines) >= 2  # halo and line
    assert all(re.search(r"[ML] [\d.]+ [\d.]+", path.get("d", "")) for group in outlines[:2] for path in group.iter(f"{SVG}path"))
    axes.figure.savefig(tmp_path / "a.pdf")
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert b"/Font" in pdf  # text, not pictures of it


def test_the_axes_say_what_is_shown_where_and_how_strong(maps: Saliency) -> None:
    axes = maps.plot()
    region = maps.prediction.region
    assert (axes.get_xlim(), axes.get_ylim()) == ((region.x, region.x_stop), (region.y_stop, region.y))
    texts = [text.get_text() for text in axes.texts]
    assert texts == [scale_bar(region.width, 0.5)[1], RESEARCH_USE] == ["50 um", RESEARCH_USE]
    (bar,) = (line for line in axes.lines)
    assert np.ptp(bar.get_xdata()) == 100  # level-0 px
    (colours,) = (other for other in axes.figure.axes if other is not axes)
    assert colours.get_ylabel() == "Class evidence for lesion (logits)"
    assert colours.get_ylim() == (0, pytest.approx(1, rel=0.05))
    assert maps.plot(preset="paper").figure.axes[1].get_ylabel() == "Largest |gradient| for lesion (logits per unit of normalised input)"


def test_axes_of_ones_own_keep_their_figures_size(maps: Saliency) -> None:
    figure = Figure(figsize=(6, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    assert maps.plot(left, preset="paper") is left
    maps.plot(right)
    figure.canvas.draw()
    assert tuple(figure.get_size_inches()) == (6, 3)
    assert len(figure.axes) == 4


def test_another_slide_or_a_map_that_is_not_there_is_refused(maps: Saliency) -> None:
    with pytest.raises(StreamviewError, match="is not the slide that the map explains; pass that slide, or none"):
        maps.plot(slide=as_slide(np.zeros((64, 64, 3), np.uint8)))
    with pytest.raises(StreamviewError, match="no patches map here"):
        maps.plot(preset="patches")


def test_a_scale_bar_is_round_and_at_most_a_quarter(maps: Saliency) -> None:
    assert scale_bar(8192, 0.25) == (2000.0, "500 um")
    assert scale_bar(40000, 0.5) == (10000.0, "5 mm")
    assert scale_bar(900, None) == (200, "200 px of level 0 (mpp unknown)")
    regression = replace(maps, prediction=replace(maps.prediction, task="regression"))
    assert [unit(regression, method) for method in ("evidence", "patches")] == ["output", "output"]
    assert unit(maps, "patches") == "probability"
