"""Amounts, lengths and regions as people write them: every spelling means the same, and anything else is refused in one line."""

import os
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamview.errors import MemoryBudgetError, RegionError, StreamviewError
from streamview.geometry import Region, RegionText, as_region
from streamview.inference.explain import predict, saliency
from streamview.networks import load_model
from streamview.slides import as_slide
from streamview.streaming.memory import format_bytes, parse_bytes

PREFIXES = ("", "K", "M", "G", "T")


def one_line_or_read(read: Callable[[str], object], text: str) -> bool:
    """Whether a text is read, or refused in one line; any other error passes."""
    try:
        return bool(read(text))
    except StreamviewError as error:
        return len(str(error).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        *(("2G", 2**31), ("2GB", 2**31), ("2GiB", 2**31), ("2 GB", 2**31), (" 2 gib ", 2**31), ("512M", 2**29), ("512m", 2**29)),
        *(("1T", 2**40), ("64 kB", 2**16), ("7B", 7), ("1.5G", 3 * 2**29), (".5G", 2**29), ("2.G", 2**31)),
        *((1000, 1000), ("1000", 1000), (2e9, 2 * 10**9), (np.int64(4096), 4096)),
    ],
)
def test_amounts_of_memory(text: str | int, amount: int) -> None:
    assert parse_bytes(text) == amount


def test_a_share_is_of_all_memory() -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert parse_bytes("50%") == parse_bytes(" 50 % ")
    assert 0 < parse_bytes("50%") <= machine // 2
    assert (parse_bytes("50%", 1000), parse_bytes("12.5 %", 1000), parse_bytes("100%", 1000)) == (500, 125, 1000)
    with pytest.raises(MemoryBudgetError, match="at most 100%"):
        parse_bytes("101%")


@given(
    st.integers(1, 10**6),
    st.sampled_from(PREFIXES),
    st.sampled_from(("", "B", "iB")),
    st.sampled_from(("", " ", "  ")),
    st.sampled_from((str.upper, str.lower, str)),
)
def test_every_spelling_of_an_amount_is_the_same(number: int, prefix: str, unit: str, space: str, write: Callable[[str], str]) -> None:
    assert parse_bytes(f"{number}{space}{write(prefix + unit)}") == number * 1024 ** PREFIXES.index(prefix)


@given(st.integers(1, 2**50))
def test_an_amount_written_for_people_is_read_back(amount: int) -> None:
    assert parse_bytes(format_bytes(amount)) == pytest.approx(amount, rel=0.5)


@pytest.mark.parametrize(
    "text", ["", "GB", "-1GB", "two", 0, -5, "0GB", "0%", "2X", "2GX", "nan", "inf", "1_000", "2,5GB", "%", "5%B", "9" * 400, True, "٣GB"]
)
def test_what_is_no_amount(text: str | int) -> None:
    with pytest.raises(MemoryBudgetError, match="expected an amount such as 2GB"):
        parse_bytes(text)


@given(st.one_of(st.text(max_size=8), st.from_regex(r"[0-9.]{0,4} ?[kMGT%iB]{0,3}", fullmatch=True)))
def test_any_text_is_an_amount_or_refused_in_one_line(text: str) -> None:
    assert one_line_or_read(parse_bytes, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,2,3,4", Region(2, 1, 4, 3)),
        (" 1 , 2 , 3 , 4 ", Region(2, 1, 4, 3)),
        ("1 2 3 4", Region(2, 1, 4, 3)),
        ("1,2,3x4", Region(2, 1, 4, 3)),
        ("1 2 3 × 4", Region(2, 1, 4, 3)),
        ("1px,2PX,3.0,4 px", Region(2, 1, 4, 3)),
        ("500um,0.5mm,100,200", Region(2000, 1000, 200, 100)),
        ("1mm 500 um 2048x2048", Region(2000, 2000, 2048, 2048)),
        ("1µm,1μm,10um,0.01MM", Region(4, 2, 40, 20)),
    ],
)
def test_regions(text: str, expected: Region) -> None:
    assert Region.parse(text, (0.25, 0.5)) == expected


@given(
    st.tuples(*[st.integers(0, 10**6)] * 2, *[st.integers(1, 10**6)] * 2),
    st.tuples(*[st.sampled_from(("", "px", " px", "um", " µm", "mm"))] * 4),
    st.sampled_from((",", ", ", " ")),
    st.tuples(*[st.sampled_from((0.2, 0.2431, 0.499, 0.5, 1.0, 7.5))] * 2),
)
def test_any_mixture_of_units_is_the_same_region(
    numbers: tuple[int, ...], units: tuple[str, ...], separator: str, mpp: tuple[float, float]
) -> None:
    scales = {"": 0.0, "px": 0.0, "um": 1.0, "µm": 1.0, "mm": 1e-3}
    parts = []
    for number, unit, um in zip(numbers, units, (mpp[1], mpp[0]) * 2, strict=True):
        scale = scales[unit.strip()]
        parts.append(f"{number if not scale else number * um * scale:.9f}{unit}" if scale else f"{number}{unit}")
    x, y, width, height = numbers
    assert Region.parse(separator.join(parts), mpp) == Region(y, x, height, width)


@given(st.one_of(st.text(max_size=12), st.from_regex(r"(-?[0-9]{1,3}(\.5|um|mm|px|)[, x]){3,5}", fullmatch=True)))
def test_any_text_is_a_region_or_refused_in_one_line(text: str) -> None:
    assert one_line_or_read(lambda written: Region.parse(written, (0.5, 0.5)), text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        *(("1,2,3", "expected X,Y"), ("1,2,3,4,5", "expected X,Y"), ("", "expected X,Y"), ("1,2,3,4cm", "expected X,Y")),
        *(("0,5mm,1,2,3", "expected X,Y"), ("1.5,2,3,4", "whole numbers"), ("1,2,inf,4", "expected X,Y"), ("9" * 400 + ",2,3,4", "whole")),
        *(
            ("-5,0,10,10", "starts outside"),
            ("0,-1um,10,10", "starts outside"),
            ("0,0,0,10", "must be positive"),
            ("0,0,10,-1um", "must be positive"),
        ),
        ("0,0,0.1um,10", "less than a pixel"),
    ],
)
def test_what_is_no_region(text: str, reason: str) -> None:
    with pytest.raises(RegionError, match=reason):
        Region.parse(text, (0.5, 0.5))


def test_a_length_needs_the_mpp_and_a_pixel_does_not() -> None:
    assert RegionText.parse("1,2,3,4").on(None) == Region(2, 1, 4, 3)
    with pytest.raises(RegionError, match=r"'1,2,3um,4': the mpp of a\.tif is unknown; give the region in pixels"):
        RegionText.parse("1,2,3um,4").on(None, "a.tif")


def test_whole_numbers_of_any_type_make_a_region() -> None:
    region = Region(np.int64(1), np.float32(2.0), 3.0, np.array(4))  # type: ignore[arg-type]
    assert region == Region(1, 2, 3, 4)
    assert {type(value) for value in (region.y, region.x, region.height, region.width)} == {int}
    for wrong in (1.5, float("nan"), float("inf"), "1", None, [1]):
        with pytest.raises(RegionError, match=r"x=.*expected a whole number of pixels"):
            Region(0, wrong, 3, 4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ((0, 0, 512, 512), "order of bare numbers is not guessed"),
        ([0, 0, 512, 512], "order of bare numbers is not guessed"),
        (np.array([0, 0, 512, 512]), "of type ndarray"),
        ("lesion", "a class to explain is target='lesion'"),
        (Region, "is the class Region"),
    ],
)
def test_what_is_no_region_is_refused_everywhere_with_the_remedy(wrong: object, remedy: str) -> None:
    pixels, network = np.full((300, 300, 3), 200, np.uint8), load_model("demo")
    for call in (
        lambda: as_region(wrong),
        lambda: predict(network, pixels, wrong, mpp=0.5),  # type: ignore[arg-type]
        lambda: saliency(network, pixels, wrong, mpp=0.5),  # type: ignore[arg-type]
        lambda: as_slide(pixels).read(wrong),  # type: ignore[arg-type]
    ):
        with pytest.raises(RegionError, match=r"streamview\.Region\(y=\.\.\., x=\.\.\., height=\.\.\., width=\.\.\.\)") as refusal:
            call()
        assert remedy in str(refusal.value)
