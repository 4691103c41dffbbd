"""Micrometres per pixel, by any unit and spelling, and what is not believed."""

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from streamview.slides import open_slide
from streamview.slides.slide import positive_mpp
from streamview.slides.units import micrometres, number

# unit of the schema and its spellings: micrometres in one
SPELLINGS = {
    1.0: ["µm", "\u03bcm", "\u00b5m", "um", "UM", "micron", "Microns", "micrometer", "micrometre", "Micrometers", "\u00c2\u00b5m", " µm "],
    1e-3: ["nm", "NM", "nanometer", "nanometres"],
    1e-4: ["Å", "\u00c5", "\u212b", "A\u030a", "angstrom", "Ångström", "Angstroms"],
    1e3: ["mm", "MM", "millimeter", "Millimetre"],
    1e4: ["cm", "CM", "centimeter"],
    1e6: ["m", "M", "meter", "metres"],
    25400.0: ["in", "inch", "Inches", "IN"],
    25400 / 72: ["pt", "point", "points"],
    25.4: ["thou", "mil"],
    1e-6: ["pm", "picometer"],
    304800.0: ["ft", "foot", "feet"],
}
CASES = [(spelling, factor) for factor, spellings in SPELLINGS.items() for spelling in spellings]
OME = (
    "Ym", "Zm", "Em", "Pm", "Tm", "Gm", "Mm", "km", "hm", "dam", "m", "dm", "cm", "mm", "µm", "nm", "pm", "fm", "am", "zm", "ym", "Å",
    "thou", "li", "in", "ft", "yd", "mi", "ua", "ly", "pc", "pt",
)  # fmt: skip
NGFF = (
    "angstrom", "attometer", "centimeter", "decimeter", "exameter", "femtometer", "foot", "gigameter", "hectometer", "inch", "kilometer",
    "megameter", "meter", "micrometer", "mile", "millimeter", "nanometer", "parsec", "petameter", "picometer", "terameter", "yard",
    "yoctometer", "yottameter", "zeptometer", "zettameter",
)  # fmt: skip


@given(st.sampled_from(CASES), st.floats(0.06, 19), st.booleans())
def test_any_spelling_times_any_value_is_the_mpp(case, mpp, comma):
    spelling, factor = case
    text = repr(mpp / factor)
    size = number(text.replace(".", ",") if comma else text)
    stated, source = positive_mpp(size * micrometres(spelling), None, "OME PhysicalSize")
    if stated is None:
        assert "dpi" in source
    else:
        assert stated == pytest.approx((mpp, mpp), rel=1e-6)


def test_all_units_of_the_schemas_are_known_and_told_apart_by_case():
    assert all(micrometres(unit) for unit in (*OME, *NGFF))
    assert micrometres("Mm") == pytest.approx(1e12)
    assert micrometres("mm") == pytest.approx(1e3)
    for unit in ("pixel", "reference frame", "", "s", "second", "parsnip"):
        assert micrometres(unit) is None


@given(st.floats(1e-12, 1e12), st.floats(0.25, 4))
def test_what_no_scan_has_is_unknown_with_a_reason(x, ratio):
    mpp, source = positive_mpp(x * ratio, x, "SOURCE")
    if mpp is None:
        assert source.startswith("unknown (SOURCE states")
        assert "--mpp" in source
    else:
        assert 0.0499 < min(mpp) <= max(mpp) < 20.01


def resolved(path, **options):
    tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint8), photometric="rgb", tile=(64, 64), **{"metadata": None} | options)
    with open_slide(path) as slide:
        return slide.mpp, slide.mpp_source


@pytest.mark.parametrize("dpi", [72, 96, 150, 300, 600, 1200, 2400])
@pytest.mark.parametrize("unit", [2, 3])
def test_resolutions_of_print_are_no_measurement(tmp_path, dpi, unit):
    value = dpi if unit == 2 else round(dpi / 2.54, 4)
    mpp, source = resolved(tmp_path / "a.tif", resolution=(value, value), resolutionunit=unit)
    assert mpp is None
    assert f"{dpi} dpi" in source


def test_resolutions_of_scans_are(tmp_path):
    assert resolved(tmp_path / "a.tif", resolution=(50800, 50800), resolutionunit=2)[0] == pytest.approx((0.5, 0.5))
    assert resolved(tmp_path / "b.tif", resolution=(1000, 1000), resolutionunit=3)[0] == pytest.approx((10, 10))
    assert resolved(tmp_path / "c.tif", resolution=(4, 4), resolutionunit=1) == (None, "unknown (TIFF resolution has no unit)")


@pytest.mark.parametrize("unit", ["micron", "um", "\\u00B5m", "mm"])
def test_resolutions_of_imagej_are_in_its_own_unit(tmp_path, unit):
    per_unit = 2000 if unit == "mm" else 2
    description = f"ImageJ=1.53t\nunit={unit}\n"
    mpp, source = resolved(tmp_path / "a.tif", resolution=(per_unit, per_unit), resolutionunit=1, description=description)
    assert (mpp, source) == (pytest.approx((0.5, 0.5)), "ImageJ resolution")


@pytest.mark.parametrize(
    ("sizes", "mpp"),
    [
        ({"PhysicalSizeX": 0.0005, "PhysicalSizeXUnit": "mm"}, (0.5, 0.5)),
        ({"PhysicalSizeY": 0.0005, "PhysicalSizeYUnit": "mm"}, (0.5, 0.5)),
        ({"PhysicalSizeX": 0.5, "PhysicalSizeY": 250, "PhysicalSizeYUnit": "nm"}, (0.25, 0.5)),
        ({"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "mm"}, None),
        ({"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "pixel"}, None),
        ({"PhysicalSizeX": 0, "PhysicalSizeY": 0}, None),
    ],
)
def test_sizes_of_ome_have_each_their_own_unit(tmp_path, sizes, mpp):
    stated, source = resolved(tmp_path / "a.ome.tif", ome=True, metadata={"axes": "YXS", **sizes})
    assert stated == (None if mpp is None else pytest.approx(mpp))
    assert source.startswith("OME PhysicalSize" if mpp else "unknown (OME PhysicalSize")
